import { createReadStream, createWriteStream } from "node:fs";
import { rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { pipeline } from "node:stream/promises";
import { DIR } from "../sandbox.ts";
import type { Measurement } from "./measurement.ts";

/** Backups by the R2 binding, beside what the binding and the tools take by themselves. There is no network in it. */

const ARCHIVE = "/var/backups/bench/alone.sqsh";
const KEY = "alone.sqsh";

const localBucket: Measurement = {
  id: "local-bucket",
  data: "node-app",
  profile: "lan",
  rows: [
    { title: "localBucket create", ours: "create", baseline: "mksquashfs + bare put", references: [] },
    { title: "localBucket restore", ours: "restore", baseline: "bare get + unsquashfs" },
  ],
  targets: [
    {
      requirement: "create, of mksquashfs and a bare put",
      measured: (median) => median("create") / median("mksquashfs + bare put"),
      unit: "ratio",
      limit: { atMost: 1.3 },
    },
    {
      requirement: "restore, of a bare get and unsquashfs",
      measured: (median) => median("restore") / median("bare get + unsquashfs"),
      unit: "ratio",
      limit: { atMost: 1.3 },
    },
  ],
  async prepare(context) {
    const { system } = context;
    const sandbox = await context.filled({ path: "localBucket" });
    const before = await sandbox.digest();
    let { handle } = await sandbox.createBackup();
    await sandbox.exec(`rm -rf ${DIR} && mkdir ${DIR}`);
    await sandbox.restoreBackup(handle);
    context.assertSame("a restore by localBucket", before, await sandbox.digest());

    const archive = await sandbox.outside(ARCHIVE);
    const fetched = join(system.directory, KEY);
    const put = async () => {
      const { size } = await stat(archive);
      await system.ask("PUT", `/object?key=${KEY}`, { stream: createReadStream(archive), size });
    };
    const get = () =>
      system.ask("GET", `/object?key=${KEY}`, undefined, async (answer) => {
        await pipeline(answer, createWriteStream(fetched));
        return "";
      });
    return {
      series: {
        "mksquashfs + bare put": async () => {
          const { duration } = await sandbox.tool("compress", { dir: DIR, archive: ARCHIVE });
          return { duration: duration + (await elapsed(put)) };
        },
        create: async () => {
          await forget(handle.id);
          const created = await sandbox.createBackup();
          handle = created.handle;
          return { duration: created.duration };
        },
        "bare get + unsquashfs": async () => {
          const fetching = await elapsed(get);
          await rm(fetched);
          const dir = "/workspace/extracted";
          const { duration } = await sandbox.tool("extract", { archive: ARCHIVE, dir });
          await sandbox.exec(`rm -rf ${dir}`);
          return { duration: duration + fetching };
        },
        restore: async () => ({ duration: await sandbox.restoreBackup(handle) }),
      },
    };

    async function forget(id: string): Promise<void> {
      for (const name of ["data.sqsh", "meta.json"]) await system.ask("DELETE", `/object?key=backups/${id}/${name}`);
    }
  },
};

async function elapsed(work: () => Promise<unknown>): Promise<number> {
  const start = performance.now();
  await work();
  return performance.now() - start;
}

export const LOCAL_BUCKET: readonly Measurement[] = [localBucket];

import { createHash, randomBytes, randomUUID } from "node:crypto";
import { beforeAll, describe, expect, test } from "vitest";
import type { DirectoryBackup } from "../../src/backups/options.js";
import type { TestSandbox } from "../support/client.js";
import { needsPath, newSandbox, system, worker } from "./context.js";
import { tracesOf } from "./traces.js";

/** Stores an archive as a backup that fits it; without `digest` as an older writer did, which recorded none. */
async function storeBackup(
  content: Buffer,
  { digest, localBucket }: { digest: boolean; localBucket: boolean },
): Promise<DirectoryBackup> {
  const id = randomUUID();
  const etag = await worker.putObject(`backups/${id}/data.sqsh`, content);
  const sha256 = createHash("sha256").update(content).digest("hex");
  const createdAt = new Date().toISOString();
  const metadata = { id, dir: "/workspace/dir", name: null, sizeBytes: content.length, ttl: 3600, createdAt };
  await worker.putObject(`backups/${id}/meta.json`, JSON.stringify({ ...metadata, ...(digest && { etag, sha256 }) }));
  return { id, dir: "/workspace/dir", ...(localBucket && { localBucket }) };
}

/** All that a restore that fails must not change: files, times to the nanosecond, mounts, servers and the agent's files. */
async function stateOf(sandbox: TestSandbox, dir: string) {
  const times = await sandbox.exec(`find '${dir}' -printf '%P %T@\\n' | sort`);
  return { files: await sandbox.manifest(dir), times, traces: await tracesOf(sandbox) };
}

/** An archive of 4 MiB that does not compress. */
let archive: Buffer;

beforeAll(async () => {
  const sandbox = newSandbox();
  await sandbox.exec("mkdir -p dir/sub && head -c 4M /dev/urandom > dir/random && seq 100000 > dir/numbers");
  const { id } = await sandbox.createBackup({ dir: "/workspace/dir", localBucket: true });
  archive = await worker.getObject(`backups/${id}/data.sqsh`);
});

describe.each([
  { path: "production", localBucket: false, isMounted: false, over: "a plain directory" },
  { path: "production", localBucket: false, isMounted: true, over: "a mounted and edited directory" },
  { path: "localBucket", localBucket: true, isMounted: false, over: "a plain directory" },
  { path: "localBucket", localBucket: true, isMounted: true, over: "a mounted and edited directory" },
])("by the $path path over $over", ({ localBucket, isMounted }) => {
  needsPath(localBucket && !isMounted);

  async function prepare(sandbox = newSandbox()): Promise<TestSandbox> {
    await sandbox.makeTree("random", "/workspace/dir", 7);
    await sandbox.exec("mkdir dir/inner && echo first > dir/version && touch -d @1000000000.123456789 dir");
    if (isMounted) {
      const backup = await sandbox.createBackup({ dir: "/workspace/dir" });
      // What is fetched while it is read changes its mounts by itself when all of it is there.
      await sandbox.restoreBackup(backup, { lazy: false });
      await sandbox.restoreBackup({ ...backup, dir: "/workspace/dir/inner" }, { lazy: false });
    }
    await sandbox.exec("echo edited > dir/version; echo edited > dir/inner/file; setfattr -n user.a -v b dir");
    // The kernel and a FUSE server may have slightly different times for what was just written.
    await sandbox.exec("touch -d @1000000000.123456789 dir/version dir/inner/file dir/inner dir");
    return sandbox;
  }

  async function expectRefused(sandbox: TestSandbox, backup: DirectoryBackup): Promise<string> {
    const before = await stateOf(sandbox, "/workspace/dir");
    const error = await sandbox.fail("restoreBackup", [backup]);
    const context = { dir: "/workspace/dir", backupId: backup.id };
    expect(error).toMatchObject({
      name: "BackupRestoreError",
      code: "BACKUP_RESTORE_FAILED",
      httpStatus: 500,
      context,
    });
    expect(await stateOf(sandbox, "/workspace/dir")).toEqual(before);
    return error.message;
  }

  test("archives that are none, cut off or empty are refused, and all is as before", async () => {
    const sandbox = await prepare();
    for (const content of [randomBytes(20_000), archive.subarray(0, archive.length >> 1), Buffer.alloc(0)]) {
      await expectRefused(sandbox, await storeBackup(content, { digest: content.length > 0, localBucket }));
    }
  });

  // It takes the right to mount.
  test("an archive that does not fit into the agent's store is refused, and all is as before", {
    meta: { mounts: true },
  }, async () => {
    const sandbox = newSandbox();
    await sandbox.exec("mount -t tmpfs -o size=3m tmpfs /var/backups");
    await prepare(sandbox);
    const backup = await storeBackup(archive, { digest: true, localBucket });

    expect(await expectRefused(sandbox, backup)).toContain("No space left");
  });

  test("a damaged archive is refused by its digest, and all is as before", async () => {
    const sandbox = await prepare();
    const backup = await storeBackup(archive, { digest: true, localBucket });
    const damaged = Buffer.from(archive);
    damaged.writeUInt8(damaged.readUInt8(2_000_000) ^ 1, 2_000_000);
    const etag = await worker.putObject(`backups/${backup.id}/data.sqsh`, damaged);
    const metadata = JSON.parse((await worker.getObject(`backups/${backup.id}/meta.json`)).toString());
    await worker.putObject(`backups/${backup.id}/meta.json`, JSON.stringify({ ...metadata, etag }));

    expect(await expectRefused(sandbox, backup)).toContain("SHA-256");
  });

  if (isMounted && !localBucket) {
    test.for([
      { stack: "kernel", program: "mount" },
      { stack: "fuse", program: "fuse-overlayfs" },
    ])(
      "the old mounts of $stack come back when the new one fails at the last step",
      async ({ stack, program }, { skip }) => {
        skip(
          stack === "kernel" && !system.hasKernelLayers,
          "this runtime's kernel does not serve restored directories",
        );
        const sandbox = await prepare(newSandbox({ SANDBOX_BACKUP_LAYERS: stack }));
        const backup = await storeBackup(archive, { digest: true, localBucket });
        // The next program of this name that is to mount over the directory fails, and only that.
        const fail = "mv /root/fail /root/failed 2> /dev/null && echo the test says no >&2 && exit 1";
        const wrapper = `#!/bin/sh\ncase "$*" in *upperdir*/workspace/dir) ${fail};; esac\nexec /root/real/${program} "$@"\n`;
        await sandbox.do("writeFile", ["/root/wrapper", wrapper]);
        await sandbox.exec(
          `mkdir /root/real && cp /usr/bin/${program} /root/real && chmod +x /root/wrapper && mount --bind /root/wrapper /usr/bin/${program}`,
        );
        const hold =
          "sh -c 'echo written >&3; echo > /root/holds; exec sleep 600' 3> dir/inner/open > /dev/null 2>&1 &";
        await sandbox.exec(
          `${hold} while [ ! -e /root/holds ]; do :; done; touch -d @1000000000 dir/inner/open dir/inner`,
        );
        const before = await stateOf(sandbox, "/workspace/dir");
        await sandbox.exec("touch /root/fail");

        const error = await sandbox.fail("restoreBackup", [backup]);

        expect(error.message).toContain("the test says no");
        // The server of a mount that was taken off serves on while a process has a file of it open.
        const after = await stateOf(sandbox, "/workspace/dir");
        expect({ ...after, traces: { ...after.traces, processes: [] } }).toEqual({
          ...before,
          traces: { ...before.traces, processes: [] },
        });
        expect(await sandbox.exec("cat dir/inner/open")).toBe("written\n");

        // What was put back can be replaced like any other, the inner one first.
        await sandbox.restoreBackup({ ...backup, dir: "/workspace/dir/inner", localBucket: true });
        expect(await sandbox.exec("ls dir/inner; cat dir/version")).toBe("numbers\nrandom\nsub\nedited\n");
        await sandbox.restoreBackup(backup);
        expect(await sandbox.exec("ls dir")).toBe("numbers\nrandom\nsub\n");
      },
    );
  }
});

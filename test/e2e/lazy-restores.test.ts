import { beforeAll, describe, expect, test } from "vitest";
import type { DirectoryBackup } from "../../src/backups/options.js";
import { MiB } from "../../src/protocol.js";
import { eventually } from "../support/eventually.js";
import { CACHE, NO_CACHE, needsPath, newFaultySandbox, newSandbox, system, worker } from "./context.js";
import { expectMounted, NO_TRACES, tracesOf } from "./traces.js";

/** Restores of archives so large that they are mounted before they are fetched. */

const dir = "/workspace/dir";
const FILES = ["a", "b", "c", "d"];
const MAKE = `mkdir -p ${dir} && cd ${dir} && seq 1000 > numbers && for i in ${FILES.join(" ")}; do head -c 9M /dev/urandom > $i; done`;
/** The program that serves an archive that is not all there. */
const SERVER = "[s]erve-archive";

let backup: DirectoryBackup;
let sums: string;

needsPath(false);

beforeAll(async () => {
  if (!system.hasProduction) return;
  const sandbox = newSandbox();
  await sandbox.exec(MAKE);
  sums = await sandbox.exec(`cd ${dir} && sha256sum *`);
  backup = await sandbox.createBackup({ dir });
});

const phasesOf = (progress: readonly { phase: string }[]) => [...new Set(progress.map(({ phase }) => phase))];

test("the directory is there before its archive, and nothing has to be fetched again when all of that is", async () => {
  const sandbox = newSandbox(CACHE);

  expect(phasesOf(await sandbox.restoreBackup(backup))).toEqual(["mount"]);
  expect(await sandbox.exec(`cd ${dir} && sha256sum *`)).toBe(sums);
  await sandbox.exec(`cd ${dir} && echo more >> numbers && rm a`);
  const archive = `/var/backups/sandbox-backup/archives/${backup.id}.sqsh`;
  await eventually(() => sandbox.exec(`test -e ${archive} && echo there || true`).then((there) => there === "there\n"));
  await sandbox.restoreBackup(backup);

  expect(await sandbox.exec(`cd ${dir} && sha256sum *`)).toBe(sums);
  const stored = await worker.getObject(`backups/${backup.id}/data.sqsh`);
  expect(Number(await sandbox.exec(`stat -c %s ${archive}`))).toBe(stored.length);
  // What served the archive has ended with the mount over it.
  await expectMounted(sandbox, dir);
});

test("the kernel reads the archive by itself when all of it is there", async ({ skip }) => {
  skip(!system.hasKernelLayers, "this runtime's kernel does not serve restored directories");
  const sandbox = newSandbox({ SANDBOX_BACKUP_LAYERS: "kernel" });
  await sandbox.restoreBackup(backup);
  await sandbox.exec(`cd ${dir} && (tail -f a > /dev/null & echo $! > /tmp/reader)`);

  await eventually(() => tracesOf(sandbox).then(({ served }) => served.length === 0));

  expect(await sandbox.exec(`ps ax -o args | grep -c '${SERVER}' || true`)).toBe("0\n");
  await sandbox.exec(`cd ${dir} && for file in *; do dd if=$file iflag=nocache count=0 status=none; done`);
  expect(await sandbox.exec(`cd ${dir} && sha256sum *`)).toBe(sums);
  await sandbox.exec("kill $(cat /tmp/reader)");
  await expectMounted(sandbox, dir);
  await sandbox.restoreBackup(backup);
  expect(await sandbox.exec(`cd ${dir} && sha256sum *`)).toBe(sums);
});

test("with `lazy: false` all of the archive is fetched first", async () => {
  const sandbox = newSandbox();

  expect(phasesOf(await sandbox.restoreBackup(backup, { lazy: false }))).toEqual(["download", "mount"]);
  expect(await sandbox.exec(`cd ${dir} && sha256sum *`)).toBe(sums);
  await expectMounted(sandbox, dir);
});

test("SANDBOX_BACKUP_LAZY tells how small an archive may be for that", async () => {
  const sandbox = newSandbox({ SANDBOX_BACKUP_LAZY: "0", ...NO_CACHE });
  await sandbox.makeTree("special", dir);
  const before = await sandbox.manifest(dir);

  expect(phasesOf(await sandbox.restoreBackup(await sandbox.createBackup({ dir })))).toEqual(["mount"]);
  expect(await sandbox.manifest(dir)).toBe(before);
});

test("an archive without digests of its parts is fetched first", async () => {
  const sandbox = newSandbox();
  const key = `backups/${backup.id}/meta.json`;
  const metadata = await worker.getObject(key);
  const { digests: _digests, ...older } = JSON.parse(metadata.toString());
  await worker.putObject(key, JSON.stringify(older));
  try {
    expect(phasesOf(await sandbox.restoreBackup(backup))).toEqual(["download", "mount"]);
  } finally {
    await worker.putObject(key, metadata);
  }
});

test("a byte that is not what was stored is never read", async () => {
  const sandbox = newSandbox();
  const maker = newSandbox();
  await maker.exec(MAKE);
  const damagedBackup = await maker.createBackup({ dir });
  const [archiveKey, metadataKey] = [`backups/${damagedBackup.id}/data.sqsh`, `backups/${damagedBackup.id}/meta.json`];
  const archive = await worker.getObject(archiveKey);
  archive.writeUInt8(archive.readUInt8(20 * MiB) ^ 1, 20 * MiB);
  const etag = await worker.putObject(archiveKey, archive);
  const metadata = JSON.parse((await worker.getObject(metadataKey)).toString());
  await worker.putObject(metadataKey, JSON.stringify({ ...metadata, etag }));

  await sandbox.restoreBackup(damagedBackup);

  const original = (await maker.exec(`cd ${dir} && sha256sum *`)).split("\n");
  const read = await sandbox.exec(`cd ${dir} && sha256sum * 2> /root/errors; cat /root/errors >&2; true`);
  const lines = read.split("\n").filter(Boolean);
  expect(lines.length).toBeLessThan(FILES.length + 1);
  for (const line of lines) expect(original).toContain(line);
  expect(await sandbox.exec("cat /root/errors")).toContain("Input/output error");
});

describe.skipIf(system.faults === undefined)("while the archive is being fetched,", () => {
  /** Lets so much through that the directory can be mounted. */
  const MOUNTED = 6;

  test("an expired URL is renewed by the Durable Object", async () => {
    const { sandbox, faults } = await newFaultySandbox();
    await faults.set([{ method: "GET", after: MOUNTED, times: 1, status: 403, code: "ExpiredRequest" }]);
    await sandbox.restoreBackup(backup);

    expect(await sandbox.exec(`cd ${dir} && sha256sum *`)).toBe(sums);
    const refused = (await faults.requests()).filter(({ status }) => status === 403);
    expect(refused.length).toBeGreaterThan(0);
  });

  test("failures of the network are overcome", async () => {
    const { sandbox, faults } = await newFaultySandbox(1_000);
    await faults.set([
      { method: "GET", after: MOUNTED, times: 1, status: 500 },
      { method: "GET", after: MOUNTED, times: 1, instead: "reset" },
      { method: "GET", after: MOUNTED, times: 1, lose: "half" },
      { method: "GET", after: MOUNTED, times: 1, instead: "hang" },
    ]);
    await sandbox.restoreBackup(backup);

    expect(await sandbox.exec(`cd ${dir} && sha256sum *`)).toBe(sums);
  });

  test.each([
    { what: "has lost it", fault: { status: 404, code: "NoSuchKey" } },
    { what: "has another of that name", fault: { status: 412, code: "PreconditionFailed" } },
    { what: "refuses it", fault: { status: 403, code: "AccessDenied" } },
    { what: "never answers", fault: { instead: "hang" as const } },
  ])("a bucket that $what makes reads fail, and nothing else", async ({ fault }) => {
    const { sandbox, faults } = await newFaultySandbox(1_000);
    await sandbox.exec(`mkdir ${dir} && echo before > ${dir}/before`);
    await faults.set([{ method: "GET", after: MOUNTED, ...fault }]);
    await sandbox.restoreBackup(backup);

    const read = await sandbox.exec(`cd ${dir} && cat d 2>&1 > /dev/null; echo new > new && cat new`);

    expect(read).toContain("Input/output error");
    expect(read).toContain("new\n");
    // With the bucket back, so is the directory.
    await faults.set([]);
    await sandbox.restoreBackup(backup);
    expect(await sandbox.exec(`cd ${dir} && sha256sum *`)).toBe(sums);
    await expectMountedOnce(sandbox);
  });

  test("a bucket that refuses all of it makes the restore fail with its reason, and the directory stays", async () => {
    const { sandbox, faults } = await newFaultySandbox();
    await sandbox.exec(`mkdir ${dir} && echo before > ${dir}/before`);
    await faults.set([{ method: "GET", status: 403, code: "AccessDenied" }]);

    const error = await sandbox.fail("restoreBackup", [backup]);

    expect(error).toMatchObject({ code: "BACKUP_RESTORE_FAILED", context: { dir, backupId: backup.id } });
    expect(error.message).toContain("HTTP 403");
    expect(await sandbox.exec(`cat ${dir}/*`)).toBe("before\n");
    expect(await tracesOf(sandbox)).toEqual(NO_TRACES);
  });

  test("killing what serves it makes reads fail, and the next restore works", async () => {
    const { sandbox, faults } = await newFaultySandbox();
    await faults.set([{ method: "GET", after: MOUNTED, instead: "hang" }]);
    await sandbox.restoreBackup(backup);
    // A read that waits, too.
    const reading = sandbox.exec(`cat ${dir}/a ${dir}/b ${dir}/c ${dir}/d > /dev/null 2>&1; echo $?`);
    await sandbox.exec(`sleep 0.5; kill -9 $(ps ax -o pid,args | awk '/${SERVER}/ { print $1 }')`);

    expect(await reading).toBe("1\n");
    await faults.set([]);
    await sandbox.restoreBackup(backup);
    expect(await sandbox.exec(`cd ${dir} && sha256sum *`)).toBe(sums);
    await expectMountedOnce(sandbox);
  });

  test("it can be backed up, replaced and destroyed", async () => {
    const { sandbox, faults } = await newFaultySandbox(1_000);
    await faults.set([{ method: "GET", after: MOUNTED, times: 4, instead: "hang" }]);
    await sandbox.restoreBackup(backup);
    await sandbox.exec(`mkdir -p /workspace/other && echo other > /workspace/other/file`);
    const other = await sandbox.createBackup({ dir: "/workspace/other" });

    await sandbox.restoreBackup({ ...other, dir });

    expect(await sandbox.exec(`cat ${dir}/file`)).toBe("other\n");
    await expectMounted(sandbox, dir);
    await sandbox.restoreBackup(backup);
    await sandbox.do("destroy", []);
    expect(await sandbox.exec("ls")).toBe("");
  });

  /** One directory is mounted, of an archive that is served or not, and nothing is left of another. */
  async function expectMountedOnce(sandbox: Parameters<typeof tracesOf>[0]): Promise<void> {
    const { mounts, stored } = await tracesOf(sandbox);
    expect(stored).toHaveLength(1);
    expect(mounts.filter((mount) => mount === dir)).toHaveLength(1);
    expect(mounts.length).toBeLessThanOrEqual(3);
  }
});

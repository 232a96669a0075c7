import { createHash, randomUUID } from "node:crypto";
import { describe, expect, test } from "vitest";
import type { DirectoryBackup } from "../../src/backups/options.js";
import { MiB } from "../../src/protocol.js";
import type { CallError, TestSandbox } from "../support/client.js";
import { eventually } from "../support/eventually.js";
import type { Fault } from "../support/fault-proxy.js";
import { NO_CACHE, needsPath, newFaultySandbox, newSandbox, system, worker } from "./context.js";

const dir = "/workspace/dir";
const archiveKey = ({ id }: DirectoryBackup) => `backups/${id}/data.sqsh`;
const metadataKey = ({ id }: DirectoryBackup) => `backups/${id}/meta.json`;

type Metadata = Record<string, unknown>;

const readMetadata = async (backup: DirectoryBackup) =>
  JSON.parse((await worker.getObject(metadataKey(backup))).toString()) as Metadata;

async function changeMetadata(backup: DirectoryBackup, change: Metadata): Promise<void> {
  await worker.putObject(metadataKey(backup), JSON.stringify({ ...(await readMetadata(backup)), ...change }));
}

/** A copy of a backup under an id of its own, with another archive. */
async function copyWith(backup: DirectoryBackup, archive: Buffer): Promise<DirectoryBackup> {
  const copy = { ...backup, id: randomUUID() };
  const etag = await worker.putObject(archiveKey(copy), archive);
  const metadata = { ...(await readMetadata(backup)), id: copy.id, etag };
  await worker.putObject(metadataKey(copy), JSON.stringify(metadata));
  return copy;
}

async function backUp(sandbox: TestSandbox, localBucket = false): Promise<DirectoryBackup> {
  await sandbox.exec("mkdir -p dir/sub && head -c 100000 /dev/urandom > dir/random && echo text > dir/sub/text");
  const backup = await sandbox.createBackup({ dir, localBucket });
  await sandbox.exec("echo edited > dir/sub/text && echo new > dir/new");
  return backup;
}

/** What a restore could change in a sandbox. */
async function stateOf(sandbox: TestSandbox): Promise<string> {
  const rest = await sandbox.exec(
    "cat /proc/self/mountinfo; find /var/backups /workspace -mindepth 1; ls /workspace -A",
  );
  return (await sandbox.manifest(dir)) + rest;
}

/** Restores a backup that is to be refused, and sees that nothing has changed. */
async function refuse(sandbox: TestSandbox, backup: DirectoryBackup): Promise<CallError> {
  const before = await stateOf(sandbox);
  const error = await sandbox.fail("restoreBackup", [backup]);
  expect(await stateOf(sandbox)).toBe(before);
  return error;
}

describe.each([
  { path: "production", localBucket: false },
  { path: "localBucket", localBucket: true },
])("restoreBackup by the $path path refuses, and changes nothing:", ({ localBucket }) => {
  needsPath(localBucket);

  const day = 86_400_000;
  test.each<{ what: string; damage: (backup: DirectoryBackup) => Promise<unknown>; error: Metadata; message: string }>([
    {
      what: "a backup without its archive",
      damage: (backup) => worker.deleteObject(archiveKey(backup)),
      error: { name: "BackupNotFoundError", code: "BACKUP_NOT_FOUND", httpStatus: 404 },
      message: "has lost its archive",
    },
    {
      what: "a backup without its metadata",
      damage: (backup) => worker.deleteObject(metadataKey(backup)),
      error: { name: "BackupNotFoundError", code: "BACKUP_NOT_FOUND", httpStatus: 404 },
      message: "was not found",
    },
    {
      what: "an expired backup",
      damage: (backup) => changeMetadata(backup, { createdAt: new Date(Date.now() - 4 * day).toISOString() }),
      error: { name: "BackupExpiredError", code: "BACKUP_EXPIRED", httpStatus: 400 },
      message: "has expired",
    },
    {
      what: "an archive of another size",
      damage: (backup) => worker.putObject(archiveKey(backup), "short"),
      error: { name: "BackupRestoreError", code: "BACKUP_RESTORE_FAILED", httpStatus: 500 },
      message: "The archive has 5 bytes",
    },
    {
      what: "an archive that was replaced by another of its size",
      damage: async (backup) => {
        const archive = await worker.getObject(archiveKey(backup));
        await worker.putObject(archiveKey(backup), Buffer.alloc(archive.length, 1));
      },
      error: { code: "BACKUP_RESTORE_FAILED" },
      message: "was changed after the backup was made",
    },
    {
      what: "metadata that is cut off",
      damage: async (backup) =>
        worker.putObject(metadataKey(backup), (await worker.getObject(metadataKey(backup))).subarray(0, 40)),
      error: { code: "BACKUP_RESTORE_FAILED" },
      message: "meta.json is damaged",
    },
    {
      what: "metadata with another digest",
      damage: (backup) =>
        changeMetadata(backup, {
          digests: { chunkSize: MiB, sha256: createHash("sha256").update("").digest("base64") },
        }),
      error: { code: "BACKUP_RESTORE_FAILED" },
      message: "The archive is damaged",
    },
    {
      what: "metadata with digests of a larger archive",
      damage: (backup) =>
        changeMetadata(backup, { digests: { chunkSize: 1, sha256: createHash("sha256").update("").digest("base64") } }),
      error: { code: "BACKUP_RESTORE_FAILED" },
      message: "its digests do not fit the archive's size",
    },
  ])("$what", async ({ damage, error: expected, message }) => {
    const sandbox = newSandbox(NO_CACHE);
    const backup = await backUp(sandbox, localBucket);
    await damage(backup);

    const error = await refuse(sandbox, backup);

    expect(error).toMatchObject({ ...expected, context: { backupId: backup.id } });
    expect(error.message).toContain(message);
  });

  test("a backup that there never was", async () => {
    const sandbox = newSandbox(NO_CACHE);
    await sandbox.exec("mkdir dir");

    const error = await refuse(sandbox, { id: randomUUID(), dir, ...(localBucket && { localBucket }) });

    expect(error.code).toBe("BACKUP_NOT_FOUND");
  });

  test("an archive of which one byte was changed, wherever it is", async () => {
    const sandbox = newSandbox(NO_CACHE);
    const backup = await backUp(sandbox, localBucket);
    const archive = await worker.getObject(archiveKey(backup));
    const { length } = archive;

    for (const position of [0, 8, 95, 96, length >> 2, length >> 1, length - 4097, length - 1]) {
      const changed = Buffer.from(archive);
      changed.writeUInt8(changed.readUInt8(position) ^ 0x10, position);
      const error = await refuse(sandbox, await copyWith(backup, changed));
      expect(error.code).toBe("BACKUP_RESTORE_FAILED");
      expect(error.message).toContain("The archive is damaged");
    }
    // It was the change that was refused, not the copy.
    await sandbox.restoreBackup(await copyWith(backup, archive));
  });
});

describe.skipIf(system.faults === undefined).concurrent("a download", () => {
  test.each<{ answer: string; fault: Fault; message: string; stallTimeout?: number }>([
    { answer: "403", fault: { status: 403, code: "AccessDenied" }, message: "HTTP 403 AccessDenied" },
    { answer: "404", fault: { status: 404, code: "NoSuchKey" }, message: "HTTP 404 NoSuchKey" },
    { answer: "412", fault: { status: 412, code: "PreconditionFailed" }, message: "HTTP 412 PreconditionFailed" },
    { answer: "500", fault: { status: 500 }, message: "HTTP 500 InternalError" },
    { answer: "200 and another body", fault: { status: 200 }, message: "a request for a range with the whole object" },
    { answer: "a reset", fault: { instead: "reset" }, message: "no answer from the bucket" },
    { answer: "half of it", fault: { lose: "half" }, message: "no answer from the bucket" },
    { answer: "nothing, ever", fault: { instead: "hang" }, message: "nothing moved for 1000 ms", stallTimeout: 1000 },
  ])(
    "that is answered with $answer fails the restore, which changes nothing",
    async ({ fault, message, stallTimeout }) => {
      const { sandbox, faults } = await newFaultySandbox(stallTimeout);
      const backup = await backUp(sandbox);
      await faults.set([{ method: "GET", ...fault }]);

      const error = await refuse(sandbox, backup);

      expect(error).toMatchObject({ code: "BACKUP_RESTORE_FAILED", context: { dir, backupId: backup.id } });
      expect(error.message).toContain(message);
      await faults.set([]);
      await sandbox.restoreBackup(backup);
      expect(await sandbox.exec("cat dir/sub/text")).toBe("text\n");
    },
  );

  test("of many ranges, whose one URL is refused for all of them, fails when the next is refused too", async () => {
    const { sandbox, faults } = await newFaultySandbox();
    await sandbox.exec("mkdir dir && head -c 20000000 /dev/urandom > dir/random");
    const backup = await sandbox.createBackup({ dir });
    const before = await sandbox.manifest(dir);
    await faults.set([{ method: "GET", status: 403, code: "AccessDenied" }]);

    const error = await refuse(sandbox, backup);

    expect(error.message).toContain("HTTP 403 AccessDenied");
    await faults.set([{ method: "GET", status: 403, code: "AccessDenied", times: 3 }]);
    await sandbox.restoreBackup(backup);
    expect(await sandbox.manifest(dir)).toBe(before);
  });

  test("overcomes an expired URL, server errors, a reset and half an answer", async () => {
    const { sandbox, faults } = await newFaultySandbox();
    const backup = await backUp(sandbox);
    await faults.set([
      { method: "GET", status: 403, code: "AccessDenied", times: 1 },
      { method: "GET", status: 503, code: "SlowDown", times: 1 },
      { method: "GET", instead: "reset", times: 1 },
      { method: "GET", lose: "half", times: 1 },
    ]);

    await sandbox.restoreBackup(backup);

    expect(await sandbox.exec("cat dir/sub/text")).toBe("text\n");
  });

  test("of an archive that is replaced meanwhile is refused", async () => {
    const { sandbox, faults } = await newFaultySandbox();
    const backup = await backUp(sandbox);
    const archive = await worker.getObject(archiveKey(backup));
    await faults.set([{ method: "GET", status: 503, code: "SlowDown" }]);
    const restoring = sandbox.fail("restoreBackup", [backup]);
    await eventually(async () => (await faults.requests()).some(({ method }) => method === "GET"));
    await worker.putObject(archiveKey(backup), Buffer.alloc(archive.length, 1));
    await faults.set([]);

    expect((await restoring).message).toContain("HTTP 412");
  });

  test("that its caller aborts changes nothing", async () => {
    const { sandbox, faults } = await newFaultySandbox();
    await sandbox.exec("mkdir dir && head -c 20000000 /dev/urandom > dir/random");
    const backup = await sandbox.createBackup({ dir });
    const before = await stateOf(sandbox);
    await faults.set([{ method: "GET", url: "data.sqsh", after: 1, instead: "hang" }]);

    const error = await sandbox.fail("restoreBackup", [backup, { lazy: false }], {
      optionsAt: 1,
      abortAtPhase: "download",
    });

    expect(error).toMatchObject({ message: "aborted by the test", isSandboxError: false });
    expect(await stateOf(sandbox)).toBe(before);
  });

  test("during which the agent is killed fails the restore", async () => {
    const { sandbox, faults } = await newFaultySandbox();
    const backup = await backUp(sandbox);
    await faults.set([{ method: "GET", instead: "hang" }]);
    const restoring = sandbox.fail("restoreBackup", [backup]);

    await sandbox.call("exec", [
      "until find /var/backups -name archive.sqsh | grep -q .; do sleep 0.01; done; kill -9 $PPID",
    ]);

    expect(await restoring).toMatchObject({ code: "BACKUP_RESTORE_FAILED", context: { cause: "SANDBOX_UNAVAILABLE" } });
    await faults.set([]);
    await sandbox.restoreBackup(backup);
    expect(await sandbox.exec("cat dir/sub/text")).toBe("text\n");
  });
});

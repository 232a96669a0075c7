import { describe, expect, test } from "vitest";
import type { BackupProgress } from "../../src/backups/options.js";
import type { TestSandbox } from "../support/client.js";
import { CACHE, NO_CACHE, needsPath, newSandbox, system, worker } from "./context.js";
import { NO_TRACES, tracesOf } from "./traces.js";

const MAKE = "mkdir -p dir/sub && head -c 20M /dev/urandom > dir/random && echo a > dir/sub/a";

describe.each([
  { path: "production", localBucket: false },
  { path: "localBucket", localBucket: true },
])("by the $path path", ({ localBucket }) => {
  needsPath(localBucket);

  test("progress names the phases in their order, grows, and ends at what was expected", async () => {
    const sandbox = newSandbox(NO_CACHE);
    await sandbox.exec(MAKE);
    const created = await sandbox.call("createBackup", [{ dir: "/workspace/dir", localBucket }], { optionsAt: 0 });
    const size = (await worker.getObject(`backups/${(created.value as { id: string }).id}/data.sqsh`)).length;
    const restored = await sandbox.call("restoreBackup", [created.value, { lazy: false }], { optionsAt: 1 });

    expectSensible(created.progress, ["archive", "upload"], size);
    expectSensible(restored.progress, ["download", localBucket ? "extract" : "mount"], size);
    for (const progress of [created.progress, restored.progress]) {
      const transfer = progress.findLast(({ phase }) => phase === "upload" || phase === "download");
      expect(transfer).toMatchObject({ bytesDone: size, bytesExpected: size });
    }
  });

  test("an abort ends a backup in any phase with the signal's reason, and leaves nothing of it", async () => {
    const sandbox = newSandbox();
    await sandbox.exec(MAKE);
    for (const abortAtPhase of ["archive", "upload"]) {
      const options = { optionsAt: 0, abortAtPhase };
      const error = await sandbox.fail("createBackup", [{ dir: "/workspace/dir", localBucket }], options);

      expect(error).toMatchObject({ name: "Error", message: "aborted by the test" });
      expect(await tracesOf(sandbox)).toEqual(NO_TRACES);
    }
    await sandbox.createBackup({ dir: "/workspace/dir", localBucket });
  });

  test("an abort ends a restore with the signal's reason, and all is as before", async () => {
    const sandbox = newSandbox(NO_CACHE);
    await sandbox.exec(MAKE);
    const backup = await sandbox.createBackup({ dir: "/workspace/dir", localBucket });
    await sandbox.exec("rm -r dir/sub && echo b > dir/b");
    const before = await sandbox.manifest("/workspace/dir");
    const error = await sandbox.fail("restoreBackup", [backup, { lazy: false }], {
      optionsAt: 1,
      abortAtPhase: "download",
    });

    expect(error).toMatchObject({ name: "Error", message: "aborted by the test" });
    expect(await sandbox.manifest("/workspace/dir")).toBe(before);
    expect(await tracesOf(sandbox)).toEqual(NO_TRACES);
    await sandbox.restoreBackup(backup);
    expect(await sandbox.exec("cat dir/sub/a")).toBe("a\n");
  });

  test("calls at the same time run one after another, and one that fails does not hinder the next", async () => {
    const sandbox = newSandbox();
    await sandbox.exec("mkdir dir && head -c 2M /dev/urandom > dir/random");
    const create = (dir: string) => sandbox.call("createBackup", [{ dir, localBucket }]);
    // Counts the operations that the agent's store shows, until it is told to stop.
    const watch = sandbox.exec(
      "while [ ! -e /root/stop ]; do ls -I archives /var/backups/sandbox-backup 2> /dev/null | wc -l; done | sort -un | tail -n 1",
    );

    const outcomes = await Promise.all([
      create("/workspace/dir"),
      create("/workspace/missing"),
      create("/workspace/dir"),
      sandbox.call("createBackup", [{ dir: "/workspace/dir", localBucket }], { optionsAt: 0, abortAfter: 1 }),
      create("/workspace/missing"),
      create("/workspace/dir"),
    ]);
    await sandbox.exec("touch /root/stop");

    expect(outcomes.map(({ error }) => error?.name)).toEqual([
      undefined,
      "BackupCreateError",
      undefined,
      "Error",
      "BackupCreateError",
      undefined,
    ]);
    expect(outcomes[1]?.error?.message).toContain("/workspace/missing does not exist");
    expect(outcomes[3]?.error?.message).toBe("aborted by the test");
    expect(await watch).toBe("1\n");
    expect(await tracesOf(sandbox)).toEqual(NO_TRACES);
  });

  test("an archive that was made or fetched here is not fetched again", async () => {
    const [maker, other] = [newSandbox(CACHE), newSandbox(CACHE)];
    await maker.exec(MAKE);
    const backup = await maker.createBackup({ dir: "/workspace/dir", localBucket });
    const phases = async (sandbox: TestSandbox, dir: string) =>
      new Set((await sandbox.restoreBackup({ ...backup, dir }, { lazy: false })).map(({ phase }) => phase));

    expect(await phases(maker, "/workspace/dir")).not.toContain("download");
    expect(await phases(other, "/workspace/dir")).toContain("download");
    expect(await phases(other, "/workspace/copy")).not.toContain("download");
    expect(await other.manifest("/workspace/copy")).toBe(await maker.manifest("/workspace/dir"));
  });

  test("a directory may be named by a link that stays within the allowed ones", async () => {
    const sandbox = newSandbox();
    await sandbox.exec("mkdir -p /home/user/dir && echo a > /home/user/dir/a && ln -s /home/user link");
    const backup = await sandbox.createBackup({ dir: "/workspace/link/dir", localBucket });
    await sandbox.exec("echo b > link/dir/a");

    await sandbox.restoreBackup(backup);
    await sandbox.restoreBackup({ ...backup, dir: "/workspace/link/other" });

    expect(backup.dir).toBe("/workspace/link/dir");
    expect(await sandbox.exec("cat /home/user/dir/a /home/user/other/a && readlink link")).toBe("a\na\n/home/user\n");
  });
});

function expectSensible(progress: readonly BackupProgress[], phases: string[], size: number): void {
  expect([...new Set(progress.map(({ phase }) => phase))]).toEqual(phases);
  for (const phase of phases) {
    const bytes = progress.filter((report) => report.phase === phase).map(({ bytesDone }) => bytesDone);
    expect(bytes).toEqual([...bytes].sort((a, b) => a - b));
    expect(bytes.at(-1)).toBeLessThanOrEqual(size);
  }
  for (const { bytesExpected } of progress) expect([null, size]).toContain(bytesExpected);
}

test.skipIf(!system.hasProduction)(
  "ignored files of a repository stay out of a backup of a restored part of it",
  async () => {
    const sandbox = newSandbox();
    await sandbox.exec("git init -q . && echo '*.env' > .gitignore && mkdir part && echo a > part/a");
    await sandbox.restoreBackup(await sandbox.createBackup({ dir: "/workspace/part" }));
    await sandbox.exec("echo secret > part/secret.env");
    const backup = await sandbox.createBackup({ dir: "/workspace/part", useGitignore: true });

    await sandbox.restoreBackup({ ...backup, dir: "/workspace/copy" });

    expect(await sandbox.exec("ls -A copy")).toBe("a\n");
  },
);

test.skipIf(!system.hasProduction).each([
  { what: "that leads out of the allowed ones", link: "/etc", dir: "/workspace/link" },
  { what: "whose parent leads out of them", link: "/", dir: "/workspace/link/usr/share" },
  { what: "that leads out of them and is not there", link: "/root", dir: "/workspace/link/not/there" },
  { what: "that is a dangling link", link: "/workspace/nowhere", dir: "/workspace/link" },
  { what: "below a dangling link", link: "/workspace/nowhere", dir: "/workspace/link/dir" },
])("a directory $what is refused", async ({ link, dir }) => {
  const sandbox = newSandbox();
  await sandbox.exec(`mkdir dir && echo a > dir/a && ln -s ${link} link`);
  const backup = await sandbox.createBackup({ dir: "/workspace/dir" });

  const refusals = [
    await sandbox.fail("createBackup", [{ dir }]),
    await sandbox.fail("restoreBackup", [{ ...backup, dir }]),
    await sandbox.fail("restoreBackup", [{ ...backup, dir, localBucket: true }]),
  ];

  for (const error of refusals) {
    expect(error).toMatchObject({ code: "INVALID_BACKUP_CONFIG", message: expect.stringContaining("`dir`") });
  }
  expect(await sandbox.exec("ls")).toBe("dir\nlink\n");
  expect(await tracesOf(sandbox)).toEqual(NO_TRACES);
});

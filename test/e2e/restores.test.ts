import { describe, expect, test } from "vitest";
import type { DirectoryBackup } from "../../src/backups/options.js";
import type { TestSandbox } from "../support/client.js";
import { needsPath, newSandbox, worker } from "./context.js";
import { expectMounted } from "./traces.js";

/** Makes a directory that holds `version`, and a backup of it. */
async function backUp(
  sandbox: TestSandbox,
  dir: string,
  version: string,
  localBucket = false,
): Promise<DirectoryBackup> {
  await sandbox.exec(
    `mkdir -p ${dir}/sub && echo ${version} > ${dir}/version && echo ${version} > ${dir}/sub/${version}`,
  );
  return sandbox.createBackup({ dir, localBucket });
}

/** Files below a directory, with their contents. */
async function filesOf(sandbox: TestSandbox, dir: string): Promise<Record<string, string>> {
  const output = await sandbox.exec(`cd ${dir} && find . -type f -printf '%P ' -exec cat {} \\; | sort`);
  return Object.fromEntries(
    output
      .split("\n")
      .filter(Boolean)
      .map((line) => line.split(" ")),
  );
}

describe.each([
  { path: "production", localBucket: false },
  { path: "localBucket", localBucket: true },
])("by the $path path", ({ localBucket }) => {
  needsPath(localBucket);

  /** What is to be mounted after restores to these directories. */
  const mounted = (...directories: string[]) => (localBucket ? [] : directories);

  test("a restore replaces: what was made after the backup is gone, what was lost is back", async () => {
    const sandbox = newSandbox();
    const backup = await backUp(sandbox, "/workspace/dir", "first", localBucket);
    await sandbox.exec("rm -r dir/sub; echo changed > dir/version; mkdir dir/later; touch dir/later/file dir/.hidden");

    await sandbox.restoreBackup(backup);

    expect(await filesOf(sandbox, "/workspace/dir")).toEqual({ version: "first", "sub/first": "first" });
    expect(await sandbox.exec("ls -A dir")).toBe("sub\nversion\n");
    await expectMounted(sandbox, ...mounted("/workspace/dir"));
  });

  test("a second restore discards all that was done since the first, and none of it is in the backup", async () => {
    const sandbox = newSandbox();
    await sandbox.makeTree("special", "/workspace/dir");
    await sandbox.exec("mkdir dir/tree dir/tree/below && echo a > dir/tree/a && echo b > dir/tree/below/b");
    const before = await sandbox.manifest("/workspace/dir");
    const backup = await sandbox.createBackup({ dir: "/workspace/dir", localBucket });
    const archive = await worker.getObject(`backups/${backup.id}/data.sqsh`);
    await sandbox.restoreBackup(backup);

    await sandbox.exec(
      [
        "cd dir",
        "echo more >> regular.txt",
        "rm empty-file dangling-link",
        "mv secret renamed",
        "rm -r tree",
        "mkdir tree",
        "chmod 700 sticky",
        "chown 7:7 setgid",
        "setfattr -n user.later -v 1 regular.txt",
        "setfattr -x user.directory sticky",
        "touch -d @1 read-only",
        "ln regular.txt another-link",
      ].join(" && "),
    );
    expect(await sandbox.exec("ls dir/tree; cat dir/renamed; tail -n 1 dir/links/hard-link")).toBe("secretmore\n");
    expect(await sandbox.exec("getfattr --only-values -n user.later dir/regular.txt")).toBe("1");
    await sandbox.restoreBackup(backup);

    expect(await sandbox.manifest("/workspace/dir")).toBe(before);
    expect(archive.equals(await worker.getObject(`backups/${backup.id}/data.sqsh`))).toBe(true);
    await expectMounted(sandbox, ...mounted("/workspace/dir"));
  });

  test("two sandboxes with the same backup do not see each other's writes", async () => {
    const [one, other] = [newSandbox(), newSandbox()];
    const backup = await backUp(one, "/workspace/dir", "first", localBucket);
    await Promise.all([one.restoreBackup(backup), other.restoreBackup(backup)]);

    await Promise.all([one.exec("echo one > dir/version"), other.exec("echo other > dir/sub/other")]);

    expect(await filesOf(one, "/workspace/dir")).toEqual({ version: "one", "sub/first": "first" });
    expect(await filesOf(other, "/workspace/dir")).toEqual({
      version: "first",
      "sub/first": "first",
      "sub/other": "other",
    });
  });

  test.each([
    { what: "that exists", dir: "/home/user", prepare: "mkdir /home/user && echo mine > /home/user/file" },
    { what: "that does not exist", dir: "/app/other", prepare: "true" },
    { what: "whose parents do not exist either", dir: "/var/tmp/a/b/c", prepare: "true" },
  ])("a backup comes back in another directory $what", async ({ dir, prepare }) => {
    const sandbox = newSandbox();
    const backup = await backUp(sandbox, "/workspace/dir", "first", localBucket);
    await sandbox.exec(`echo later > dir/version; ${prepare}`);

    expect(await sandbox.do("restoreBackup", [{ ...backup, dir }])).toEqual({ success: true, dir, id: backup.id });

    expect(await filesOf(sandbox, dir)).toEqual({ version: "first", "sub/first": "first" });
    expect(await filesOf(sandbox, "/workspace/dir")).toEqual({ version: "later", "sub/first": "first" });
    await expectMounted(sandbox, ...mounted(dir));
  });

  test("a backup can be in two directories of one sandbox at once", async () => {
    const sandbox = newSandbox();
    const backup = await backUp(sandbox, "/workspace/dir", "first", localBucket);
    await sandbox.restoreBackup(backup);
    await sandbox.exec("echo edited > dir/version");
    await sandbox.restoreBackup({ ...backup, dir: "/workspace/copy" });

    expect(await sandbox.exec("cat dir/version copy/version")).toBe("edited\nfirst\n");
    await expectMounted(sandbox, ...mounted("/workspace/dir", "/workspace/copy"));
  });

  test("a restore over the parent of mounted directories takes them down", { meta: { mounts: true } }, async () => {
    const sandbox = newSandbox();
    const inner = await backUp(sandbox, "/workspace/dir/inner", "inner");
    await sandbox.exec("rm -r dir/inner");
    const outer = await backUp(sandbox, "/workspace/dir", "outer", localBucket);
    await sandbox.restoreBackup(inner);
    await sandbox.restoreBackup({ ...inner, dir: "/workspace/dir/inner/sub/deep" });
    await sandbox.restoreBackup({ ...inner, dir: "/workspace/dir-with-the-same-beginning" });

    await sandbox.restoreBackup(outer);

    expect(await filesOf(sandbox, "/workspace/dir")).toEqual({ version: "outer", "sub/outer": "outer" });
    await expectMounted(sandbox, "/workspace/dir-with-the-same-beginning", ...mounted("/workspace/dir"));
  });

  test("a restore over a directory that another backup is mounted on takes that down", {
    meta: { mounts: true },
  }, async () => {
    const sandbox = newSandbox();
    const first = await backUp(sandbox, "/workspace/dir", "first");
    await sandbox.exec("rm -r dir");
    const second = await backUp(sandbox, "/workspace/dir", "second", localBucket);
    await sandbox.restoreBackup(first);
    await sandbox.exec("echo edited > dir/version");

    await sandbox.restoreBackup(second);

    expect(await filesOf(sandbox, "/workspace/dir")).toEqual({ version: "second", "sub/second": "second" });
    await expectMounted(sandbox, ...mounted("/workspace/dir"));

    // What was under the mount is not there any more either.
    await sandbox.restoreBackup(first);
    expect(await filesOf(sandbox, "/workspace/dir")).toEqual({ version: "first", "sub/first": "first" });
    await expectMounted(sandbox, "/workspace/dir");
  });

  test("a restore into a directory below a mounted one leaves the rest of that", {
    meta: { mounts: true },
  }, async () => {
    const sandbox = newSandbox();
    const outer = await backUp(sandbox, "/workspace/dir", "outer");
    const inner = await backUp(sandbox, "/workspace/other", "inner", localBucket);
    await sandbox.restoreBackup(outer);
    await sandbox.exec("echo edited > dir/version");

    await sandbox.restoreBackup({ ...inner, dir: "/workspace/dir/sub" });
    await sandbox.restoreBackup({ ...inner, dir: "/workspace/dir/new/below" });

    const restored = { "sub/version": "inner", "sub/sub/inner": "inner" };
    const below = { "new/below/version": "inner", "new/below/sub/inner": "inner" };
    expect(await filesOf(sandbox, "/workspace/dir")).toEqual({ version: "edited", ...restored, ...below });
    await expectMounted(sandbox, "/workspace/dir", ...mounted("/workspace/dir/sub", "/workspace/dir/new/below"));

    await sandbox.restoreBackup(outer);
    expect(await filesOf(sandbox, "/workspace/dir")).toEqual({ version: "outer", "sub/outer": "outer" });
    await expectMounted(sandbox, "/workspace/dir");
  });

  test.each([
    { what: "that is plain", isMounted: false },
    { what: "that is mounted", isMounted: true },
  ])(
    "a process that has a file open, or is in a directory $what, does not hinder a restore",
    { meta: { mounts: true } },
    async ({ isMounted }) => {
      const sandbox = newSandbox();
      const backup = await backUp(sandbox, "/workspace/dir", "first", localBucket);
      const mount = await backUp(sandbox, "/workspace/dir", "second");
      if (isMounted) await sandbox.restoreBackup(mount);
      await sandbox.exec("tail -f /dev/null 3< dir/version 4>> dir/log > /dev/null 2>&1 & echo $! > /root/open");
      await sandbox.exec("cd dir/sub && tail -f /dev/null > /dev/null 2>&1 & echo $! > /root/inside");

      await sandbox.restoreBackup(backup);

      expect(await filesOf(sandbox, "/workspace/dir")).toEqual({ version: "first", "sub/first": "first" });
      await expectMounted(sandbox, ...mounted("/workspace/dir"));
      await sandbox.exec("echo new > dir/sub/new && kill -0 $(cat /root/open) && kill $(cat /root/open /root/inside)");
      await sandbox.restoreBackup(backup);
      expect(await filesOf(sandbox, "/workspace/dir")).toEqual({ version: "first", "sub/first": "first" });
      await expectMounted(sandbox, ...mounted("/workspace/dir"));
    },
  );

  test("a restored and edited directory can be backed up and restored", { meta: { mounts: true } }, async () => {
    const sandbox = newSandbox();
    await sandbox.makeTree("special", "/workspace/dir");
    await sandbox.exec("mkdir dir/tree dir/tree/below && echo a > dir/tree/a && echo b > dir/tree/below/b");
    await sandbox.restoreBackup(await sandbox.createBackup({ dir: "/workspace/dir" }));
    await sandbox.exec(
      [
        "cd dir",
        "echo more >> regular.txt",
        "rm empty-file dangling-link",
        "mv secret renamed",
        "rm -r tree/below && mkdir tree/below && echo c > tree/below/c",
        "chmod 2750 sticky",
        "chown 7:7 setgid",
        "setfattr -n user.later -v 1 links/hard-link",
        "ln -s renamed new-link",
        "touch -d @1000000000 new-file tree tree/below .",
      ].join(" && "),
    );
    const edited = await sandbox.manifest("/workspace/dir");

    const backup = await sandbox.createBackup({ dir: "/workspace/dir", localBucket });
    await sandbox.exec("rm -r dir/tree dir/links");
    await sandbox.restoreBackup(backup);

    expect(await sandbox.manifest("/workspace/dir")).toBe(edited);
    const other = newSandbox();
    await other.restoreBackup(backup);
    expect(await other.manifest("/workspace/dir")).toBe(edited);
  });

  test("a handle is plain JSON, and the one of localBucket says so", async () => {
    const backup = await backUp(newSandbox(), "/workspace/dir", "first", localBucket);

    expect(backup).toEqual({
      id: expect.stringMatching(/^[0-9a-f-]{36}$/),
      dir: "/workspace/dir",
      ...(localBucket && { localBucket }),
    });
    const other = newSandbox();
    await other.restoreBackup(JSON.parse(JSON.stringify(backup)));
    expect(await filesOf(other, "/workspace/dir")).toEqual({ version: "first", "sub/first": "first" });
  });
});

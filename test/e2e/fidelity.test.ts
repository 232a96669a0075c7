import { randomInt } from "node:crypto";
import { describe, expect, test } from "vitest";
import { needsPath, newSandbox } from "./context.js";

describe.each([
  { path: "production", localBucket: false },
  { path: "localBucket", localBucket: true },
])("by the $path path", ({ localBucket }) => {
  needsPath(localBucket);

  test("every kind of file, name, owner, mode, time and attribute comes back", async () => {
    const sandbox = newSandbox();
    await sandbox.makeTree("special", "/workspace/tree");
    await sandbox.exec("setfattr -n user.root -v 1 tree && chown 12:34 tree && chmod 1750 tree");
    const before = await sandbox.manifest("/workspace/tree");
    const backup = await sandbox.createBackup({ dir: "/workspace/tree", localBucket });
    await sandbox.exec("rm -rf tree && mkdir tree && echo later > tree/later");

    await sandbox.restoreBackup(backup);

    expect(await sandbox.manifest("/workspace/tree")).toBe(before);
  });

  test.each(["/workspace", "/home", "/tmp", "/var/tmp", "/app"])(
    "%s itself can be backed up and restored",
    async (dir) => {
      const sandbox = newSandbox();
      await sandbox.exec(
        `mkdir ${dir}/sub && echo a > ${dir}/sub/a && echo b > ${dir}/.b && touch -d @1000000000 ${dir}/sub ${dir}`,
      );
      const before = await sandbox.manifest(dir);
      const backup = await sandbox.createBackup({ dir, localBucket });
      await sandbox.exec(
        `rm -r ${dir}/sub && echo changed > ${dir}/.b && echo later > ${dir}/later && chmod 700 ${dir}`,
      );

      await sandbox.restoreBackup(backup);

      expect(await sandbox.manifest(dir)).toBe(before);
      expect(await sandbox.exec("pwd && ls -A", { cwd: dir })).toBe(`${dir}\n.b\nsub\n`);
    },
  );

  test("an empty directory comes back empty", async () => {
    const sandbox = newSandbox();
    await sandbox.exec("mkdir -m 750 dir && chown 5:6 dir && touch -d @1000000000 dir");
    const before = await sandbox.manifest("/workspace/dir");
    const backup = await sandbox.createBackup({ dir: "/workspace/dir", localBucket });
    await sandbox.exec("touch dir/later");

    await sandbox.restoreBackup(backup);
    expect(await sandbox.manifest("/workspace/dir")).toBe(before);

    await sandbox.exec("umount dir || true; rm -rf dir");
    await sandbox.restoreBackup(backup);
    expect(await sandbox.manifest("/workspace/dir")).toBe(before);
  });

  test("a sparse file of 1 GiB comes back with its holes", async () => {
    const sandbox = newSandbox();
    const make = "mkdir dir && truncate -s 1G dir/sparse && echo head | dd of=dir/sparse conv=notrunc status=none";
    await sandbox.exec(`${make} && echo middle | dd of=dir/sparse bs=1M seek=600 conv=notrunc status=none`);
    const backup = await sandbox.createBackup({ dir: "/workspace/dir", localBucket });
    await sandbox.exec("mv dir before");

    await sandbox.restoreBackup(backup);

    await sandbox.exec("cmp before/sparse dir/sparse");
    expect(await sandbox.exec("stat -c %s dir/sparse")).toBe(`${2 ** 30}\n`);
    // A mounted file takes no space of its own, and du does not tell.
    if (localBucket) expect(Number((await sandbox.exec("du -k dir/sparse")).split("\t")[0])).toBeLessThan(1024);
  });

  test("pipes and sockets do not hinder a backup", async () => {
    const sandbox = newSandbox();
    const listen = "require('net').createServer().listen('dir/socket', () => process.kill(process.pid, 'SIGKILL'))";
    await sandbox.exec(`mkdir dir && mkfifo dir/pipe && echo a > dir/a && (node -e "${listen}" || test -S dir/socket)`);
    const backup = await sandbox.createBackup({ dir: "/workspace/dir", localBucket });
    await sandbox.exec("mv dir before");

    await sandbox.restoreBackup(backup);

    expect(await sandbox.exec("cat dir/a && test -p dir/pipe && echo pipe")).toBe("a\npipe\n");
  });

  test.each([
    ["with blanks", "/workspace/ a dir  with blanks "],
    ["with a newline", "/workspace/new\nline"],
    ["in unicode", "/workspace/ünïcödé-日本語-🗂"],
    ["with commas, colons, quotes and backslashes", "/workspace/a,lowerdir=b:c'd\"e\\040f"],
    ["with patterns", "/workspace/[a-z]*?{x,y}!(z)$HOME"],
    ["that look like options", "/workspace/-rf --help"],
  ])("a directory whose name is one %s", async (_, dir) => {
    const sandbox = newSandbox();
    const env = { DIR: dir };
    await sandbox.exec('mkdir -p "$DIR/sub" && echo a > "$DIR/sub/a" && echo b > "$DIR/left-out"', { env });
    const backup = await sandbox.createBackup({ dir, localBucket, excludes: ["left-out"] });
    await sandbox.exec('echo later > "$DIR/sub/a"', { env });

    await sandbox.restoreBackup(backup);
    await sandbox.restoreBackup(backup);
    await sandbox.restoreBackup({ ...backup, dir: `${dir}/sub/below` });

    expect(await sandbox.exec('cd "$DIR" && find . -type f | sort && cat sub/a', { env })).toBe(
      "./sub/a\n./sub/below/sub/a\na\n",
    );
  });

  test.each(Array.from({ length: 2 }, () => randomInt(2 ** 31)))(
    "a random tree of seed %i comes back",
    async (seed) => {
      const sandbox = newSandbox();
      await sandbox.makeTree("random", "/workspace/tree", seed);
      const before = await sandbox.manifest("/workspace/tree");
      const backup = await sandbox.createBackup({ dir: "/workspace/tree", localBucket });
      await sandbox.exec("rm -rf tree");

      await sandbox.restoreBackup(backup);

      expect(await sandbox.manifest("/workspace/tree")).toBe(before);
    },
  );
});

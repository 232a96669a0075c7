import { beforeEach, describe, expect, test } from "vitest";
import { needsPath, newSandbox, system } from "./context.js";
import { expectMounted, tracesOf } from "./traces.js";

needsPath(false);

/** Whether the machine's kernel serves all layers, the overlay only, or none: a restored directory is a directory. */
describe.each([
  { stack: "kernel", renames: true, servers: 0 },
  { stack: "kernel-overlay", renames: true, servers: 1 },
  { stack: "fuse", renames: false, servers: 2 },
])("with the layers of $stack", ({ stack, renames, servers }) => {
  beforeEach(({ skip }) => {
    skip(stack !== "fuse" && !system.hasKernelLayers, "this runtime's kernel does not serve restored directories");
  });

  test("a restored directory can be changed, backed up, restored into itself and taken away", async () => {
    const sandbox = newSandbox({ SANDBOX_BACKUP_LAYERS: stack });
    await sandbox.makeTree("special", "/workspace/dir");
    const before = await sandbox.manifest("/workspace/dir");
    const backup = await sandbox.createBackup({ dir: "/workspace/dir" });

    await sandbox.restoreBackup(backup, { lazy: false });
    expect(await sandbox.manifest("/workspace/dir")).toBe(before);
    await expectMounted(sandbox, "/workspace/dir");
    expect((await tracesOf(sandbox)).served).toHaveLength(servers);

    await sandbox.exec("cd dir && echo more >> regular.txt && rm empty-file && mkdir later && chmod 700 sticky");
    // The kernel and a FUSE server may have slightly different times for what was just written.
    await sandbox.exec("touch -d @1000000001 dir dir/regular.txt dir/later");
    const changed = await sandbox.manifest("/workspace/dir");
    const later = await sandbox.createBackup({ dir: "/workspace/dir" });
    await sandbox.restoreBackup(backup);
    expect(await sandbox.manifest("/workspace/dir")).toBe(before);
    await sandbox.restoreBackup(later);
    expect(await sandbox.manifest("/workspace/dir")).toBe(changed);

    const replaced = await sandbox.createBackup({ dir: "/workspace/dir", localBucket: true });
    await sandbox.restoreBackup(replaced);
    expect(await sandbox.manifest("/workspace/dir")).toBe(changed);
    await expectMounted(sandbox);
  });

  test.runIf(renames)("directories of the backup can be renamed, and their hard links stay linked", async () => {
    const sandbox = newSandbox({ SANDBOX_BACKUP_LAYERS: stack });
    await sandbox.exec(
      "mkdir -p dir/.vite/deps_temp/below && echo 1 > dir/.vite/deps_temp/below/file && echo 1 > dir/a && ln dir/a dir/b",
    );
    await sandbox.restoreBackup(await sandbox.createBackup({ dir: "/workspace/dir" }));

    // As Vite exchanges its cache of dependencies.
    await sandbox.exec(`cd dir && node -e 'fs.renameSync(".vite/deps_temp", ".vite/deps")'`);
    await sandbox.exec("mv dir/.vite dir/moved && mkdir dir/.vite && echo 2 >> dir/a");

    expect(await sandbox.exec("cd dir && find . -type f | sort && cat moved/deps/below/file b && ls -A .vite")).toBe(
      "./a\n./b\n./moved/deps/below/file\n1\n1\n2\n",
    );
  });
});

test("the two servers of FUSE share a CPU", async ({ skip }) => {
  const sandbox = newSandbox({ SANDBOX_BACKUP_LAYERS: "fuse" });
  skip((await sandbox.exec("nproc")).trim() === "1", "this machine has one CPU only");
  await sandbox.exec("mkdir dir && echo 1 > dir/file");
  await sandbox.restoreBackup(await sandbox.createBackup({ dir: "/workspace/dir" }));

  const servers = "grep -lE '^(squashfuse|fuse-overlayfs)' /proc/[0-9]*/comm | xargs dirname";
  const lists = await sandbox.exec(`for p in $(${servers}); do grep Cpus_allowed_list $p/status; done`);

  expect(lists).toMatch(/^(Cpus_allowed_list:\t\d+\n)\1$/);
});

test("a stack that there is not is refused by its name", async () => {
  const sandbox = newSandbox({ SANDBOX_BACKUP_LAYERS: "kernal" });
  await sandbox.exec("mkdir dir && echo before > dir/file");
  const backup = await sandbox.createBackup({ dir: "/workspace/dir" });

  const error = await sandbox.fail("restoreBackup", [backup]);

  expect(error.code).toBe("INVALID_BACKUP_CONFIG");
  expect(error.message).toBe("SANDBOX_BACKUP_LAYERS is kernal and has to be one of kernel, kernel-overlay, fuse");
  expect(await sandbox.exec("cat dir/file")).toBe("before\n");
});

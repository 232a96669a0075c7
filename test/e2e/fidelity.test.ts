import { describe, expect, test } from "vitest";
import { newSandbox } from "./context.js";

describe.each([
  { path: "production", localBucket: false },
  { path: "localBucket", localBucket: true },
])("by the $path path", ({ localBucket }) => {
  test("every kind of file, name, owner, mode, time and attribute comes back", async () => {
    const sandbox = newSandbox();
    await sandbox.makeTree("special", "/workspace/tree");
    const before = await sandbox.manifest("/workspace/tree");
    const backup = await sandbox.createBackup({ dir: "/workspace/tree", localBucket });
    await sandbox.exec("rm -rf tree && mkdir tree && echo later > tree/later");

    await sandbox.restoreBackup(backup);

    expect(await sandbox.manifest("/workspace/tree")).toBe(before);
  });
});

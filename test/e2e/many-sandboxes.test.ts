import { describe, expect, test } from "vitest";
import { needsPath, newSandbox } from "./context.js";

describe.each([
  { path: "production", localBucket: false },
  { path: "localBucket", localBucket: true },
])("by the $path path", ({ localBucket }) => {
  needsPath(localBucket);

  test("ten sandboxes at once take checkpoints, fork one another's and roll back, and none sees another's files", async () => {
    const dir = "/workspace/dir";
    const fork = "/workspace/fork";
    const sandboxes = Array.from({ length: 10 }, () => newSandbox());
    const checkpoints = await Promise.all(
      sandboxes.map(async (sandbox, index) => {
        await sandbox.exec(`mkdir dir && echo ${index} > dir/owner && head -c 1M /dev/urandom > dir/random-${index}`);
        return sandbox.createBackup({ dir, localBucket });
      }),
    );

    const seen = await Promise.all(
      sandboxes.map(async (sandbox, index) => {
        const neighbour = (index + 1) % sandboxes.length;
        await sandbox.exec(`echo changed > dir/owner && rm dir/random-${index} && echo mine > dir/later-${index}`);
        const theirs = checkpoints[neighbour];
        const own = checkpoints[index];
        if (theirs === undefined || own === undefined) throw new Error("a checkpoint is missing");
        await sandbox.restoreBackup({ ...theirs, dir: fork });
        await sandbox.exec(`echo forked by ${index} > fork/owner`);
        await sandbox.restoreBackup(own);
        return sandbox.exec("cat dir/owner fork/owner && ls dir fork");
      }),
    );

    for (const [index, listing] of seen.entries()) {
      const neighbour = (index + 1) % sandboxes.length;
      const listings = `dir:\nowner\nrandom-${index}\n\nfork:\nowner\nrandom-${neighbour}\n`;
      expect(listing).toBe(`${index}\nforked by ${index}\n${listings}`);
    }
  }, 300_000);
});

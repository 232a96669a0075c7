import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { NO_CACHE, newSandbox, system, worker } from "../e2e/context.js";
import type { TestSandbox } from "../support/client.js";
import { growthDuring } from "./memory.js";

/** In MiB. */
const MOST_GROWTH = 150;

const dir = "/workspace/dir";

describe.each([
  { path: "production", localBucket: false },
  { path: "localBucket", localBucket: true },
])("by the $path path", ({ localBucket }) => {
  let sandbox: TestSandbox;
  beforeEach(() => {
    sandbox = newSandbox(NO_CACHE);
  });
  afterEach(async () => {
    await sandbox.do("destroy", []);
  });

  test("a tree of 100,000 files comes back", async () => {
    await sandbox.makeTree("many", dir, 100_000);
    const before = await sandbox.manifestDigest(dir);
    expect(await sandbox.exec("find dir -type f | wc -l")).toBe("100000\n");
    const backup = await sandbox.createBackup({ dir, localBucket });
    await sandbox.exec("rm -rf dir && mkdir dir && echo later > dir/later");

    await sandbox.restoreBackup(backup);

    expect(await sandbox.manifestDigest(dir)).toBe(before);
  });

  test.skipIf(system.pid === undefined)(
    `an archive of 1 GiB makes neither workerd nor the agent grow by ${MOST_GROWTH} MiB`,
    async () => {
      const ancestor = system.pid ?? 0;
      // An engine that has just started grows by what its garbage collector lets lie, whatever the size of an archive;
      // here that is mostly wrangler's local stand-in for R2, in the same process. A smaller archive gets it there.
      await sandbox.exec("mkdir dir && head -c 134217728 /dev/urandom > dir/random");
      const startingUp = await growthDuring(ancestor, async () => {
        await sandbox.restoreBackup(await sandbox.createBackup({ dir, localBucket }));
      });
      await sandbox.exec("head -c 1073741824 /dev/urandom > dir/random");
      const before = await sandbox.manifestDigest(dir);
      let id = "";

      const creating = await growthDuring(ancestor, async () => {
        ({ id } = await sandbox.createBackup({ dir, localBucket }));
      });
      await sandbox.exec("echo changed > dir/random");
      const restoring = await growthDuring(ancestor, () =>
        sandbox.restoreBackup({ id, dir, ...(localBucket && { localBucket }) }),
      );

      console.log("growth in MiB:", { localBucket, startingUp, creating, restoring });
      expect(await sandbox.manifestDigest(dir)).toBe(before);
      for (const growth of [creating, restoring]) {
        expect(growth.workerd).toBeLessThan(MOST_GROWTH);
        expect(growth.agent).toBeLessThan(MOST_GROWTH);
      }
      for (const key of await worker.listKeys(`backups/${id}`)) await worker.deleteObject(key);
    },
  );
});

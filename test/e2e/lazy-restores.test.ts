import { expect, test } from "vitest";
import { newSandbox } from "./context.js";

test("a large archive is mounted at once", async () => {
  const maker = newSandbox();
  await maker.exec("mkdir dir && head -c 200M /dev/urandom > dir/random && seq 1000 > dir/a");
  const backup = await maker.createBackup({ dir: "/workspace/dir" });
  const sandbox = newSandbox();
  await sandbox.exec("true");
  const t = Date.now();
  console.log(await sandbox.restoreBackup(backup));
  console.log(Date.now() - t);
  console.log(await sandbox.exec("tail -n 1 dir/a; ls -la dir; df dir; cat /proc/self/mountinfo | tail -4; ps aux | grep serve"));
  console.log(Date.now() - t);
  console.log(await sandbox.exec("sha256sum dir/random; ls -las /var/backups/sandbox-backup/*"), await maker.exec("sha256sum dir/random"));
  console.log(Date.now() - t);
});

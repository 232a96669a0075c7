import { canInstall, describeMissing, installLine, installPackages, missingTools, packagesOf } from "./tools.js";

/** `sandbox-backup setup`: installs the system programs that sandboxes need, or says how to. Returns the exit code. */
export async function setup(): Promise<number> {
  const missing = await missingTools();
  if (missing.length === 0) {
    console.log("This machine has everything that sandboxes need.");
    return 0;
  }
  const packages = packagesOf(missing);
  if (packages.length > 0 && (await canInstall())) {
    console.log(`Installing ${packages.join(", ")} …`);
    await installPackages(packages);
    const left = await missingTools();
    if (left.length === 0) {
      console.log("Done: this machine has everything that sandboxes need.");
      return 0;
    }
    console.error(`Still missing:\n${describeMissing(left)}`);
    return 1;
  }
  console.error(`Missing:\n${describeMissing(missing)}`);
  const line = installLine(missing);
  if (line !== undefined) console.error(`\nOn Debian and Ubuntu, run:\n  ${line}`);
  return 1;
}

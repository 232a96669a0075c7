import { spawnSync } from "node:child_process";
import { accessSync, constants } from "node:fs";
import { delimiter, join } from "node:path";

/**
 * Makes this machine ready for the tests and the demo: what sandboxes need by `sandbox-backup setup`, and what only the
 * tests use. Ends with 1, and says what to run, where this user may not install packages.
 */

/** Programs that only the tests and the demo use, and the Debian and Ubuntu package that has them. */
const PACKAGE = "attr";
const PROGRAMS = ["getfattr", "setfattr"];

const CLI = new URL("../../dist/cli.js", import.meta.url).pathname;

function setUp(): boolean {
  const sandboxes = succeeds(process.execPath, [CLI, "setup"]);
  if (PROGRAMS.every(isInstalled)) return sandboxes;
  if (process.getuid?.() === 0 && isInstalled("apt-get")) {
    console.log(`Installing ${PACKAGE} …`);
    return install() && sandboxes;
  }
  console.error(
    `The tests and the demo read extended attributes, with getfattr. On Debian and Ubuntu, run:\n  sudo apt-get install -y --no-install-recommends ${PACKAGE}`,
  );
  return false;
}

function install(): boolean {
  const install = ["install", "-y", "-qq", "--no-install-recommends", PACKAGE];
  return succeeds("apt-get", ["update", "-qq"]) && succeeds("apt-get", install);
}

function succeeds(program: string, args: readonly string[]): boolean {
  const env = { ...process.env, DEBIAN_FRONTEND: "noninteractive" };
  return spawnSync(program, args, { env, stdio: ["ignore", "inherit", "inherit"] }).status === 0;
}

function isInstalled(program: string): boolean {
  return (process.env.PATH ?? "").split(delimiter).some((directory) => {
    try {
      accessSync(join(directory, program), constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
}

process.exitCode = setUp() ? 0 : 1;

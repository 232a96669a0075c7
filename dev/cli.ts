import { readFileSync } from "node:fs";
import { z } from "zod";
import { dev } from "./dev.js";
import { Problem } from "./problem.js";
import { setup } from "./setup.js";

const HELP = `sandbox-backup: develop Workers whose sandboxes are backed up, on this machine

  sandbox-backup dev [flags of wrangler dev]
      Runs \`wrangler dev\` with sandboxes in bubblewrap on this machine (Linux): no container engine,
      no account and no network are needed. Every flag goes to \`wrangler dev\`.
  sandbox-backup setup
      Installs the system programs that sandboxes need (as root, with apt-get), or says how to.
  sandbox-backup --help, --version
`;

/** Runs the command line and returns the exit code. */
async function main([command, ...args]: readonly string[]): Promise<number> {
  switch (command) {
    case "dev":
      return dev(args);
    case "setup":
      if (args.length > 0) return usageError(`setup takes no arguments, got: ${args.join(" ")}`);
      return setup();
    case undefined:
    case "help":
    case "--help":
    case "-h":
      console.log(HELP);
      return 0;
    case "--version":
    case "-v":
      console.log(packageVersion());
      return 0;
    default:
      return usageError(`Unknown command: ${command}`);
  }
}

function usageError(message: string): number {
  console.error(`${message}\nRun \`sandbox-backup --help\` for what there is.`);
  return 2;
}

function packageVersion(): string {
  const text = readFileSync(new URL("../package.json", import.meta.url), "utf8");
  return z.object({ version: z.string() }).parse(JSON.parse(text)).version;
}

try {
  process.exitCode = await main(process.argv.slice(2));
} catch (error) {
  console.error(error instanceof Problem ? error.message : error);
  process.exitCode = 1;
}

import { execFile } from "node:child_process";
import { constants } from "node:fs";
import { access } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";

const start = promisify(execFile);

export interface RunOptions {
  env?: Record<string, string>;
  cwd?: string;
}

/**
 * Runs a program and gives what it wrote, without the last newline.
 * @throws an error with the end of its stderr
 */
export async function run(program: string, args: readonly string[], options: RunOptions = {}): Promise<string> {
  try {
    const env = { ...process.env, ...options.env };
    const { stdout } = await start(program, args, { ...options, env, maxBuffer: 64 * 1024 * 1024 });
    return stdout.trimEnd();
  } catch (error) {
    const stderr = error instanceof Error && "stderr" in error ? String(error.stderr).trim().slice(-2_000) : "";
    throw new Error(`${program} ${args.join(" ")} failed: ${stderr || error}`, { cause: error });
  }
}

/** Whether that succeeds. */
export async function succeeds(program: string, args: readonly string[], options: RunOptions = {}): Promise<boolean> {
  return run(program, args, options).then(
    () => true,
    () => false,
  );
}

export async function isInstalled(program: string): Promise<boolean> {
  const directories = (process.env.PATH ?? "").split(":").filter(Boolean);
  const found = await Promise.all(directories.map((directory) => exists(join(directory, program), constants.X_OK)));
  return found.includes(true);
}

export async function exists(path: string, mode: number = constants.F_OK): Promise<boolean> {
  return access(path, mode).then(
    () => true,
    () => false,
  );
}

import { spawn } from "node:child_process";
import { access } from "node:fs/promises";

export interface RunOptions {
  cwd?: string;
  input?: AsyncIterable<string>;
}

/**
 * Runs a program to its end.
 * @returns what it wrote to its standard output
 * @throws with its last words when it fails
 */
export async function run(program: string, args: readonly string[], options: RunOptions = {}): Promise<string> {
  const child = spawn(program, args, { cwd: options.cwd, stdio: ["pipe", "pipe", "pipe"] });
  let [stdout, stderr] = ["", ""];
  child.stdout.on("data", (chunk) => {
    stdout += chunk;
  });
  child.stderr.on("data", (chunk) => {
    stderr = (stderr + chunk).slice(-4096);
  });
  // A program that ends without reading all of its input says why by its exit code.
  child.stdin.on("error", () => {});
  const ended = new Promise<number | null>((resolve, reject) => {
    child.once("error", reject);
    child.once("close", resolve);
  });
  for await (const chunk of options.input ?? []) {
    if (!child.stdin.write(chunk)) await new Promise((resolve) => child.stdin.once("drain", resolve));
  }
  child.stdin.end();
  const code = await ended;
  if (code !== 0) throw new Error(`${program} exited with ${code}: ${stderr.trim()}`);
  return stdout;
}

export async function exists(path: string): Promise<boolean> {
  return access(path).then(
    () => true,
    () => false,
  );
}

import { spawn } from "node:child_process";
import { once } from "node:events";
import { text } from "node:stream/consumers";
import type { ContainerRuntime } from "../../containers/runtimes.js";
import type { RunningSystems, System } from "../system.js";

const MAIN = new URL("../../containers/main.ts", import.meta.url).pathname;
const TYPESCRIPT = new URL("../../support/typescript.mjs", import.meta.url).pathname;

/** Has Node run the tests' TypeScript. */
export const NODE_FLAGS = ["--no-warnings", "--experimental-transform-types", "--import", TYPESCRIPT];

/** Plain `wrangler dev` with the test Worker, in real containers. Stops by itself when this process ends, however it does. */
export async function startContainers(config: string, runtimes: readonly ContainerRuntime[]): Promise<RunningSystems> {
  // In a process group of its own, or Ctrl-C would end the steps of its clean-up too.
  const child = spawn(process.execPath, [...NODE_FLAGS, MAIN, config, ...runtimes], {
    stdio: ["pipe", "pipe", "inherit"],
    detached: true,
  });
  const ended = once(child, "exit");
  const output = await text(child.stdout);
  if (output === "") {
    await ended;
    throw new Error("The containers did not start; what went wrong is written above.");
  }
  return {
    systems: JSON.parse(output) as Record<string, System>,
    stop: async () => {
      child.stdin.end();
      const [code] = await ended;
      if (code !== 0) throw new Error("Not all of the containers' system was removed; what is left is written above.");
    },
  };
}

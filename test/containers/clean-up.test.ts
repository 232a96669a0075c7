import { spawn } from "node:child_process";
import { once } from "node:events";
import { expect, test, vi } from "vitest";
import { system } from "../e2e/context.js";
import { NODE_FLAGS } from "../e2e/runtimes/containers.js";
import type { System } from "../e2e/system.js";
import { Worker } from "../support/client.js";
import { exists, run } from "./run.js";
import { builtImages } from "./wrangler.js";

const CONFIG = new URL("../e2e/worker/wrangler.jsonc", import.meta.url).pathname;
const STARTER = new URL("../e2e/runtimes/containers.ts", import.meta.url).pathname;

/** Starts a system on the same engine, says where, and ends with this process. */
const RUNNER = `
  import { startContainers } from ${JSON.stringify(STARTER)};
  process.stdin.resume().once("end", () => process.exit());
  const { systems } = await startContainers(${JSON.stringify(CONFIG)}, ["containers"]);
  console.log(JSON.stringify(systems.containers));
`;

test("a runner that is killed leaves no container, image, process or file behind", { timeout: 180_000 }, async () => {
  const runner = spawn(process.execPath, [...NODE_FLAGS, "--input-type=module", "--eval", RUNNER], {
    env: { ...process.env, ...system.engine?.env },
    stdio: ["pipe", "pipe", "inherit"],
  });
  const [line] = await once(runner.stdout, "data");
  const started = JSON.parse(String(line)) as System;
  const left = async () => ({
    containers: await docker("ps", "--all", "--quiet", "--filter", `label=${started.engine?.label}`),
    images: await docker("images", "--quiet", "--filter", `reference=${image}`),
    answers: await fetch(started.url).then(
      () => true,
      () => false,
    ),
    files: await exists(started.logFile ?? ""),
  });
  await new Worker(started).sandbox("left").exec("true");
  const [image] = await builtImages(started.logFile ?? "");
  const something = expect.stringMatching(/\w/);
  expect(await left()).toEqual({ containers: something, images: something, answers: true, files: true });

  runner.kill("SIGKILL");

  const nothing = { containers: "", images: "", answers: false, files: false };
  await vi.waitFor(async () => expect(await left()).toEqual(nothing), { timeout: 60_000, interval: 500 });
});

function docker(...args: string[]): Promise<string> {
  return run("docker", args, { env: system.engine?.env ?? {} });
}

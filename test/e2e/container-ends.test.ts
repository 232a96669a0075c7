import { execFile } from "node:child_process";
import { randomUUID } from "node:crypto";
import { request } from "node:http";
import { setTimeout as delay } from "node:timers/promises";
import { promisify } from "node:util";
import { describe, expect, test } from "vitest";
import type { Outcome } from "../support/call.js";
import type { TestSandbox } from "../support/client.js";
import { eventually } from "../support/eventually.js";
import { needsPath, newFaultySandbox, system, worker } from "./context.js";

/** How often each way of ending meets each operation. */
const ROUNDS = 10;

/** The engine's signal reaches the caller as an error within this time, in ms. */
const PROMPT = 5_000;

const run = promisify(execFile);

async function docker(...args: string[]): Promise<string> {
  const { stdout } = await run("docker", args, { env: { ...process.env, ...system.engine?.env } });
  return stdout.trim();
}

/** What `docker kill` and `docker stop` ask of the engine, without the time that docker takes to start. */
async function end(how: string, container: string): Promise<void> {
  const socketPath = system.engine?.env.DOCKER_HOST?.replace("unix://", "") ?? "";
  await new Promise<void>((resolve, reject) => {
    const asked = request({ socketPath, method: "POST", path: `/containers/${container}/${how}` }, (answer) => {
      answer.resume().once("end", resolve);
    });
    asked.once("error", reject).end();
  });
}

/** A sandbox that knows the name of its container and what it touched in the bucket. */
async function newObservedSandbox(): Promise<TestSandbox> {
  if (system.faults !== undefined) return (await newFaultySandbox()).sandbox;
  return worker.sandbox(`faulty-0-30000-${randomUUID()}`, { faulty: true });
}

async function containerOf(sandbox: TestSandbox): Promise<string> {
  const id = await sandbox.do<string>("durableObjectId", []);
  return docker("ps", "--quiet", "--filter", `label=${system.engine?.label}`, "--filter", `name=${id}$`);
}

/** Files that take a moment to archive and to restore. */
async function fill(sandbox: TestSandbox): Promise<void> {
  await sandbox.exec("mkdir -p dir && head -c 24M /dev/urandom > dir/random && seq 2000000 > dir/numbers");
}

/** Keys of the bucket that a sandbox has touched, besides those of some backups, which are there. */
async function leftObjects(sandbox: TestSandbox, kept: string[]): Promise<string[]> {
  const keys = await sandbox.do<string[]>("touchedKeys", []);
  const left: string[] = [];
  for (const key of keys.filter((key) => !kept.some((id) => key.includes(id)))) {
    left.push(...(await worker.listKeys(key.slice(0, key.lastIndexOf("/") + 1))));
  }
  return left;
}

/** The backup that a call made or restored. */
function idOf({ value }: Outcome): string {
  return (value as { id: string }).id;
}

interface Cut {
  outcome: Outcome;
  /** From the engine's signal to the call's end, in ms. */
  waited: number;
}

/** Ends the sandbox's container while a call runs. */
async function cut(sandbox: TestSandbox, how: string, after: number, call: () => Promise<Outcome>): Promise<Cut> {
  const container = await containerOf(sandbox);
  const outcome = call();
  await delay(after);
  const start = performance.now();
  const ended = end(how, container);
  const result = { outcome: await outcome, waited: performance.now() - start };
  await ended;
  return result;
}

describe.skipIf(system.engine === undefined).each([
  { path: "production", localBucket: false, how: "kill" },
  { path: "production", localBucket: false, how: "stop" },
  { path: "localBucket", localBucket: true, how: "kill" },
  { path: "localBucket", localBucket: true, how: "stop" },
])("docker $how, by the $path path,", ({ localBucket, how }) => {
  needsPath(localBucket);

  test.each(["createBackup", "restoreBackup"])(
    "fails %s at once, leaves nothing in the bucket, and the next call starts a new container",
    async (operation) => {
      const sandbox = await newObservedSandbox();
      await fill(sandbox);
      const backup = await sandbox.createBackup({ dir: "/workspace/dir", localBucket });
      const call = () =>
        operation === "createBackup"
          ? sandbox.call("createBackup", [{ dir: "/workspace/dir", localBucket }])
          : sandbox.call("restoreBackup", [backup, {}]);
      const begun = performance.now();
      const kept = [backup.id, idOf(await call())];
      const usual = performance.now() - begun;
      const waits: number[] = [];

      // An operation that was faster than the engine does not count.
      for (let attempt = 0; waits.length < ROUNDS && attempt < 4 * ROUNDS; attempt++) {
        const { outcome, waited } = await cut(sandbox, how, Math.random() * usual * 0.8, call);
        await eventually(async () => (await containerOf(sandbox)) === "");
        if (operation === "createBackup") await fill(sandbox);
        else await sandbox.exec("true");
        if (outcome.error === undefined) {
          kept.push(idOf(outcome));
          continue;
        }
        expect(outcome.error).toMatchObject({ isSandboxError: true, code: expect.any(String) });
        expect(waited).toBeLessThan(PROMPT);
        waits.push(Math.round(waited));
        if (operation === "createBackup") expect(await leftObjects(sandbox, kept)).toEqual([]);
      }

      expect(waits).toHaveLength(ROUNDS);
      console.log(
        `docker ${how} during ${operation}: ${ROUNDS} of ${ROUNDS}, errors after ${waits.sort((a, b) => a - b).join(", ")} ms`,
      );
      await sandbox.restoreBackup(backup);
      expect(await sandbox.exec("wc -c < dir/random")).toBe(`${24 * 1024 * 1024}\n`);
      await sandbox.do("destroy", []);
    },
    600_000,
  );
});

import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { type IncomingMessage, request } from "node:http";
import { text } from "node:stream/consumers";
import { setTimeout as delay } from "node:timers/promises";
import { describe, expect, test } from "vitest";
import type { Ends } from "../containers/ends-report.js";
import type { Outcome } from "../support/call.js";
import type { TestSandbox } from "../support/client.js";
import { eventually } from "../support/eventually.js";
import type { FaultControl } from "../support/fault-proxy.js";
import { needsPath, newFaultySandbox, system, worker } from "./context.js";

/** How often each way of ending meets each operation. */
const ROUNDS = 10;

/** The engine's signal reaches the caller as an error within this time, in ms. */
const PROMPT = 5_000;

/** Asks the engine what the docker client would, which takes long to start. */
async function ask(method: string, path: string): Promise<string> {
  const socketPath = system.engine?.env.DOCKER_HOST?.replace("unix://", "") ?? "";
  const asked = request({ socketPath, method, path }).end();
  const [answer] = (await once(asked, "response")) as [IncomingMessage];
  return text(answer);
}

/** As `docker kill` and `docker stop` do. */
async function end(how: string, container: string): Promise<void> {
  await ask("POST", `/containers/${container}/${how}`);
}

interface Observed {
  /** Knows the name of its container and what it touched in the bucket. */
  sandbox: TestSandbox;
  /** What it asked of the S3 endpoint; undefined where it has none. */
  faults: FaultControl | undefined;
}

async function newObserved(): Promise<Observed> {
  if (system.faults !== undefined) return newFaultySandbox();
  return { sandbox: worker.sandbox(`faulty-0-30000-${randomUUID()}`, { faulty: true }), faults: undefined };
}

/** Id of the container that runs for a sandbox; undefined while there is none. */
async function containerOf(sandbox: TestSandbox): Promise<string | undefined> {
  const id = await sandbox.do<string>("durableObjectId", []);
  const filters = JSON.stringify({ label: [system.engine?.label], name: [`${id}$`] });
  const [container] = JSON.parse(await ask("GET", `/containers/json?filters=${encodeURIComponent(filters)}`));
  return container?.Id;
}

/** Files that take a moment to archive and to restore; by the production path, in parts. */
const SIZE = 17_000_000;

async function fill(sandbox: TestSandbox): Promise<void> {
  await sandbox.exec(`mkdir -p dir && head -c ${SIZE} /dev/urandom > dir/random && seq 200000 > dir/numbers`);
}

/** Keys of the bucket that a sandbox has touched, besides those of some backups, which are there. */
async function leftObjects({ sandbox }: Observed, kept: string[]): Promise<string[]> {
  const keys = await sandbox.do<string[]>("touchedKeys", []);
  const left: string[] = [];
  for (const key of keys.filter((key) => !kept.some((id) => key.includes(id)))) {
    left.push(...(await worker.listKeys(key.slice(0, key.lastIndexOf("/") + 1))));
  }
  return left;
}

/** Multipart uploads that a sandbox has begun, and neither completed nor aborted. */
async function leftUploads({ faults }: Observed): Promise<string[]> {
  const requests = (await faults?.requests()) ?? [];
  const ended = requests.filter(
    ({ method, url, status = 0 }) =>
      (method === "DELETE" || method === "POST") && url.includes("uploadId=") && status < 300,
  );
  const begun = requests.flatMap(({ uploadId }) => uploadId ?? []);
  return begun.filter((id) => !ended.some(({ url }) => url.includes(encodeURIComponent(id))));
}

/** The backup that a call made or restored. */
function idOf({ value }: Outcome): string {
  return (value as { id: string }).id;
}

interface Cut {
  /** Id of the container that was ended. */
  container: string;
  outcome: Outcome;
  /** From the engine's signal to the call's end, in ms. */
  waited: number;
}

/** Ends the sandbox's container while a call runs. */
async function cut(sandbox: TestSandbox, how: string, after: number, call: () => Promise<Outcome>): Promise<Cut> {
  const container = await containerOf(sandbox);
  if (container === undefined) throw new Error("No container runs for the sandbox.");
  const outcome = call();
  await delay(after);
  const start = performance.now();
  const ended = end(how, container);
  const result = { container, outcome: await outcome, waited: performance.now() - start };
  await ended;
  return result;
}

describe.skipIf(system.engine === undefined).each([
  { path: "production", localBucket: false },
  { path: "localBucket", localBucket: true },
])("by the $path path,", ({ path, localBucket }) => {
  needsPath(localBucket);

  test.concurrent.for([
    { how: "kill", operation: "createBackup" },
    { how: "kill", operation: "restoreBackup" },
    { how: "stop", operation: "createBackup" },
    { how: "stop", operation: "restoreBackup" },
  ])(
    "docker $how fails $operation at once, leaves nothing in the bucket, and the next call starts a new container",
    { timeout: 600_000 },
    async ({ how, operation }, { task }) => {
      const observed = await newObserved();
      const { sandbox } = observed;
      await fill(sandbox);
      const backup = await sandbox.createBackup({ dir: "/workspace/dir", localBucket });
      const call = () =>
        operation === "createBackup"
          ? sandbox.call("createBackup", [{ dir: "/workspace/dir", localBucket }])
          : sandbox.call("restoreBackup", [backup, {}]);
      const begun = performance.now();
      const kept = [backup.id, idOf(await call())];
      let usual = performance.now() - begun;
      const waits: number[] = [];

      // An operation that was faster than the engine does not count, and tells how early that has to be.
      for (let attempt = 0; waits.length < ROUNDS && attempt < 4 * ROUNDS; attempt++) {
        const { container, outcome, waited } = await cut(sandbox, how, Math.random() * usual * 0.7, call);
        await eventually(async () => (await containerOf(sandbox)) !== container);
        if (operation === "createBackup") await fill(sandbox);
        else await sandbox.exec("true");
        if (outcome.error === undefined) {
          kept.push(idOf(outcome));
          usual /= 2;
          continue;
        }
        expect(outcome.error).toMatchObject({ isSandboxError: true, code: expect.any(String) });
        expect(waited).toBeLessThan(PROMPT);
        waits.push(Math.round(waited));
        if (operation === "createBackup") expect(await leftObjects(observed, kept)).toEqual([]);
        expect(await leftUploads(observed)).toEqual([]);
      }

      expect(waits).toHaveLength(ROUNDS);
      task.meta.ends = { how, operation, path, waits } satisfies Ends;
      await sandbox.restoreBackup(backup);
      expect(await sandbox.exec("wc -c < dir/random")).toBe(`${SIZE}\n`);
      await sandbox.do("destroy", []);
    },
  );
});

import { randomUUID } from "node:crypto";
import { afterAll, beforeEach, inject } from "vitest";
import { type TestSandbox, Worker } from "../support/client.js";
import { FaultControl } from "../support/fault-proxy.js";
import type { System } from "./system.js";

/** What the tests of the suite share. */
export const system = systemOf(inject("runtime"));
export const worker = new Worker(system);

function systemOf(runtime: string): System {
  const found = inject("systems")[runtime];
  if (found === undefined) throw new Error(`The system of the runtime ${runtime} was not started.`);
  return found;
}

const made: TestSandbox[] = [];

/** For an agent that fetches what it restores, also what it has made itself. */
export const NO_CACHE = { SANDBOX_BACKUP_CACHE: "0" };

/** For an agent that keeps what it makes and fetches, whatever a run forces. */
export const CACHE = { SANDBOX_BACKUP_CACHE: "256" };

/** A sandbox that no other test uses, with these variables for its agent. */
export function newSandbox(agentEnv: Record<string, string> = {}) {
  // The Worker reads them from the name.
  return keep(worker.sandbox(`env-${Buffer.from(JSON.stringify(agentEnv)).toString("hex")}-${randomUUID()}`));
}

function keep(sandbox: TestSandbox): TestSandbox {
  made.push(sandbox);
  return sandbox;
}

/** Each may be a container with its side-car, for as long as it sleeps after. */
afterAll(async () => {
  await Promise.all(made.map((sandbox) => sandbox.call("destroy", [])));
}, 120_000);

declare module "vitest" {
  interface TaskMeta {
    /** The test takes a runtime whose sandboxes may mount, by whichever path archives go. */
    mounts?: boolean;
  }
}

/** In a suite of tests of one path of the archive: skips those that the runtime lacks, or leaves to another. */
export function needsPath(localBucket: boolean): void {
  beforeEach(({ skip, task }) => {
    const mounts = task.meta.mounts ?? !localBucket;
    skip(mounts && !system.hasProduction, "this runtime lacks the production path: presigned URLs and FUSE");
    skip(!mounts && (system.leavesLocalBucket ?? false), "another runtime of this run takes the localBucket path");
  });
}

/**
 * A sandbox that reaches the bucket's S3 endpoint through a proxy of its own, which fails as it is told.
 * @param stallTimeout how long it waits while nothing moves, in ms
 */
export async function newFaultySandbox(stallTimeout = 30_000) {
  const faults = await new FaultControl(system.faults ?? "").another();
  const { port } = new URL(faults.origin);
  // The Worker reads both from the name.
  const sandbox = keep(worker.sandbox(`faulty-${port}-${stallTimeout}-${randomUUID()}`, { faulty: true }));
  return { sandbox, faults };
}

import { randomUUID } from "node:crypto";
import { inject } from "vitest";
import { Worker } from "../support/client.js";
import { FaultControl } from "../support/fault-proxy.js";

/** What the tests of the suite share. */
export const system = inject("system");
export const worker = new Worker(system);

/** A sandbox that no other test uses. */
export function newSandbox() {
  return worker.sandbox(`test-${randomUUID()}`);
}

/**
 * A sandbox that reaches the bucket's S3 endpoint through a proxy of its own, which fails as it is told.
 * @param stallTimeout how long it waits while nothing moves, in ms
 */
export async function newFaultySandbox(stallTimeout = 30_000) {
  const faults = await new FaultControl(system.faults ?? "").another();
  const { port } = new URL(faults.origin);
  // The Worker reads both from the name.
  const sandbox = worker.sandbox(`faulty-${port}-${stallTimeout}-${randomUUID()}`, { faulty: true });
  return { sandbox, faults };
}

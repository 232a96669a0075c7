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

/** A sandbox that reaches the bucket's S3 endpoint through a proxy of its own, which fails as it is told. */
export async function newFaultySandbox() {
  const faults = await new FaultControl(system.faults ?? "").another();
  // The Worker reads the port from the name.
  const sandbox = worker.sandbox(`faulty-${new URL(faults.origin).port}-${randomUUID()}`, { faulty: true });
  return { sandbox, faults };
}

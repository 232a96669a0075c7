import { randomUUID } from "node:crypto";
import { inject } from "vitest";
import { Worker } from "../support/client.js";
import { FaultControl } from "../support/fault-proxy.js";

/** What the tests of the suite share. */
export const system = inject("system");
export const worker = new Worker(system);
export const faults = new FaultControl(system.faults ?? "");

/** A sandbox that no other test uses. */
export function newSandbox(options: { faulty?: boolean } = {}) {
  return worker.sandbox(`test-${randomUUID()}`, options);
}

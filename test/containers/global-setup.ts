import type { TestProject } from "vitest/node";
import { startSystems } from "../e2e/system.js";
import { CONTAINER_RUNTIMES } from "./runtimes.js";

/** The systems of both runtimes, on one engine. */
export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  const { systems, stop } = await startSystems(CONTAINER_RUNTIMES);
  project.provide("systems", systems);
  return stop;
}

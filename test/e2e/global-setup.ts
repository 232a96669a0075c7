import type { TestProject } from "vitest/node";
import { chosenRuntime, type System, startSystems } from "./system.js";

declare module "vitest" {
  export interface ProvidedContext {
    /** What the tests run against: the name of one of the systems. */
    runtime: string;
    systems: Record<string, System>;
  }
}

/** One system for all files of the suite; each test uses sandboxes of its own. */
export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  const runtime = chosenRuntime();
  const { systems, stop } = await startSystems([runtime]);
  project.provide("runtime", runtime);
  project.provide("systems", systems);
  return stop;
}

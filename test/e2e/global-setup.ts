import type { TestProject } from "vitest/node";
import { type System, startSystem } from "./system.js";

declare module "vitest" {
  export interface ProvidedContext {
    system: Omit<System, "stop">;
  }
}

/** One system for all files of the suite; each test uses sandboxes of its own. */
export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  const { stop, ...system } = await startSystem();
  project.provide("system", system);
  return stop;
}

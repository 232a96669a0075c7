import type { TestProject } from "vitest/node";
import { type Installed, installPackage } from "./install.js";

declare module "vitest" {
  export interface ProvidedContext {
    installed: Omit<Installed, "remove">;
  }
}

/** One project that installed the package, for all files of the suite. */
export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  const { remove, ...installed } = await installPackage();
  project.provide("installed", installed);
  return remove;
}

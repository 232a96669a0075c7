import type { Reporter, TestModule } from "vitest/node";

/** How a container's end met an operation, several times; each failed with a typed error. */
export interface Ends {
  how: string;
  operation: string;
  path: string;
  /** From the engine's signal to the error, in ms. */
  waits: number[];
}

declare module "vitest" {
  interface TaskMeta {
    ends?: Ends;
  }
}

/** Says at the end of a run how many ends of containers were survived, and how soon the callers knew. */
export default class EndsReport implements Reporter {
  onTestRunEnd(modules: readonly TestModule[]): void {
    const all = modules.flatMap((module) =>
      [...module.children.allTests("passed")].flatMap((test) => test.meta().ends ?? []),
    );
    if (all.length === 0) return;
    console.log(
      "Containers ended during operations; each call failed with a typed error, left nothing, and the next worked:",
    );
    for (const { how, operation, path, waits } of all) {
      const sorted = waits.toSorted((a, b) => a - b);
      console.log(
        `  docker ${how} during ${operation} (${path}): ${waits.length} times, error after ${sorted.join(", ")} ms`,
      );
    }
  }
}

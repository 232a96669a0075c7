import { defineConfig } from "vitest/config";
import { suite } from "../e2e/vitest.config.ts";
import EndsReport from "./ends-report.ts";
import { CONTAINER_RUNTIMES } from "./runtimes.ts";

/** Says how soon a container's end is known, so nothing else runs beside it. */
const ENDS = ["container-ends.test.ts"];

/** The end-to-end suite in real containers, in both of their runtimes at the same time. */
export default defineConfig({
  cacheDir: "../../node_modules/.vite/containers",
  test: {
    globalSetup: [new URL("global-setup.ts", import.meta.url).pathname],
    projects: CONTAINER_RUNTIMES.flatMap((runtime) => {
      // What takes an engine and no Worker is the same in both.
      const include = runtime === "containers" ? [...suite.include, "../containers/*.test.ts"] : suite.include;
      const test = { ...suite, provide: { runtime }, testTimeout: 180_000 };
      return [
        { test: { ...test, name: `${runtime}: ends`, include: ENDS, sequence: { groupOrder: 0 } } },
        { test: { ...test, name: runtime, include, exclude: ENDS, sequence: { groupOrder: 1 } } },
      ];
    }),
    maxWorkers: 3,
    reporters: ["default", new EndsReport()],
  },
});

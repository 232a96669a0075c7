import { defineConfig } from "vitest/config";
import { suite } from "../e2e/vitest.config.ts";
import EndsReport from "./ends-report.ts";
import { CONTAINER_RUNTIMES } from "./runtimes.ts";

/** The end-to-end suite in real containers, in both of their runtimes at the same time. */
export default defineConfig({
  cacheDir: "../../node_modules/.vite/containers",
  test: {
    globalSetup: [new URL("global-setup.ts", import.meta.url).pathname],
    projects: CONTAINER_RUNTIMES.map((runtime) => {
      // What takes an engine and no Worker is the same in both.
      const include = runtime === "containers" ? [...suite.include, "../containers/*.test.ts"] : suite.include;
      return { test: { ...suite, include, name: runtime, provide: { runtime }, testTimeout: 180_000 } };
    }),
    maxWorkers: 4,
    reporters: ["default", new EndsReport()],
  },
});

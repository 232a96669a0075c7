import { defineConfig } from "vitest/config";

/** The folder says what a test runs in: workerd, the agent alone with real tools, the development host, or the whole system. */
export default defineConfig({
  test: {
    projects: [
      "test/unit",
      "test/unit/vitest.earliest.config.ts",
      "test/agent",
      "test/dev",
      "test/bench",
      "test/package",
      "test/e2e",
    ],
  },
});

import { defineConfig } from "vitest/config";

/** Cases of the whole system that are too heavy for `npm test`, one after another. */
export default defineConfig({
  cacheDir: "../../node_modules/.vite/large",
  test: {
    name: "large",
    root: import.meta.dirname,
    environment: "node",
    globalSetup: ["../e2e/global-setup.ts"],
    include: ["*.test.ts"],
    testTimeout: 900_000,
    hookTimeout: 90_000,
    maxWorkers: 1,
    fileParallelism: false,
  },
});

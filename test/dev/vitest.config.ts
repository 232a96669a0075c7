import { defineConfig } from "vitest/config";

export default defineConfig({
  cacheDir: "../../node_modules/.vite/dev",
  test: { root: import.meta.dirname, environment: "node", testTimeout: 30_000, include: ["*.test.ts"] },
});

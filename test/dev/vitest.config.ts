import { defineConfig } from "vitest/config";

export default defineConfig({
  cacheDir: "../../node_modules/.vite/dev",
  test: { root: import.meta.dirname, environment: "node", include: ["*.test.ts"] },
});

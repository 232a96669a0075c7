import { defineConfig } from "vitest/config";

export default defineConfig({
  cacheDir: "../../node_modules/.vite/package",
  test: {
    name: "package",
    root: import.meta.dirname,
    environment: "node",
    globalSetup: ["./global-setup.ts"],
    include: ["*.test.ts"],
    testTimeout: 60_000,
    hookTimeout: 120_000,
  },
});

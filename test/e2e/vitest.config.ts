import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    name: "e2e",
    root: import.meta.dirname,
    environment: "node",
    globalSetup: ["./global-setup.ts"],
    include: ["*.test.ts"],
    testTimeout: 60_000,
    hookTimeout: 90_000,
  },
});

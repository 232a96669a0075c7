import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    name: "agent",
    root: import.meta.dirname,
    environment: "node",
    testTimeout: 30_000,
    hookTimeout: 60_000,
  },
});

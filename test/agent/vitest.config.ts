import { defineConfig } from "vitest/config";

export default defineConfig({
  cacheDir: "../../node_modules/.vite/agent",
  test: {
    name: "agent",
    root: import.meta.dirname,
    environment: "node",
    testTimeout: 30_000,
    hookTimeout: 60_000,
  },
});

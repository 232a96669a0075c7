import { defineConfig } from "vitest/config";

/** The suite, whatever it runs against. */
export const suite = {
  root: import.meta.dirname,
  environment: "node",
  include: ["*.test.ts"],
  testTimeout: 60_000,
  hookTimeout: 90_000,
};

export default defineConfig({ test: { ...suite, name: "e2e", globalSetup: ["./global-setup.ts"] } });

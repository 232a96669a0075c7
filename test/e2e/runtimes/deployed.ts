import type { RunningSystems } from "../system.js";

/** A Worker that is deployed already, which the tests know by its URL alone. */
export function useDeployed(url: string): RunningSystems {
  const deployed = { url: url.replace(/\/$/, ""), token: process.env.E2E_TOKEN, hasProduction: true };
  return { systems: { deployed }, stop: async () => {} };
}

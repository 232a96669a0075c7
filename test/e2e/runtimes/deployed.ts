import type { System } from "../system.js";

/** A Worker that is deployed already, which the tests know by its URL alone. */
export function useDeployed(url: string): System {
  return {
    url: url.replace(/\/$/, ""),
    token: process.env.E2E_TOKEN,
    hasProduction: true,
    // What its containers allow only trying tells.
    hasKernelLayers: false,
    stop: async () => {},
  };
}

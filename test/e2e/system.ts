import { startContainers } from "./runtimes/containers.js";
import { useDeployed } from "./runtimes/deployed.js";
import { startDevelopmentHost } from "./runtimes/development-host.js";

/** What the end-to-end tests run against. One suite: the runtime is its parameter, and says what it lacks. */

const CONFIG = new URL("worker/wrangler.jsonc", import.meta.url).pathname;

export interface System {
  url: string;
  token?: string | undefined;
  /** Whether sandboxes reach the bucket by presigned URLs, and may mount what they restore. */
  hasProduction: boolean;
  /** Whether the kernel can serve restored directories, as far as that is known. */
  hasKernelLayers: boolean;
  /** Origin of the faulty S3 endpoint; undefined where the Worker is out of its reach. */
  faults?: string | undefined;
  /** What the whole system has written so far: wrangler, the host and the agents. */
  logFile?: string | undefined;
  /** Process id of `sandbox-backup dev`. */
  pid?: number | undefined;
  /** How docker reaches the engine that runs the containers, and their label; undefined without an engine of ours. */
  engine?: { env: Record<string, string>; label: string } | undefined;
  stop(): Promise<void>;
}

/** Starts what E2E_URL or E2E_RUNTIME says; by default `sandbox-backup dev`. */
export async function startSystem(): Promise<System> {
  if (process.env.E2E_URL !== undefined) return useDeployed(process.env.E2E_URL);
  const runtime = process.env.E2E_RUNTIME ?? "development-host";
  switch (runtime) {
    case "development-host":
      return startDevelopmentHost(CONFIG);
    case "containers":
      return startContainers(CONFIG, { fuse: false });
    case "containers-fuse":
      return startContainers(CONFIG, { fuse: true });
    default:
      throw new Error(`E2E_RUNTIME is development-host, containers or containers-fuse, not ${runtime}`);
  }
}

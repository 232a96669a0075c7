import { isContainerRuntime } from "../containers/runtimes.js";
import { startContainers } from "./runtimes/containers.js";
import { useDeployed } from "./runtimes/deployed.js";
import { startDevelopmentHost } from "./runtimes/development-host.js";

/** What the end-to-end tests run against. One suite: the runtime is its parameter, and says what it lacks. */

const CONFIG = new URL("worker/wrangler.jsonc", import.meta.url).pathname;

/** Plain data: it is handed to the processes that run the tests. */
export interface System {
  url: string;
  token?: string | undefined;
  /** Whether sandboxes reach the bucket by presigned URLs, and may mount what they restore. */
  hasProduction: boolean;
  /** Whether the kernel can serve restored directories, as far as that is known. */
  hasKernelLayers?: boolean | undefined;
  /** Whether what takes the localBucket path alone is tested in another runtime, in the same run. */
  leavesLocalBucket?: boolean | undefined;
  /** Origin of the faulty S3 endpoint; undefined where the Worker is out of its reach. */
  faults?: string | undefined;
  /** What the whole system has written so far: wrangler, the host and the agents. */
  logFile?: string | undefined;
  /** Process id of `sandbox-backup dev`. */
  pid?: number | undefined;
  /** How docker reaches the engine that runs the containers, and their label; undefined without an engine of ours. */
  engine?: { env: Record<string, string>; label: string } | undefined;
}

export interface RunningSystems {
  /** By the name of their runtime. */
  systems: Record<string, System>;
  /** Ends and removes all that was started. */
  stop(): Promise<void>;
}

/** The runtime that E2E_URL or E2E_RUNTIME asks for; by default `sandbox-backup dev`. */
export function chosenRuntime(): string {
  return process.env.E2E_URL === undefined ? (process.env.E2E_RUNTIME ?? "development-host") : "deployed";
}

/** Starts the system of each of these runtimes. */
export async function startSystems(runtimes: readonly string[]): Promise<RunningSystems> {
  if (runtimes.every(isContainerRuntime)) return startContainers(CONFIG, runtimes);
  const [runtime, another] = runtimes;
  if (runtime === "deployed" && another === undefined) return useDeployed(process.env.E2E_URL ?? "");
  if (runtime === "development-host" && another === undefined) return startDevelopmentHost(CONFIG);
  throw new Error(`E2E_RUNTIME is development-host, containers or containers-fuse, not ${runtimes.join(" ")}`);
}

import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { freePort, startDevServer } from "../../support/dev-server.js";
import { FaultProxy } from "../../support/fault-proxy.js";
import type { RunningSystems } from "../system.js";

/** `sandbox-backup dev` with the test Worker. */
export async function startDevelopmentHost(config: string): Promise<RunningSystems> {
  const directory = await mkdtemp(join(tmpdir(), "e2e-"));
  const port = await freePort();
  const url = `http://127.0.0.1:${port}`;
  const proxy = await FaultProxy.start(url);
  const release = async () => {
    proxy.stop();
    await rm(directory, { recursive: true, force: true });
  };
  try {
    const args = ["--var", `FAULTY_ENDPOINT:${proxy.origin}/cdn-cgi/local/r2/s3`];
    if (process.env.E2E_AGENT_ENV !== undefined) args.push("--var", `AGENT_ENV:${process.env.E2E_AGENT_ENV}`);
    const { pid, logFile, stop } = await startDevServer({ config, directory, port, args });
    const hasKernelLayers = process.getuid?.() === 0;
    const system = { url, hasProduction: true, hasKernelLayers, faults: proxy.origin, logFile, pid };
    return { systems: { "development-host": system }, stop: () => stop().then(release) };
  } catch (error) {
    await release();
    throw error;
  }
}

import { spawn } from "node:child_process";
import { mkdtemp, open, readFile, rm } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { FaultProxy } from "../support/fault-proxy.js";

/**
 * Starts what the end-to-end tests run against: by default `sandbox-backup dev` with the test Worker; with E2E_URL a
 * Worker that is deployed already. One suite, the runtime is its parameter.
 */

const ROOT = new URL("../../", import.meta.url).pathname;
const START_TIMEOUT = 60_000;

export interface System {
  url: string;
  token?: string | undefined;
  /** Origin of the faulty S3 endpoint; undefined where the Worker is out of its reach. */
  faults?: string | undefined;
  /** What the whole system has written so far: wrangler, the host and the agents. */
  logFile?: string | undefined;
  /** Process id of `sandbox-backup dev`. */
  pid?: number | undefined;
  stop(): Promise<void>;
}

export async function startSystem(): Promise<System> {
  const url = process.env.E2E_URL;
  if (url !== undefined) {
    return { url: url.replace(/\/$/, ""), token: process.env.E2E_TOKEN, stop: async () => {} };
  }
  return startDevelopmentHost();
}

async function startDevelopmentHost(): Promise<System> {
  const directory = await mkdtemp(join(tmpdir(), "e2e-"));
  const port = await freePort();
  const url = `http://127.0.0.1:${port}`;
  const proxy = await FaultProxy.start(url);
  const logFile = join(directory, "log");
  const log = await open(logFile, "w");
  const child = spawn(
    process.execPath,
    [
      join(ROOT, "dist/cli.js"),
      "dev",
      ...["--config", join(ROOT, "test/e2e/worker/wrangler.jsonc")],
      ...["--port", String(port), "--inspector-port", "0"],
      ...["--persist-to", join(directory, "state")],
      ...["--var", `FAULTY_ENDPOINT:${proxy.origin}/cdn-cgi/local/r2/s3`],
    ],
    { stdio: ["ignore", log.fd, log.fd] },
  );
  const ended = new Promise<void>((resolve) => child.once("exit", () => resolve()));
  const stop = async () => {
    child.kill("SIGTERM");
    await ended;
    proxy.stop();
    await log.close();
    await rm(directory, { recursive: true, force: true });
  };
  const deadline = Date.now() + START_TIMEOUT;
  while (!(await answers(url))) {
    if (child.exitCode !== null || Date.now() > deadline) {
      const output = await readFile(logFile, "utf8");
      await stop();
      throw new Error(`The system did not start:\n${output}`);
    }
    await delay(100);
  }
  return { url, faults: proxy.origin, logFile, pid: child.pid, stop };
}

async function answers(url: string): Promise<boolean> {
  return fetch(url).then(
    (response) => response.ok,
    () => false,
  );
}

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const address = server.address();
  await new Promise((resolve) => server.close(resolve));
  if (address === null || typeof address === "string") throw new Error("no free port");
  return address.port;
}

import { spawn } from "node:child_process";
import { mkdir, open, readFile } from "node:fs/promises";
import { createServer } from "node:net";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { listenOnLoopback } from "../../dev/loopback.ts";

/** Runs `sandbox-backup dev`. Without TypeScript that has to be compiled, for the demo runs this file as it is. */

const CLI = new URL("../../dist/cli.js", import.meta.url).pathname;
const START_TIMEOUT = 60_000;

export interface DevServerOptions {
  /** The command's program. @default that of this repository, as it was built last */
  cli?: string;
  /** @default this process's own */
  cwd?: string;
  /** The Worker's configuration. */
  config: string;
  /** Gets the log and what wrangler stores. */
  directory: string;
  /** On 127.0.0.1. */
  port: number;
  /** More flags of `wrangler dev`. */
  args?: readonly string[];
  env?: NodeJS.ProcessEnv;
  signal?: AbortSignal;
}

export interface DevServer {
  /** Process id of `sandbox-backup dev`. */
  pid: number | undefined;
  /** What the whole system has written so far: wrangler, the host and the agents. */
  logFile: string;
  /** Resolves when it has ended with all that it started. */
  stop(): Promise<void>;
}

/** Resolves when the Worker answers. When it rejects, nothing is left running. */
export async function startDevServer(options: DevServerOptions): Promise<DevServer> {
  await mkdir(options.directory, { recursive: true });
  const logFile = join(options.directory, "log");
  const log = await open(logFile, "w");
  const child = spawn(
    process.execPath,
    [
      ...[options.cli ?? CLI, "dev", "--config", options.config],
      ...["--port", String(options.port), "--inspector-port", "0"],
      ...["--persist-to", join(options.directory, "state")],
      ...(options.args ?? []),
    ],
    {
      stdio: ["ignore", log.fd, log.fd],
      env: { ...process.env, ...options.env },
      ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
    },
  );
  const ended = new Promise<void>((resolve) => {
    child.once("error", () => resolve());
    child.once("exit", () => resolve());
  });
  const stop = async () => {
    child.kill("SIGTERM");
    await ended;
    await log.close();
  };
  const deadline = Date.now() + START_TIMEOUT;
  while (!(await answers(`http://127.0.0.1:${options.port}`))) {
    const isOver = child.exitCode !== null || child.signalCode !== null || Date.now() > deadline;
    if (!isOver && !options.signal?.aborted) {
      await delay(100);
      continue;
    }
    await stop();
    options.signal?.throwIfAborted();
    throw new Error(`The system did not start:\n${await readFile(logFile, "utf8")}`);
  }
  return { pid: child.pid, logFile, stop };
}

/** True when there is an answer, whatever it says. */
function answers(url: string): Promise<boolean> {
  return fetch(url).then(
    () => true,
    () => false,
  );
}

export async function freePort(): Promise<number> {
  const server = createServer();
  const port = await listenOnLoopback(server);
  await new Promise((resolve) => server.close(resolve));
  return port;
}

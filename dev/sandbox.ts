import { spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { chmod, mkdir, readdir, rm } from "node:fs/promises";
import { get } from "node:http";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { Duplex } from "node:stream";
import { text } from "node:stream/consumers";
import { setTimeout as sleep } from "node:timers/promises";
import { z } from "zod";
import { agentRoutes, healthSchema, type StartRequest } from "../src/protocol.js";
import { planSandbox, readMirroredRoot } from "./bubblewrap.js";

/** How long an agent may take until it answers, in ms. It takes about 100 ms. */
const START_TIMEOUT = 10_000;

/** How many of the last lines that a sandbox wrote are kept for the error when it does not start. */
const KEPT_LINES = 20;

/** Descriptors that bwrap gets besides the standard ones. */
const INFO_FD = 3;
const ARGS_FD = 4;

const bwrapInfoSchema = z.object({ "child-pid": z.number() });

export interface SandboxOptions {
  /** Directory in which the sandbox gets a directory of its own. */
  parent: string;
  /** The agent, one file. */
  agentPath: string;
  request: StartRequest;
  /** Gets every line that the sandbox's agent writes to its standard output and error. */
  onLine: (line: string) => void;
}

/** A running sandbox. */
export interface Sandbox {
  /** Names this run. */
  readonly instance: string;
  /** The Unix socket on which its agent listens. */
  readonly socketPath: string;
  /** Resolves, with how, when it has ended, by itself or by `kill()`. None of its processes and mounts exist any more. */
  readonly ended: Promise<string>;
  /** Resolves when its files are gone too. */
  readonly gone: Promise<void>;
  /** Ends it at once. Harmless when it has ended. */
  kill(): void;
}

/**
 * Starts a sandbox and resolves when its agent answers.
 * When it rejects, or `signal` aborts before it resolved, nothing of the sandbox is left.
 */
export async function startSandbox(options: SandboxOptions, signal: AbortSignal): Promise<Sandbox> {
  signal.throwIfAborted();
  const instance = randomUUID();
  const directory = join(options.parent, instance.slice(0, 8));
  const plan = planSandbox({
    directory,
    mirrored: await readMirroredRoot(),
    agentPath: options.agentPath,
    nodePath: process.execPath,
    isRoot: process.getuid?.() === 0,
    env: options.request.env,
    enableInternet: options.request.enableInternet,
  });
  await mkdir(directory, { mode: 0o700 });
  for (const { path, mode } of plan.directories) {
    await mkdir(path);
    // mkdir's own mode is cut by the umask.
    await chmod(path, mode);
  }

  const lastLines: string[] = [];
  const bwrap = runBwrap(plan.args, plan.secretArgs, (line) => {
    lastLines.push(line);
    if (lastLines.length > KEPT_LINES) lastLines.shift();
    options.onLine(line);
  });
  const gone = bwrap.ended.then(() => removeDirectory(directory));
  const sandbox = { instance, socketPath: plan.socketPath, ended: bwrap.ended, gone, kill: bwrap.kill };

  const exited = new AbortController();
  void bwrap.ended.then((how) => exited.abort(new Error(`it ended (${how}) before it answered`)));
  try {
    await untilHealthy(plan.socketPath, AbortSignal.any([signal, exited.signal]));
    return sandbox;
  } catch (error) {
    sandbox.kill();
    await gone;
    signal.throwIfAborted();
    const words = lastLines.length === 0 ? "" : `:\n${lastLines.join("\n")}`;
    throw new Error(`The sandbox did not start: ${error instanceof Error ? error.message : String(error)}${words}`, {
      cause: error,
    });
  }
}

/** Runs bwrap. `ended` resolves with how it ended, when no process of the sandbox is left and all output was read. */
function runBwrap(args: readonly string[], secretArgs: readonly string[], onLine: (line: string) => void) {
  const child = spawn("bwrap", ["--info-fd", `${INFO_FD}`, "--args", `${ARGS_FD}`, ...args], {
    // Not in the terminal's process group, or Ctrl-C would end it before its sandbox was told to stop.
    detached: true,
    stdio: ["ignore", "pipe", "pipe", "pipe", "pipe"],
  });
  const [, stdout, stderr, info, secrets] = child.stdio;
  if (!(info instanceof Duplex && secrets instanceof Duplex && stdout !== null && stderr !== null)) {
    throw new Error("A process was started without the pipes that were asked for.");
  }
  createInterface({ input: stdout }).on("line", onLine);
  createInterface({ input: stderr }).on("line", onLine);
  // When bwrap ends before it read them, `ended` says so.
  secrets.on("error", () => {});
  secrets.end(secretArgs.map((arg) => `${arg}\0`).join(""));

  const ended = new Promise<string>((resolve) => {
    child.once("error", (error) => resolve(String(error)));
    child.once("close", (code, signal) => resolve(code === null ? String(signal) : `exit code ${code}`));
  });
  let over = false;
  void ended.then(() => {
    over = true;
  });
  // The first process of the sandbox. bwrap itself ends when that has, and that ends last of all in its namespace.
  const firstPid = text(info).then(
    (json) => (json === "" ? undefined : bwrapInfoSchema.parse(JSON.parse(json))["child-pid"]),
    // bwrap could not be started: `ended` says why.
    () => undefined,
  );
  const kill = () =>
    void firstPid.then((pid) => {
      if (over) return;
      try {
        if (pid === undefined) child.kill("SIGKILL");
        else process.kill(pid, "SIGKILL");
      } catch (error) {
        // ESRCH: it has just ended by itself.
        if (!(error instanceof Error && "code" in error && error.code === "ESRCH")) throw error;
      }
    });
  return { ended, kill };
}

/** Resolves when the agent answers. Rejects after `START_TIMEOUT` or when `signal` aborts. */
async function untilHealthy(socketPath: string, signal: AbortSignal): Promise<void> {
  const deadline = Date.now() + START_TIMEOUT;
  for (let delay = 5; !(await isHealthy(socketPath, signal)); delay = Math.min(delay * 1.5, 100)) {
    signal.throwIfAborted();
    if (Date.now() > deadline) throw new Error(`its agent did not answer for ${START_TIMEOUT} ms`);
    await sleep(delay);
  }
}

function isHealthy(socketPath: string, signal: AbortSignal): Promise<boolean> {
  return new Promise((resolve) => {
    const request = get({ socketPath, path: agentRoutes.health, signal }, (response) => {
      text(response).then(
        (body) => resolve(response.statusCode === 200 && isHealth(body)),
        () => resolve(false),
      );
    });
    // Nothing listens there yet.
    request.on("error", () => resolve(false));
  });
}

function isHealth(body: string): boolean {
  try {
    return healthSchema.safeParse(JSON.parse(body)).success;
  } catch (error) {
    if (error instanceof SyntaxError) return false;
    throw error;
  }
}

/** Removes a directory with what sandboxes left in it. */
export async function removeDirectory(directory: string): Promise<void> {
  const remove = () => rm(directory, { recursive: true, force: true, maxRetries: 3 });
  try {
    await remove();
  } catch (error) {
    // Who is not root cannot remove what is in a directory without rights, and overlay file systems make such.
    if (!(error instanceof Error && "code" in error && error.code === "EACCES")) throw error;
    await takeRights(directory);
    await remove();
  }
}

async function takeRights(directory: string): Promise<void> {
  await chmod(directory, 0o700);
  for (const entry of await readdir(directory, { withFileTypes: true })) {
    if (entry.isDirectory()) await takeRights(join(directory, entry.name));
  }
}

import { type ChildProcessByStdio, spawn } from "node:child_process";
import type { Readable, Writable } from "node:stream";

/** The one place of the agent that starts a process. Tools get an argv array, never a shell's string. */

/** How much of the end of a tool's stderr is kept for its error, in bytes. */
const STDERR_KEPT = 8 * 1024;

/** What tools may see of the agent's environment; LC_ALL=C makes their messages the ones that the agent reads. */
export const TOOL_ENV = { PATH: process.env.PATH ?? "/usr/sbin:/usr/bin:/sbin:/bin", LC_ALL: "C" };

export interface ProcessOptions {
  cwd?: string | undefined;
  /** The whole environment. @default a minimal one with LC_ALL=C */
  env?: Record<string, string> | undefined;
  /** Kills the process, and every process of its group, with SIGKILL. */
  signal?: AbortSignal | undefined;
  /** Descriptors that it gets as its own from 3 on. @default none */
  inherit?: readonly number[] | undefined;
}

/** How a process ended: one of the two is null. */
export interface Exit {
  code: number | null;
  signal: NodeJS.Signals | null;
}

/** `exited with 1` or `was ended by SIGKILL`. */
export function describeExit({ code, signal }: Exit): string {
  return code === null ? `was ended by ${signal}` : `exited with ${code}`;
}

export interface RunningProcess {
  pid: number;
  stdin: Writable;
  stdout: Readable;
  stderr: Readable;
  /** Resolves when the process has ended; its output may still be in the pipes. */
  exited: Promise<Exit>;
  /** Resolves when the process has ended and whoever holds its pipes has closed them. */
  closed: Promise<Exit>;
  /** SIGKILL to the process and its group. Harmless when it has ended. */
  kill(): void;
}

/**
 * Starts a process in a process group of its own, so that stopping it stops what it started too.
 * @throws the system's error (ENOENT: no such program or no such `cwd`; EACCES) when it cannot be started
 */
export async function startProcess(
  program: string,
  args: readonly string[],
  options: ProcessOptions = {},
): Promise<RunningProcess> {
  options.signal?.throwIfAborted();
  const child = spawn(program, args, {
    cwd: options.cwd,
    env: options.env ?? TOOL_ENV,
    detached: true,
    stdio: ["pipe", "pipe", "pipe", ...(options.inherit ?? [])],
  }) as ChildProcessByStdio<Writable, Readable, Readable>;
  const exited = new Promise<Exit>((resolve) => child.once("exit", (code, signal) => resolve({ code, signal })));
  const closed = new Promise<Exit>((resolve) => child.once("close", (code, signal) => resolve({ code, signal })));
  await new Promise<void>((resolve, reject) => {
    child.once("spawn", resolve);
    child.once("error", reject);
  });
  // A process that ends without reading its input closes the pipe: EPIPE here is its choice, not a failure.
  child.stdin.on("error", () => {});

  const { pid } = child;
  if (pid === undefined) throw new Error(`${program} was started but has no process id`);
  const kill = () => {
    try {
      process.kill(-pid, "SIGKILL");
    } catch (error) {
      // ESRCH: the whole group has ended already.
      if (!(error instanceof Error && "code" in error && error.code === "ESRCH")) throw error;
    }
  };
  options.signal?.addEventListener("abort", kill, { once: true });
  void exited.then(() => options.signal?.removeEventListener("abort", kill));
  if (options.signal?.aborted) kill();
  return { pid, stdin: child.stdin, stdout: child.stdout, stderr: child.stderr, exited, closed, kill };
}

/** A tool could not be started, failed, or took too long. The message says which tool, how it ended, and its last words. */
export class ToolError extends Error {
  override readonly name = "ToolError";
  constructor(
    message: string,
    /** Facts for the error that the caller throws. */
    readonly facts: {
      tool: string;
      /** True when there is no such program in the container. */
      missing: boolean;
      exitCode?: number;
      /** The end of what it wrote to stderr, at most 8 KiB. */
      stderr: Buffer;
    },
    options?: ErrorOptions,
  ) {
    super(message, options);
  }
}

export interface ToolOptions extends ProcessOptions {
  /** In ms; then the tool is killed. @default no limit */
  timeout?: number;
  /** Exit codes that are no failure. @default [0] */
  okExitCodes?: readonly number[];
  /** Called with every complete line of stderr, as bytes in latin1, while the tool runs. */
  onStderrLine?: (line: string) => void;
}

export interface ToolOutput {
  exitCode: number;
  stdout: Buffer;
  /** Its end, at most 8 KiB. */
  stderr: string;
}

/**
 * Runs one tool to its end.
 * @throws {ToolError} when it is missing, ends with another exit code than `okExitCodes`, or takes longer than `timeout`
 * @throws the signal's reason when `signal` aborts; the tool has ended by then
 */
export async function runTool(tool: string, args: readonly string[], options: ToolOptions = {}): Promise<ToolOutput> {
  let child: RunningProcess;
  try {
    child = await startProcess(tool, args, options);
  } catch (error) {
    options.signal?.throwIfAborted();
    const missing = error instanceof Error && "code" in error && error.code === "ENOENT";
    const message = missing ? `${tool} is not installed in the container` : `${tool} could not be started: ${error}`;
    throw new ToolError(message, { tool, missing, stderr: Buffer.alloc(0) }, { cause: error });
  }
  child.stdin.end();

  const stdout: Buffer[] = [];
  child.stdout.on("data", (chunk: Buffer) => stdout.push(chunk));
  const stderr = keepEnd(child.stderr, options.onStderrLine);
  let timedOut = false;
  const timer =
    options.timeout === undefined
      ? undefined
      : setTimeout(() => {
          timedOut = true;
          child.kill();
        }, options.timeout);
  const { code, signal } = await child.closed;
  clearTimeout(timer);

  options.signal?.throwIfAborted();
  if (code !== null && (options.okExitCodes ?? [0]).includes(code)) {
    return { exitCode: code, stdout: Buffer.concat(stdout), stderr: stderr().toString() };
  }
  const how = timedOut ? `took longer than ${options.timeout} ms` : describeExit({ code, signal });
  const words = stderr().toString().trim();
  throw new ToolError(words === "" ? `${tool} ${how}` : `${tool} ${how}: ${words}`, {
    tool,
    missing: false,
    ...(code === null ? {} : { exitCode: code }),
    stderr: stderr(),
  });
}

/** Reads a stream to its end; the function that it returns gives the last 8 KiB of it. */
export function keepEnd(stream: Readable, onLine?: (line: string) => void): () => Buffer {
  let kept: Buffer = Buffer.alloc(0);
  let line = "";
  stream.on("data", (chunk: Buffer) => {
    kept = Buffer.concat([kept, chunk]).subarray(-STDERR_KEPT);
    if (onLine === undefined) return;
    const lines = (line + chunk.toString("latin1")).split("\n");
    line = lines.pop() ?? "";
    for (const complete of lines) onLine(complete);
  });
  return () => kept;
}

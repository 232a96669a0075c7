import { existsSync } from "node:fs";
import { stat } from "node:fs/promises";
import { constants } from "node:os";
import type { Readable } from "node:stream";
import { StringDecoder } from "node:string_decoder";
import { setTimeout as sleep } from "node:timers/promises";
import { CommandTimeoutError, FileNotFoundError, FileSystemError, ValidationError } from "../src/errors.js";
import { type ExecEventMessage, type ExecRequest, WORKSPACE } from "../src/protocol.js";
import { fileError, resolvePath } from "./files.js";
import { type Exit, type RunningProcess, startProcess } from "./run.js";

type Emit = (event: ExecEventMessage) => Promise<void>;

/** By absolute path: a request may set PATH for its command, and the shell has to be found all the same. */
const SHELL = ["/bin/bash", "/usr/bin/bash", "/usr/local/bin/bash"].find(existsSync) ?? "/bin/sh";
/** bash reads ~/.bashrc where it takes its standard input for a network connection, as when rshd starts it. */
const SHELL_OPTIONS = SHELL.endsWith("bash") ? ["--norc"] : [];

/** The longest time that a timer can wait; a longer one would fire at once. In ms. */
const LONGEST_TIMER = 2 ** 31 - 1;

/**
 * Runs a command in a shell and reports its output as it comes.
 * What the command leaves running in the background goes on after it; on a timeout, or when `signal` aborts, its whole
 * process group is killed.
 * @returns the event `complete`, when the command has ended and what it wrote is reported
 * @throws {CommandTimeoutError} when it takes longer than `request.timeout`
 * @throws {FileNotFoundError} when there is no such `cwd`
 * @throws the signal's reason when `signal` aborts
 */
export async function exec(request: ExecRequest, emit: Emit, signal: AbortSignal): Promise<ExecEventMessage> {
  const { command, timeout } = request;
  const cwd = resolvePath(request.cwd ?? WORKSPACE, "cwd");
  await checkDirectory(cwd);
  const start = performance.now();

  await emit({ type: "start", command, timestamp: now() });
  const child = await startCommand(command, cwd, commandEnv(request.env), signal);
  const output = reportOutput(child, emit);
  const deadline = killAfter(child, timeout);
  child.stdin.end(request.stdin ?? "");
  const exit = await child.exited;
  deadline.clear();
  // Whatever the command left running may hold its pipes for hours; what itself wrote is in them already.
  await Promise.race([child.closed, output.quiet()]);
  await output.finish();

  signal.throwIfAborted();
  if (deadline.passed) {
    throw new CommandTimeoutError(`The command took longer than its timeout of ${timeout} ms and was killed`, {
      command,
      timeout: timeout ?? 0,
    });
  }
  return {
    type: "complete",
    exitCode: exitCodeOf(exit),
    duration: Math.round(performance.now() - start),
    timestamp: now(),
  };
}

/** The environment of a command: the agent's own, then the request's. */
export function commandEnv(env: Record<string, string> = {}): Record<string, string> {
  const own = Object.entries(process.env).filter((entry): entry is [string, string] => entry[1] !== undefined);
  return { ...Object.fromEntries(own), ...env };
}

async function checkDirectory(cwd: string): Promise<void> {
  const stats = await stat(cwd).catch((error: unknown) => {
    throw fileError(error, "run a command in", cwd);
  });
  if (!stats.isDirectory()) {
    throw new FileSystemError(`Cannot run a command in ${cwd}: it is not a directory`, { path: cwd });
  }
}

async function startCommand(
  command: string,
  cwd: string,
  env: Record<string, string>,
  signal: AbortSignal,
): Promise<RunningProcess> {
  try {
    return await startProcess(SHELL, [...SHELL_OPTIONS, "-c", command], { cwd, env, signal });
  } catch (error) {
    signal.throwIfAborted();
    const code = error instanceof Error && "code" in error ? error.code : undefined;
    if (code === "ERR_INVALID_ARG_VALUE") {
      throw new ValidationError("command and env must not contain a NUL character");
    }
    if (code === "E2BIG") {
      const message =
        "command or env is longer than the system allows (128 KiB for one); write it to a file or to stdin";
      throw new ValidationError(message, undefined, { cause: error });
    }
    if (code === "ENOENT") {
      throw new FileNotFoundError(`Cannot run a command: ${SHELL} does not exist`, { path: SHELL }, { cause: error });
    }
    throw fileError(error, "run a command in", cwd);
  }
}

function killAfter(child: RunningProcess, timeout: number | undefined): { readonly passed: boolean; clear(): void } {
  let passed = false;
  const timer =
    timeout === undefined
      ? undefined
      : setTimeout(
          () => {
            passed = true;
            child.kill();
          },
          Math.min(timeout, LONGEST_TIMER),
        );
  return {
    get passed() {
      return passed;
    },
    clear: () => clearTimeout(timer),
  };
}

/** How long the pipes of a command that has ended must be quiet, or at most may go on, until its output counts as read. In ms. */
const QUIET_TIME = 50;
const LONGEST_REST = 1_000;
const TICK = 10;

/** Reports what a command writes, and reads on only when that was taken, so that nothing piles up in memory. */
function reportOutput(child: RunningProcess, emit: Emit) {
  let chunks = 0;
  let pending = 0;

  const report = (stream: Readable, type: "stdout" | "stderr") => {
    const decoder = new StringDecoder("utf8");
    const send = async (data: string) => {
      if (data !== "") await emit({ type, data, timestamp: now() });
    };
    const onData = async (chunk: Buffer) => {
      chunks += 1;
      pending += 1;
      stream.pause();
      await send(decoder.write(chunk));
      stream.resume();
      pending -= 1;
    };
    stream.on("data", onData);
    return async () => {
      // A background process may still hold the pipe: it is read on, to nowhere, so that writing does not kill or stop it.
      stream.off("data", onData);
      stream.resume();
      await send(decoder.end());
    };
  };
  const finishers = [report(child.stdout, "stdout"), report(child.stderr, "stderr")];

  return {
    /** Resolves when nothing has come for a while. Time in which the client is slow to take what came does not count. */
    async quiet(): Promise<void> {
      let seen = chunks;
      for (let quiet = 0, total = 0; quiet < QUIET_TIME && total < LONGEST_REST; ) {
        await sleep(TICK);
        if (pending > 0) continue;
        total += TICK;
        quiet = chunks === seen ? quiet + TICK : 0;
        seen = chunks;
      }
    },
    async finish(): Promise<void> {
      for (const finish of finishers) await finish();
    },
  };
}

function exitCodeOf({ code, signal }: Exit): number {
  if (code !== null) return code;
  return 128 + (signal === null ? 0 : constants.signals[signal]);
}

function now(): string {
  return new Date().toISOString();
}

import { readFile, readlink } from "node:fs/promises";
import { setTimeout as delay } from "node:timers/promises";
import type { BenchSandbox } from "./sandbox.ts";

const INTERVAL = 50;

/**
 * The most resident memory that all processes of a sandbox together had while `work` ran, in bytes. A program's file, which
 * processes of the same program share, counts once.
 */
export async function peakDuring(
  sandbox: BenchSandbox,
  counts: (commandLine: string) => boolean,
  work: () => Promise<unknown>,
): Promise<number> {
  let peak = 0;
  let isRunning = true;
  const watching = (async () => {
    while (isRunning) {
      peak = Math.max(peak, await residentMemory(await sandbox.processes(), counts));
      await delay(INTERVAL);
    }
  })();
  try {
    await work();
  } finally {
    isRunning = false;
    await watching;
  }
  return peak;
}

async function residentMemory(pids: readonly number[], counts: (commandLine: string) => boolean): Promise<number> {
  const processes = (await Promise.all(pids.map((pid) => memoryOf(pid, counts)))).flatMap((memory) => memory ?? []);
  const programs = new Map<string, number>();
  for (const { program, shared } of processes) programs.set(program, Math.max(shared, programs.get(program) ?? 0));
  return [...processes.map(({ own }) => own), ...programs.values()].reduce((sum, size) => sum + size, 0);
}

interface ProcessMemory {
  program: string;
  /** In bytes. */
  own: number;
  /** Pages of files, in bytes. */
  shared: number;
}

async function memoryOf(pid: number, counts: (commandLine: string) => boolean): Promise<ProcessMemory | undefined> {
  try {
    if (!counts(await readFile(`/proc/${pid}/cmdline`, "utf8"))) return undefined;
    const status = await readFile(`/proc/${pid}/status`, "utf8");
    // proc_pid_status(5): RssAnon, RssFile and RssShmem make up VmRSS.
    const size = (name: string) => 1024 * Number(new RegExp(`^${name}:\\s*(\\d+) kB`, "m").exec(status)?.[1] ?? 0);
    const own = size("RssAnon") + size("RssShmem");
    return { program: await readlink(`/proc/${pid}/exe`), own, shared: size("RssFile") };
  } catch {
    // It has ended meanwhile.
    return undefined;
  }
}

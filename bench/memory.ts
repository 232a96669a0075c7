import { readFile } from "node:fs/promises";
import { setTimeout as delay } from "node:timers/promises";
import type { BenchSandbox } from "./sandbox.ts";

const INTERVAL = 50;

/** The most resident memory that all processes of a sandbox together had while `work` ran, in bytes. */
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
  const sizes = await Promise.all(
    pids.map(async (pid) => {
      try {
        if (!counts(await readFile(`/proc/${pid}/cmdline`, "utf8"))) return 0;
        const [, kilobytes = "0"] = /^VmRSS:\s*(\d+)/m.exec(await readFile(`/proc/${pid}/status`, "utf8")) ?? [];
        return Number(kilobytes) * 1024;
      } catch {
        // It has ended meanwhile.
        return 0;
      }
    }),
  );
  return sizes.reduce((sum, size) => sum + size, 0);
}

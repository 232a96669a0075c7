import { readdir, readFile } from "node:fs/promises";

/** Finds what a system that was stopped should not have left behind. */

interface RunningProcess {
  pid: number;
  parent: number;
  /** In clock ticks since boot: with the pid it names a process for good. */
  start: string;
}

/** Names of all processes that this one has started, and those have, and so on. */
export async function descendants(): Promise<string[]> {
  const all = await processes();
  const found = [process.pid];
  // It grows while it is walked.
  for (const pid of found) found.push(...all.filter(({ parent }) => parent === pid).map(({ pid }) => pid));
  return all.filter(({ pid }) => found.includes(pid) && pid !== process.pid).map(nameOf);
}

/** Those of the named processes that still run. */
export async function stillRunning(names: readonly string[]): Promise<string[]> {
  return (await processes()).map(nameOf).filter((name) => names.includes(name));
}

function nameOf({ pid, start }: RunningProcess): string {
  return `${pid}-${start}`;
}

async function processes(): Promise<RunningProcess[]> {
  const pids = (await readdir("/proc")).filter((name) => /^\d+$/.test(name));
  const stats = await Promise.all(pids.map((pid) => readFile(`/proc/${pid}/stat`, "utf8").catch(() => undefined)));
  return stats.flatMap((stat) => {
    if (stat === undefined) return []; // It has just ended.
    // The second field is the program's name in parentheses, and may hold spaces; the next are the state and the parent.
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    return fields[0] === "Z"
      ? []
      : { pid: Number.parseInt(stat, 10), parent: Number(fields[1]), start: fields[19] ?? "" };
  });
}

import { readdirSync, readFileSync } from "node:fs";

/**
 * A name for a process that no later process can have: its pid and when it started, `<pid>-<start>`.
 * Files that are named after their process can be recognised as left behind when it was killed.
 */
export function processTag(pid: number = process.pid): string {
  const start = statOf(pid)?.start;
  if (start === undefined) throw new Error(`There is no process ${pid}.`);
  return `${pid}-${start}`;
}

/** What `processTag` looks like, as the source of a regular expression with one group. */
export const PROCESS_TAG = "(\\d+-\\d+)";

/** True while the process that got this tag runs. */
export function isRunning(tag: string): boolean {
  const [pid, start] = tag.split("-");
  return statOf(Number(pid))?.start === start;
}

/**
 * Ids of the processes of this one's group that were started with this environment variable, `NAME=value`. What was given a
 * group of its own, as a browser is, was meant to go on.
 */
export function processesWith(variable: string): number[] {
  const group = statOf(process.pid)?.group;
  const pids = readdirSync("/proc").filter((name) => /^\d+$/.test(name));
  return pids.map(Number).filter((pid) => statOf(pid)?.group === group && environment(pid).includes(variable));
}

function environment(pid: number): string[] {
  try {
    return readFileSync(`/proc/${pid}/environ`, "utf8").split("\0");
  } catch {
    return []; // It has ended, or is another user's.
  }
}

/** A process's group, and its start in clock ticks since boot; undefined when there is no such process or it is a zombie. */
function statOf(pid: number): { group: string | undefined; start: string | undefined } | undefined {
  let stat: string;
  try {
    stat = readFileSync(`/proc/${pid}/stat`, "utf8");
  } catch (error) {
    if (error instanceof Error && "code" in error && (error.code === "ENOENT" || error.code === "ESRCH"))
      return undefined;
    throw error;
  }
  // The second field is the program's name in parentheses and may hold spaces; the next are the state, the parent and the
  // group, the 22nd is the start.
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return fields[0] === "Z" ? undefined : { group: fields[2], start: fields[19] };
}

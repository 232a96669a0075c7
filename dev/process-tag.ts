import { readdirSync, readFileSync } from "node:fs";

/**
 * A name for a process that no later process can have: its pid and when it started, `<pid>-<start>`.
 * Files that are named after their process can be recognised as left behind when it was killed.
 */
export function processTag(pid: number = process.pid): string {
  const start = startTime(pid);
  if (start === undefined) throw new Error(`There is no process ${pid}.`);
  return `${pid}-${start}`;
}

/** What `processTag` looks like, as the source of a regular expression with one group. */
export const PROCESS_TAG = "(\\d+-\\d+)";

/** True while the process that got this tag runs. */
export function isRunning(tag: string): boolean {
  const [pid, start] = tag.split("-");
  return startTime(Number(pid)) === start;
}

/** Ids of the processes that were started with this environment variable, `NAME=value`, as far as this user may know. */
export function processesWith(variable: string): number[] {
  const pids = readdirSync("/proc").filter((name) => /^\d+$/.test(name));
  return pids.filter((pid) => environment(pid).split("\0").includes(variable)).map(Number);
}

function environment(pid: string): string {
  try {
    return readFileSync(`/proc/${pid}/environ`, "utf8");
  } catch {
    return ""; // It has ended, or is another user's.
  }
}

/** When a process started, in clock ticks since boot; undefined when there is no such process or it is a zombie. */
function startTime(pid: number): string | undefined {
  let stat: string;
  try {
    stat = readFileSync(`/proc/${pid}/stat`, "utf8");
  } catch (error) {
    if (error instanceof Error && "code" in error && (error.code === "ENOENT" || error.code === "ESRCH"))
      return undefined;
    throw error;
  }
  // The second field is the program's name in parentheses and may hold spaces; the third is the state, the 22nd the start.
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return fields[0] === "Z" ? undefined : fields[19];
}

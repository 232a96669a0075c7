import { readdir, readFile } from "node:fs/promises";

/** Watches how much memory a system's processes hold while something runs. */

const MiB = 1024 * 1024;
const INTERVAL = 50;

/** Kinds of processes, by what tells them apart. */
const KINDS = {
  workerd: (name: string) => name === "workerd",
  agent: (_name: string, commandLine: string) => /^[^\0]*\/node\0[^\0]*\/agent\.js\0/.test(commandLine),
} as const;

export type Growth = Record<keyof typeof KINDS, number>;

/**
 * How much more memory than before each kind of process held at most while `work` ran, in MiB; the largest growth of one
 * process, where there are several.
 * @param ancestor process id that the system's processes descend from
 */
export async function growthDuring(ancestor: number, work: () => Promise<unknown>): Promise<Growth> {
  const before = await measure(ancestor);
  const most = new Map(before);
  let isRunning = true;
  const watching = (async () => {
    while (isRunning) {
      for (const [id, process] of await measure(ancestor)) {
        if ((most.get(id)?.bytes ?? 0) < process.bytes) most.set(id, process);
      }
      await new Promise((resolve) => setTimeout(resolve, INTERVAL));
    }
  })();
  try {
    await work();
  } finally {
    isRunning = false;
    await watching;
  }
  const growth: Growth = { workerd: 0, agent: 0 };
  for (const [id, { kind, bytes }] of most) {
    growth[kind] = Math.max(growth[kind], Math.round((bytes - (before.get(id)?.bytes ?? 0)) / MiB));
  }
  return growth;
}

interface Process {
  kind: keyof typeof KINDS;
  bytes: number;
}

/** The resident memory of each process that counts, by process id. */
async function measure(ancestor: number): Promise<Map<number, Process>> {
  const ids = (await readdir("/proc")).map(Number).filter(Boolean);
  const parents = new Map<number, number>();
  const found = new Map<number, Process>();
  for (const id of ids) {
    try {
      const status = await readFile(`/proc/${id}/status`, "utf8");
      const field = (name: string) => new RegExp(`^${name}:\\s*(\\S+)`, "m").exec(status)?.[1] ?? "";
      parents.set(id, Number(field("PPid")));
      const commandLine = await readFile(`/proc/${id}/cmdline`, "utf8");
      const kinds = Object.keys(KINDS) as (keyof typeof KINDS)[];
      const kind = kinds.find((candidate) => KINDS[candidate](field("Name"), commandLine));
      if (kind !== undefined) found.set(id, { kind, bytes: Number(field("VmRSS")) * 1024 });
    } catch {
      // It has ended meanwhile.
    }
  }
  for (const id of found.keys()) {
    let parent: number | undefined = id;
    while (parent !== undefined && parent > 1 && parent !== ancestor) parent = parents.get(parent);
    if (parent !== ancestor) found.delete(id);
  }
  return found;
}

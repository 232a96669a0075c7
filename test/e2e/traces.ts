import { expect, vi } from "vitest";
import type { TestSandbox } from "../support/client.js";

/** What restores leave in a sandbox besides the files of the directory. */
export interface Traces {
  /** Mount points of archives and overlays. */
  mounts: string[];
  /** Those of them that FUSE serves. */
  served: string[];
  /** Names of the tools of backups that run. */
  processes: string[];
  /** Directories in the agent's store. */
  stored: string[];
}

export const NO_TRACES: Traces = { mounts: [], served: [], processes: [], stored: [] };

const SCRIPT = `
awk '{ for (i = 7; i < NF; i++) if ($i == "-" && $5 != "/") {
  if ($(i + 1) ~ /^(fuse|overlay|squashfs)/) print "mounts", $5
  if ($(i + 1) ~ /^fuse/) print "served", $5
} }' /proc/self/mountinfo
cat /proc/[0-9]*/comm 2>/dev/null | grep -E '^(squashfuse|fuse-overlayfs|mksquashfs|unsquashfs|git)' | sed 's/^/processes /'
find /var/backups -mindepth 2 -maxdepth 2 ! -name archives -printf 'stored %p\\n'
true`;

export async function tracesOf(sandbox: TestSandbox): Promise<Traces> {
  const traces: Traces = structuredClone(NO_TRACES);
  for (const line of (await sandbox.exec(SCRIPT)).split("\n").filter(Boolean)) {
    const [kind, value] = [line.slice(0, line.indexOf(" ")), line.slice(line.indexOf(" ") + 1)];
    traces[kind as keyof Traces].push(value);
  }
  for (const values of Object.values(traces)) values.sort();
  return traces;
}

/** Archives are mounts themselves in a run that has all of them fetched as they are read; else one would be left of an earlier restore. */
const mayBeServed = process.env.E2E_AGENT_ENV?.includes("SANDBOX_BACKUP_LAZY") ?? false;
const isCounted = (mount: string) => !(mayBeServed && mount.endsWith("/archive.sqsh"));

/** Only these directories are mounted, each with its two layers, and nothing of an earlier restore is left. */
export async function expectMounted(sandbox: TestSandbox, ...directories: string[]): Promise<void> {
  // What was replaced is removed in the background.
  await vi.waitFor(async () => {
    const { mounts, served, processes, stored } = await tracesOf(sandbox);
    const lowers = stored.map((directory) => `${directory}/lower`);
    expect(mounts.filter(isCounted)).toEqual([...directories, ...lowers].sort());
    expect(stored).toHaveLength(directories.length);
    expect(processes).toHaveLength(served.filter(isCounted).length);
  }, 10_000);
}

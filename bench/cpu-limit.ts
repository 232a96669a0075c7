import { access, mkdir, readFile, rmdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { BenchSandbox } from "./sandbox.ts";

/** How the kernel divides processors among groups of processes: its documentation, `sched-bwc` and `cgroup-v2`. */
interface Controller {
  /** Of the group that all others are in. */
  directory: string;
  /** Bounds a group to so many µs of each `PERIOD`. */
  bound: (quota: number) => { file: string; value: string };
}

/** In µs. */
const PERIOD = 100_000;

const VERSION_1: Controller = {
  directory: "/sys/fs/cgroup/cpu",
  bound: (quota) => ({ file: "cpu.cfs_quota_us", value: String(quota) }),
};
const VERSION_2: Controller = {
  directory: "/sys/fs/cgroup",
  bound: (quota) => ({ file: "cpu.max", value: `${quota} ${PERIOD}` }),
};

/** A group of processes that has no more than a share of the machine's processors. */
export class CpuLimit {
  readonly #parent: string;
  readonly #directory: string;

  private constructor(parent: string, directory: string) {
    this.#parent = parent;
    this.#directory = directory;
  }

  /**
   * @param cpus how many processors: a quarter is 0.25
   * @throws where this user may not limit processes
   */
  static async make(cpus: number): Promise<CpuLimit> {
    const hasVersion1 = await access(VERSION_1.directory).then(
      () => true,
      () => false,
    );
    const { directory: parent, bound } = hasVersion1 ? VERSION_1 : VERSION_2;
    if (!hasVersion1) await writeFile(join(parent, "cgroup.subtree_control"), "+cpu");
    const limit = new CpuLimit(parent, join(parent, `sandbox-backup-bench-${process.pid}`));
    await mkdir(limit.#directory);
    try {
      const { file, value } = bound(cpus * PERIOD);
      await writeFile(join(limit.#directory, file), value);
      return limit;
    } catch (error) {
      await limit.remove();
      throw error;
    }
  }

  static async isPossible(): Promise<boolean> {
    return CpuLimit.make(1).then(
      async (limit) => {
        await limit.remove();
        return true;
      },
      () => false,
    );
  }

  /** Limits a sandbox for as long as `work` takes. */
  async during<Result>(sandbox: BenchSandbox, work: () => Promise<Result>): Promise<Result> {
    try {
      for (const pid of await sandbox.processes()) await writeFile(processesOf(this.#directory), String(pid));
      return await work();
    } finally {
      await this.#release();
    }
  }

  /** Once nothing is limited by it. */
  async remove(): Promise<void> {
    await rmdir(this.#directory);
  }

  async #release(): Promise<void> {
    for (;;) {
      const pids = (await readFile(processesOf(this.#directory), "utf8")).split("\n").filter(Boolean);
      if (pids.length === 0) return;
      for (const pid of pids) {
        // One that has ended meanwhile is out of it, too.
        await writeFile(processesOf(this.#parent), pid).catch(() => {});
      }
    }
  }
}

function processesOf(group: string): string {
  return join(group, "cgroup.procs");
}

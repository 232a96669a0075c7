import { readFile } from "node:fs/promises";
import { log } from "../log.js";
import { runTool, ToolError } from "../run.js";

/** Which CPUs processes run on. */

/**
 * One of the CPUs that this process may use, by chance, so that containers that share a machine take different ones.
 * @returns undefined where there is only one
 */
export async function chooseCpu(): Promise<number | undefined> {
  // proc_pid_status(5): `Cpus_allowed_list:	0-2,5`
  const [, list = ""] = /^Cpus_allowed_list:\s*(\S+)$/m.exec(await readFile("/proc/self/status", "utf8")) ?? [];
  const cpus = parseCpuList(list);
  return cpus.length > 1 ? cpus[Math.floor(Math.random() * cpus.length)] : undefined;
}

/** The numbers in a list as cpuset(7) writes it: `0-2,5` is 0, 1, 2 and 5. */
export function parseCpuList(list: string): number[] {
  return list
    .split(",")
    .filter(Boolean)
    .flatMap((range) => {
      const [first = 0, last = first] = range.split("-").map(Number);
      return Array.from({ length: last - first + 1 }, (_, index) => first + index);
    });
}

/** Has a process use that CPU only, from now on. It goes on as it was where that cannot be had: it is slower then. */
export async function keepOnCpu(cpu: number, pid: number): Promise<void> {
  try {
    await runTool("taskset", ["-a", "-c", "-p", `${cpu}`, `${pid}`]);
  } catch (error) {
    if (!(error instanceof ToolError)) throw error;
    log("cpu", { outcome: "not-kept", message: error.message });
  }
}

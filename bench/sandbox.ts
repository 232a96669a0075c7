import { mkdir, readdir, readFile, readlink } from "node:fs/promises";
import type { DataSet } from "./data/sets.ts";
import type { Commands } from "./inside/tool.ts";
import type { System } from "./system.ts";
import type { Step, StepResult } from "./worker/src/calls.ts";

export interface SandboxKind {
  /** The layers that its restored directories have to be made of. @default what the package takes */
  layers?: "kernel" | "fuse";
  /** By which way its backups go. @default "production" */
  path?: "production" | "localBucket";
}

/** Of `createBackup`. */
export interface Handle {
  id: string;
  dir: string;
}

/** Where the data is, in every sandbox. */
export const DIR = "/workspace/data";

/** Where the baseline's restore leaves the archive that it mounts. */
export const BASELINE_ARCHIVE = "/var/backups/baseline/archive.sqsh";

const TOOL = await readFile(new URL("./inside/tool.ts", import.meta.url), "utf8");

/** One sandbox, from outside: by the Worker, and by what this machine shows of it. */
export class BenchSandbox {
  readonly #system: System;
  readonly #name: string;
  readonly #kind: SandboxKind;
  /** Of its agent and all that it runs; as `readlink /proc/…/ns/pid` gives it. */
  #namespace = "";

  constructor(system: System, name: string, kind: SandboxKind) {
    this.#system = system;
    this.#name = name;
    this.#kind = kind;
  }

  async start(): Promise<void> {
    await this.calls([{ method: "writeFile", args: ["/root/tool.ts", TOOL] }]);
    this.#namespace = (await this.exec("readlink /proc/self/ns/pid")).trim();
  }

  async destroy(): Promise<void> {
    await this.calls([{ method: "destroy", args: [] }]);
  }

  /** Calls its client's methods one after another, without a pause. */
  calls(steps: Step[]): Promise<StepResult[]> {
    return this.#system.perform({ path: this.#kind.path ?? "production", sandbox: this.#name, steps });
  }

  /** @throws when the command fails */
  async exec(command: string): Promise<string> {
    return (await this.timedExec(command)).stdout;
  }

  /** The command's output, and how long it took, in ms. */
  async timedExec(command: string): Promise<{ stdout: string; duration: number }> {
    const { value, duration } = await this.#call(execStep(command));
    const { success, stdout, stderr } = value as { success: boolean; stdout: string; stderr: string };
    if (!success) throw new Error(`${command}: ${stderr.trim() || "failed"}`);
    return { stdout, duration };
  }

  /** Runs a command of the straightforward way. */
  async tool<Name extends keyof Commands>(
    name: Name,
    args: Commands[Name]["arguments"],
  ): Promise<Commands[Name]["result"]> {
    const stdout = await this.exec(`node --no-warnings /root/tool.ts ${name} '${JSON.stringify(args)}'`);
    return JSON.parse(stdout) as Commands[Name]["result"];
  }

  /** @param format of compression; the package's own choice where none is named */
  async createBackup(format?: "zstd" | "lz4"): Promise<{ handle: Handle; duration: number }> {
    const local = this.#kind.path === "localBucket";
    const { value, duration } = await this.#call({
      method: "createBackup",
      args: [{ dir: DIR, ...(local && { localBucket: true }), ...(format && { compression: { format } }) }],
    });
    return { handle: value as Handle, duration };
  }

  /** @returns how long it took, in ms */
  async restoreBackup(handle: Handle): Promise<number> {
    return (await this.#call({ method: "restoreBackup", args: [handle] })).duration;
  }

  /** Puts data where backups are made of. */
  async fill(data: DataSet): Promise<void> {
    const directory = await this.outside(DIR);
    await mkdir(directory);
    await data.fill(directory);
  }

  /**
   * A digest of all that is in a directory: names, contents, modes, owners and times. Not of the directory's own
   * attributes, which the straightforward way loses.
   */
  async digest(dir = DIR): Promise<string> {
    return (await this.exec(`cd ${dir} && ls -A | tar --sort=name -cf - -T - | sha256sum`)).slice(0, 64);
  }

  /** The file systems that a restored directory is made of, its own first: `overlay`, `squashfs`. */
  async layers(): Promise<string[]> {
    const [pid] = await this.processes();
    const mounts = (await readFile(`/proc/${pid}/mounts`, "utf8")).split("\n").map((line) => line.split(" "));
    const own = mounts.filter(([, mountPoint]) => mountPoint === DIR).map(([, , type = ""]) => type);
    const archives = mounts.map(([, , type = ""]) => type).filter((type) => /squash/.test(type));
    return [...new Set([...own.slice(-1), ...archives])];
  }

  async #call(step: Step): Promise<StepResult> {
    const [result] = await this.calls([step]);
    if (result === undefined) throw new Error(`${step.method}: the Worker gave no result`);
    return result;
  }

  /** A path in the sandbox, as this machine sees it. */
  async outside(path: string): Promise<string> {
    const [pid] = await this.processes();
    if (pid === undefined) throw new Error(`The sandbox ${this.#name} has ended`);
    return `/proc/${pid}/root${path}`;
  }

  /** The processes in it, by the ids that this machine gives them; the first one first. */
  async processes(): Promise<number[]> {
    const pids = (await readdir("/proc")).map(Number).filter(Boolean);
    const inside = await Promise.all(
      pids.map((pid) =>
        readlink(`/proc/${pid}/ns/pid`).then(
          (namespace) => namespace === this.#namespace,
          () => false, // It has ended meanwhile.
        ),
      ),
    );
    return pids.filter((_, index) => inside[index]);
  }
}

export function execStep(command: string): Step {
  return { method: "exec", args: [command] };
}

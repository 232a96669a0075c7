import { mkdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { runTool } from "../run.js";

/**
 * Where the agent keeps archives, layers and scratch files. Outside of every directory that may be backed up.
 * @default /var/backups, or what SANDBOX_BACKUP_DIR names; it has to be writable for the agent's user
 */
export const STORE_DIR = join(process.env.SANDBOX_BACKUP_DIR ?? "/var/backups", "sandbox-backup");

/** A directory of one operation, for its files; gone when the operation ends, unless it is kept. */
export class Scratch implements AsyncDisposable {
  #kept = false;

  private constructor(readonly path: string) {}

  /** @throws the system's error when the store is not writable */
  static async create(operationId: string): Promise<Scratch> {
    const path = join(STORE_DIR, operationId);
    await mkdir(path, { recursive: true, mode: 0o700 });
    return new Scratch(path);
  }

  file(name: string): string {
    return join(this.path, name);
  }

  /** Hands the directory over to somebody who removes it later. */
  keep(): void {
    this.#kept = true;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    // A few files: a process for that would take longer.
    if (!this.#kept) await rm(this.path, { recursive: true, force: true });
  }
}

/** Removes a tree of any size and depth; `rm` of Node needs seconds for 100,000 files. */
export async function removeTree(path: string): Promise<void> {
  // rm(1) can be missing in the smallest images only.
  await runTool("rm", ["-rf", "--", path]).catch(() => rm(path, { recursive: true, force: true }));
}

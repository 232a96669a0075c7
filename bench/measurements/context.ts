import { writeFile } from "node:fs/promises";
import type { DataSet, DataSetName } from "../data/sets.ts";
import type { ProfileName } from "../profiles.ts";
import { run } from "../run.ts";
import { BASELINE_ARCHIVE, type BenchSandbox, DIR, type Handle, type SandboxKind } from "../sandbox.ts";
import type { Traffic } from "../store/network.ts";
import type { System } from "../system.ts";

/** Both ways' backups of one data set. */
export interface Backups {
  handle: Handle;
  /** The baseline's, by the URL of what its objects have in common. */
  object: string;
}

/** Something was not as it should be: nothing of it is timed. */
export class WrongResult extends Error {}

const DROP_CACHES = "/proc/sys/vm/drop_caches";

export interface ContextOptions {
  system: System;
  name: DataSetName;
  data: DataSet;
  /** Builds what is restored, by a command in its directory. */
  job: string;
  say: (line: string) => void;
}

/** What the measurements of one data set share. */
export class DataContext {
  readonly system: System;
  readonly data: DataSet;
  readonly job: string;
  readonly #options: ContextOptions;
  #sandboxes = new Set<BenchSandbox>();
  #source: Promise<BenchSandbox> | undefined;
  #backups: Promise<Backups> | undefined;
  #digest: Promise<string> | undefined;
  #objects = 0;
  #checked = new Map<string, Promise<void>>();
  #profile: ProfileName = "lan";

  constructor(options: ContextOptions) {
    this.#options = options;
    this.system = options.system;
    this.data = options.data;
    this.job = options.job;
  }

  /** A sandbox that holds the data; nobody changes it there. */
  source(): Promise<BenchSandbox> {
    this.#source ??= this.filled();
    return this.#source;
  }

  /** A sandbox of one's own that holds the data. */
  async filled(kind?: SandboxKind): Promise<BenchSandbox> {
    const sandbox = await this.empty(kind);
    await sandbox.fill(this.data);
    return sandbox;
  }

  /** A sandbox of one's own with nothing in it, as a container is that has just started. */
  async empty(kind?: SandboxKind): Promise<BenchSandbox> {
    const sandbox = await this.system.newSandbox(kind);
    this.#sandboxes.add(sandbox);
    return sandbox;
  }

  /** Has a sandbox for as long as `work` takes. */
  async with<Result>(
    sandbox: Promise<BenchSandbox>,
    work: (sandbox: BenchSandbox) => Promise<Result>,
  ): Promise<Result> {
    const own = await sandbox;
    try {
      return await work(own);
    } finally {
      this.#sandboxes.delete(own);
      await own.destroy();
    }
  }

  /** Backups of the data by both ways. */
  backups(): Promise<Backups> {
    this.#backups ??= this.unhurried(async () => {
      const source = await this.source();
      const object = this.newObject();
      await source.tool("create", { dir: DIR, object });
      return { handle: (await source.createBackup()).handle, object };
    });
    return this.#backups;
  }

  /** Where the baseline may store another backup. */
  newObject(): string {
    this.#objects += 1;
    return `${this.system.store.origin}/sandbox-backup-bench/baseline/${this.#options.name}-${this.#objects}`;
  }

  /** @throws {WrongResult} when what came back is not what was backed up */
  assertSame(how: string, before: string, after: string): void {
    if (before !== after) {
      throw new WrongResult(`${this.#options.name}, ${how}: expected ${before.trim()}, got ${after.trim()}`);
    }
    this.#options.say(`checked: ${how} is right`);
  }

  /** Checks once what restores of both ways give, the package's by these layers. */
  async checkRestores(...layers: SandboxKind["layers"][]): Promise<void> {
    const { handle, object } = await this.backups();
    await this.#checkOnce("the baseline's restore", {}, async (sandbox) => {
      await sandbox.tool("restore", { dir: DIR, object, file: this.data.firstFile });
      // That its two file systems read an archive rightly is not in question, and reading all through them takes minutes.
      const dir = "/workspace/extracted";
      await sandbox.tool("extract", { archive: BASELINE_ARCHIVE, dir });
      return sandbox.digest(dir);
    });
    for (const kind of layers.length === 0 ? [undefined] : layers) {
      const how = kind === undefined ? "our restore" : `our restore (${kind})`;
      await this.#checkOnce(how, kind ? { layers: kind } : {}, async (sandbox) => {
        await sandbox.restoreBackup(handle);
        return sandbox.digest();
      });
    }
  }

  /** @param restore gives the digest of what came back */
  #checkOnce(how: string, kind: SandboxKind, restore: (sandbox: BenchSandbox) => Promise<string>): Promise<void> {
    const check = async () => {
      const source = await this.source();
      this.#digest ??= source.digest();
      this.assertSame(how, await this.#digest, await this.unhurried(() => this.with(this.empty(kind), restore)));
    };
    const checked = this.#checked.get(how) ?? check();
    this.#checked.set(how, checked);
    return checked;
  }

  /** Has the store forget a backup that nobody restores. */
  async forget({ handle, object }: Partial<Backups>): Promise<void> {
    if (handle !== undefined) await this.system.store.forget(`backups/${handle.id}/`);
    if (object !== undefined) await this.system.store.forget(`${object.slice(object.indexOf("baseline/"))}/`);
  }

  /** How far away the store is from now on. */
  async useProfile(name: ProfileName): Promise<void> {
    this.#profile = name;
    await this.system.store.useProfile(name);
  }

  /** Does what is not timed with a store that is near. */
  async unhurried<Result>(work: () => Promise<Result>): Promise<Result> {
    await this.system.store.useProfile("lan");
    try {
      const result = await work();
      await this.system.store.settle();
      return result;
    } finally {
      await this.system.store.useProfile(this.#profile);
    }
  }

  /** Does something, and says what it has moved to and from the store, also in the background. */
  async withTraffic(work: () => Promise<number>): Promise<{ duration: number } & Traffic> {
    await this.system.store.settle();
    await this.system.store.countAnew();
    const duration = await work();
    await this.system.store.settle();
    return { duration, ...(await this.system.store.traffic()) };
  }

  /** Ends all sandboxes and forgets all objects. */
  async close(): Promise<void> {
    for (const sandbox of this.#sandboxes) await sandbox.destroy();
    this.#sandboxes.clear();
    await this.system.store.clear();
  }
}

/** Has the next reads come from the disk. False where that is not permitted. */
export async function dropCaches(): Promise<boolean> {
  await run("sync", []);
  return writeFile(DROP_CACHES, "3").then(
    () => true,
    // Only root may: what is called cold is warm then, and the table says so.
    () => false,
  );
}

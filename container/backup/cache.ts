import { link, mkdir, rm, stat, statfs } from "node:fs/promises";
import { join } from "node:path";
import { type ChunkDigests, MiB } from "../../src/protocol.js";
import { log } from "../log.js";
import { numberSetting } from "../settings.js";
import { isMissing } from "./directory.js";
import { STORE_DIR } from "./scratch.js";

/** Archives that were made or fetched here: restoring one of them again fetches nothing. */

/** Of the space that would be free without the cache, it takes no more than this share. */
const SHARE = 1 / 4;

/** By what an archive is known to be the one that is asked for. */
export interface ArchiveIdentity {
  backupId: string;
  /** In bytes. */
  size: number;
  /** Undefined for one that was just made: the bucket gives it later. */
  etag?: string;
  /** Null for an archive of an older writer. */
  digests: ChunkDigests | null;
}

interface Entry extends ArchiveIdentity {
  file: string;
  /** As the agent left it: a file that was changed since is not used. */
  inode: bigint;
  modified: bigint;
}

export class ArchiveCache {
  /** By backup, the least recently used first. */
  readonly #entries = new Map<string, Entry>();
  #ready: Promise<void> | undefined;

  readonly #directory: string;

  /**
   * @param store an existing directory, in the file system of the archives
   * @param limit in bytes, in place of the share of the free space
   */
  constructor(
    private readonly store = STORE_DIR,
    private readonly limit: number | undefined = limitFromEnv(),
  ) {
    this.#directory = join(store, "archives");
  }

  /**
   * Keeps a whole archive, of which the file stays its owner's, when there is room for it. That it cannot is no failure of
   * what made it.
   */
  async keep(file: string, identity: ArchiveIdentity): Promise<void> {
    try {
      if (identity.size > (await this.#capacity())) return;
      await this.#open();
      const target = join(this.#directory, `${identity.backupId}.sqsh`);
      await this.#drop(identity.backupId);
      await link(file, target);
      const { ino, mtimeNs } = await stat(target, { bigint: true });
      this.#entries.set(identity.backupId, { ...identity, file: target, inode: ino, modified: mtimeNs });
      await this.trim();
    } catch (error) {
      log("cache", { outcome: "failed", backupId: identity.backupId, message: String(error) });
    }
  }

  /** Puts the archive at `target`, if it is here. */
  async lend(identity: ArchiveIdentity, target: string): Promise<boolean> {
    const entry = this.#entries.get(identity.backupId);
    if (entry === undefined) return false;
    if (!isSame(entry, identity) || !(await isUnchanged(entry))) {
      await this.#drop(identity.backupId);
      return false;
    }
    await link(entry.file, target);
    this.#entries.delete(identity.backupId);
    this.#entries.set(identity.backupId, entry);
    return true;
  }

  /** Drops the least recently used archives until the rest fits. A mounted one stays: dropping it would free nothing. */
  async trim(): Promise<void> {
    let surplus = this.#total() - (await this.#capacity());
    for (const { backupId, file, size } of [...this.#entries.values()]) {
      if (surplus <= 0) return;
      if (await isInUse(file)) continue;
      await this.#drop(backupId);
      surplus -= size;
    }
  }

  /** What an earlier agent has left there is not known any more. */
  #open(): Promise<void> {
    this.#ready ??= rm(this.#directory, { recursive: true, force: true }).then(async () => {
      await mkdir(this.#directory, { recursive: true, mode: 0o700 });
    });
    return this.#ready;
  }

  async #drop(backupId: string): Promise<void> {
    const entry = this.#entries.get(backupId);
    this.#entries.delete(backupId);
    if (entry !== undefined) await rm(entry.file, { force: true });
  }

  #total(): number {
    return [...this.#entries.values()].reduce((sum, { size }) => sum + size, 0);
  }

  /** In bytes. */
  async #capacity(): Promise<number> {
    if (this.limit !== undefined) return this.limit;
    const { bavail, bsize } = await statfs(this.store);
    return (bavail * bsize + this.#total()) * SHARE;
  }
}

function isSame(entry: Entry, { size, etag, digests }: ArchiveIdentity): boolean {
  if (entry.size !== size) return false;
  if (entry.digests === null || digests === null) return entry.etag !== undefined && entry.etag === etag;
  return entry.digests.chunkSize === digests.chunkSize && entry.digests.sha256 === digests.sha256;
}

async function isUnchanged({ file, size, inode, modified }: Entry): Promise<boolean> {
  try {
    const stats = await stat(file, { bigint: true });
    return stats.size === BigInt(size) && stats.ino === inode && stats.mtimeNs === modified;
  } catch (error) {
    if (isMissing(error)) return false;
    throw error;
  }
}

/** Whether the archive has another name than the cache's. */
async function isInUse(file: string): Promise<boolean> {
  try {
    return (await stat(file)).nlink > 1;
  } catch (error) {
    if (isMissing(error)) return false;
    throw error;
  }
}

/** SANDBOX_BACKUP_CACHE, in MiB: how much the cache may take; 0 turns it off. */
function limitFromEnv(): number | undefined {
  const size = numberSetting("SANDBOX_BACKUP_CACHE", "MiB", 0);
  return size === undefined ? undefined : size * MiB;
}

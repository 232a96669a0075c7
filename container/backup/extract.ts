import type { BigIntStats } from "node:fs";
import { lstat, mkdir, readdir, rename, rmdir, utimes } from "node:fs/promises";
import { join } from "node:path";
import { log } from "../log.js";
import { runTool } from "../run.js";
import { makeDirectory } from "./directory.js";
import type { Mounts } from "./mount.js";
import { removeTree } from "./scratch.js";

/**
 * unsquashfs: an archive is extracted beside the files of a directory, and then takes their place.
 *
 * The directory itself stays, and its entries are exchanged: it may be a mount point, or come from a lower layer of the
 * container's image, and neither can be renamed. Processes that have it as their working directory are not cut off.
 */

/** What unsquashfs may buffer of data and of fragments, in MiB each. Its defaults of 256 gain nothing measurable. */
const QUEUE = 16;

export interface ReplaceOptions {
  archive: string;
  /** Absolute path with all links resolved; made if need be. */
  dir: string;
  /** Unique name; the archive is extracted to a directory of this name in `dir`, which is gone when this ends. */
  stagingName: string;
  mounts: Mounts;
  signal: AbortSignal;
}

/**
 * Makes `dir` what the archive holds; what else is in it goes.
 * @throws when the archive is damaged or the disk full; then `dir` is exactly as before
 */
export async function replaceDirectory({ archive, dir, stagingName, mounts, signal }: ReplaceOptions): Promise<void> {
  const made = await makeDirectory(dir);
  // Where a restored directory is in the way, the archive is extracted under its mount.
  const base = mounts.underlying(dir);
  const before = await lstat(`${base}/.`, { bigint: true });
  let restored: BigIntStats;
  try {
    await mkdir(join(base, stagingName), { mode: 0o700 });
    await extract(archive, join(base, stagingName, "new"), signal);
    restored = await lstat(join(base, stagingName, "new"), { bigint: true });
    const replaced = await mounts.detachAtOrUnder(dir);
    try {
      await exchangeEntries(dir, stagingName);
    } catch (error) {
      await replaced.reattach();
      throw error;
    }
    await replaced.discard();
  } catch (error) {
    await removeTree(join(base, stagingName));
    if (made.length === 0) await setTimes(base, before);
    for (const path of made.reverse()) await rmdir(path);
    throw error;
  }
  // The restore is complete: what cannot be removed of the old (an immutable file, say) is left, and said.
  const removed = removeTree(join(dir, stagingName));
  await removed.catch((error) => log("remove-old", { outcome: "failed", message: String(error) }));
  await setTimes(dir, restored);
}

async function extract(archive: string, target: string, signal: AbortSignal): Promise<void> {
  const queues = ["-data-queue", String(QUEUE), "-frag-queue", String(QUEUE)];
  // -strict-errors: an attribute that cannot be set is a failure, not a message.
  await runTool("unsquashfs", ["-quiet", "-no-progress", "-strict-errors", ...queues, "-dest", target, archive], {
    signal,
  });
}

/** Exchanges the entries of `dir` for the extracted ones; all the way back when one cannot be moved. */
async function exchangeEntries(dir: string, stagingName: string): Promise<void> {
  const [extracted, old] = [join(dir, stagingName, "new"), join(dir, stagingName, "old")];
  await mkdir(old);
  const undo: (() => Promise<void>)[] = [];
  const moveAll = async (from: string, to: string) => {
    for (const name of await readdir(from, "buffer")) {
      if (from === dir && name.toString() === stagingName) continue;
      const [source, target] = [entryPath(from, name), entryPath(to, name)];
      await move(source, target);
      undo.push(() => move(target, source));
    }
  };
  try {
    await moveAll(dir, old);
    await moveAll(extracted, dir);
    // Owner, mode and extended attributes of the directory itself; nothing else is left in `extracted`.
    await runTool("cp", ["-a", "-T", "--", extracted, dir]);
  } catch (error) {
    for (const step of undo.reverse()) await step();
    throw error;
  }
}

function entryPath(dir: string, name: Buffer): Buffer {
  return Buffer.concat([Buffer.from(`${dir}/`), name]);
}

/** Renames; where the file system refuses that, because the entry comes from a lower layer of the image, copies. */
async function move(source: Buffer, target: Buffer): Promise<void> {
  try {
    await rename(source, target);
  } catch (error) {
    if (!(error instanceof Error && "code" in error && error.code === "EXDEV")) throw error;
    await runTool("cp", ["-a", "-T", "--", source.toString(), target.toString()]);
    await removeTree(source.toString());
  }
}

/** Sets the times of a directory, to the nanosecond where touch(1) can do that. */
async function setTimes(dir: string, { atime, mtime, mtimeNs }: BigIntStats): Promise<void> {
  const seconds = `${mtimeNs / 1_000_000_000n}.${String(mtimeNs % 1_000_000_000n).padStart(9, "0")}`;
  const touched = runTool("touch", ["-c", "-m", "-d", `@${seconds}`, "--", `${dir}/.`]);
  // BusyBox takes whole seconds only.
  await touched.catch(() => utimes(`${dir}/.`, atime, mtime));
}

import { constants } from "node:fs";
import { type FileHandle, open, rmdir } from "node:fs/promises";
import { isAtOrUnder } from "../../src/protocol.js";
import { log } from "../log.js";
import { runTool, ToolError } from "../run.js";
import { makeDirectory } from "./directory.js";
import {
  type ArchiveLayer,
  endServer,
  type Layer,
  Layers,
  mountedDevice,
  mountOverlay,
  stopLayer,
  unmount,
} from "./layers.js";
import { changeFile } from "./loop-device.js";
import { removeTree } from "./scratch.js";

/** Restored directories: which there are, and how one takes the place of another. */

/** A FUSE server that does not take what was written by then hangs, in ms: there is no waiting for it. */
const SYNC_TIMEOUT = 30_000;

/** A restored directory that is in place. */
interface Mount {
  dir: string;
  /** Directory of its layers. */
  layers: string;
  /** What serves the archive as a file, when it was mounted before it was fetched, as long as that is needed. */
  source: Layer | undefined;
  archive: ArchiveLayer;
  overlay: Layer;
  /** Overlays of the same layers from before they were put back: processes may hold files open in them. */
  retired: Layer[];
  /** The directory that the mount hides, held open: the only way to reach it. */
  hidden: FileHandle;
}

/** Mounts that were taken down, but can still be put back. */
export interface DetachedMounts {
  /** Puts all of them back as they were, with what had been written to them. */
  reattach(): Promise<void>;
  /** Ends their servers and removes their layers. */
  discard(): Promise<void>;
}

/** The restored directories of this container. Its methods are not to be called concurrently. */
export class Mounts {
  /** In the order in which they were mounted: one inside another comes later. */
  readonly #mounts = new Map<string, Mount>();
  readonly #layers = new Layers();
  /** Resolves when nothing is left of what was replaced. It never rejects. */
  #discarding: Promise<void> = Promise.resolve();

  /**
   * Puts the archive in `layers` in the place of `dir`, copy-on-write. The archive is mounted beside what is
   * there before anything is taken down; restored directories at and below `dir` are replaced.
   * `layers`, and `source`, which serves the archive where that is no plain file, belong to the mount when this resolves.
   * @throws {ToolError} when a layer cannot be mounted; then everything is as before
   */
  async mount(dir: string, layers: string, signal: AbortSignal, source?: Layer): Promise<void> {
    const place = (archive: ArchiveLayer) => startOver(dir, () => mountOverlay(archive, layers, dir, signal), signal);
    if (!this.#isAnyAtOrUnder(dir)) {
      // Nothing has to be taken down, so there is no harm in trying.
      const [archive, placed] = await this.#layers.mountArchive(layers, signal, place);
      this.#mounts.set(dir, { dir, layers, source, archive, ...placed, retired: [] });
      return;
    }
    const tryBeside = (archive: ArchiveLayer) => this.#layers.tryOverlay(archive, layers, signal);
    const [archive] = await this.#layers.mountArchive(layers, signal, tryBeside);
    let replaced: DetachedMounts;
    try {
      replaced = await this.detachAtOrUnder(dir);
      try {
        this.#mounts.set(dir, { dir, layers, source, archive, ...(await place(archive)), retired: [] });
      } catch (error) {
        await replaced.reattach();
        throw error;
      }
    } catch (error) {
      await stopLayer(archive.layer);
      throw error;
    }
    // Nobody has to wait for that.
    this.#discarding = this.#discarding.then(() => replaced.discard());
  }

  /**
   * Where the directory's own files are: `dir` itself, or a path that leads under the mount that hides them.
   * The path is good for this process and those that it starts, while the mount lasts.
   */
  underlying(dir: string): string {
    const mount = this.#mounts.get(dir);
    return mount === undefined ? dir : `/proc/${process.pid}/fd/${mount.hidden.fd}`;
  }

  /**
   * Has the link counts of the files in `dir` be true that FUSE serves: fuse-overlayfs counts those names of a file that were
   * looked up, and mksquashfs takes two names with different counts for two files.
   */
  async countLinks(dir: string, signal: AbortSignal): Promise<void> {
    for (const { dir: mounted, overlay } of this.#mounts.values()) {
      if (overlay.server === undefined) continue;
      const within = isAtOrUnder(mounted, dir) ? mounted : dir;
      if (!isAtOrUnder(within, mounted)) continue;
      // du looks at every file. What it cannot read, mksquashfs cannot either, and says so.
      await runTool("du", ["-s", "-x", "--", within], { signal, okExitCodes: [0, 1] });
    }
  }

  /**
   * Has the kernel read an archive by itself, all of which is in `file` by now, and ends the process that served it. That goes
   * on where the kernel does not read the archive, or does not change what it reads.
   */
  async endSource(source: Layer, file: string): Promise<void> {
    const mount = [...this.#mounts.values()].find((candidate) => candidate.source === source);
    if (mount?.archive.stack !== "kernel") return;
    try {
      await changeFile(mountedDevice(mount.archive.layer), file);
    } catch (error) {
      if (!(error instanceof ToolError)) throw error;
      log("remote-archive", { outcome: "still-served", dir: mount.dir, message: error.message });
      return;
    }
    await stopLayer(source);
    mount.source = undefined;
  }

  /** Takes down the restored directories at and below `dir`, the innermost first. */
  async detachAtOrUnder(dir: string): Promise<DetachedMounts> {
    const detached: Mount[] = [];
    const reattach = async () => {
      for (const mount of detached.reverse()) {
        // What it hides may be in another mount that was put back: it is not to be reached by the old one any more.
        await mount.hidden.close();
        const { dir, layers, archive, overlay, retired } = mount;
        const placed = await startOver(dir, () => mountOverlay(archive, layers, dir, NEVER, { again: true }), NEVER);
        this.#mounts.set(dir, { ...mount, ...placed, retired: [...retired, overlay] });
      }
    };
    for (const mount of [...this.#mounts.values()].reverse()) {
      if (!isAtOrUnder(mount.dir, dir)) continue;
      if (mount.overlay.server !== undefined) await flush(mount.dir);
      try {
        await unmount(mount.overlay);
      } catch (error) {
        await reattach();
        throw error;
      }
      this.#mounts.delete(mount.dir);
      detached.push(mount);
    }
    return { reattach, discard: () => discardAll(detached) };
  }

  #isAnyAtOrUnder(dir: string): boolean {
    return [...this.#mounts.keys()].some((mounted) => isAtOrUnder(mounted, dir));
  }

  /** Takes down everything and removes it. */
  async shutdown(): Promise<void> {
    await (await this.detachAtOrUnder("/")).discard();
    await this.#discarding;
  }
}

/** Putting things back is not cut short by the caller's signal. */
const NEVER = new AbortController().signal;

/**
 * What the kernel still holds of written files and their times has to be in the upper layer when that is put back. Best
 * effort: a server that has died or hangs cannot take it.
 */
async function flush(dir: string): Promise<void> {
  await runTool("sync", ["-f", "--", dir], { timeout: SYNC_TIMEOUT }).catch(() => {});
}

/** Mounts an overlay at `dir`, which is made if need be. When it fails, nothing that was made is left. */
async function startOver(
  dir: string,
  mount: () => Promise<Layer>,
  signal: AbortSignal,
): Promise<Pick<Mount, "overlay" | "hidden">> {
  signal.throwIfAborted();
  const made = await makeDirectory(dir);
  let hidden: FileHandle | undefined;
  try {
    hidden = await open(dir, constants.O_RDONLY | constants.O_DIRECTORY);
    return { overlay: await mount(), hidden };
  } catch (error) {
    await hidden?.close();
    for (const path of made.reverse()) await rmdir(path);
    throw error;
  }
}

/** A step that fails here is logged: the directory that replaced these is in place, and the caller can do nothing about it. */
async function discardAll(mounts: readonly Mount[]): Promise<void> {
  for (const { dir, layers, source, archive, overlay, retired, hidden } of mounts) {
    try {
      // A process that holds a file open would keep the server alive.
      for (const layer of [...retired, overlay]) await endServer(layer);
      await stopLayer(archive.layer);
      if (source !== undefined) await stopLayer(source);
      await hidden.close();
      await removeTree(layers);
    } catch (error) {
      log("discard-mount", { outcome: "failed", dir, message: String(error) });
    }
  }
}

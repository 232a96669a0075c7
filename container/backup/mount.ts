import { constants } from "node:fs";
import { type FileHandle, mkdir, open, readdir, readFile, rmdir } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { isAtOrUnder } from "../../src/protocol.js";
import { log } from "../log.js";
import { keepEnd, type RunningProcess, runTool, startProcess, ToolError } from "../run.js";
import { isMissing, makeDirectory } from "./directory.js";
import { removeTree } from "./scratch.js";

/**
 * Restored directories: the archive, mounted read-only, under a writable layer. Nothing else touches mounts.
 *
 *     dir                         fuse-overlayfs
 *     {layers}/archive.sqsh       the archive
 *     {layers}/lower              squashfuse over it
 *     {layers}/upper, work        what is written to `dir`; new for every restore
 */

/** A FUSE server that has not mounted by then is given up, in ms. */
const MOUNT_TIMEOUT = 30_000;

/** A FUSE server that does not take what was written by then hangs, in ms: there is no waiting for it. */
const SYNC_TIMEOUT = 30_000;

/** The programs that serve squashfs, best first: the low-level one is about twice as fast. */
const SQUASHFUSE = ["squashfuse_ll", "squashfuse"];

/** How one layer is mounted. */
export interface LayerPlan {
  /** The first of these that is installed is used. */
  programs: readonly string[];
  args: readonly string[];
  mountPoint: string;
}

/** The two layers of a restored directory. `layers` is a path that the agent chose: it needs no escaping in options. */
export function planLayers(layers: string, dir: string): { archive: LayerPlan; overlay: LayerPlan } {
  const lower = join(layers, "lower");
  const options = `lowerdir=${lower},upperdir=${join(layers, "upper")},workdir=${join(layers, "work")},volatile`;
  return {
    // -f: the server stays a child of the agent, which can stop it for certain.
    archive: { programs: SQUASHFUSE, args: ["-f", join(layers, "archive.sqsh"), lower], mountPoint: lower },
    overlay: { programs: ["fuse-overlayfs"], args: ["-f", "-o", options, dir], mountPoint: dir },
  };
}

/** A mounted layer and the server behind it. */
interface Layer {
  program: string;
  mountPoint: string;
  /** Its line in mountinfo: others may mount something there too, or take this away. */
  entry: string;
  server: RunningProcess;
  /** Set when it is meant to end. */
  stopping: boolean;
}

/** A restored directory that is in place. */
interface Mount {
  dir: string;
  /** Directory of its layers. */
  layers: string;
  archive: Layer;
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

  /**
   * Puts the archive in `{layers}/archive.sqsh` in the place of `dir`, copy-on-write. The archive is mounted beside what is
   * there before anything is taken down; restored directories at and below `dir` are replaced.
   * `layers` belongs to the mount when this resolves.
   * @throws {ToolError} when a layer cannot be mounted; then everything is as before
   */
  async mount(dir: string, layers: string, signal: AbortSignal): Promise<void> {
    const plan = planLayers(layers, dir);
    await mkdir(plan.archive.mountPoint);
    const archive = await startLayer(plan.archive, signal);
    let replaced: DetachedMounts;
    try {
      await makeUpperLayer(layers, signal);
      replaced = await this.detachAtOrUnder(dir);
      try {
        const { overlay, hidden } = await startOver(dir, plan.overlay, signal);
        this.#mounts.set(dir, { dir, layers, archive, overlay, retired: [], hidden });
      } catch (error) {
        await replaced.reattach();
        throw error;
      }
    } catch (error) {
      await stopLayer(archive);
      throw error;
    }
    await replaced.discard();
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
   * Has the link counts of the mounted files in `dir` be true: fuse-overlayfs counts those names of a file that were looked
   * up, and mksquashfs takes two names with different counts for two files.
   */
  async countLinks(dir: string, signal: AbortSignal): Promise<void> {
    for (const mounted of this.#mounts.keys()) {
      const within = isAtOrUnder(mounted, dir) ? mounted : dir;
      if (!isAtOrUnder(within, mounted)) continue;
      // du looks at every file. What it cannot read, mksquashfs cannot either, and says so.
      await runTool("du", ["-s", "-x", "--", within], { signal, okExitCodes: [0, 1] });
    }
  }

  /** Takes down the restored directories at and below `dir`, the innermost first. */
  async detachAtOrUnder(dir: string): Promise<DetachedMounts> {
    const detached: Mount[] = [];
    const reattach = async () => {
      for (const mount of detached.reverse()) {
        // What it hides may be in another mount that was put back: it is not to be reached by the old one any more.
        await mount.hidden.close();
        const layers = await startOver(mount.dir, planLayers(mount.layers, mount.dir).overlay, NEVER);
        this.#mounts.set(mount.dir, { ...mount, ...layers, retired: [...mount.retired, mount.overlay] });
      }
    };
    for (const mount of [...this.#mounts.values()].reverse()) {
      if (!isAtOrUnder(mount.dir, dir)) continue;
      mount.overlay.stopping = true;
      // What the kernel still holds of written files and their times has to be in the upper layer when it is put back. Best
      // effort: a server that has died or hangs cannot take it.
      await runTool("sync", ["-f", "--", mount.dir], { timeout: SYNC_TIMEOUT }).catch(() => {});
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

  /** Takes down everything and removes it. */
  async shutdown(): Promise<void> {
    await (await this.detachAtOrUnder("/")).discard();
  }
}

/** Putting things back is not cut short by the caller's signal. */
const NEVER = new AbortController().signal;

/** Mounts the overlay at `dir`, which is made if need be. When it fails, nothing that was made is left. */
async function startOver(
  dir: string,
  plan: LayerPlan,
  signal: AbortSignal,
): Promise<Pick<Mount, "overlay" | "hidden">> {
  signal.throwIfAborted();
  const made = await makeDirectory(dir);
  let hidden: FileHandle | undefined;
  try {
    hidden = await open(dir, constants.O_RDONLY | constants.O_DIRECTORY);
    return { overlay: await startLayer(plan, signal), hidden };
  } catch (error) {
    await hidden?.close();
    for (const path of made.reverse()) await rmdir(path);
    throw error;
  }
}

/** A step that fails here is logged: the directory that replaced these is in place, and the caller can do nothing about it. */
async function discardAll(mounts: readonly Mount[]): Promise<void> {
  for (const { dir, layers, archive, overlay, retired, hidden } of mounts) {
    try {
      // A process that holds a file open would keep the server alive: from now on it gets "not connected".
      for (const layer of [...retired, overlay]) await endServer(layer);
      await stopLayer(archive);
      await hidden.close();
      await removeTree(layers);
    } catch (error) {
      log("discard-mount", { outcome: "failed", dir, message: String(error) });
    }
  }
}

/** The empty writable layer. Its attributes are those that the overlay's root shows, so they come from the archive. */
async function makeUpperLayer(layers: string, signal: AbortSignal): Promise<void> {
  await mkdir(join(layers, "work"));
  const args = [
    "-quiet",
    "-no-progress",
    "-max-depth",
    "0",
    "-dest",
    join(layers, "upper"),
    join(layers, "archive.sqsh"),
  ];
  await runTool("unsquashfs", args, { signal });
}

/** Starts a FUSE server and resolves when its mount is there and answers. Nothing is left mounted when it fails. */
async function startLayer(plan: LayerPlan, signal: AbortSignal): Promise<Layer> {
  const { mountPoint } = plan;
  const others = await mountsAt(mountPoint);
  const findOwn = async () => (await mountsAt(mountPoint)).find((entry) => !others.includes(entry));
  const layer = { ...(await startFirst(plan)), mountPoint, entry: "", stopping: false };
  const stderr = keepEnd(layer.server.stderr);
  layer.server.stdout.resume();
  layer.server.stdin.end();
  let ended: string | undefined;
  void layer.server.exited.then(({ code, signal }) => {
    ended = code === null ? `was ended by ${signal}` : `exited with ${code}`;
    if (!layer.stopping) log("fuse-server", { outcome: "ended", program: layer.program, how: ended });
  });
  const failure = (how: string) => {
    const message = `${layer.program} ${how}: ${stderr().toString().trim()}`;
    return new ToolError(message, { tool: layer.program, missing: false, stderr: stderr() });
  };
  try {
    const deadline = Date.now() + MOUNT_TIMEOUT;
    for (let pause = 2; layer.entry === ""; pause = Math.min(pause * 2, 50)) {
      signal.throwIfAborted();
      if (ended !== undefined) throw failure(ended);
      if (Date.now() > deadline) throw failure("did not mount in time");
      await delay(pause);
      layer.entry = (await findOwn()) ?? "";
    }
    await readdir(mountPoint);
    return layer;
  } catch (error) {
    layer.entry = (await findOwn()) ?? "";
    await stopLayer(layer);
    throw error;
  }
}

async function startFirst(plan: LayerPlan): Promise<Pick<Layer, "program" | "server">> {
  for (const program of plan.programs) {
    try {
      return { program, server: await startProcess(program, plan.args) };
    } catch (error) {
      if (!isMissing(error)) throw error;
    }
  }
  const tool = plan.programs.join(" or ");
  throw new ToolError(`${tool} is not installed in the container`, { tool, missing: true, stderr: Buffer.alloc(0) });
}

async function stopLayer(layer: Layer): Promise<void> {
  layer.stopping = true;
  await unmount(layer);
  await endServer(layer);
}

async function endServer(layer: Layer): Promise<void> {
  layer.stopping = true;
  layer.server.kill();
  await layer.server.exited;
}

/**
 * Takes a layer's mount off, with what was mounted on it since; processes that use it keep what they have open. Does nothing
 * when it is gone already.
 */
async function unmount({ mountPoint, entry }: Layer): Promise<void> {
  while ((await mountsAt(mountPoint)).includes(entry)) {
    if (process.getuid?.() === 0) await runTool("umount", ["-l", "--", mountPoint]);
    else await runTool("fusermount3", ["-u", "-z", "--", mountPoint]);
  }
}

/** The mounts that lie on top of each other there: lines of proc_pid_mountinfo(5), which writes blanks and the like in octal. */
async function mountsAt(mountPoint: string): Promise<string[]> {
  const decode = (field: string) =>
    field.replace(/\\([0-7]{3})/g, (_, octal) => String.fromCharCode(Number.parseInt(octal, 8)));
  const wanted = Buffer.from(mountPoint).toString("latin1");
  const lines = (await readFile("/proc/self/mountinfo", "latin1")).split("\n");
  return lines.filter((line) => decode(line.split(" ")[4] ?? "") === wanted);
}

import { mkdir, mkdtemp, readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { InvalidBackupConfigError } from "../../src/errors.js";
import { log } from "../log.js";
import { describeExit, keepEnd, type RunningProcess, runTool, startProcess, ToolError } from "../run.js";
import { chooseCpu, keepOnCpu } from "./cpus.js";
import { isMissing } from "./directory.js";

/**
 * The two layers of a restored directory: the archive, mounted read-only, and a writable one over it.
 *
 *     {layers}/archive.sqsh    the archive
 *     {layers}/lower           its mount
 *     {layers}/upper           what is written
 *     {layers}/work-…          what the overlay keeps for itself
 *     dir                      the overlay
 */

/**
 * What serves the layers, best first: the kernel both, the kernel the overlay over squashfuse, or FUSE both. Which of them a
 * container allows only trying tells.
 */
const STACKS = ["kernel", "kernel-overlay", "fuse"] as const;
export type Stack = (typeof STACKS)[number];

/** A FUSE server that has not mounted by then is given up, in ms. */
const MOUNT_TIMEOUT = 30_000;

/** The programs that serve squashfs, best first: the low-level one is about twice as fast. */
const SQUASHFUSE = ["squashfuse_ll", "squashfuse"];

/** A mounted layer. */
export interface Layer {
  readonly mountPoint: string;
  /** Its line in mountinfo: others may mount something there too, or take this away. */
  readonly entry: string;
  /** Of FUSE; the kernel needs none. */
  readonly server?: Server;
}

export interface Server {
  program: string;
  process: RunningProcess;
  /** The end of what it wrote to stderr. */
  stderr: () => Buffer;
  /** Set when it is meant to end. */
  stopping: boolean;
}

/** The archive's layer, and what the overlay over it is to be made by. */
export interface ArchiveLayer {
  stack: Stack;
  layer: Layer;
  /**
   * What both servers of the stack `fuse` run on. One waits for the other at nearly every step: on one CPU that is a switch
   * between them, on two it is waking the other one, which takes several times as long. fuse-overlayfs does one thing at a
   * time, so nothing is lost. Undefined where there is one CPU only, or one server.
   */
  cpu: number | undefined;
}

/** Where an archive lies, and where it is mounted. */
export const archivePath = (layers: string) => join(layers, "archive.sqsh");
const lowerPath = (layers: string) => join(layers, "lower");
const upperPath = (layers: string) => join(layers, "upper");

/** Mounts archives by the best stack that works here. */
export class Layers {
  #candidates: readonly Stack[] | undefined;
  /** Those that have made an overlay in this container. */
  readonly #proven = new Set<Stack>();

  /**
   * Mounts the archive in `layers` by the first stack that also makes the overlay, and makes the empty layer that goes over it.
   * @param overlay mounts the overlay, or tries whether that works
   * @throws {ToolError} when no stack can do it, with the last one's words; then nothing is mounted
   */
  async mountArchive<Result>(
    layers: string,
    signal: AbortSignal,
    overlay: (archive: ArchiveLayer) => Promise<Result>,
  ): Promise<[ArchiveLayer, Result]> {
    await mkdir(lowerPath(layers));
    const upper = makeUpperLayer(layers, signal);
    // It is waited for below, perhaps after it has failed.
    const ended = upper.catch(() => {});
    try {
      return await this.#mountBest(layers, signal, async (archive) => {
        await upper;
        return overlay(archive);
      });
    } finally {
      await ended;
    }
  }

  async #mountBest<Result>(
    layers: string,
    signal: AbortSignal,
    overlay: (archive: ArchiveLayer) => Promise<Result>,
  ): Promise<[ArchiveLayer, Result]> {
    this.#candidates ??= await allowedStacks();
    let failure: unknown;
    for (const stack of this.#candidates) {
      try {
        const cpu = stack === "fuse" ? await chooseCpu() : undefined;
        const archive = { stack, cpu, layer: await mountLower({ stack, cpu }, layers, signal) };
        try {
          const result = await overlay(archive);
          this.#prove(stack);
          return [archive, result];
        } catch (error) {
          await stopLayer(archive.layer);
          throw error;
        }
      } catch (error) {
        signal.throwIfAborted();
        if (!(error instanceof ToolError)) throw error;
        failure = error;
      }
    }
    throw failure;
  }

  /** Makes an overlay beside, for a stack that has made none yet. */
  async tryOverlay(archive: ArchiveLayer, layers: string, signal: AbortSignal): Promise<void> {
    if (this.#proven.has(archive.stack)) return;
    // With a writable layer of its own: the kernel may not be done with this overlay yet when the next is mounted.
    const [upper, target] = [join(layers, "probe-upper"), join(layers, "probe")];
    for (const directory of [upper, target]) await mkdir(directory, { recursive: true });
    await stopLayer(await mountOverlay(archive, layers, target, signal, { upper }));
  }

  #prove(stack: Stack): void {
    if (this.#proven.has(stack)) return;
    log("layers", { outcome: "works", stack });
    this.#proven.add(stack);
    // A better one that has worked before can work again.
    this.#candidates = this.#candidates?.filter((other) => this.#proven.has(other) || isWorse(other, stack));
  }
}

function isWorse(stack: Stack, than: Stack): boolean {
  return STACKS.indexOf(stack) > STACKS.indexOf(than);
}

/** SANDBOX_BACKUP_LAYERS names the one stack to use; by default all are tried that this process may. */
async function allowedStacks(): Promise<readonly Stack[]> {
  const forced = process.env.SANDBOX_BACKUP_LAYERS;
  if (forced === undefined) return (await isRealRoot()) ? STACKS : ["fuse"];
  const stack = STACKS.find((name) => name === forced);
  if (stack !== undefined) return [stack];
  throw new InvalidBackupConfigError(`SANDBOX_BACKUP_LAYERS is ${forced} and has to be one of ${STACKS.join(", ")}`);
}

/** In a user namespace the kernel mounts overlays that cannot mark what was replaced. */
async function isRealRoot(): Promise<boolean> {
  const [map = ""] = (await readFile("/proc/self/uid_map", "utf8")).split("\n");
  return process.getuid?.() === 0 && /^\s*0\s+0\s+4294967295$/.test(map);
}

/**
 * Mounts the overlay at `dir`. When it fails, nothing is mounted.
 * @param options.upper the writable layer, when it is another than that of `layers`
 * @param options.again whether it was there before
 */
export async function mountOverlay(
  { stack, cpu }: ArchiveLayer,
  layers: string,
  dir: string,
  signal: AbortSignal,
  { upper = upperPath(layers), again = false } = {},
): Promise<Layer> {
  // The kernel takes none twice for a `volatile` overlay: after a crash it could be incomplete. Here it goes with the container.
  const work = await mkdtemp(join(layers, "work-"));
  const options = `lowerdir=${lowerPath(layers)},upperdir=${upper},workdir=${work},volatile`;
  if (stack === "fuse") {
    return startServer(["fuse-overlayfs"], ["-f", "-o", options, dir], dir, { signal, cpu });
  }
  // redirect_dir: a directory of the archive can be renamed. index: hard links stay linked when they are written to; but with
  // it the kernel refuses what an earlier overlay, of which a process has a file open, still writes to.
  const features = `redirect_dir=on,index=${again ? "off" : "on"}`;
  return unlessAborted(await mountByKernel(["-t", "overlay", "-o", `${options},${features}`, "overlay"], dir), signal);
}

async function mountLower(
  { stack, cpu }: Omit<ArchiveLayer, "layer">,
  layers: string,
  signal: AbortSignal,
): Promise<Layer> {
  const [archive, mountPoint] = [archivePath(layers), lowerPath(layers)];
  if (stack === "kernel") {
    return unlessAborted(await mountByKernel(["-t", "squashfs", "-o", "loop,ro", archive], mountPoint), signal);
  }
  // -f: the server stays a child of the agent, which can stop it for certain.
  return startServer(SQUASHFUSE, ["-f", archive, mountPoint], mountPoint, { signal, cpu });
}

/** The empty writable layer. Its attributes are those that the overlay's root shows, so they come from the archive. */
async function makeUpperLayer(layers: string, signal: AbortSignal): Promise<void> {
  const target = ["-dest", upperPath(layers), archivePath(layers)];
  await runTool("unsquashfs", ["-quiet", "-no-progress", "-max-depth", "0", ...target], { signal });
}

/** Takes a layer's mount off and ends its server. */
export async function stopLayer(layer: Layer): Promise<void> {
  await unmount(layer);
  await endServer(layer);
}

/** A process that holds a file of the layer open gets "not connected" from now on, where a server served it. */
export async function endServer({ server }: Pick<Layer, "server">): Promise<void> {
  if (server === undefined) return;
  server.stopping = true;
  server.process.kill();
  await server.process.exited;
}

/**
 * Takes a layer's mount off, with what was mounted on it since; processes that use it keep what they have open. Does nothing
 * when it is gone already.
 */
export async function unmount({ mountPoint, entry, server }: Layer): Promise<void> {
  if (server !== undefined) server.stopping = true;
  while ((await mountsAt(mountPoint)).includes(entry)) {
    if (process.getuid?.() === 0) await runTool("umount", ["-l", "--", mountPoint]);
    else await runTool("fusermount3", ["-u", "-z", "--", mountPoint]);
  }
}

/** @param inherit descriptors that mount(8) gets as its own from 3 on */
export async function mountByKernel(
  args: readonly string[],
  mountPoint: string,
  inherit: readonly number[] = [],
): Promise<Layer> {
  const others = await mountsAt(mountPoint);
  // Not killed half-way: that could leave a loop device.
  await runTool("mount", [...args, mountPoint], { inherit });
  const entry = (await mountsAt(mountPoint)).find((line) => !others.includes(line)) ?? "";
  return { mountPoint, entry };
}

async function unlessAborted(layer: Layer, signal: AbortSignal): Promise<Layer> {
  if (signal.aborted) await stopLayer(layer);
  signal.throwIfAborted();
  return layer;
}

/**
 * Starts a FUSE server and resolves when its mount is there and answers. Nothing is left mounted when it fails.
 * @param programs the first of these that is installed is started
 */
async function startServer(
  programs: readonly string[],
  args: readonly string[],
  mountPoint: string,
  { signal, cpu }: { signal: AbortSignal; cpu: number | undefined },
): Promise<Layer> {
  const others = await mountsAt(mountPoint);
  const findOwn = async () => (await mountsAt(mountPoint)).find((entry) => !others.includes(entry)) ?? "";
  const [program, process] = await startFirst(programs, args);
  process.stdin.end();
  process.stdout.resume();
  const server = watchServer(program, process);
  let ended: string | undefined;
  void process.exited.then((exit) => {
    ended = describeExit(exit);
  });
  const failure = (how: string) => {
    const stderr = server.stderr();
    return new ToolError(`${program} ${how}: ${stderr.toString().trim()}`, { tool: program, missing: false, stderr });
  };
  const kept = cpu === undefined ? undefined : keepOnCpu(cpu, process.pid);
  let entry = "";
  try {
    const deadline = Date.now() + MOUNT_TIMEOUT;
    for (let pause = 2; entry === ""; pause = Math.min(pause * 2, 10)) {
      signal.throwIfAborted();
      if (ended !== undefined) throw failure(ended);
      if (Date.now() > deadline) throw failure("did not mount in time");
      await delay(pause);
      entry = await findOwn();
    }
    await readdir(mountPoint);
    await kept;
    return { mountPoint, entry, server };
  } catch (error) {
    await stopLayer({ mountPoint, entry: await findOwn(), server });
    throw error;
  }
}

/** Its end is logged when nobody wanted it: what it served is lost. */
export function watchServer(program: string, process: RunningProcess): Server {
  const server = { program, process, stderr: keepEnd(process.stderr), stopping: false };
  void process.exited.then((exit) => {
    if (server.stopping) return;
    const stderr = server.stderr().toString().trim();
    log("fuse-server", { outcome: "ended", program, how: describeExit(exit), ...(stderr !== "" && { stderr }) });
  });
  return server;
}

async function startFirst(
  programs: readonly string[],
  args: readonly string[],
): Promise<[program: string, process: RunningProcess]> {
  for (const program of programs) {
    try {
      return [program, await startProcess(program, args)];
    } catch (error) {
      if (!isMissing(error)) throw error;
    }
  }
  const tool = programs.join(" or ");
  throw new ToolError(`${tool} is not installed in the container`, { tool, missing: true, stderr: Buffer.alloc(0) });
}

/** What the kernel has mounted there, by proc_pid_mountinfo(5): `… - squashfs /dev/loop0 ro`. */
export function mountedDevice({ entry }: Layer): string {
  const [, device = ""] = (entry.split(" - ")[1] ?? "").split(" ");
  return device;
}

/** The mounts that lie on top of each other there: lines of proc_pid_mountinfo(5), which writes blanks and the like in octal. */
async function mountsAt(mountPoint: string): Promise<string[]> {
  const decode = (field: string) =>
    field.replace(/\\([0-7]{3})/g, (_, octal) => String.fromCharCode(Number.parseInt(octal, 8)));
  const wanted = Buffer.from(mountPoint).toString("latin1");
  const lines = (await readFile("/proc/self/mountinfo", "latin1")).split("\n");
  return lines.filter((line) => decode(line.split(" ")[4] ?? "") === wanted);
}

import { constants } from "node:fs";
import { type FileHandle, open, rm, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { withResolvers } from "../../src/promises.js";
import { type RestoreRequest, WHOLE_OBJECT } from "../../src/protocol.js";
import { log } from "../log.js";
import { SERVE_ARCHIVE } from "../remote/argument.js";
import { MOUNT_ARGS } from "../remote/fuse-file.js";
import { reportSchema, type ServeRequest, type UrlMessage } from "../remote/messages.js";
import { RemoteFile } from "../remote/remote-file.js";
import { startProcess, ToolError } from "../run.js";
import { ExpectedDigests } from "./digests.js";
import { archivePath, endServer, type Layer, mountByKernel, type Server, unmount, watchServer } from "./layers.js";
import type { RequestLimits, UrlSource } from "./object-request.js";

/** An archive that is mounted before it is fetched: a process of its own serves it as a file. */

export interface RemoteLayerOptions {
  /** Where the archive is to appear. */
  layers: string;
  backupId: string;
  archive: RestoreRequest["archive"] & { digests: NonNullable<RestoreRequest["archive"]["digests"]> };
  urls: UrlSource;
  limits: RequestLimits;
  signal: AbortSignal;
}

export interface RemoteLayer {
  layer: Layer;
  /** Resolves with the whole archive, when all of it was fetched and checked; rejects when that fails or is given up. */
  filled: Promise<string>;
  /** Why nothing more comes of the bucket, once that is known. Who reads the archive gets no more than EIO. */
  failure: () => Error | undefined;
}

/**
 * Has the archive appear in `layers`, of which what is read is fetched first, and the rest in the background. What a file
 * system is mounted by is fetched here, while the process starts.
 * @throws {ToolError} when this container does not allow that; what the bucket answers. Then nothing of it is left
 */
export async function mountRemote(options: RemoteLayerOptions): Promise<RemoteLayer> {
  const { layers, signal } = options;
  const mountPoint = archivePath(layers);
  const file = join(layers, "data");
  const device = await openDevice();
  const failed = new AbortController();
  const fetching = fetchTables(file, { ...options, signal: AbortSignal.any([signal, failed.signal]) });
  const fetched = fetching.catch(() => {}); // It is waited for below, perhaps after something else has failed.
  let server: Server | undefined;
  let layer: Layer | undefined;
  try {
    server = await startArchiveServer(device);
    await writeFile(mountPoint, "", { mode: 0o600 });
    layer = await mountByKernel([...MOUNT_ARGS, "sandbox-backup"], mountPoint, [device.fd]);
    const request = await fetching;
    signal.throwIfAborted();
    const remote = { layer: { ...layer, server }, ...follow(server, request, options) };
    await device.close(); // From now on the mount ends with the process.
    await readAttributes(mountPoint, signal);
    return remote;
  } catch (error) {
    failed.abort(error);
    await fetched;
    // In this order: whoever looks at a mount whose requests are not answered, waits, as umount(8) may.
    if (server !== undefined) await endServer({ server });
    await device.close();
    if (layer !== undefined) await unmount(layer);
    for (const path of [mountPoint, file]) await rm(path, { force: true });
    throw error;
  }
}

/**
 * Has the kernel know the file's size, for good, before anybody opens it: of two processes that open it first and at once,
 * mount(8) and unsquashfs, one may see an empty file.
 */
async function readAttributes(mountPoint: string, signal: AbortSignal): Promise<void> {
  const given = withResolvers<never>(signal);
  // Why it fails is met by whoever reads the file next.
  await Promise.race([given.promise, stat(mountPoint).catch(() => {})]);
}

/** @throws {ToolError} where there is no FUSE */
async function openDevice(): Promise<FileHandle> {
  try {
    return await open("/dev/fuse", constants.O_RDWR);
  } catch (error) {
    const facts = { tool: "/dev/fuse", missing: true, stderr: Buffer.alloc(0) };
    throw new ToolError(`/dev/fuse cannot be opened: ${error}`, facts, { cause: error });
  }
}

/** It waits until it is told what to serve. */
async function startArchiveServer(device: FileHandle): Promise<Server> {
  const args = [process.argv[1] ?? "", SERVE_ARCHIVE];
  return watchServer(SERVE_ARCHIVE, await startProcess(process.execPath, args, { inherit: [device.fd] }));
}

/** @returns what the process is to be told */
async function fetchTables(file: string, options: RemoteLayerOptions): Promise<ServeRequest> {
  const { archive, urls, limits, signal } = options;
  const { size, etag, digests } = archive;
  using remote = await RemoteFile.open({
    path: file,
    archive: { size, etag, digests: new ExpectedDigests(digests, size) },
    urls,
    limits,
    signal,
    onFailure: () => {}, // It is what is thrown here.
  });
  const present = await remote.fetchTables();
  return { file, present, size, etag, digests, url: await urls.get(WHOLE_OBJECT), stallTimeout: limits.stallTimeout };
}

/** Tells the process what to serve, and gives it the URLs that it asks for. */
function follow(
  { process: { stdin, stdout, exited } }: Server,
  request: ServeRequest,
  { urls, backupId }: RemoteLayerOptions,
): Pick<RemoteLayer, "filled" | "failure"> {
  const filled = withResolvers<string>();
  let failure: Error | undefined;
  let { url } = request;
  const send = (message: ServeRequest | UrlMessage) => stdin.write(`${JSON.stringify(message)}\n`);
  const renew = async () => {
    try {
      url = await urls.renew(WHOLE_OBJECT, url);
      send({ url });
    } catch {
      // The operation has ended; the process says so where it is read.
      send({ url: null });
    }
  };
  createInterface({ input: stdout }).on("line", (line) => {
    const report = reportSchema.parse(JSON.parse(line));
    if (report.type === "need-url") void renew();
    else if (report.type === "filled") filled.resolve(request.file);
    else {
      log("remote-archive", { outcome: "failed", backupId, message: report.message });
      failure = new Error(report.message);
      filled.reject(failure);
    }
  });
  void exited.then(() => filled.reject(new Error("the archive is not served any more")));
  send(request);
  return { filled: filled.promise, failure: () => failure };
}

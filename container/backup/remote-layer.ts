import { rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { type RestoreRequest, WHOLE_OBJECT } from "../../src/protocol.js";
import { log } from "../log.js";
import { SERVE_ARCHIVE } from "../remote/argument.js";
import { reportSchema, type ServeRequest, type UrlMessage } from "../remote/messages.js";
import type { RunningProcess } from "../run.js";
import { withResolvers } from "../with-resolvers.js";
import { archivePath, type Layer, startServer } from "./layers.js";
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
 * Has the archive appear in `layers`, of which what is read is fetched first, and the rest in the background.
 * @throws {ToolError} when this container does not allow that
 */
export async function mountRemote(options: RemoteLayerOptions): Promise<RemoteLayer> {
  const { layers, archive, urls, limits, signal } = options;
  const mountPoint = archivePath(layers);
  await writeFile(mountPoint, "", { mode: 0o600 });
  const file = join(layers, "data");
  const { size, etag, digests } = archive;
  const url = await urls.get(WHOLE_OBJECT);
  const { stallTimeout } = limits;
  const request: ServeRequest = { mountPoint, file, size, etag, digests, url, stallTimeout };
  const filled = withResolvers<string>();
  let failure: Error | undefined;
  const onFailure = (error: Error) => {
    failure = error;
    filled.reject(error);
  };
  const converse = (process: RunningProcess) => follow(process, request, options, filled.resolve, onFailure);
  const program = process.argv[1] ?? "";
  try {
    const layer = await startServer([process.execPath], [program, SERVE_ARCHIVE], mountPoint, signal, converse);
    void layer.server?.process.exited.then(() => filled.reject(new Error("the archive is not served any more")));
    return { layer, filled: filled.promise, failure: () => failure };
  } catch (error) {
    await rm(file, { force: true });
    throw error;
  }
}

/** Tells the process what to serve, gives it the URLs that it asks for, and passes on what it reports. */
function follow(
  { stdin, stdout }: RunningProcess,
  request: ServeRequest,
  { urls, backupId }: RemoteLayerOptions,
  onFilled: (file: string) => void,
  onFailure: (error: Error) => void,
): void {
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
    else if (report.type === "filled") onFilled(request.file);
    else {
      log("remote-archive", { outcome: "failed", backupId, message: report.message });
      onFailure(new Error(report.message));
    }
  });
  send(request);
}

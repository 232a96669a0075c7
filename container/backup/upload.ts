import { createReadStream } from "node:fs";
import { LARGEST_PUT, MiB, MULTIPART_THRESHOLD, type UploadResult, WHOLE_OBJECT } from "../../src/protocol.js";
import {
  forEachConcurrently,
  ObjectClient,
  ObjectRequestError,
  type RequestLimits,
  type UrlSource,
} from "./object-request.js";

/** R2's limit on the parts of one upload. */
const MOST_PARTS = 10_000;
/** Large enough that a part's round trip hardly counts, small enough that a retry costs little. */
const PART_SIZE = 16 * MiB;

/** One request's share of a file, in bytes; `number` is the part number of S3, or `WHOLE_OBJECT`. */
export interface Part {
  number: number;
  offset: number;
  size: number;
}

/** How a file of `size` bytes is sent: whole, or in parts that all but the last have one size, as R2 demands. */
export function planParts(size: number, multipart: boolean): Part[] {
  if (!multipart && size > LARGEST_PUT) {
    throw new Error(`An archive of ${size} bytes can only be sent in parts: the limit of one PUT is ${LARGEST_PUT}`);
  }
  if (!multipart || size <= MULTIPART_THRESHOLD) return [{ number: WHOLE_OBJECT, offset: 0, size }];
  const partSize = Math.max(PART_SIZE, Math.ceil(size / MOST_PARTS / MiB) * MiB);
  return Array.from({ length: Math.ceil(size / partSize) }, (_, index) => ({
    number: index + 1,
    offset: index * partSize,
    size: Math.min(partSize, size - index * partSize),
  }));
}

export interface UploadOptions {
  file: string;
  parts: readonly Part[];
  urls: UrlSource;
  limits: RequestLimits;
  signal: AbortSignal;
  /** Told how many bytes the bucket has confirmed. */
  onProgress: (bytesDone: number) => void;
}

/**
 * Sends a file to the bucket by presigned PUTs, several parts side by side, each from the disk in constant memory.
 * @throws {ObjectRequestError} when a part cannot be sent; then nothing is being sent any more
 */
export async function uploadFile(options: UploadOptions): Promise<UploadResult> {
  const { file, parts, urls, limits } = options;
  const failed = new AbortController();
  using client = new ObjectClient(urls, limits, AbortSignal.any([options.signal, failed.signal]));
  const etags = new Map<number, string>();
  let bytesDone = 0;
  await forEachConcurrently(parts, limits.concurrency, async ({ number, offset, size }) => {
    try {
      await client.send({
        method: "PUT",
        part: number,
        headers: { "content-length": size },
        body: () => createReadStream(file, { start: offset, end: offset + size - 1 }),
        receive: async (response) => {
          const etag = response.headers.etag?.replaceAll('"', "");
          response.resume();
          if (!etag) throw new ObjectRequestError("the bucket confirmed a part without an ETag", undefined);
          etags.set(number, etag);
        },
      });
    } catch (error) {
      failed.abort(error);
      throw error;
    }
    bytesDone += size;
    options.onProgress(bytesDone);
  });
  const sent = parts.map(({ number }) => ({ number, etag: etags.get(number) ?? "" }));
  const [whole] = sent;
  return whole?.number === WHOLE_OBJECT ? { kind: "put", etag: whole.etag } : { kind: "parts", parts: sent };
}

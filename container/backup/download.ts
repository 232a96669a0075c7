import { type FileHandle, open } from "node:fs/promises";
import type { IncomingMessage } from "node:http";
import { MiB, WHOLE_OBJECT } from "../../src/constants.js";
import { ChunkHasher, type ExpectedDigests } from "./digests.js";
import {
  forEachConcurrently,
  ObjectClient,
  ObjectRequestError,
  type RequestLimits,
  type UrlSource,
} from "./object-request.js";

/** In bytes. Small enough that eight of them in flight share the bandwidth evenly and a retry costs little. */
const RANGE_SIZE = 8 * MiB;

/** What is known of an archive in the bucket. */
export interface RemoteArchive {
  /** In bytes. */
  size: number;
  /** The only version of the object that is accepted. */
  etag: string;
  /** What its bytes have to be; undefined for an archive of an older writer. */
  digests: ExpectedDigests | undefined;
}

export interface DownloadOptions {
  /** Created, or overwritten. */
  file: string;
  archive: RemoteArchive;
  urls: UrlSource;
  limits: RequestLimits;
  signal: AbortSignal;
  /** Told how many bytes are on the disk. */
  onProgress: (bytesDone: number) => void;
}

/**
 * Fetches an object into a file, several ranges side by side, in constant memory.
 * @throws {ObjectRequestError} when a range cannot be fetched or the object is another version
 * @throws {DamagedArchiveError} when what was fetched is not what was stored. Then nothing is being fetched any more
 */
export async function downloadFile(options: DownloadOptions): Promise<void> {
  const { archive, limits } = options;
  const { size, digests } = archive;
  const failed = new AbortController();
  using client = new ObjectClient(options.urls, limits, AbortSignal.any([options.signal, failed.signal]));
  const file = await open(options.file, "w", 0o600);
  try {
    await file.truncate(size);
    let bytesDone = 0;
    const rangeSize = Math.max(RANGE_SIZE, digests?.chunkSize ?? 0);
    const offsets = Array.from({ length: Math.ceil(size / rangeSize) }, (_, index) => index * rangeSize);
    await forEachConcurrently(offsets, limits.concurrency, async (start) => {
      const end = Math.min(start + rangeSize, size);
      try {
        await fetchRange(client, archive, start, end, (bytes, position) => writeAll(file, bytes, position));
      } catch (error) {
        failed.abort(error);
        throw error;
      }
      bytesDone += end - start;
      options.onProgress(bytesDone);
    });
  } finally {
    await file.close();
  }
}

/**
 * Fetches the bytes from `start`, where a chunk begins, up to, not including, `end`, where one ends, and checks them.
 * @param take is given them piece by piece, again from the start when an attempt has failed
 * @throws {ObjectRequestError} when they cannot be fetched; {DamagedArchiveError} when they are not what was stored
 */
export async function fetchRange(
  client: ObjectClient,
  { etag, digests }: RemoteArchive,
  start: number,
  end: number,
  take: (bytes: Buffer, position: number) => Promise<void>,
): Promise<void> {
  let hasher: ChunkHasher | undefined;
  await client.send({
    method: "GET",
    part: WHOLE_OBJECT,
    headers: { range: `bytes=${start}-${end - 1}`, "if-match": `"${etag}"` },
    receive: (response) => {
      const own = digests && new ChunkHasher(digests.chunkSize);
      hasher = own;
      return receiveRange(response, start, end, async (bytes, position) => {
        own?.update(bytes);
        await take(bytes, position);
      });
    },
  });
  if (hasher !== undefined) digests?.check(start, hasher.end());
}

/** Reads the answer to a request for the bytes from `start` up to, not including, `end`. */
async function receiveRange(
  response: IncomingMessage,
  start: number,
  end: number,
  take: (bytes: Buffer, position: number) => Promise<void>,
): Promise<void> {
  const got = response.headers["content-range"];
  if (response.statusCode !== 206 || !got?.startsWith(`bytes ${start}-${end - 1}/`)) {
    response.destroy();
    throw new ObjectRequestError(`the bucket answered a request for a range with ${got ?? "the whole object"}`, 400);
  }
  let position = start;
  for await (const bytes of response as AsyncIterable<Buffer>) {
    if (position + bytes.length <= end) await take(bytes, position);
    position += bytes.length;
  }
  if (position !== end) throw new ObjectRequestError("the connection to the bucket broke off", undefined);
}

/** A write to a disk that is nearly full can stop in the middle without an error; the next one fails. */
export async function writeAll(file: FileHandle, chunk: Buffer, position: number): Promise<void> {
  for (let done = 0; done < chunk.length; ) {
    done += (await file.write(chunk, done, chunk.length - done, position + done)).bytesWritten;
  }
}

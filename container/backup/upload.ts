import { type FileHandle, open, stat } from "node:fs/promises";
import { Readable } from "node:stream";
import { setTimeout as delay } from "node:timers/promises";
import {
  type ChunkDigests,
  LARGEST_PUT,
  MiB,
  MULTIPART_THRESHOLD,
  type UploadResult,
  WHOLE_OBJECT,
} from "../../src/protocol.js";
import { ChunkHasher, chunkSizeFor } from "./digests.js";
import { isMissing } from "./directory.js";
import { ObjectClient, ObjectRequestError, type RequestLimits, type UrlSource } from "./object-request.js";

/**
 * Sends an archive to the bucket while it is being made.
 *
 * mksquashfs writes its file from the start to the end, with two exceptions: its superblock, at the very start, comes last;
 * and where it finds that a large file is a duplicate, it cuts the archive back to where that file began. So parts are sent
 * as they fill, the first one last; and when the archive is whole, each that was sent before is compared with it by digest,
 * and sent again where it is another.
 */

/** R2's limit on the parts of one upload. */
export const MOST_PARTS = 10_000;
/** The least that R2 takes, in bytes: the first part is sent last, when nothing else is left to do. */
const LEAST_PART = 5 * MiB;

/** An upload in parts is begun when the archive has so many bytes: its URLs are there when the first part is. */
const BEGIN_AT = 4 * MiB;

/** Files of so many bytes hardly ever make an archive of fewer than `BEGIN_AT`. */
export const CERTAINLY_IN_PARTS = 4 * BEGIN_AT;

/** How often the archive's growth is looked at, in ms. */
const POLL_INTERVAL = 10;

const READ_SIZE = MiB;

/** Sizes in bytes by which an archive is sent and digested; a part is some chunks long. */
export interface UploadSizes {
  part: number;
  chunk: number;
}

/**
 * @param most bytes that the archive can have: the room on its disk
 * @param likely bytes that the archive hardly exceeds: what the disk holds already
 */
export function uploadSizes(most: number, likely: number): UploadSizes {
  const chunk = chunkSizeFor(Math.min(most, likely));
  return { chunk, part: Math.ceil(Math.max(LEAST_PART, most / MOST_PARTS) / chunk) * chunk };
}

/** One request's share of a file, in bytes; `number` is the part number of S3, or `WHOLE_OBJECT`. */
export interface Part {
  number: number;
  offset: number;
  size: number;
}

/** How a file of `size` bytes is sent: whole, or in parts that all but the last have one size, as R2 demands. */
export function planParts(size: number, partSize: number, multipart: boolean): Part[] {
  if (!multipart && size > LARGEST_PUT) {
    throw new Error(`An archive of ${size} bytes can only be sent in parts: the limit of one PUT is ${LARGEST_PUT}`);
  }
  if (!multipart || size <= MULTIPART_THRESHOLD) return [{ number: WHOLE_OBJECT, offset: 0, size }];
  return cutIntoParts(size, partSize);
}

function cutIntoParts(size: number, partSize: number): Part[] {
  const count = Math.ceil(size / partSize);
  if (count > MOST_PARTS) throw new Error(`An archive of ${size} bytes has more parts of ${partSize} than R2 takes`);
  return Array.from({ length: count }, (_, index) => ({
    number: index + 1,
    offset: index * partSize,
    size: Math.min(partSize, size - index * partSize),
  }));
}

export interface UploadOptions {
  file: string;
  /** Resolves with the size of the archive, in bytes, when it is whole. */
  finished: Promise<number>;
  multipart: boolean;
  /** Whether to begin the upload in parts at once, when that is known: before there is anything of the archive. @default no */
  beginAtOnce?: Promise<boolean>;
  sizes: UploadSizes;
  urls: UrlSource;
  limits: RequestLimits;
  /** How many more requests than `limits` says may run side by side once the archive is whole. @default 0 */
  moreWhenWhole?: number;
  signal: AbortSignal;
  /** Told how many bytes the bucket has confirmed, and how many there are when that is known. */
  onProgress: (bytesDone: number, bytesExpected: number | null) => void;
}

/** What was sent, and the digests of what was sent. */
export interface SentArchive {
  upload: UploadResult;
  digests: ChunkDigests;
}

/**
 * Sends an archive to the bucket by presigned PUTs, several parts side by side, each from the disk in constant memory.
 * @throws {ObjectRequestError} when a part cannot be sent; what `finished` rejects with. Then nothing is being sent any more
 */
export async function uploadArchive(options: UploadOptions): Promise<SentArchive> {
  const { finished, sizes, multipart } = options;
  const failed = new AbortController();
  finished.catch((error: unknown) => failed.abort(error));
  using sender = new PartSender(options, AbortSignal.any([options.signal, failed.signal]));
  try {
    if (multipart) await sendAsTheyFill(sender, options);
    const size = await finished;
    const parts = sender.began ? cutIntoParts(size, sizes.part) : planParts(size, sizes.part, multipart);
    sender.expect(size);
    await Promise.all([
      sendAll(
        sender,
        parts.filter((part) => !sender.knows(part)),
      ),
      settleAll(
        sender,
        parts.filter((part) => sender.knows(part)),
      ),
    ]);
    return sender.result(parts);
  } catch (error) {
    failed.abort(error);
    await sender.idle();
    throw error;
  }
}

/** Begins with the second part. Returns when the archive is whole; parts may be on their way then. */
async function sendAsTheyFill(
  sender: PartSender,
  { file, finished, sizes, beginAtOnce }: UploadOptions,
): Promise<void> {
  let isWhole = false;
  const whole = finished.then(() => {
    isWhole = true;
  });
  void beginAtOnce?.then((begin) => {
    if (begin && !isWhole) sender.begin();
  });
  for (let number = 2; !isWhole && number <= MOST_PARTS; ) {
    const part = { number, offset: (number - 1) * sizes.part, size: sizes.part };
    const size = sender.hasRoom ? await sizeOf(file) : 0;
    if (size >= BEGIN_AT && !isWhole) sender.begin();
    if (size >= part.offset + part.size && !isWhole) {
      sender.sendEarly(part);
      number++;
    } else {
      await Promise.race([whole, delay(POLL_INTERVAL)]);
    }
  }
  await whole;
}

async function sendAll(sender: PartSender, parts: readonly Part[]): Promise<void> {
  await Promise.all(parts.map((part) => sender.send(part)));
}

/** Has the parts that were sent before the archive was whole be the archive's. */
async function settleAll(sender: PartSender, parts: readonly Part[]): Promise<void> {
  for (const part of parts) {
    if (!(await sender.isAsSent(part))) await sender.send(part);
  }
}

async function sizeOf(file: string): Promise<number> {
  try {
    return (await stat(file)).size;
  } catch (error) {
    // mksquashfs has not begun.
    if (isMissing(error)) return 0;
    throw error;
  }
}

/** The file ended before the part that was being sent. */
class CutBackError extends Error {
  override readonly name = "CutBackError";
}

interface SentPart {
  etag: string;
  size: number;
  /** SHA-256 of the chunks of what was sent, one after another. */
  digests: Buffer;
}

/** Lets a bounded number of tasks run at a time, in the order in which they came. */
class Slots {
  readonly #waiting: (() => void)[] = [];

  free: number;

  constructor(private count: number) {
    this.free = count;
  }

  add(more: number): void {
    this.count += more;
    for (let added = 0; added < more; added++) this.release();
  }

  /** Resolves when nothing runs any more; nothing is begun from now on. */
  async takeAll(): Promise<void> {
    for (let taken = 0; taken < this.count; taken++) await this.take();
  }

  async take(): Promise<void> {
    if (this.free > 0) this.free--;
    else await new Promise<void>((resolve) => this.#waiting.push(resolve));
  }

  release(): void {
    const next = this.#waiting.shift();
    if (next === undefined) this.free++;
    else next();
  }
}

/** Sends parts of one file, a bounded number at a time, and knows what it has sent. */
class PartSender implements Disposable {
  readonly #client: ObjectClient;
  readonly #sent = new Map<number, SentPart>();
  /** Parts that were begun before the archive was whole. */
  readonly #early = new Map<number, Promise<void>>();
  readonly #slots: Slots;
  #bytesExpected: number | null = null;
  #began = false;

  constructor(
    private readonly options: UploadOptions,
    private readonly signal: AbortSignal,
  ) {
    this.#client = new ObjectClient(options.urls, options.limits, signal);
    this.#slots = new Slots(options.limits.concurrency);
  }

  /** Whether an upload in parts has begun. */
  get began(): boolean {
    return this.#began;
  }

  /** Has the URLs of the first parts be asked for. */
  begin(): void {
    if (this.#began || this.signal.aborted) return;
    this.#began = true;
    // Whoever sends the first part meets the failure.
    this.options.urls.get(1).catch(() => {});
  }

  knows({ number }: Part): boolean {
    return this.#early.has(number);
  }

  /** From now on the archive has this size, in bytes. */
  expect(size: number): void {
    this.#bytesExpected = size;
    this.#slots.add(this.options.moreWhenWhole ?? 0);
  }

  /** Whether a part that is sent now need not wait for others. */
  get hasRoom(): boolean {
    return this.#slots.free > 0;
  }

  /** Sends a part of which all bytes are there, though they may become others. */
  sendEarly(part: Part): void {
    const sending = this.send(part).catch((error: unknown) => {
      // It is sent when the archive is whole.
      if (!(error instanceof CutBackError)) throw error;
    });
    // A failure of another kind is met when the part is settled.
    sending.catch(() => {});
    this.#early.set(part.number, sending);
  }

  /** Whether the part that was sent early is what the file has in its place. */
  async isAsSent(part: Part): Promise<boolean> {
    await this.#early.get(part.number);
    const sent = this.#sent.get(part.number);
    return sent !== undefined && sent.size === part.size && sent.digests.equals(await this.#digestsOf(part));
  }

  async send(part: Part): Promise<void> {
    await this.#slots.take();
    try {
      this.signal.throwIfAborted();
      await this.#send(part);
    } finally {
      this.#slots.release();
    }
  }

  /** Resolves when nothing is being sent any more. */
  idle(): Promise<void> {
    return this.#slots.takeAll();
  }

  /** What was sent. All of these parts have to be. */
  result(parts: readonly Part[]): SentArchive {
    const sent = parts.map(({ number }) => {
      const part = this.#sent.get(number);
      if (part === undefined) throw new Error(`part ${number} was not sent`);
      return { number, ...part };
    });
    const [whole] = sent;
    const upload: UploadResult =
      whole?.number === WHOLE_OBJECT
        ? { kind: "put", etag: whole.etag }
        : { kind: "parts", parts: sent.map(({ number, etag }) => ({ number, etag })) };
    const sha256 = Buffer.concat(sent.map(({ digests }) => digests)).toString("base64");
    return { upload, digests: { chunkSize: this.options.sizes.chunk, sha256 } };
  }

  [Symbol.dispose](): void {
    this.#client[Symbol.dispose]();
  }

  async #send(part: Part): Promise<void> {
    let hasher = this.#newHasher();
    await this.#client.send({
      method: "PUT",
      part: part.number,
      headers: { "content-length": part.size },
      body: () => {
        const own = this.#newHasher();
        hasher = own;
        return Readable.from(this.#read(part, own), { objectMode: false, highWaterMark: READ_SIZE });
      },
      receive: async (response) => {
        const etag = response.headers.etag?.replaceAll('"', "");
        response.resume();
        if (!etag) throw new ObjectRequestError("the bucket confirmed a part without an ETag", undefined);
        if (hasher.bytes < part.size) throw new ObjectRequestError("the bucket confirmed a part too early", undefined);
        this.#sent.set(part.number, { etag, size: part.size, digests: hasher.end() });
      },
    });
    const bytesDone = [...this.#sent.values()].reduce((sum, { size }) => sum + size, 0);
    this.options.onProgress(bytesDone, this.#bytesExpected);
  }

  async #digestsOf(part: Part): Promise<Buffer> {
    const hasher = this.#newHasher();
    for await (const _ of this.#read(part, hasher)) this.signal.throwIfAborted();
    return hasher.end();
  }

  #newHasher(): ChunkHasher {
    return new ChunkHasher(this.options.sizes.chunk);
  }

  /** Reads a part of the file, as it is now, and has each byte digested. */
  async *#read({ offset, size }: Part, hasher: ChunkHasher): AsyncGenerator<Buffer> {
    const file = await openGrowing(this.options.file);
    try {
      for (let done = 0; done < size; ) {
        // Not one buffer for all: a stream may still hold the one before.
        const buffer = Buffer.allocUnsafe(Math.min(READ_SIZE, size - done));
        const { bytesRead } = await file.read(buffer, 0, buffer.length, offset + done);
        if (bytesRead === 0) throw new CutBackError("The archive became shorter while it was sent");
        const bytes = buffer.subarray(0, bytesRead);
        hasher.update(bytes);
        yield bytes;
        done += bytesRead;
      }
    } finally {
      await file.close();
    }
  }
}

/** mksquashfs, when it begins again, makes the file anew. */
async function openGrowing(file: string): Promise<FileHandle> {
  try {
    return await open(file);
  } catch (error) {
    if (isMissing(error)) throw new CutBackError("The archive was begun again while it was sent", { cause: error });
    throw error;
  }
}

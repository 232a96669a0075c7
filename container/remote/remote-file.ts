import { closeSync, openSync, readSync } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import { setTimeout as delay } from "node:timers/promises";
import { MiB } from "../../src/constants.js";
import { DamagedArchiveError } from "../backup/digests.js";
import { fetchRange, type RemoteArchive, writeAll } from "../backup/download.js";
import {
  forEachConcurrently,
  ObjectClient,
  ObjectRequestError,
  type RequestLimits,
  type UrlSource,
} from "../backup/object-request.js";

/**
 * An archive in the bucket as a file that is there at once: what is read of it is fetched first, and all the rest in the
 * background. No byte is given out before its chunk's digest was checked.
 */

/** How long a read waits for its bytes, in ms. */
const READ_TIMEOUT = 60_000;

/** For so long after a read has failed others fail at once, in ms: the kernel tries each several times. */
const OUTAGE = 10_000;

/** Memory for chunks that are on their way in the background, in bytes; and how many there are at most. */
const FILL_MEMORY = 16 * MiB;
const MOST_FILLERS = 8;

/** How often filling is taken up again that failed, and the pause before, in ms. */
const FILL_ATTEMPTS = 10;
const FILL_PAUSE = 5_000;

/** Where the superblock of squashfs 4.0 has the offset of the tables, which lie behind all data: a file system is looked up by them. */
const INODE_TABLE_START = 64;
const SUPERBLOCK_SIZE = 96;

export interface RemoteFileOptions {
  /** Where it is kept; made anew where nothing of it is there. */
  path: string;
  /** Chunks that are there and were checked, by number. @default none */
  present?: readonly number[];
  archive: RemoteArchive & { digests: NonNullable<RemoteArchive["digests"]> };
  urls: UrlSource;
  limits: RequestLimits;
  /** How long a read waits for its bytes, in ms. @default 60,000 */
  readTimeout?: number;
  /** Ends all requests. @default none does, but the end of this object */
  signal?: AbortSignal;
  /** Told once why nothing more will come of the bucket. */
  onFailure: (error: Error) => void;
}

export class RemoteFile implements Disposable {
  readonly size: number;
  readonly #chunkSize: number;
  /** By chunk: 1 where it is in the file and has been checked. */
  readonly #present: Uint8Array;
  /** Chunks that are being read for, by number. */
  readonly #wanted = new Map<number, Promise<void>>();
  readonly #ended = new AbortController();
  readonly #client: ObjectClient;
  #failure: Error | undefined;
  /** The last read that failed, while nothing has come since. */
  #outage: { error: unknown; since: number } | undefined;

  private constructor(
    private readonly options: RemoteFileOptions,
    private readonly file: FileHandle,
    /** For reads that must not wait for one of Node's threads. */
    private readonly fd: number,
  ) {
    const { archive, present = [], signal = this.#ended.signal } = options;
    const { size, digests } = archive;
    this.size = size;
    this.#chunkSize = digests.chunkSize;
    this.#present = new Uint8Array(Math.ceil(size / digests.chunkSize));
    for (const chunk of present) this.#present[chunk] = 1;
    this.#client = new ObjectClient(options.urls, options.limits, AbortSignal.any([signal, this.#ended.signal]));
  }

  static async open(options: RemoteFileOptions): Promise<RemoteFile> {
    const file = await open(options.path, options.present === undefined ? "w+" : "r+", 0o600);
    await file.truncate(options.archive.size);
    return new RemoteFile(options, file, openSync(options.path, "r"));
  }

  /**
   * Bytes of the file; at once where they are there.
   * @throws when they cannot be fetched, at the latest after 60 s
   */
  read(offset: number, length: number): Buffer | Promise<Buffer> {
    const missing = this.#chunksOf(offset, length).filter((chunk) => this.#present[chunk] !== 1);
    if (missing.length === 0) return this.#readPresent(offset, length);
    return this.#fetchWanted(missing).then(() => this.#readPresent(offset, length));
  }

  /**
   * Fetches what the file system is mounted and looked up by.
   * @returns the chunks that are there, by number
   * @throws what the bucket answers
   */
  async fetchTables(): Promise<number[]> {
    const last = this.#present.length - 1;
    // The tables are small beside the data that they follow: most of them end here.
    await this.#fetchAll([0, Math.max(0, last - 1), last]);
    const superblock = this.#readPresent(0, Math.min(SUPERBLOCK_SIZE, this.size));
    const tables = superblock.length < SUPERBLOCK_SIZE ? 0n : superblock.readBigUInt64LE(INODE_TABLE_START);
    await this.#fetchAll(range(Math.floor(Number(tables) / this.#chunkSize), last + 1));
    return range(0, last + 1).filter((chunk) => this.#present[chunk] === 1);
  }

  /**
   * Fetches all that is not there, the tables of the file system first.
   * @throws what the bucket answers, when that does not change
   */
  async fill(): Promise<void> {
    for (let attempt = 1; ; attempt++) {
      try {
        await this.#fillOnce();
        return;
      } catch (error) {
        if (this.#failure !== undefined || attempt === FILL_ATTEMPTS) throw error;
        await delay(FILL_PAUSE * attempt, undefined, { signal: this.#ended.signal });
      }
    }
  }

  [Symbol.dispose](): void {
    this.#ended.abort(new Error("the archive was taken away"));
    this.#client[Symbol.dispose]();
    closeSync(this.fd);
    // Nobody is told any more; the descriptor ends with the process.
    this.file.close().catch(() => {});
  }

  async #fillOnce(): Promise<void> {
    await this.fetchTables();
    await forEachConcurrently(range(0, this.#present.length), this.#fillers, async (chunk) => {
      // Who waits for other bytes goes first.
      while (this.#wanted.size > 0) await Promise.allSettled(this.#wanted.values());
      if (this.#present[chunk] !== 1) await this.#fetch(chunk);
    });
  }

  #fetchAll(chunks: readonly number[]): Promise<void> {
    return forEachConcurrently(chunks, this.#fillers, (chunk) => this.#want(chunk));
  }

  /** How many chunks are fetched at a time that nobody waits for. */
  get #fillers(): number {
    return Math.max(1, Math.min(MOST_FILLERS, Math.floor(FILL_MEMORY / this.#chunkSize)));
  }

  async #fetchWanted(chunks: readonly number[]): Promise<void> {
    if (this.#outage !== undefined && Date.now() - this.#outage.since < OUTAGE) throw this.#outage.error;
    const { readTimeout = READ_TIMEOUT } = this.options;
    const timeout = AbortSignal.timeout(readTimeout);
    const timedOut = new Promise<never>((_, reject) => {
      timeout.addEventListener("abort", () => reject(new Error(`nothing came for ${readTimeout / 1000} s`)));
    });
    timedOut.catch(() => {}); // It may come too late to be of interest.
    try {
      await Promise.race([Promise.all(chunks.map((chunk) => this.#want(chunk))), timedOut]);
    } catch (error) {
      this.#outage = { error, since: Date.now() };
      throw error;
    }
  }

  /** Fetches a chunk that is read for; once for all who want it. */
  #want(chunk: number): Promise<void> {
    if (this.#present[chunk] === 1) return Promise.resolve();
    const known = this.#wanted.get(chunk);
    if (known !== undefined) return known;
    const fetching = this.#fetch(chunk).finally(() => this.#wanted.delete(chunk));
    this.#wanted.set(chunk, fetching);
    return fetching;
  }

  async #fetch(chunk: number): Promise<void> {
    if (this.#failure !== undefined) throw this.#failure;
    const start = chunk * this.#chunkSize;
    const end = Math.min(start + this.#chunkSize, this.size);
    // Checked before any of it gets into the file, where a part of it may be read already.
    const bytes = Buffer.allocUnsafe(end - start);
    try {
      const take = async (piece: Buffer, position: number) => void piece.copy(bytes, position - start);
      await fetchRange(this.#client, this.options.archive, start, end, take);
    } catch (error) {
      if (isFinal(error)) this.#fail(error);
      throw error;
    }
    if (this.#present[chunk] === 1) return;
    await writeAll(this.file, bytes, start);
    this.#present[chunk] = 1;
    this.#outage = undefined;
  }

  #fail(error: Error): void {
    if (this.#failure !== undefined) return;
    this.#failure = error;
    this.options.onFailure(error);
  }

  #readPresent(offset: number, length: number): Buffer {
    const bytes = Buffer.allocUnsafe(length);
    let done = 0;
    while (done < length) {
      const count = readSync(this.fd, bytes, done, length - done, offset + done);
      if (count === 0) throw new Error("the file was truncated");
      done += count;
    }
    return bytes;
  }

  #chunksOf(offset: number, length: number): number[] {
    if (length === 0) return [];
    return range(Math.floor(offset / this.#chunkSize), Math.floor((offset + length - 1) / this.#chunkSize) + 1);
  }
}

/** Another answer is not to be hoped for. */
function isFinal(error: unknown): error is Error {
  return error instanceof DamagedArchiveError || (error instanceof ObjectRequestError && !error.isTransient);
}

function range(start: number, end: number): number[] {
  return Array.from({ length: Math.max(0, end - start) }, (_, index) => start + index);
}

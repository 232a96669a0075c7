import { createReadStream, createWriteStream } from "node:fs";
import type { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { type Resolvers, withResolvers } from "../../src/promises.js";
import { MiB } from "../../src/protocol.js";
import { ChunkHasher } from "./digests.js";
import type { RemoteArchive } from "./download.js";
import type { SentArchive } from "./upload.js";

/** Archives that the agent's client moves: it takes them from here to the bucket, and brings them from there. */

export interface OfferOptions {
  file: string;
  /** Of the file, in bytes. */
  size: number;
  /** Of the chunks that are digested, in bytes. */
  chunkSize: number;
  signal: AbortSignal;
  onProgress: (bytesDone: number, bytesExpected: number) => void;
}

/** An archive that waits to be taken. */
export class Offer {
  readonly #taken: Resolvers<SentArchive>;

  constructor(private readonly options: OfferOptions) {
    this.#taken = withResolvers(options.signal);
  }

  /** Resolves when all of it was taken; rejects when that fails, or the signal aborts. */
  get taken(): Promise<SentArchive> {
    return this.#taken.promise;
  }

  take(): { size: number; stream: Readable } {
    const { file, size, chunkSize, signal, onProgress } = this.options;
    const stream = createReadStream(file, { signal, highWaterMark: MiB });
    const hasher = digestPassing(stream, chunkSize, (bytesDone) => onProgress(bytesDone, size));
    stream.once("error", this.#taken.reject).once("end", () => {
      const sha256 = hasher.end().toString("base64");
      this.#taken.resolve({ upload: { kind: "stream" }, digests: { chunkSize, sha256 } });
    });
    return { size, stream };
  }
}

export interface DeliveryOptions {
  /** Where the archive is written. */
  file: string;
  archive: RemoteArchive;
  signal: AbortSignal;
  onProgress: (bytesDone: number) => void;
}

/** An archive that waits to be brought. */
export class Delivery {
  readonly #given: Resolvers<void>;

  constructor(private readonly options: DeliveryOptions) {
    this.#given = withResolvers(options.signal);
  }

  /** Resolves when all of it is on the disk; rejects when that fails, or the signal aborts. */
  get given(): Promise<void> {
    return this.#given.promise;
  }

  /**
   * Resolves when all of it is on the disk.
   * @throws {DamagedArchiveError} when it is not what was stored
   */
  async give(body: Readable): Promise<void> {
    const { file, archive, signal, onProgress } = this.options;
    const hasher = digestPassing(body, archive.digests?.chunkSize ?? MiB, onProgress);
    const written = pipeline(body, createWriteStream(file, { mode: 0o600 }), { signal }).then(() => {
      // One of another length is refused for that.
      if (hasher.bytes === archive.size) archive.digests?.check(0, hasher.end());
    });
    written.then(this.#given.resolve, this.#given.reject);
    await written;
  }
}

/** Digests and reports the bytes that pass; whoever reads the stream sets its pace. */
function digestPassing(stream: Readable, chunkSize: number, onProgress: (bytesDone: number) => void): ChunkHasher {
  const hasher = new ChunkHasher(chunkSize);
  stream.on("data", (bytes: Buffer) => {
    hasher.update(bytes);
    onProgress(hasher.bytes);
  });
  return hasher;
}

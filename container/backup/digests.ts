import { createHash, type Hash } from "node:crypto";
import { MiB } from "../../src/constants.js";
import type { ChunkDigests } from "../../src/protocol.js";

/** SHA-256 of an archive's chunks: any part of an archive can be checked by itself, before the rest is there. */

const DIGEST_SIZE = 32;

const LEAST_CHUNK = MiB;
/** Of the chunks of one archive, so that its metadata stays below 3 MiB. */
const MOST_CHUNKS = 65_536;

/** The size of an archive's chunks, in bytes: a power of two. `size` is what the archive may come to. */
export function chunkSizeFor(size: number): number {
  let chunkSize = LEAST_CHUNK;
  while (size > chunkSize * MOST_CHUNKS) chunkSize *= 2;
  return chunkSize;
}

/** Makes the digests of bytes that come one after another, beginning with a chunk's first. */
export class ChunkHasher {
  readonly #digests: Buffer[] = [];
  #hash: Hash | undefined;
  /** Bytes of the current chunk. */
  #filled = 0;
  #bytes = 0;

  constructor(private readonly chunkSize: number) {}

  /** How many there were so far. */
  get bytes(): number {
    return this.#bytes;
  }

  update(bytes: Buffer): void {
    this.#bytes += bytes.length;
    for (let offset = 0; offset < bytes.length; ) {
      const end = Math.min(bytes.length, offset + this.chunkSize - this.#filled);
      this.#hash ??= createHash("sha256");
      this.#hash.update(bytes.subarray(offset, end));
      this.#filled += end - offset;
      offset = end;
      if (this.#filled === this.chunkSize) this.#closeChunk();
    }
  }

  /** The digests of all chunks, one after another; the last chunk may be shorter. */
  end(): Buffer {
    this.#closeChunk();
    return Buffer.concat(this.#digests);
  }

  #closeChunk(): void {
    if (this.#hash !== undefined) this.#digests.push(this.#hash.digest());
    this.#hash = undefined;
    this.#filled = 0;
  }
}

/** What the bytes of one archive have to be. */
export class ExpectedDigests {
  readonly chunkSize: number;
  readonly #sha256: Buffer;

  /** @throws when these are not the digests of an archive of `size` bytes */
  constructor({ chunkSize, sha256 }: ChunkDigests, size: number) {
    this.chunkSize = chunkSize;
    this.#sha256 = Buffer.from(sha256, "base64");
    if (this.#sha256.length !== Math.ceil(size / chunkSize) * DIGEST_SIZE) {
      throw new Error("The backup's metadata is damaged: its digests do not fit the archive's size");
    }
  }

  /**
   * Checks bytes that begin with a chunk's first and end with a chunk's last, or the archive's.
   * @param start where they lie in the archive
   * @throws {DamagedArchiveError} when they are not the ones that were stored
   */
  check(start: number, digests: Buffer): void {
    const first = (start / this.chunkSize) * DIGEST_SIZE;
    if (!digests.equals(this.#sha256.subarray(first, first + digests.length))) throw new DamagedArchiveError();
  }
}

/** An archive is not, byte for byte, the one that was stored. */
export class DamagedArchiveError extends Error {
  override readonly name = "DamagedArchiveError";
  constructor() {
    super("The archive is damaged: its SHA-256 is not the one recorded when it was made");
  }
}

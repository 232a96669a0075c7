import { randomBytes } from "node:crypto";

/** What is in the bucket. In memory: the machine's disk belongs to what is measured. */

/** Of an object, or of a part of one. */
export interface Content {
  pieces: readonly Buffer[];
  size: number;
  /** Without quotes. */
  etag: string;
}

/** An error as S3 names it. */
export class S3Error extends Error {
  readonly status: number;
  readonly code: string;

  constructor(status: number, code: string) {
    super(code);
    this.status = status;
    this.code = code;
  }
}

/** R2's limit on parts of a multipart upload, but for the last. */
const LEAST_PART = 5 * 1024 * 1024;

/** How much is sent at once, in bytes: little enough that connections share the bandwidth evenly. */
const SLICE = 128 * 1024;

interface MultipartUpload {
  key: string;
  parts: Map<number, Content>;
}

export class Objects {
  readonly #objects = new Map<string, Content>();
  readonly #uploads = new Map<string, MultipartUpload>();
  /** What forgotten objects were in. Memory that is new to the process costs as much time as all else here. */
  #spare: Buffer[] = [];

  get(key: string): Content {
    const object = this.#objects.get(key);
    if (object === undefined) throw new S3Error(404, "NoSuchKey");
    return object;
  }

  put(key: string, content: Content): void {
    this.#objects.set(key, content);
  }

  delete(key: string): void {
    this.#objects.delete(key);
  }

  /** Room for the content of one message. */
  allocate(size: number): Buffer {
    const index = this.#spare.findIndex(({ length }) => length === size);
    const [spare] = index === -1 ? [] : this.#spare.splice(index, 1);
    return spare ?? Buffer.allocUnsafeSlow(size);
  }

  /** Removes the objects under a prefix, which nobody reads any more. */
  forget(prefix: string): void {
    for (const [key, { pieces }] of this.#objects) {
      if (!key.startsWith(prefix)) continue;
      this.#objects.delete(key);
      this.#spare.push(...pieces);
    }
  }

  clear(): void {
    this.#objects.clear();
    this.#uploads.clear();
    this.#spare = [];
  }

  createUpload(key: string): string {
    const id = randomBytes(16).toString("hex");
    this.#uploads.set(id, { key, parts: new Map() });
    return id;
  }

  putPart(key: string, uploadId: string, number: number, content: Content): void {
    this.#upload(key, uploadId).parts.set(number, content);
  }

  /** @param list the parts in the order in which they make the object */
  completeUpload(key: string, uploadId: string, list: readonly { number: number; etag: string }[]): Content {
    const { parts } = this.#upload(key, uploadId);
    const inOrder = list.map(({ number, etag }, index) => {
      const part = parts.get(number);
      if (part === undefined || part.etag !== etag) throw new S3Error(400, "InvalidPart");
      const previous = list[index - 1];
      if (previous !== undefined && previous.number >= number) throw new S3Error(400, "InvalidPartOrder");
      return part;
    });
    const [first] = inOrder;
    if (first === undefined) throw new S3Error(400, "MalformedXML");
    // R2, unlike S3, wants all but the last of one size.
    for (const part of inOrder.slice(0, -1)) {
      if (part.size < LEAST_PART) throw new S3Error(400, "EntityTooSmall");
      if (part.size !== first.size) throw new S3Error(400, "InvalidPart");
    }
    const object = {
      pieces: inOrder.flatMap(({ pieces }) => pieces),
      size: inOrder.reduce((sum, { size }) => sum + size, 0),
      etag: `${newEtag()}-${inOrder.length}`,
    };
    this.#objects.set(key, object);
    this.#uploads.delete(uploadId);
    return object;
  }

  abortUpload(key: string, uploadId: string): void {
    this.#upload(key, uploadId);
    this.#uploads.delete(uploadId);
  }

  #upload(key: string, uploadId: string): MultipartUpload {
    const upload = this.#uploads.get(uploadId);
    if (upload === undefined || upload.key !== key) throw new S3Error(404, "NoSuchUpload");
    return upload;
  }
}

/** Another for each version of an object, as R2's are. No digest: computing it would take time from what is measured. */
export function newEtag(): string {
  return randomBytes(16).toString("hex");
}

/** The bytes from `start` up to, not including, `end`, a little at a time. */
export function* slices({ pieces }: Content, start: number, end: number): Generator<Buffer> {
  let offset = 0;
  for (const piece of pieces) {
    const last = Math.min(piece.length, end - offset);
    for (let from = Math.max(0, start - offset); from < last; from += SLICE) {
      yield piece.subarray(from, Math.min(last, from + SLICE));
    }
    offset += piece.length;
  }
}

import { randomBytes } from "node:crypto";

/** What is in the bucket. In memory: the machine's disk belongs to what is measured. */

/** Bytes as they came. */
export interface Content {
  chunks: readonly Buffer[];
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

interface MultipartUpload {
  key: string;
  parts: Map<number, Content>;
}

export class Objects {
  readonly #objects = new Map<string, Content>();
  readonly #uploads = new Map<string, MultipartUpload>();

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

  clear(): void {
    this.#objects.clear();
    this.#uploads.clear();
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
      chunks: inOrder.flatMap(({ chunks }) => chunks),
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

/** Those of the bytes of an object from `start` up to, not including, `end`. */
export function* slices({ chunks }: Content, start: number, end: number): Generator<Buffer> {
  let offset = 0;
  for (const chunk of chunks) {
    if (offset >= end) return;
    if (offset + chunk.length > start) {
      yield chunk.subarray(Math.max(0, start - offset), Math.min(chunk.length, end - offset));
    }
    offset += chunk.length;
  }
}

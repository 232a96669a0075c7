/** An object as the binding describes it, as far as backups look at it. */
interface StoredObject {
  key: string;
  size: number;
  etag: string;
}

interface StoredObjectBody extends StoredObject {
  body: ReadableStream<Uint8Array>;
  text(): Promise<string>;
}

type Content = string | ArrayBuffer | ArrayBufferView<ArrayBuffer>;

/**
 * Stands in for the R2 binding, over the benchmark's store: what presigned URLs lead to and what the binding sees is then
 * one bucket, and a call of either takes as long as the store's profile says.
 */
export class StoreBucket {
  readonly #bucketUrl: string;

  constructor(endpoint: string, name: string) {
    this.#bucketUrl = `${endpoint}/${name}`;
  }

  async head(key: string): Promise<StoredObject | null> {
    const response = await this.#send("HEAD", key);
    return response && describe(key, response);
  }

  async get(key: string, options?: object): Promise<StoredObjectBody | null> {
    if (options !== undefined) throw new Error("The benchmark's bucket knows no options of get");
    const response = await this.#send("GET", key);
    if (response === null) return null;
    return { ...describe(key, response), body: bodyOf(response), text: () => response.text() };
  }

  async put(key: string, content: Content): Promise<StoredObject> {
    const response = await this.#send("PUT", key, content);
    if (response === null) throw new Error(`put: the store has no bucket for ${key}`);
    return { ...describe(key, response), size: new Blob([content]).size };
  }

  async delete(keys: string | string[]): Promise<void> {
    await Promise.all([keys].flat().map((key) => this.#send("DELETE", key)));
  }

  /** No backup of the production path begins one here: upload ids of the binding and of the S3 API are two kinds. */
  createMultipartUpload(key: string): never {
    throw new Error(`A multipart upload of ${key} was begun by the binding`);
  }

  /** @returns null when there is no such object */
  async #send(method: string, key: string, body?: Content): Promise<Response | null> {
    const response = await fetch(`${this.#bucketUrl}/${key}`, { method, ...(body !== undefined && { body }) });
    if (response.ok) return response;
    if (response.status === 404) return null;
    throw new Error(`${method} ${key}: the store answered HTTP ${response.status}`);
  }
}

function describe(key: string, { headers }: Response): StoredObject {
  return {
    key,
    size: Number(headers.get("content-length")),
    etag: (headers.get("etag") ?? "").replaceAll('"', ""),
  };
}

function bodyOf({ body }: Response): ReadableStream<Uint8Array> {
  if (body === null) throw new Error("The store answered without a body");
  return body;
}

import { AwsClient } from "aws4fetch";
import { type ArchiveResult, type PartUrl, WHOLE_OBJECT } from "../protocol.js";
import { archiveKey } from "./bucket.js";
import type { PresignSettings } from "./settings.js";
import type { TransferHandler, Transport, Upload } from "./transport.js";
import type { UnfinishedBackup } from "./unfinished.js";

/**
 * Production: the agent moves the archive itself, by URLs signed here. The bytes never pass the Durable Object, and the
 * container never sees a key.
 */

/** How long a URL is good for, in seconds. R2 allows 7 days; the agent asks for another when one has expired. */
const URL_LIFETIME = 3600;

/** A call of the S3 API that carries no archive is given up after this long, in ms. Completing many parts takes a while. */
const CALL_TIMEOUT = 120_000;

export class PresignedTransport implements Transport {
  readonly transfer = "urls";
  readonly method = "mount";
  readonly #s3: S3Bucket;

  constructor(settings: PresignSettings) {
    this.#s3 = new S3Bucket(settings);
  }

  upload(backupId: string, record: (uploadId: string) => Promise<void>): Upload {
    const begin = async () => {
      const uploadId = await this.#s3.createMultipart(archiveKey(backupId));
      await record(uploadId);
      return uploadId;
    };
    return new PresignedUpload(this.#s3, backupId, begin, (unfinished) => this.discard(unfinished));
  }

  download(backupId: string): TransferHandler {
    const sign = async (part: number) => ({ part, url: await this.#s3.presign("GET", archiveKey(backupId)) });
    const urls = (parts: readonly number[]) => Promise.all(parts.map(sign));
    return { firstUrls: () => urls([WHOLE_OBJECT]), urls, move: refuseToMove };
  }

  async discard({ backupId, uploadId }: UnfinishedBackup): Promise<void> {
    const key = archiveKey(backupId);
    if (uploadId !== undefined) await this.#s3.abortMultipart(key, uploadId);
    await this.#s3.deleteObject(key);
  }
}

/** Begins a multipart upload when the agent asks for the first part's URL; a whole object needs none. */
class PresignedUpload implements Upload {
  #uploadId: Promise<string> | undefined;
  readonly move = refuseToMove;

  constructor(
    private readonly s3: S3Bucket,
    private readonly backupId: string,
    private readonly begin: () => Promise<string>,
    private readonly discard: (unfinished: UnfinishedBackup) => Promise<void>,
  ) {}

  firstUrls(): Promise<PartUrl[]> {
    return this.urls([WHOLE_OBJECT]);
  }

  urls(parts: readonly number[]): Promise<PartUrl[]> {
    return Promise.all(parts.map(async (part) => ({ part, url: await this.#presign(part) })));
  }

  async complete({ upload }: ArchiveResult): Promise<string> {
    if (upload.kind === "put") return upload.etag;
    const uploadId = await this.#uploadId;
    if (upload.kind !== "parts" || uploadId === undefined)
      throw new Error("The agent sent nothing by the URLs that it got");
    return this.s3.completeMultipart(archiveKey(this.backupId), uploadId, upload.parts);
  }

  async abort(): Promise<void> {
    // When it could not be begun there is nothing to abort.
    const uploadId = await this.#uploadId?.catch(() => undefined);
    await this.discard({ backupId: this.backupId, uploadId });
  }

  async #presign(part: number): Promise<string> {
    const key = archiveKey(this.backupId);
    if (part === WHOLE_OBJECT) return this.s3.presign("PUT", key);
    this.#uploadId ??= this.begin();
    return this.s3.presign("PUT", key, { partNumber: String(part), uploadId: await this.#uploadId });
  }
}

async function refuseToMove(): Promise<never> {
  throw new Error("With presigned URLs the agent moves the archive, not the Durable Object");
}

/** The calls of the S3 API that the R2 binding has no counterpart for: their upload ids are not interchangeable. */
class S3Bucket {
  readonly #client: AwsClient;
  readonly #bucketUrl: string;

  constructor({ endpoint, bucketName, accessKeyId, secretAccessKey }: PresignSettings) {
    this.#client = new AwsClient({ accessKeyId, secretAccessKey, service: "s3", region: "auto", retries: 3 });
    this.#bucketUrl = `${endpoint}/${bucketName}`;
  }

  async presign(method: "GET" | "PUT", key: string, query: Record<string, string> = {}): Promise<string> {
    const url = this.#url(key, { ...query, "X-Amz-Expires": String(URL_LIFETIME) });
    const { url: signed } = await this.#client.sign(url, { method, aws: { signQuery: true } });
    return signed;
  }

  /** @returns the upload id */
  async createMultipart(key: string): Promise<string> {
    const answer = await this.#call("CreateMultipartUpload", "POST", this.#url(key, { uploads: "" }));
    return readElement(answer, "UploadId");
  }

  /** @returns the object's ETag, without quotes */
  async completeMultipart(
    key: string,
    uploadId: string,
    parts: readonly { number: number; etag: string }[],
  ): Promise<string> {
    const list = parts.map(
      ({ number, etag }) => `<Part><PartNumber>${number}</PartNumber><ETag>"${etag}"</ETag></Part>`,
    );
    const body = `<CompleteMultipartUpload>${list.join("")}</CompleteMultipartUpload>`;
    const answer = await this.#call("CompleteMultipartUpload", "POST", this.#url(key, { uploadId }), body);
    return readElement(answer, "ETag").replaceAll("&quot;", "").replaceAll('"', "");
  }

  /** Harmless when there is no such upload any more. */
  async abortMultipart(key: string, uploadId: string): Promise<void> {
    await this.#call("AbortMultipartUpload", "DELETE", this.#url(key, { uploadId }), undefined, ["NoSuchUpload"]);
  }

  /** Harmless when there is no such object. */
  async deleteObject(key: string): Promise<void> {
    await this.#call("DeleteObject", "DELETE", this.#url(key, {}));
  }

  /** Sends one call; what it throws never holds the URL or a key. */
  async #call(
    action: string,
    method: string,
    url: string,
    body?: string,
    okErrors: readonly string[] = [],
  ): Promise<string> {
    const signal = AbortSignal.timeout(CALL_TIMEOUT);
    const { status, ok, answer } = await this.#fetch(url, {
      method,
      signal,
      ...(body === undefined ? {} : { body }),
    }).catch((cause: unknown) => {
      throw new Error(`${action}: the connection to the bucket failed (${cause})`, { cause });
    });
    // CompleteMultipartUpload can answer 200 with an error in the body.
    const error = /<Error>.*?<Code>(\w+)<\/Code>/s.exec(answer)?.[1];
    if (ok && error === undefined) return answer;
    if (error !== undefined && okErrors.includes(error)) return answer;
    throw new Error(`${action}: the bucket answered HTTP ${status}${error === undefined ? "" : ` ${error}`}`);
  }

  async #fetch(url: string, init: RequestInit): Promise<{ status: number; ok: boolean; answer: string }> {
    const response = await this.#client.fetch(url, init);
    return { status: response.status, ok: response.ok, answer: await response.text() };
  }

  #url(key: string, query: Record<string, string>): string {
    return `${this.#bucketUrl}/${key}?${new URLSearchParams(query)}`;
  }
}

function readElement(xml: string, name: string): string {
  const value = new RegExp(`<${name}>([^<]+)</${name}>`).exec(xml)?.[1];
  if (value === undefined) throw new Error(`The bucket's answer has no ${name}`);
  return value;
}

import { Agent as HttpAgent, request as httpRequest, type IncomingMessage } from "node:http";
import { Agent as HttpsAgent, request as httpsRequest } from "node:https";
import type { Readable } from "node:stream";
import { setTimeout as delay } from "node:timers/promises";

/**
 * Requests to presigned URLs of an S3 API, with retries.
 * No error that leaves this file holds a URL: its query is a credential.
 */

/** What can be set for tests and unusual networks. */
export interface RequestLimits {
  /** A connection on which nothing moves for this long is given up, in ms. */
  stallTimeout: number;
  /** Attempts for one part or range. */
  attempts: number;
  /** Delay before the second attempt, doubled for each further one, with up to as much again at random. In ms. */
  firstDelay: number;
  /** Requests side by side. */
  concurrency: number;
}

export const DEFAULT_REQUEST_LIMITS: RequestLimits = {
  // R2 answers a part within seconds; a minute without a byte either way means that the connection is dead.
  stallTimeout: 60_000,
  attempts: 5,
  firstDelay: 250,
  // One connection to R2 carries about 25 MB/s up and 90 MB/s down; more than eight bring little and cost memory.
  concurrency: 8,
};

/** Where the parts' URLs come from. */
export interface UrlSource {
  /** A presigned URL for a part, or for the whole object. */
  get(part: number): Promise<string>;
  /** Another one than `refused`, which may have expired. Requests that share a part may ask at the same time. */
  renew(part: number, refused: string): Promise<string>;
}

/** A request that was answered with anything but success. */
export class ObjectRequestError extends Error {
  override readonly name = "ObjectRequestError";
  constructor(
    message: string,
    /** Undefined when there was no answer. */
    readonly status: number | undefined,
    options?: ErrorOptions,
  ) {
    super(message, options);
  }

  /** Whether trying the same again may help. */
  get isTransient(): boolean {
    return this.status === undefined || this.status >= 500 || this.status === 408 || this.status === 429;
  }
}

export interface ObjectRequest {
  method: "GET" | "PUT";
  part: number;
  headers: Record<string, string | number>;
  /** Opens the body anew for each attempt. */
  body?: () => Readable;
  /** Consumes the answer; called once for each attempt that is answered with success. */
  receive: (response: IncomingMessage) => Promise<void>;
}

/** Sends requests to one object, keeping connections for the next ones. */
export class ObjectClient implements Disposable {
  readonly #agents = { "http:": new HttpAgent({ keepAlive: true }), "https:": new HttpsAgent({ keepAlive: true }) };

  constructor(
    private readonly urls: UrlSource,
    private readonly limits: RequestLimits,
    private readonly signal: AbortSignal,
  ) {}

  /**
   * Sends one request, again with back-off when the network or the server fails, and once with another URL when the URL is
   * refused.
   * @throws {ObjectRequestError} when it cannot be done; the signal's reason when it aborts
   */
  async send(request: ObjectRequest): Promise<void> {
    let url = await this.urls.get(request.part);
    let renewed = false;
    for (let attempt = 1; ; attempt++) {
      this.signal.throwIfAborted();
      try {
        return await this.#attempt(url, request);
      } catch (error) {
        this.signal.throwIfAborted();
        if (!(error instanceof ObjectRequestError)) throw error;
        if (error.status === 403 && !renewed) {
          renewed = true;
          url = await this.urls.renew(request.part, url);
          continue;
        }
        if (!error.isTransient || attempt >= this.limits.attempts) throw error;
        const pause = this.limits.firstDelay * 2 ** (attempt - 1) * (1 + Math.random());
        // Its own error when it aborts is not the signal's reason.
        await delay(pause, undefined, { signal: this.signal }).catch(() => this.signal.throwIfAborted());
      }
    }
  }

  [Symbol.dispose](): void {
    this.#agents["http:"].destroy();
    this.#agents["https:"].destroy();
  }

  async #attempt(url: string, { method, headers, body, receive }: ObjectRequest): Promise<void> {
    const target = new URL(url);
    const [send, agent] =
      target.protocol === "https:" ? [httpsRequest, this.#agents["https:"]] : [httpRequest, this.#agents["http:"]];
    const request = send(target, { method, headers, agent, signal: this.signal });
    request.setTimeout(this.limits.stallTimeout, () =>
      request.destroy(new Error(`nothing moved for ${this.limits.stallTimeout} ms`)),
    );
    const source = body?.();
    let bodyFailure: Error | undefined;
    const answered = new Promise<IncomingMessage>((resolve, reject) => {
      request.once("response", resolve);
      // An answer before the end of the body closes the connection: what it said counts, not the broken pipe.
      request.on("error", reject);
      source?.once("error", (error) => {
        bodyFailure = error;
        request.destroy(error);
      });
    });
    if (source) source.pipe(request);
    else request.end();
    try {
      const response = await answered;
      if (response.statusCode !== undefined && response.statusCode >= 200 && response.statusCode < 300) {
        return await receive(response);
      }
      throw new ObjectRequestError(await describeRefusal(response), response.statusCode);
    } catch (error) {
      // Trying the network again does not help against what its reader says.
      if (bodyFailure !== undefined) throw bodyFailure;
      if (error instanceof ObjectRequestError || !isNetworkError(error)) throw error;
      throw new ObjectRequestError(`no answer from the bucket (${error.code ?? error.message})`, undefined, {
        cause: error,
      });
    } finally {
      source?.destroy();
    }
  }
}

/** What the local disk says when it fails; trying the network again does not help. */
const DISK_FAILURES = new Set(["ENOSPC", "EDQUOT", "EFBIG", "EIO", "EROFS", "EACCES", "ENOENT"]);

function isNetworkError(error: unknown): error is NodeJS.ErrnoException {
  return error instanceof Error && !DISK_FAILURES.has((error as NodeJS.ErrnoException).code ?? "");
}

/** `HTTP 403 SignatureDoesNotMatch`: S3 says why in an XML body. */
async function describeRefusal(response: IncomingMessage): Promise<string> {
  let body = "";
  try {
    for await (const chunk of response) {
      body += chunk;
      if (body.length > 4096) break;
    }
  } catch {
    // The status says enough when the body breaks off.
  }
  const code = /<Code>(\w+)<\/Code>/.exec(body)?.[1];
  return `the bucket answered HTTP ${response.statusCode}${code === undefined ? "" : ` ${code}`}`;
}

/**
 * Runs `work` on every item, `concurrency` side by side. When one fails no other is begun, and nothing runs any more when
 * this rejects, with the first failure.
 */
export async function forEachConcurrently<Item>(
  items: readonly Item[],
  concurrency: number,
  work: (item: Item) => Promise<void>,
): Promise<void> {
  let next = 0;
  let failure: { error: unknown } | undefined;
  const worker = async () => {
    while (failure === undefined) {
      const item = items[next++];
      if (item === undefined) return;
      try {
        await work(item);
      } catch (error) {
        // Those that fail later do so because of the first.
        failure ??= { error };
      }
    }
  };
  await Promise.all(Array.from({ length: Math.min(concurrency, items.length) }, worker));
  if (failure !== undefined) throw (failure as { error: unknown }).error;
}

import { createHash } from "node:crypto";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import { buffer } from "node:stream/consumers";
import { onTestFinished } from "vitest";
import type { UrlSource } from "../../../container/backup/object-request.js";
import { listenOnLoopback } from "../../../dev/loopback.js";
import type { ChunkDigests } from "../../../src/protocol.js";

export type Answer = (request: IncomingMessage, response: ServerResponse) => void;

/** A bucket that answers as a test says, and hands out URLs that are numbered for each part. */
export class Bucket implements UrlSource {
  /** `PUT /part/1?url=1`: what was asked for, in order. */
  readonly requests: string[] = [];
  readonly received = new Map<string, Buffer>();
  /** Answers to the next requests; then requests are answered well. */
  readonly answers: Answer[] = [];
  content = Buffer.alloc(0);
  /** Parts whose URLs were asked for first, in order. */
  readonly asked: number[] = [];
  readonly #urls = new Map<number, number>();
  #origin = "";

  static async start(): Promise<Bucket> {
    const bucket = new Bucket();
    const server = createServer((request, response) => {
      request.on("error", () => {});
      bucket.requests.push(`${request.method} ${request.url}`);
      const answer = bucket.answers.shift() ?? (request.method === "PUT" ? bucket.take : bucket.give);
      answer(request, response);
    });
    bucket.#origin = `http://127.0.0.1:${await listenOnLoopback(server)}`;
    onTestFinished(() => {
      server.closeAllConnections();
      server.close();
    });
    return bucket;
  }

  async get(part: number): Promise<string> {
    if (!this.asked.includes(part)) this.asked.push(part);
    return this.#url(part, this.#urls.get(part) ?? 1);
  }

  async renew(part: number): Promise<string> {
    return this.#url(part, (this.#urls.get(part) ?? 1) + 1);
  }

  #url(part: number, count: number): string {
    this.#urls.set(part, count);
    return `${this.#origin}/part/${part}?url=${count}`;
  }

  take: Answer = async (request, response) => {
    const body = await buffer(request).catch(() => undefined);
    if (body === undefined) return;
    const part = /\/part\/(\d+)/.exec(request.url ?? "")?.[1] ?? "";
    this.received.set(part, body);
    response.writeHead(200, { etag: `"etag-${part}"` }).end();
  };

  give: Answer = (request, response) => {
    const [, start, end] = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? "") ?? [];
    if (request.headers["if-match"] !== '"version"') return void response.writeHead(412).end();
    const chunk = this.content.subarray(Number(start), Number(end) + 1);
    response.writeHead(206, { "content-range": `bytes ${start}-${end}/${this.content.length}` }).end(chunk);
  };
}

export const refuse =
  (status: number, code = "Nope"): Answer =>
  (request, response) => {
    request.resume();
    response.writeHead(status).end(`<Error><Code>${code}</Code></Error>`);
  };
export const reset: Answer = (request) => void request.socket.destroy();
export const hang: Answer = (request) => void request.resume();

/** The SHA-256 of each chunk, as metadata has them. */
export function digestsOf(content: Buffer, chunkSize: number): ChunkDigests {
  const count = Math.ceil(content.length / chunkSize);
  const chunks = Array.from({ length: count }, (_, index) =>
    content.subarray(index * chunkSize).subarray(0, chunkSize),
  );
  const digests = chunks.map((chunk) => createHash("sha256").update(chunk).digest());
  return { chunkSize, sha256: Buffer.concat(digests).toString("base64") };
}

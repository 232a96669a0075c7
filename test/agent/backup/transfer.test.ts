import { execFileSync } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import { once } from "node:events";
import { readFile, writeFile } from "node:fs/promises";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { buffer } from "node:stream/consumers";
import { describe, expect, onTestFinished, test } from "vitest";
import { downloadFile } from "../../../container/backup/download.js";
import type { RequestLimits, UrlSource } from "../../../container/backup/object-request.js";
import { planParts, uploadFile } from "../../../container/backup/upload.js";
import { MiB, WHOLE_OBJECT } from "../../../src/protocol.js";
import { deferred, temporaryDirectory } from "../support.js";
import { NEVER } from "./archives.js";

const LIMITS: RequestLimits = { stallTimeout: 300, attempts: 3, firstDelay: 5, concurrency: 4 };

type Answer = (request: IncomingMessage, response: ServerResponse) => void;

/** A bucket that answers as a test says, and hands out URLs that are numbered for each part. */
class Bucket implements UrlSource {
  /** `PUT /part/1?url=1`: what was asked for, in order. */
  readonly requests: string[] = [];
  readonly received = new Map<string, Buffer>();
  /** Answers to the next requests; then requests are answered well. */
  readonly answers: Answer[] = [];
  content = Buffer.alloc(0);
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
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    bucket.#origin = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    onTestFinished(() => {
      server.closeAllConnections();
      server.close();
    });
    return bucket;
  }

  async get(part: number): Promise<string> {
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

const refuse =
  (status: number, code = "Nope"): Answer =>
  (request, response) => {
    request.resume();
    response.writeHead(status).end(`<Error><Code>${code}</Code></Error>`);
  };
const reset: Answer = (request) => void request.socket.destroy();
const hang: Answer = (request) => void request.resume();

async function fileOf(content: Buffer): Promise<string> {
  const directory = await temporaryDirectory();
  onTestFinished(() => directory[Symbol.asyncDispose]());
  await writeFile(join(directory.path, "file"), content);
  return join(directory.path, "file");
}

describe("planParts", () => {
  test("sends up to 16 MiB, and whatever is not to be split, by one request", () => {
    const whole = (size: number) => [{ number: WHOLE_OBJECT, offset: 0, size }];
    expect(planParts(0, true)).toEqual(whole(0));
    expect(planParts(16 * MiB, true)).toEqual(whole(16 * MiB));
    expect(planParts(4 * 1024 * MiB, false)).toEqual(whole(4 * 1024 * MiB));
    expect(planParts(16 * MiB + 1, true)).toHaveLength(2);
  });

  test.each([
    16 * MiB + 1,
    32 * MiB,
    100 * MiB + 17,
    156 * 1024 * MiB,
    157 * 1024 * MiB + 3,
    5 * 1024 * 1024 * MiB,
    10_000 * 16 * MiB,
    10_000 * 16 * MiB + 1,
  ])("cuts %i bytes into what R2 takes: at most 10,000 parts of one size, of at least 5 MiB", (size) => {
    const parts = planParts(size, true);
    const [first] = parts;
    expect(parts.length).toBeLessThanOrEqual(10_000);
    expect(parts.map((part) => part.number)).toEqual(parts.map((_, index) => index + 1));
    let offset = 0;
    for (const part of parts) {
      expect(part.offset).toBe(offset);
      offset += part.size;
    }
    expect(offset).toBe(size);
    expect(new Set(parts.slice(0, -1).map((part) => part.size)).size).toBeLessThanOrEqual(1);
    expect(first?.size).toBeGreaterThanOrEqual(5 * MiB);
    expect(parts.at(-1)?.size).toBeLessThanOrEqual(first?.size ?? 0);
    expect(parts.at(-1)?.size).toBeGreaterThan(0);
  });

  test("refuses what does not go by one PUT", () => {
    expect(() => planParts(5 * 1024 * MiB, false)).toThrow("can only be sent in parts");
  });
});

describe("an upload", () => {
  const content = randomBytes(250_000);
  const parts = [
    { number: 1, offset: 0, size: 100_000 },
    { number: 2, offset: 100_000, size: 100_000 },
    { number: 3, offset: 200_000, size: 50_000 },
  ];
  const done = {
    kind: "parts",
    parts: [1, 2, 3].map((number) => ({ number, etag: `etag-${number}` })),
  };

  /** Sends the content by these answers first. */
  async function upload(bucket: Bucket, limits: Partial<RequestLimits> = {}, signal = NEVER) {
    const progress: number[] = [];
    const onProgress = (bytes: number) => void progress.push(bytes);
    const file = await fileOf(content);
    const result = await uploadFile({
      file,
      parts,
      urls: bucket,
      limits: { ...LIMITS, ...limits },
      signal,
      onProgress,
    });
    return { result, progress };
  }

  test("brings each part's bytes, and reports what the bucket has confirmed", async () => {
    const bucket = await Bucket.start();
    const { result, progress } = await upload(bucket);

    expect(result).toEqual(done);
    expect(Buffer.concat(["1", "2", "3"].map((part) => bucket.received.get(part) ?? Buffer.alloc(0)))).toEqual(content);
    expect(progress).toEqual([...progress].sort((a, b) => a - b));
    expect(progress.at(-1)).toBe(content.length);
  });

  test("of a whole object has its ETag", async () => {
    const bucket = await Bucket.start();
    const options = { urls: bucket, limits: LIMITS, signal: NEVER, onProgress: () => {} };

    const result = await uploadFile({
      ...options,
      file: await fileOf(content),
      parts: planParts(content.length, true),
    });

    expect(result).toEqual({ kind: "put", etag: "etag-0" });
    expect(bucket.received.get("0")).toEqual(content);
  });

  test.each<[string, Answer]>([
    ["HTTP 500", refuse(500)],
    ["HTTP 503", refuse(503, "SlowDown")],
    ["HTTP 429", refuse(429)],
    ["HTTP 408", refuse(408)],
    ["a closed connection", reset],
    ["no answer", hang],
  ])("tries again after %s, by the same URL", async (_, answer) => {
    const bucket = await Bucket.start();
    bucket.answers.push(answer, answer);

    expect((await upload(bucket, { concurrency: 1 })).result).toEqual(done);
    expect(bucket.requests).toEqual([1, 1, 1, 2, 3].map((part) => `PUT /part/${part}?url=1`));
    expect(bucket.received.get("1")).toEqual(content.subarray(0, 100_000));
  });

  test("waits longer before each further attempt", async () => {
    const bucket = await Bucket.start();
    const times: number[] = [];
    const note: Answer = (request, response) => {
      times.push(performance.now());
      refuse(500)(request, response);
    };
    bucket.answers.push(note, note, note, note);

    await expect(upload(bucket, { concurrency: 1, attempts: 4, firstDelay: 40 })).rejects.toThrow("HTTP 500 Nope");
    const pauses = times.slice(1).map((time, index) => time - (times[index] ?? 0));
    expect(pauses).toHaveLength(3);
    for (const [index, pause] of pauses.entries()) expect(pause).toBeGreaterThanOrEqual(40 * 2 ** index - 2);
  });

  test("gives up after so many attempts, and says what the bucket said", async () => {
    const bucket = await Bucket.start();
    bucket.answers.push(...Array<Answer>(20).fill(refuse(500, "InternalError")));

    await expect(upload(bucket, { concurrency: 1 })).rejects.toMatchObject({
      message: "the bucket answered HTTP 500 InternalError",
      status: 500,
    });
    expect(bucket.requests).toHaveLength(LIMITS.attempts);
  });

  test("asks for another URL once when one is refused with 403, as an expired one is", async () => {
    const bucket = await Bucket.start();
    bucket.answers.push(refuse(403, "ExpiredRequest"));
    expect((await upload(bucket, { concurrency: 1 })).result).toEqual(done);
    expect(bucket.requests.slice(0, 3)).toEqual(["PUT /part/1?url=1", "PUT /part/1?url=2", "PUT /part/2?url=1"]);

    const strict = await Bucket.start();
    strict.answers.push(refuse(403), refuse(403, "AccessDenied"));
    await expect(upload(strict, { concurrency: 1 })).rejects.toThrow("HTTP 403 AccessDenied");
    expect(strict.requests).toHaveLength(2);
  });

  test.each([400, 404, 405, 411, 412])("does not try again after HTTP %i", async (status) => {
    const bucket = await Bucket.start();
    bucket.answers.push(refuse(status));

    await expect(upload(bucket, { concurrency: 1 })).rejects.toMatchObject({ status });
    expect(bucket.requests).toHaveLength(1);
  });

  test("stops its other parts when one has failed for good, and starts no further ones", async () => {
    const bucket = await Bucket.start();
    const closed = deferred();
    const others = deferred();
    bucket.answers.push(
      (request, response) => void others.promise.then(() => refuse(400)(request, response)),
      (request) => {
        request.socket.once("close", () => closed.resolve());
        others.resolve();
      },
    );

    await expect(upload(bucket, { concurrency: 2, stallTimeout: 60_000 })).rejects.toMatchObject({ status: 400 });
    await closed.promise;
    expect(bucket.requests).toHaveLength(2);
  });

  test("ends with the reason of its signal, also while it waits to try again", async () => {
    for (const answer of [hang, refuse(500)]) {
      const bucket = await Bucket.start();
      const controller = new AbortController();
      bucket.answers.push((request, response) => {
        answer(request, response);
        setImmediate(() => controller.abort(new Error("enough")));
      });
      await expect(
        upload(bucket, { concurrency: 1, firstDelay: 60_000, stallTimeout: 60_000 }, controller.signal),
      ).rejects.toThrow("enough");
      expect(bucket.requests).toHaveLength(1);
    }
  });

  test("fails when the bucket confirms a part without an ETag", async () => {
    const bucket = await Bucket.start();
    bucket.answers.push(
      ...Array<Answer>(LIMITS.attempts).fill((request, response) => void buffer(request).then(() => response.end())),
    );

    await expect(upload(bucket, { concurrency: 1 })).rejects.toThrow(/^the bucket confirmed a part without an ETag$/);
  });

  test("never names a URL in its errors", async () => {
    for (const answer of [refuse(400), refuse(500), reset, hang]) {
      const bucket = await Bucket.start();
      bucket.answers.push(...Array<Answer>(10).fill(answer));
      const error: unknown = await upload(bucket, { concurrency: 1, stallTimeout: 100 }).catch((reason) => reason);
      const all = `${error} ${JSON.stringify(error)} ${(error as Error).stack} ${(error as Error).cause}`;
      expect(all).not.toContain("/part/");
      expect(all).not.toContain("url=");
    }
  });
});

describe("a download", () => {
  const content = randomBytes(20 * MiB + 123);
  const digestOf = (bytes: Buffer) => createHash("sha256").update(bytes).digest("hex");

  async function download(bucket: Bucket, limits: Partial<RequestLimits> = {}, target?: string) {
    const file = target ?? (await fileOf(Buffer.from("what was there")));
    const progress: number[] = [];
    bucket.content = content;
    const onProgress = (bytes: number) => void progress.push(bytes);
    const options = { file, size: content.length, etag: "version", urls: bucket, signal: NEVER, onProgress };
    await downloadFile({ ...options, limits: { ...LIMITS, stallTimeout: 2000, ...limits } });
    return { file, progress };
  }

  test("fetches ranges that make up the object, and reports them", async () => {
    const bucket = await Bucket.start();
    const { file, progress } = await download(bucket);

    expect(digestOf(await readFile(file))).toBe(digestOf(content));
    expect(bucket.requests).toHaveLength(3);
    expect(progress).toEqual([...progress].sort((a, b) => a - b));
    expect(progress.at(-1)).toBe(content.length);
  });

  const brokenOff =
    (bytes: number): Answer =>
    (request, response) => {
      const [, start, end] = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? "") ?? [];
      const length = Number(end) - Number(start) + 1;
      response.writeHead(206, { "content-range": `bytes ${start}-${end}/${content.length}`, "content-length": length });
      response.write(Buffer.alloc(bytes, 1), () => request.socket.destroy());
    };
  const stalled: Answer = (request, response) => {
    const [, start, end] = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? "") ?? [];
    response.writeHead(206, { "content-range": `bytes ${start}-${end}/${content.length}`, "content-length": 1000 });
    response.write("a few bytes");
  };
  /** Ends in good order, with fewer bytes than the range has. */
  const short: Answer = (request, response) => {
    response
      .writeHead(206, { "content-range": `${request.headers.range?.replace("=", " ")}/${content.length}` })
      .end("short");
  };

  test.each<[string, Answer]>([
    ["a body that breaks off", brokenOff(100_000)],
    ["a body without a byte", brokenOff(0)],
    ["a body that stalls", stalled],
    ["a body that is too short", short],
    ["HTTP 500", refuse(500)],
    ["a closed connection", reset],
  ])("tries a range again after %s", async (_, answer) => {
    const bucket = await Bucket.start();
    bucket.answers.push(answer, answer);
    const { file, progress } = await download(bucket, { stallTimeout: 500 });

    expect(digestOf(await readFile(file))).toBe(digestOf(content));
    expect(progress.at(-1)).toBe(content.length);
    expect(bucket.requests).toHaveLength(5);
  });

  test("asks for another URL when one has expired", async () => {
    const bucket = await Bucket.start();
    bucket.answers.push(refuse(403, "ExpiredRequest"));
    const { file } = await download(bucket, { concurrency: 1 });

    expect(digestOf(await readFile(file))).toBe(digestOf(content));
    expect(bucket.requests[1]).toBe("GET /part/0?url=2");
  });

  test.each<[string, Answer, RegExp]>([
    ["another version of the object", refuse(412, "PreconditionFailed"), /HTTP 412 PreconditionFailed/],
    ["no object", refuse(404, "NoSuchKey"), /HTTP 404 NoSuchKey/],
    ["the whole object", (_, response) => void response.writeHead(200).end(content), /the whole object/],
    [
      "another range",
      (_, response) => void response.writeHead(206, { "content-range": "bytes 5-9/99" }).end("12345"),
      /range with bytes 5-9\/99/,
    ],
  ])("fails at once when the bucket answers with %s", async (_, answer, message) => {
    const bucket = await Bucket.start();
    bucket.answers.push(answer);

    await expect(download(bucket, { concurrency: 1 })).rejects.toThrow(message);
    expect(bucket.requests).toHaveLength(1);
  });

  test.each(["size=4m", `size=${Math.floor((content.length - 1) / 4096) * 4096}`])(
    "fails on a disk that is full (%s), without trying again",
    async (size) => {
      const bucket = await Bucket.start();
      const disk = await temporaryDirectory();
      execFileSync("mount", ["-t", "tmpfs", "-o", size, "tmpfs", disk.path]);
      onTestFinished(async () => {
        execFileSync("umount", ["-l", disk.path]);
        await disk[Symbol.asyncDispose]();
      });

      await expect(download(bucket, { concurrency: 1 }, join(disk.path, "file"))).rejects.toMatchObject({
        code: "ENOSPC",
      });
      expect(bucket.requests.length).toBeLessThanOrEqual(3);
    },
  );
});

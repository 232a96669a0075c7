import { execFileSync } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import { open, readFile, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { buffer } from "node:stream/consumers";
import { setTimeout } from "node:timers/promises";
import { describe, expect, onTestFinished, test, vi } from "vitest";
import { planMksquashfs } from "../../../container/backup/archive.js";
import { ExpectedDigests } from "../../../container/backup/digests.js";
import { downloadFile } from "../../../container/backup/download.js";
import type { RequestLimits } from "../../../container/backup/object-request.js";
import { planParts, uploadArchive, uploadSizes } from "../../../container/backup/upload.js";
import { runTool } from "../../../container/run.js";
import { MiB, WHOLE_OBJECT } from "../../../src/protocol.js";
import { deferred, temporaryDirectory } from "../support.js";
import { NEVER } from "./archives.js";
import { type Answer, Bucket, digestsOf, hang, refuse, reset } from "./bucket.js";

const LIMITS: RequestLimits = { stallTimeout: 300, attempts: 3, firstDelay: 5, concurrency: 4 };

async function fileOf(content: Buffer): Promise<string> {
  const directory = await temporaryDirectory();
  onTestFinished(() => directory[Symbol.asyncDispose]());
  await writeFile(join(directory.path, "file"), content);
  return join(directory.path, "file");
}

describe("planParts", () => {
  const { part: PART } = uploadSizes(0, 0);

  test("sends up to 16 MiB, and whatever is not to be split, by one request", () => {
    const whole = (size: number) => [{ number: WHOLE_OBJECT, offset: 0, size }];
    expect(planParts(0, PART, true)).toEqual(whole(0));
    expect(planParts(16 * MiB, PART, true)).toEqual(whole(16 * MiB));
    expect(planParts(4 * 1024 * MiB, PART, false)).toEqual(whole(4 * 1024 * MiB));
    expect(planParts(16 * MiB + 1, PART, true)).toHaveLength(4);
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
  ])("cuts %i bytes, which just fit on the disk, into what R2 takes: at most 10,000 parts of one size", (size) => {
    const sizes = uploadSizes(size, size);
    const parts = planParts(size, sizes.part, true);
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
    expect(sizes.part % sizes.chunk).toBe(0);
    expect(size / sizes.chunk).toBeLessThanOrEqual(65_536);
  });

  test.each([
    { most: 120, likely: 80, chunk: 2 },
    { most: 300, likely: 160, chunk: 4 },
    { most: 800, likely: 400, chunk: 8 },
    { most: 10, likely: 1, chunk: 1 },
  ])("cuts parts between chunks, with room for $most GiB on a disk that holds $likely", ({ most, likely, chunk }) => {
    const sizes = uploadSizes(most * 1024 * MiB, likely * 1024 * MiB);
    expect(sizes.chunk).toBe(chunk * MiB);
    expect(sizes.part % sizes.chunk).toBe(0);
    expect(sizes.part).toBeGreaterThanOrEqual(5 * MiB);
    expect((most * 1024 * MiB) / sizes.part).toBeLessThanOrEqual(10_000);
  });

  test("refuses what does not go by one PUT", () => {
    expect(() => planParts(5 * 1024 * MiB, PART, false)).toThrow("can only be sent in parts");
  });
});

describe("an upload", () => {
  const PART = 8 * MiB;
  const CHUNK = MiB;
  const content = randomBytes(2 * PART + PART / 2 + 1);
  const done = {
    upload: { kind: "parts", parts: [1, 2, 3].map((number) => ({ number, etag: `etag-${number}` })) },
    digests: digestsOf(content, CHUNK),
  };

  /** Sends an archive that is whole already, or grows until `finished` resolves with its size. */
  async function upload(
    bucket: Bucket,
    limits: Partial<RequestLimits> = {},
    signal = NEVER,
    {
      file = "",
      finished = Promise.resolve(content.length),
      multipart = true,
      beginAtOnce = Promise.resolve(false),
      moreWhenWhole = 0,
    } = {},
  ) {
    const progress: number[] = [];
    const onProgress = (bytes: number) => void progress.push(bytes);
    const sent = await uploadArchive({
      file: file || (await fileOf(content)),
      finished,
      multipart,
      beginAtOnce,
      sizes: { part: PART, chunk: CHUNK },
      urls: bucket,
      limits: { ...LIMITS, ...limits },
      moreWhenWhole,
      signal,
      onProgress,
    });
    return { sent, progress };
  }

  /** What the bucket makes of the parts. */
  const assembled = (bucket: Bucket, ...parts: string[]) =>
    Buffer.concat(parts.map((part) => bucket.received.get(part) ?? Buffer.alloc(0)));

  test("brings each part's bytes, and reports what the bucket has confirmed", async () => {
    const bucket = await Bucket.start();
    const { sent, progress } = await upload(bucket);

    expect(sent).toEqual(done);
    expect(assembled(bucket, "1", "2", "3").equals(content)).toBe(true);
    expect(progress).toEqual([...progress].sort((a, b) => a - b));
    expect(progress.at(-1)).toBe(content.length);
  });

  test("of a whole object has its ETag", async () => {
    const bucket = await Bucket.start();
    const { sent } = await upload(bucket, {}, NEVER, { multipart: false });

    expect(sent).toEqual({ upload: { kind: "put", etag: "etag-0" }, digests: done.digests });
    expect(bucket.received.get("0")?.equals(content)).toBe(true);
  });

  describe("of an archive that is still being made", () => {
    /** A file that a test writes to as mksquashfs does, and its upload. */
    async function grow(bucket: Bucket, limits: Partial<RequestLimits> = {}, moreWhenWhole = 0) {
      const path = await fileOf(Buffer.alloc(0));
      const file = await open(path, "r+");
      onTestFinished(() => file.close());
      const finished = deferred<number>();
      const result = upload(bucket, limits, NEVER, { file: path, finished: finished.promise, moreWhenWhole });
      result.catch(() => {});
      return { file, finished, result };
    }
    const requested = (bucket: Bucket, part: number, times = 1) =>
      vi.waitFor(() => {
        const requests = bucket.requests.filter((request) => request.startsWith(`PUT /part/${part}?`));
        expect(requests).toHaveLength(times);
        expect(bucket.received.has(String(part))).toBe(true);
      });

    test("sends parts as they fill, and the first when the last is there", async () => {
      const bucket = await Bucket.start();
      const { file, finished, result } = await grow(bucket);
      await file.write(Buffer.alloc(96), 0, 96, 0);
      await file.write(content, 96, 2 * PART - 96 - 1, 96);
      await setTimeout(100);
      expect(bucket.requests).toEqual([]);
      await file.write(content, 2 * PART - 1, 1, 2 * PART - 1);
      await requested(bucket, 2);

      await file.write(content, 2 * PART, content.length - 2 * PART, 2 * PART);
      await setTimeout(100);
      expect(bucket.requests).toEqual(["PUT /part/2?url=1"]);
      await file.write(content, 0, 96, 0);
      finished.resolve(content.length);

      expect((await result).sent).toEqual(done);
      expect(assembled(bucket, "1", "2", "3").equals(content)).toBe(true);
      expect(bucket.requests).toHaveLength(3);
    });

    test("asks for URLs before a part is filled, and then sends in parts what stays smaller than one", async () => {
      const bucket = await Bucket.start();
      const { file, finished, result } = await grow(bucket);
      const size = PART - 1;
      await file.write(content, 0, 4 * MiB - 1, 0);
      await setTimeout(100);
      expect(bucket.asked).toEqual([]);
      await file.write(content, 4 * MiB - 1, size - (4 * MiB - 1), 4 * MiB - 1);
      await vi.waitFor(() => expect(bucket.asked).toEqual([1]));
      expect(bucket.requests).toEqual([]);
      finished.resolve(size);

      expect((await result).sent).toEqual({
        upload: { kind: "parts", parts: [{ number: 1, etag: "etag-1" }] },
        digests: digestsOf(content.subarray(0, size), CHUNK),
      });
      expect(assembled(bucket, "1").equals(content.subarray(0, size))).toBe(true);
    });

    test("asks for URLs at once when it is known to be large", async () => {
      const bucket = await Bucket.start();
      const finished = deferred<number>();
      const file = await fileOf(content.subarray(0, MiB));
      const result = upload(bucket, {}, NEVER, {
        file,
        finished: finished.promise,
        beginAtOnce: Promise.resolve(true),
      });
      await vi.waitFor(() => expect(bucket.asked).toEqual([1]));
      expect(bucket.requests).toEqual([]);
      finished.resolve(MiB);

      expect((await result).sent.upload).toEqual({ kind: "parts", parts: [{ number: 1, etag: "etag-1" }] });
      expect(assembled(bucket, "1").equals(content.subarray(0, MiB))).toBe(true);
    });

    test("sends more parts side by side once it is whole", async () => {
      const bucket = await Bucket.start();
      const whole = deferred();
      const later: Answer = async (request, response) => {
        await whole.promise;
        bucket.take(request, response);
      };
      bucket.answers.push(later, later, later);
      const { file, finished, result } = await grow(bucket, { concurrency: 1 }, 2);
      await file.write(content, 0, content.length, 0);
      await vi.waitFor(() => expect(bucket.requests).toHaveLength(1));
      await setTimeout(100);
      expect(bucket.requests).toHaveLength(1);
      finished.resolve(content.length);
      await vi.waitFor(() => expect(bucket.requests).toHaveLength(3));
      whole.resolve();

      expect((await result).sent).toEqual(done);
    });

    test("sends a part again that has become another after a cut back", async () => {
      const bucket = await Bucket.start();
      const { file, finished, result } = await grow(bucket);
      const other = randomBytes(3 * PART);
      await file.write(other, 0, other.length, 0);
      await requested(bucket, 2);
      await requested(bucket, 3);
      await file.truncate(PART + 1000);
      await file.write(content, 0, content.length, 0);
      finished.resolve(content.length);

      expect((await result).sent).toEqual(done);
      expect(assembled(bucket, "1", "2", "3").equals(content)).toBe(true);
      await requested(bucket, 2, 2);
    });

    test("leaves out parts behind the end to which it was cut back", async () => {
      const bucket = await Bucket.start();
      const { file, finished, result } = await grow(bucket);
      await file.write(content, 0, content.length, 0);
      await requested(bucket, 2);
      await file.truncate(PART - 1);
      finished.resolve(PART - 1);

      expect((await result).sent).toEqual({
        upload: { kind: "parts", parts: [{ number: 1, etag: "etag-1" }] },
        digests: digestsOf(content.subarray(0, PART - 1), CHUNK),
      });
      expect(assembled(bucket, "1").equals(content.subarray(0, PART - 1))).toBe(true);
    });

    test("goes on when it is cut back below what is just being sent", async () => {
      const bucket = await Bucket.start();
      const { file, finished, result } = await grow(bucket);
      const begun = deferred();
      const goOn = deferred();
      bucket.answers.push(async (request, response) => {
        request.once("data", () => {
          request.pause();
          begun.resolve();
          void goOn.promise.then(() => request.resume());
        });
        request.once("end", () => response.writeHead(200, { etag: '"etag-2"' }).end());
      });
      await file.write(content, 0, 2 * PART, 0);
      await begun.promise;
      await file.truncate(PART + 10);
      goOn.resolve();
      await setTimeout(200);
      await file.write(content, PART + 10, content.length - PART - 10, PART + 10);
      finished.resolve(content.length);

      expect((await result).sent).toEqual(done);
      expect(assembled(bucket, "1", "2", "3").equals(content)).toBe(true);
    });

    // Now and then nothing of what is cut off was sent before.
    test("brings what mksquashfs made, which cuts back to the start of large duplicates", { retry: 3 }, async () => {
      const bucket = await Bucket.start();
      const source = await temporaryDirectory();
      onTestFinished(() => source[Symbol.asyncDispose]());
      const [first, last] = [randomBytes(24 * MiB), randomBytes(24 * MiB)];
      for (const [name, bytes] of [
        ["a", first],
        ["b", first],
        ["c", last],
      ] as const) {
        await writeFile(join(source.path, name), bytes);
      }
      const file = await fileOf(Buffer.alloc(0));
      const compression = { format: "zstd", level: 1 } as const;
      const args = planMksquashfs({ dir: source.path, file, excludeFile: undefined, compression }, 16 * MiB);
      // Slow enough for what it cuts off to be sent before.
      const made = runTool("mksquashfs", [...args, "-throttle", "80"]);
      const finished = made.then(async () => (await stat(file)).size);
      const { sent } = await upload(bucket, { stallTimeout: 20_000 }, NEVER, { file, finished });

      const archive = await readFile(file);
      if (sent.upload.kind !== "parts") throw new Error("it was sent whole");
      expect(assembled(bucket, ...sent.upload.parts.map(({ number }) => String(number))).equals(archive)).toBe(true);
      expect(sent.digests).toEqual(digestsOf(archive, CHUNK));
      // Otherwise there was no cut back, and this proves nothing.
      expect(bucket.requests.length).toBeGreaterThan(new Set(bucket.requests).size);
    });

    test("stops when the archive cannot be made", async () => {
      const bucket = await Bucket.start();
      bucket.answers.push(hang);
      const { file, finished, result } = await grow(bucket);
      await file.write(content, 0, content.length, 0);
      await vi.waitFor(() => expect(bucket.requests).not.toEqual([]));
      finished.reject(new Error("a file cannot be read"));

      await expect(result).rejects.toThrow("a file cannot be read");
    });
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

    expect((await upload(bucket, { concurrency: 1 })).sent).toEqual(done);
    expect(bucket.requests).toEqual([1, 1, 1, 2, 3].map((part) => `PUT /part/${part}?url=1`));
    expect(bucket.received.get("1")?.equals(content.subarray(0, PART))).toBe(true);
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
    expect((await upload(bucket, { concurrency: 1 })).sent).toEqual(done);
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
        request.resume();
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
    const digests = new ExpectedDigests(digestsOf(content, MiB), content.length);
    const archive = { size: content.length, etag: "version", digests };
    const options = { file, archive, urls: bucket, signal: NEVER, onProgress };
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

  test("fails at once when a byte is not what was stored", async () => {
    const bucket = await Bucket.start();
    bucket.answers.push((request, response) => {
      const [, start, end] = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? "") ?? [];
      const range = Buffer.from(content.subarray(Number(start), Number(end) + 1));
      range.writeUInt8(range.readUInt8(5 * MiB) ^ 1, 5 * MiB);
      response.writeHead(206, { "content-range": `bytes ${start}-${end}/${content.length}` }).end(range);
    });

    await expect(download(bucket, { concurrency: 1 })).rejects.toThrow("SHA-256");
    expect(bucket.requests).toHaveLength(1);
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

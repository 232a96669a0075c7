import { randomBytes } from "node:crypto";
import { join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import { ExpectedDigests } from "../../container/backup/digests.js";
import { RemoteFile } from "../../container/remote/remote-file.js";
import { MiB } from "../../src/protocol.js";
import { Bucket, digestsOf, hang, refuse } from "./backup/bucket.js";
import { temporaryDirectory } from "./support.js";

const LIMITS = { stallTimeout: 200, attempts: 2, firstDelay: 5, concurrency: 4 };

/** An archive of eight chunks and a bit, whose tables begin in the chunk before the last. */
const content = randomBytes(8 * MiB + 1000);
content.writeBigUInt64LE(BigInt(7 * MiB + 5), 64);

async function openFile(bucket: Bucket, readTimeout = 5_000) {
  const directory = await temporaryDirectory();
  onTestFinished(() => directory[Symbol.asyncDispose]());
  bucket.content = content;
  const failures: string[] = [];
  const digests = new ExpectedDigests(digestsOf(content, MiB), content.length);
  const file = await RemoteFile.open({
    path: join(directory.path, "data"),
    archive: { size: content.length, etag: "version", digests },
    urls: bucket,
    limits: LIMITS,
    readTimeout,
    onFailure: (error) => failures.push(error.message),
  });
  onTestFinished(() => file[Symbol.dispose]());
  return { file, failures };
}

const isContent = (bytes: Buffer, offset: number) => bytes.equals(content.subarray(offset, offset + bytes.length));

test("a read fetches the chunks that it needs, once, and no others", async () => {
  const bucket = await Bucket.start();
  const { file } = await openFile(bucket);
  const reads = await Promise.all([file.read(2 * MiB - 10, 20), file.read(2 * MiB, 5), file.read(MiB, MiB)]);

  expect(isContent(reads[0], 2 * MiB - 10) && isContent(reads[1], 2 * MiB) && isContent(reads[2], MiB)).toBe(true);
  expect(bucket.requests).toHaveLength(2);
  expect(file.read(MiB + 7, 100)).toBeInstanceOf(Buffer);
  expect(await file.read(content.length - 10, 10)).toEqual(content.subarray(-10));
});

test("the rest is fetched in the background, the tables first", async () => {
  const bucket = await Bucket.start();
  const ranges: number[] = [];
  bucket.answers.push(
    ...Array.from({ length: 9 }, () => (...[request, response]: Parameters<Bucket["give"]>) => {
      ranges.push(Number(/bytes=(\d+)/.exec(request.headers.range ?? "")?.[1]) / MiB);
      bucket.give(request, response);
    }),
  );
  const { file } = await openFile(bucket);
  await file.fill();

  expect(ranges.slice(0, 3).toSorted()).toEqual([0, 7, 8]);
  expect(ranges.toSorted()).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8]);
  const all = file.read(0, content.length);
  expect(all instanceof Buffer && isContent(all, 0)).toBe(true);
});

test("bytes that are not what was stored are refused for good, and it is told why", async () => {
  const bucket = await Bucket.start();
  const { file, failures } = await openFile(bucket);
  bucket.content = Buffer.from(content);
  bucket.content.writeUInt8(content.readUInt8(3 * MiB) ^ 1, 3 * MiB);

  await expect(file.read(3 * MiB + 100, 1)).rejects.toThrow("SHA-256");
  await expect(file.fill()).rejects.toThrow("SHA-256");
  expect(failures).toEqual([expect.stringContaining("SHA-256")]);
});

test("a read does not wait longer than it may, and for a while others do not wait at all", async () => {
  const bucket = await Bucket.start();
  bucket.answers.push(hang, hang, hang, hang);
  const { file } = await openFile(bucket, 100);
  await expect(file.read(0, 1)).rejects.toThrow("nothing came for 0.1 s");

  const requests = bucket.requests.length;
  await expect(file.read(4 * MiB, 1)).rejects.toThrow("nothing came for 0.1 s");
  expect(bucket.requests).toHaveLength(requests);
});

test("an answer that does not change is asked for once", async () => {
  const bucket = await Bucket.start();
  bucket.answers.push(refuse(404, "NoSuchKey"));
  const { file, failures } = await openFile(bucket);

  await expect(file.read(0, 1)).rejects.toThrow("HTTP 404 NoSuchKey");
  await expect(file.fill()).rejects.toThrow("HTTP 404 NoSuchKey");
  expect(bucket.requests).toHaveLength(1);
  expect(failures).toEqual(["the bucket answered HTTP 404 NoSuchKey"]);
});

import { afterEach, beforeEach, expect, test } from "vitest";
import { startStore } from "../../bench/store/server.js";

const MiB = 1024 * 1024;

let origin: string;
let stop: () => void;
beforeEach(async () => {
  const store = await startStore();
  origin = store.origin;
  stop = () => {
    store.server.close();
    store.server.closeAllConnections();
  };
});
afterEach(() => stop());

const ask = (
  method: string,
  path: string,
  body?: Uint8Array<ArrayBuffer> | string,
  headers: Record<string, string> = {},
) => fetch(`${origin}${path}`, { method, headers, ...(body !== undefined && { body }) });

const useProfile = (up: number, down: number, latency: number) => {
  const both = (rate: number) => ({ connection: rate, total: rate });
  return ask("PUT", "/-/profile", JSON.stringify({ up: both(up), down: both(down), latency }));
};

test("an object comes back whole, by range, and under its ETag alone", async () => {
  const put = await ask("PUT", "/bucket/a/key", "0123456789");
  const etag = put.headers.get("etag") ?? "";
  expect(etag).toMatch(/^"[0-9a-f]{32}"$/);

  const whole = await ask("GET", "/bucket/a/key", undefined, { "if-match": etag });
  expect([whole.status, whole.headers.get("etag"), await whole.text()]).toEqual([200, etag, "0123456789"]);
  const range = await ask("GET", "/bucket/a/key", undefined, { range: "bytes=2-4" });
  expect([range.status, range.headers.get("content-range"), await range.text()]).toEqual([206, "bytes 2-4/10", "234"]);
  const end = await ask("GET", "/bucket/a/key", undefined, { range: "bytes=-3" });
  expect(await end.text()).toBe("789");
  const head = await ask("HEAD", "/bucket/a/key");
  expect([head.status, head.headers.get("content-length")]).toEqual([200, "10"]);

  expect((await ask("GET", "/bucket/a/key", undefined, { range: "bytes=10-" })).status).toBe(416);
  expect((await ask("GET", "/bucket/a/key", undefined, { "if-match": '"another"' })).status).toBe(412);
  expect((await ask("DELETE", "/bucket/a/key")).status).toBe(204);
  expect((await ask("GET", "/bucket/a/key")).status).toBe(404);
});

/** Begins a multipart upload and sends its parts; gives what completes it. */
async function sendParts(...parts: Uint8Array<ArrayBuffer>[]) {
  const uploadId = /<UploadId>(\w+)</.exec(await (await ask("POST", "/bucket/key?uploads=")).text())?.[1];
  const etags: string[] = [];
  for (const [index, part] of parts.entries()) {
    const sent = await ask("PUT", `/bucket/key?partNumber=${index + 1}&uploadId=${uploadId}`, part);
    etags.push(sent.headers.get("etag") ?? "");
  }
  const complete = (numbers: number[]) => {
    const list = numbers.map(
      (number) => `<Part><PartNumber>${number}</PartNumber><ETag>${etags[number - 1]}</ETag></Part>`,
    );
    return ask("POST", `/bucket/key?uploadId=${uploadId}`, `<CompleteMultipartUpload>${list.join("")}</…>`);
  };
  return { uploadId, complete };
}

test("an upload in parts becomes one object, which ranges across parts read", async () => {
  const { complete } = await sendParts(new Uint8Array(5 * MiB).fill(1), new Uint8Array(7).fill(2));
  expect((await ask("GET", "/bucket/key")).status).toBe(404);

  const completed = await complete([1, 2]);

  expect(await completed.text()).toMatch(/<ETag>&quot;[0-9a-f]{32}-2&quot;<\/ETag>/);
  const range = await ask("GET", "/bucket/key", undefined, { range: `bytes=${5 * MiB - 2}-${5 * MiB + 1}` });
  expect(new Uint8Array(await range.arrayBuffer())).toEqual(new Uint8Array([1, 1, 2, 2]));
});

test.each([
  { what: "a part that is too small", sizes: [1, 1], code: "EntityTooSmall" },
  { what: "parts of different sizes", sizes: [5 * MiB, 6 * MiB, 1], code: "InvalidPart" },
  { what: "parts that were not sent", sizes: [], code: "InvalidPart" },
])("$what are refused", async ({ sizes, code }) => {
  const { complete } = await sendParts(...sizes.map((size) => new Uint8Array(size)));
  const refused = await complete(sizes.length === 0 ? [1] : sizes.map((_, index) => index + 1));
  expect([refused.status, await refused.text()]).toEqual([400, `<Error><Code>${code}</Code></Error>`]);
});

test("what is forgotten is gone, and its room is used again", async () => {
  await ask("PUT", "/bucket/a/1", "first");
  await ask("PUT", "/bucket/b/1", "other");
  expect((await ask("DELETE", "/-/objects?prefix=a/")).status).toBe(204);
  await ask("PUT", "/bucket/c/1", "third");

  expect((await ask("GET", "/bucket/a/1")).status).toBe(404);
  expect(await (await ask("GET", "/bucket/b/1")).text()).toBe("other");
  expect(await (await ask("GET", "/bucket/c/1")).text()).toBe("third");
});

test("an upload that was aborted is gone", async () => {
  const { uploadId, complete } = await sendParts(new Uint8Array(1));
  expect((await ask("DELETE", `/bucket/key?uploadId=${uploadId}`)).status).toBe(204);
  expect((await complete([1])).status).toBe(404);
});

test("the bandwidth, the latency and the counts are as set and asked", async () => {
  const body = new Uint8Array(MiB);
  await useProfile(10 * MiB, 5 * MiB, 50);
  await ask("DELETE", "/-/traffic");

  const up = await elapsed(() => ask("PUT", "/bucket/key", body));
  const down = await elapsed(async () => (await ask("GET", "/bucket/key")).arrayBuffer());

  expect(up).toBeGreaterThan(135);
  expect(up).toBeLessThan(400);
  expect(down).toBeGreaterThan(235);
  expect(down).toBeLessThan(600);
  const traffic = (await (await ask("GET", "/-/traffic")).json()) as object;
  expect(traffic).toMatchObject({ requests: 2, sent: MiB, fetched: MiB });
});

async function elapsed(work: () => Promise<unknown>): Promise<number> {
  const start = performance.now();
  await work();
  return performance.now() - start;
}

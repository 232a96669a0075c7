import { env } from "cloudflare:workers";
import { afterEach, describe, expect, test, vi } from "vitest";
import { BindingTransport } from "../../src/backups/binding.js";
import { archiveKey } from "../../src/backups/bucket.js";
import { PresignedTransport } from "../../src/backups/presigned.js";
import type { ArchiveResult } from "../../src/protocol.js";

const KEY_ID = "key-id-1234";
const SECRET = "secret-key-5678";
const settings = {
  endpoint: "https://account.r2.cloudflarestorage.com",
  bucketName: "backups",
  accessKeyId: KEY_ID,
  secretAccessKey: SECRET,
};
const newId = () => crypto.randomUUID();
const bytes = (text: string) => new TextEncoder().encode(text);
const record = async () => {};
const stream = (text: string) => new Response(text).body ?? new ReadableStream();
const done = (upload: ArchiveResult["upload"]): ArchiveResult => ({
  type: "done",
  size: 5,
  digests: { chunkSize: 1_048_576, sha256: "AAAA" },
  upload,
});

afterEach(() => vi.restoreAllMocks());

/** Answers every request of the S3 API in its place, and gives what was asked. */
function answerWith(...answers: Response[]): Request[] {
  const requests: Request[] = [];
  vi.spyOn(globalThis, "fetch").mockImplementation(async (input, init) => {
    requests.push(new Request(input as RequestInfo, init as RequestInit));
    return answers.shift() ?? new Response(null, { status: 204 });
  });
  return requests;
}

const created = (uploadId: string) =>
  new Response(`<InitiateMultipartUploadResult><UploadId>${uploadId}</UploadId></InitiateMultipartUploadResult>`);

/** The signature of a presigned URL, computed anew from the text of the specification (AWS Signature Version 4). */
async function signatureOf(method: string, url: URL): Promise<string> {
  const hmac = async (key: BufferSource, text: string) => {
    const algorithm = { name: "HMAC", hash: "SHA-256" };
    const imported = await crypto.subtle.importKey("raw", key, algorithm, false, ["sign"]);
    return crypto.subtle.sign("HMAC", imported, bytes(text));
  };
  const hex = (buffer: ArrayBuffer) =>
    [...new Uint8Array(buffer)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  const query = [...url.searchParams]
    .filter(([name]) => name !== "X-Amz-Signature")
    .map(([name, value]) => `${encodeURIComponent(name)}=${encodeURIComponent(value)}`)
    .sort();
  const time = url.searchParams.get("X-Amz-Date") ?? "";
  const scope = `${time.slice(0, 8)}/auto/s3/aws4_request`;
  const canonical = [method, url.pathname, query.join("&"), `host:${url.host}\n`, "host", "UNSIGNED-PAYLOAD"].join(
    "\n",
  );
  const digest = hex(await crypto.subtle.digest("SHA-256", bytes(canonical)));
  let key: BufferSource = bytes(`AWS4${SECRET}`);
  for (const part of [time.slice(0, 8), "auto", "s3", "aws4_request"]) key = await hmac(key, part);
  return hex(await hmac(key, ["AWS4-HMAC-SHA256", time, scope, digest].join("\n")));
}

describe("a presigned URL", () => {
  const transport = new PresignedTransport(settings);
  const first = async (urls: Promise<{ part: number; url: string }[]>) => new URL((await urls)[0]?.url ?? "");

  test("of a whole archive names the bucket and the key, and is signed for S3 in the region auto", async () => {
    const id = newId();

    for (const [method, url] of [
      ["PUT", await first(transport.upload(id, record).urls([0]))],
      ["GET", await first(transport.download(id).urls([0]))],
    ] as const) {
      expect(url.origin + url.pathname).toBe(
        `https://account.r2.cloudflarestorage.com/backups/backups/${id}/data.sqsh`,
      );
      expect(url.searchParams.get("X-Amz-Algorithm")).toBe("AWS4-HMAC-SHA256");
      expect(url.searchParams.get("X-Amz-Credential")).toMatch(/^key-id-1234\/\d{8}\/auto\/s3\/aws4_request$/);
      expect(url.searchParams.get("X-Amz-Expires")).toBe("3600");
      expect(url.searchParams.get("X-Amz-SignedHeaders")).toBe("host");
      expect(url.searchParams.get("X-Amz-Signature")).toBe(await signatureOf(method, url));
      expect(url.href).not.toContain(SECRET);
    }
  });

  test("of parts names each part of one upload, which is begun once and recorded before any is sent", async () => {
    const requests = answerWith(created("upload-1"));
    const recorded: string[] = [];
    const upload = transport.upload(newId(), async (uploadId) => void recorded.push(uploadId));

    const urls = [...(await upload.urls([1, 2])), ...(await upload.urls([3])), ...(await upload.urls([2]))];

    expect(requests.map(({ method, url }) => `${method} ${new URL(url).search}`)).toEqual(["POST ?uploads="]);
    expect(recorded).toEqual(["upload-1"]);
    expect(urls.map(({ part }) => part)).toEqual([1, 2, 3, 2]);
    for (const { part, url } of urls) {
      const { searchParams } = new URL(url);
      expect(searchParams.get("partNumber")).toBe(String(part));
      expect(searchParams.get("uploadId")).toBe("upload-1");
      expect(searchParams.get("X-Amz-Signature")).toBe(await signatureOf("PUT", new URL(url)));
    }
  });
});

describe("a multipart upload", () => {
  const transport = new PresignedTransport(settings);
  const parts = done({
    kind: "parts",
    parts: [
      { number: 1, etag: "a" },
      { number: 2, etag: "b" },
    ],
  });

  async function begin(...answers: Response[]) {
    const requests = answerWith(created("upload-1"), ...answers);
    const upload = transport.upload(newId(), record);
    await upload.urls([1, 2]);
    return { upload, requests };
  }

  test("is completed with its parts in order, and gives the object's ETag without quotes", async () => {
    const { upload, requests } = await begin(
      new Response("<CompleteMultipartUploadResult><ETag>&quot;abc-2&quot;</ETag></CompleteMultipartUploadResult>"),
    );

    expect(await upload.complete(parts)).toBe("abc-2");
    expect(await requests[1]?.text()).toBe(
      '<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>"a"</ETag></Part><Part><PartNumber>2</PartNumber><ETag>"b"</ETag></Part></CompleteMultipartUpload>',
    );
  });

  test("that is answered 200 with an error in the body has failed", async () => {
    const { upload } = await begin(new Response("<Error><Code>InternalError</Code></Error>"));

    await expect(upload.complete(parts)).rejects.toThrow(
      "CompleteMultipartUpload: the bucket answered HTTP 200 InternalError",
    );
  });

  test("is aborted by its id, also when it is gone already, and its object is deleted", async () => {
    const { upload, requests } = await begin(new Response("<Error><Code>NoSuchUpload</Code></Error>", { status: 404 }));

    await upload.abort();

    const sent = requests.slice(1).map(({ method, url }) => `${method} ${new URL(url).search}`);
    expect(sent).toEqual(["DELETE ?uploadId=upload-1", "DELETE "]);
  });

  test("that cannot be aborted says so", async () => {
    const { upload } = await begin(new Response("<Error><Code>AccessDenied</Code></Error>", { status: 403 }));

    await expect(upload.abort()).rejects.toThrow("AbortMultipartUpload: the bucket answered HTTP 403 AccessDenied");
  });

  test("that could not be begun fails every part's URL, and needs no abort", async () => {
    const requests = answerWith(new Response("<Error><Code>AccessDenied</Code></Error>", { status: 403 }));
    const upload = transport.upload(newId(), record);

    await expect(upload.urls([1, 2])).rejects.toThrow(
      "CreateMultipartUpload: the bucket answered HTTP 403 AccessDenied",
    );
    await upload.abort();

    expect(requests.map(({ method, url }) => `${method} ${new URL(url).search}`)).toEqual([
      "POST ?uploads=",
      "DELETE ",
    ]);
  });

  test("that fails says so without a URL, a key or a signature", async () => {
    answerWith(new Response(`<Error><Code>AccessDenied</Code><Key>${KEY_ID}</Key></Error>`, { status: 403 }));
    const refused = await transport
      .upload(newId(), record)
      .urls([1])
      .catch((error: Error) => error);
    vi.spyOn(globalThis, "fetch").mockRejectedValue(new TypeError("Network connection lost."));
    const broken = await transport
      .upload(newId(), record)
      .urls([1])
      .catch((error: Error) => error);

    expect(String(broken)).toContain("CreateMultipartUpload: the connection to the bucket failed");
    for (const error of [refused, broken]) {
      expect(error).toBeInstanceOf(Error);
      expect(`${error} ${JSON.stringify(error)}`).not.toMatch(/https?:|X-Amz|key-id-1234|secret-key-5678/i);
    }
  });
});

describe("the binding's transport, with the bucket of the runtime", () => {
  const transport = new BindingTransport(env.BACKUP_BUCKET);
  const operation = (archive: string | ReadableStream<Uint8Array>) => ({
    takeArchive: async () => (typeof archive === "string" ? stream(archive) : archive),
    giveArchive: async () => {
      throw new Error("not now");
    },
  });

  test("stores the archive that it takes, and tells its ETag", async () => {
    const id = newId();
    const upload = transport.upload(id);

    await upload.move(operation("bytes"), 5);
    const etag = await upload.complete(done({ kind: "stream" }));

    const object = await env.BACKUP_BUCKET.get(archiveKey(id));
    expect(await object?.text()).toBe("bytes");
    expect(object?.etag).toBe(etag);
  });

  test.each([
    ["shorter", "byte"],
    ["longer", "bytes and more"],
  ])("stores nothing when the archive is %s than it was said to be", async (_name, content) => {
    const id = newId();
    const upload = transport.upload(id);

    await expect(upload.move(operation(content), 5)).rejects.toThrow();

    expect(await env.BACKUP_BUCKET.head(archiveKey(id))).toBeNull();
    await expect(upload.complete(done({ kind: "stream" }))).rejects.toThrow("ended before its archive was taken");
  });

  test("stores nothing when the archive breaks off", async () => {
    const id = newId();
    let count = 0;
    const broken = new ReadableStream<Uint8Array>({
      pull(controller) {
        if (count++ === 0) controller.enqueue(bytes("by"));
        else controller.error(new Error("the agent stopped"));
      },
    });

    await expect(transport.upload(id).move(operation(broken), 5)).rejects.toThrow();

    expect(await env.BACKUP_BUCKET.head(archiveKey(id))).toBeNull();
  });

  test("does not wait for an archive that the bucket does not take", async () => {
    const refusing = new Proxy(env.BACKUP_BUCKET, {
      get: () => async () => {
        throw new Error("put: internal error");
      },
    });
    const endless = new ReadableStream<Uint8Array>({ pull: (controller) => controller.enqueue(bytes("x")) });
    const upload = new BindingTransport(refusing).upload(newId());

    await expect(upload.move(operation(endless), 1_000_000)).rejects.toThrow("put: internal error");
  });

  test("refuses an archive that one PUT cannot hold, before it takes any of it", async () => {
    const upload = transport.upload(newId());

    await expect(upload.move(operation("x"), 5 * 1024 ** 3)).rejects.toThrow("use the production path");
  });

  test("removes what was stored when it is aborted", async () => {
    const id = newId();
    const upload = transport.upload(id);
    await upload.move(operation("bytes"), 5);

    await upload.abort();

    expect(await env.BACKUP_BUCKET.head(archiveKey(id))).toBeNull();
  });

  test("gives the archive only while it is the one that was meant", async () => {
    const id = newId();
    const put = () => env.BACKUP_BUCKET.put(archiveKey(id), crypto.randomUUID());
    const { etag = "", size = 0 } = (await put()) ?? {};
    const given: string[] = [];
    const handler = transport.download(id, { etag, size });
    const receiver = {
      ...operation(""),
      giveArchive: async (archive: ReadableStream<Uint8Array>) => void given.push(await new Response(archive).text()),
    };

    await handler.move(receiver, size);
    await put();
    await expect(handler.move(receiver, size)).rejects.toThrow("the archive was replaced");
    await env.BACKUP_BUCKET.delete(archiveKey(id));
    await expect(handler.move(receiver, size)).rejects.toThrow("the archive was deleted");

    expect(given).toHaveLength(1);
  });

  test("signs nothing", async () => {
    await expect(transport.upload(newId()).urls([0])).rejects.toThrow("needs no URL");
  });
});

import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { json, text } from "node:stream/consumers";
import { finished } from "node:stream/promises";
import { setTimeout as delay } from "node:timers/promises";
import { listenOnLoopback } from "../../dev/loopback.ts";
import { PROFILES, type Profile } from "../profiles.ts";
import { Network } from "./network.ts";
import { type Content, newEtag, Objects, S3Error, slices } from "./objects.ts";

/**
 * An S3 server for the benchmark: as much of the API as backups use, at a bandwidth and a latency that can be set.
 * It accepts any signature, unverified, and any bucket name: it listens on loopback for one run of the benchmark.
 * What is under `/-/` is for the benchmark itself; the rest is counted.
 */
export async function startStore(): Promise<{ server: Server; origin: string }> {
  const objects = new Objects();
  const network = new Network(PROFILES.lan);
  const server = createServer((request, response) => {
    const url = new URL(request.url ?? "/", "http://store");
    const exchange = { objects, network, url, request, response };
    const work = url.pathname.startsWith("/-/") ? control(exchange) : network.request(() => serve(exchange));
    work.catch((error: unknown) => refuse(response, error));
  });
  // Clients keep connections for as long as a run lasts.
  server.requestTimeout = 0;
  server.keepAliveTimeout = 0;
  return { server, origin: `http://127.0.0.1:${await listenOnLoopback(server)}` };
}

/** A request, its answer, and what both are about. */
interface Exchange {
  objects: Objects;
  network: Network;
  url: URL;
  request: IncomingMessage;
  response: ServerResponse;
}

async function control({ objects, network, url, request, response }: Exchange): Promise<void> {
  const prefix = url.searchParams.get("prefix");
  switch (`${request.method} ${url.pathname}`) {
    case "PUT /-/profile":
      network.useProfile((await json(request)) as Profile);
      break;
    case "DELETE /-/objects":
      if (prefix === null) objects.clear();
      else objects.forget(prefix);
      break;
    case "DELETE /-/traffic":
      network.countAnew();
      break;
    case "GET /-/traffic":
      response.end(JSON.stringify({ ...network.traffic, idleTime: network.idleTime }));
      return;
    default:
      throw new S3Error(404, "NoSuchRoute");
  }
  response.writeHead(204).end();
}

async function serve({ objects, network, url, request, response }: Exchange): Promise<void> {
  // "/bucket/key".
  const key = decodeURIComponent(url.pathname.split("/").slice(2).join("/"));
  const uploadId = url.searchParams.get("uploadId");
  const partNumber = Number(url.searchParams.get("partNumber"));
  switch (request.method) {
    case "GET":
    case "HEAD":
      await network.firstByte();
      return send(objects.get(key), network, request, response);
    case "PUT": {
      const content = await receive(objects, network, request);
      if (uploadId === null) objects.put(key, content);
      else objects.putPart(key, uploadId, partNumber, content);
      await network.firstByte();
      response.writeHead(200, { etag: `"${content.etag}"` }).end();
      return;
    }
    case "POST": {
      const body = await text(request);
      const answer =
        uploadId === null
          ? `<InitiateMultipartUploadResult><UploadId>${objects.createUpload(key)}</UploadId></InitiateMultipartUploadResult>`
          : `<CompleteMultipartUploadResult><ETag>&quot;${objects.completeUpload(key, uploadId, readParts(body)).etag}&quot;</ETag></CompleteMultipartUploadResult>`;
      await network.firstByte();
      response.writeHead(200, { "content-type": "application/xml" }).end(answer);
      return;
    }
    case "DELETE":
      if (uploadId === null) objects.delete(key);
      else objects.abortUpload(key, uploadId);
      await network.firstByte();
      response.writeHead(204).end();
      return;
    default:
      throw new S3Error(405, "MethodNotAllowed");
  }
}

async function receive(objects: Objects, network: Network, request: IncomingMessage): Promise<Content> {
  const length = Number(request.headers["content-length"] ?? Number.NaN);
  if (Number.isNaN(length)) throw new S3Error(411, "MissingContentLength");
  const pass = network.message("up");
  const bytes = objects.allocate(length);
  let size = 0;
  // An iteration over the request would cost as much as all the rest.
  request.on("data", (chunk: Buffer) => {
    size += chunk.copy(bytes, size);
    const wait = pass(chunk.length);
    if (wait === 0) return;
    request.pause();
    setTimeout(() => request.resume(), wait);
  });
  await finished(request);
  return { pieces: [bytes], size, etag: newEtag() };
}

async function send(
  object: Content,
  network: Network,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  const ifMatch = request.headers["if-match"];
  if (ifMatch !== undefined && ifMatch !== `"${object.etag}"`) throw new S3Error(412, "PreconditionFailed");
  const range = readRange(request.headers.range, object.size);
  const { start, end } = range ?? { start: 0, end: object.size };
  response.writeHead(range === undefined ? 200 : 206, {
    etag: `"${object.etag}"`,
    "accept-ranges": "bytes",
    "content-length": end - start,
    ...(range !== undefined && { "content-range": `bytes ${start}-${end - 1}/${object.size}` }),
  });
  if (request.method === "GET") {
    const pass = network.message("down");
    for (const chunk of slices(object, start, end)) {
      const wait = pass(chunk.length);
      if (wait > 0) await delay(wait);
      // The client has gone away.
      if (response.destroyed) return;
      if (!response.write(chunk)) await writable(response);
    }
  }
  response.end();
}

/** Resolves when more can be written, or nobody reads any more. */
function writable(response: ServerResponse): Promise<void> {
  return new Promise((resolve) => {
    const done = () => {
      response.off("drain", done).off("close", done);
      resolve();
    };
    response.on("drain", done).on("close", done);
    if (response.destroyed) done();
  });
}

/** `bytes=0-99`, `bytes=100-` or `bytes=-100`; undefined for none. `end` is exclusive. */
function readRange(header: string | undefined, size: number): { start: number; end: number } | undefined {
  if (header === undefined) return undefined;
  const [, first = "", last = ""] = /^bytes=(\d*)-(\d*)$/.exec(header) ?? [];
  const start = first === "" ? Math.max(0, size - Number(last)) : Number(first);
  const end = first === "" || last === "" ? size : Math.min(size, Number(last) + 1);
  if ((first === "" && last === "") || start >= end) throw new S3Error(416, "InvalidRange");
  return { start, end };
}

function readParts(xml: string): { number: number; etag: string }[] {
  return [...xml.matchAll(/<Part>(.*?)<\/Part>/gs)].map(([, part = ""]) => ({
    number: Number(/<PartNumber>(\d+)</.exec(part)?.[1]),
    etag: (/<ETag>([^<]*)</.exec(part)?.[1] ?? "").replaceAll("&quot;", "").replaceAll('"', ""),
  }));
}

function refuse(response: ServerResponse, error: unknown): void {
  if (response.headersSent || response.destroyed) {
    // A client that went away, as clients may, has nobody left to tell.
    response.destroy();
    return;
  }
  const [status, code] = error instanceof S3Error ? [error.status, error.code] : [500, "InternalError"];
  if (status === 500 && !isDisconnect(error)) console.error(error);
  response.writeHead(status, { "content-type": "application/xml" }).end(`<Error><Code>${code}</Code></Error>`);
}

function isDisconnect(error: unknown): boolean {
  return error instanceof Error && "code" in error && error.code === "ECONNRESET";
}

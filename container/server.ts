import http, { type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import type { z } from "zod";
import { version } from "../package.json";
import { InternalError, OperationAbortedError, type SandboxError, ValidationError } from "../src/errors.js";
import {
  type ArchiveEvent,
  type ArchiveRequest,
  agentRoutes,
  archiveRequestSchema,
  type ExecEventMessage,
  execRequestSchema,
  type existsResultSchema,
  type FileRequest,
  fileRequestSchema,
  type fileResultSchema,
  gitCheckoutRequestSchema,
  type listResultSchema,
  MiB,
  type RestoreEvent,
  type RestoreRequest,
  restoreRequestSchema,
  type Urls,
  urlsSchema,
  uuidSchema,
} from "../src/protocol.js";
import { streamEvents, toSandboxError } from "./events.js";
import { exec } from "./exec.js";
import {
  deleteFile,
  exists,
  listFiles,
  makeDirectory,
  moveFile,
  readFile,
  renameFile,
  resolvePath,
  writeFile,
} from "./files.js";
import { gitCheckout } from "./git.js";
import { logOperation } from "./log.js";

/** Backups and restores as the server needs them. */
export interface Backups {
  /** Makes an archive and brings it to the bucket. @returns the event `done` */
  archive(
    request: ArchiveRequest,
    emit: (event: ArchiveEvent) => Promise<void>,
    signal: AbortSignal,
  ): Promise<ArchiveEvent>;
  /** Brings an archive from the bucket and puts its contents into a directory. @returns the event `done` */
  restore(
    request: RestoreRequest,
    emit: (event: RestoreEvent) => Promise<void>,
    signal: AbortSignal,
  ): Promise<RestoreEvent>;
  /** Gives an operation the URLs that it asked for. */
  answerUrls(operationId: string, answer: Urls): void;
  /** The archive that an operation has made, to be read to its end. */
  takeArchive(operationId: string): { size: number; stream: Readable };
  /** Gives an operation the archive to restore. Resolves when all of it has been read. */
  giveArchive(operationId: string, body: Readable): Promise<void>;
  /** Stops an operation. Resolves when nothing of it runs any more; at once when there is no such operation. */
  stop(operationId: string): Promise<void>;
  /** Stops all operations and takes down what must not outlive the agent. */
  shutdown(): Promise<void>;
}

/** The longest JSON body that is read, in bytes: almost three times the digests of an archive of 64 GiB, which are most of one. */
const LONGEST_JSON = 8 * MiB;

/** How long an idle connection is kept, in ms: longer than a client may keep it, so that none uses one that closes. */
const KEEP_ALIVE = 120_000;

/** A request, and what there is to answer it. */
interface Exchange {
  request: IncomingMessage;
  response: ServerResponse;
  url: URL;
  /** The operation's id, for the routes that have one in their path. */
  id: string;
}

type Handle = (exchange: Exchange) => Promise<void>;

interface Route {
  method: string;
  path: RegExp;
  handle: Handle;
}

/** A request that is refused for another reason than its contents: `status` says which. */
class RequestError extends ValidationError {
  override readonly httpStatus: number;
  constructor(
    status: 404 | 405 | 413,
    message: string,
    readonly headers: Record<string, string> = {},
  ) {
    super(message);
    this.httpStatus = status;
  }
}

export interface AgentServer {
  /** Not yet listening. */
  http: Server;
  /** Breaks off all connections. Resolves when what was done for them has stopped too, killed commands included. */
  close(): Promise<void>;
}

/** Makes the agent's HTTP server. */
export function createServer(backups: Backups): AgentServer {
  const routes = routesOf(backups);
  const answers = new Set<Promise<void>>();
  // Requests and answers take as long as their archive or command does.
  const options = { requestTimeout: 0, keepAliveTimeout: KEEP_ALIVE };
  const server = http.createServer(options, (request, response) => {
    // A client that went away while it was written to is noticed by the event `close`.
    response.on("error", () => {});
    const answered = answer(routes, request, response).finally(() => answers.delete(answered));
    answers.add(answered);
  });
  const close = async () => {
    server.close();
    server.closeAllConnections();
    await Promise.all(answers);
  };
  return { http: server, close };
}

async function answer(routes: Route[], request: IncomingMessage, response: ServerResponse): Promise<void> {
  try {
    const url = parseUrl(request);
    const { handle, id } = findRoute(routes, request.method ?? "GET", url.pathname);
    await handle({ request, response, url, id });
  } catch (error) {
    // Behind a body that nobody reads to its end, no further request would be seen.
    if (!request.complete && !response.headersSent) response.setHeader("connection", "close");
    sendError(response, toSandboxError(error));
  }
}

function parseUrl(request: IncomingMessage): URL {
  const url = `http://agent${request.url}`;
  if (!URL.canParse(url)) throw new ValidationError("The request's URL is not valid");
  return new URL(url);
}

/** @throws {RequestError} when no route has this path (404) or this method (405) */
function findRoute(routes: Route[], method: string, path: string): { handle: Handle; id: string } {
  const samePath = routes.filter((route) => route.path.test(path));
  if (samePath.length === 0) throw new RequestError(404, `The agent has no ${path}`);
  const route = samePath.find((candidate) => candidate.method === method);
  if (route === undefined) {
    const allow = samePath.map((candidate) => candidate.method).join(", ");
    throw new RequestError(405, `${path} may be called by ${allow}, not by ${method}`, { allow });
  }
  return { handle: route.handle, id: route.path.exec(path)?.[1] ?? "" };
}

/** Answers with an error; an answer that has begun can only be broken off. */
function sendError(response: ServerResponse, error: SandboxError): void {
  if (response.headersSent) {
    response.destroy();
    return;
  }
  for (const [name, value] of Object.entries(error instanceof RequestError ? error.headers : {})) {
    response.setHeader(name, value);
  }
  sendJson(response, error, error.httpStatus);
}

function sendJson(response: ServerResponse, value: unknown, status = 200): void {
  const body = Buffer.from(JSON.stringify(value));
  response.writeHead(status, { "content-type": "application/json", "content-length": body.length });
  response.end(body);
}

function sendNothing(response: ServerResponse): void {
  // Not 204: after one, workerd half-closes the connection to a container's port in its next request, which then fails.
  sendJson(response, {});
}

/** Sends a stream, and breaks the answer off where the stream is not as long as was said. */
async function sendStream(
  response: ServerResponse,
  stream: Readable,
  size: number | undefined,
  contentType: string,
): Promise<void> {
  response.writeHead(200, {
    "content-type": contentType,
    ...(size === undefined ? {} : { "content-length": size }),
  });
  const counted = async function* (chunks: AsyncIterable<Buffer>) {
    let sent = 0;
    for await (const chunk of chunks) {
      sent += chunk.length;
      yield chunk;
    }
    if (size !== undefined && sent !== size) throw new InternalError(`Sent ${sent} of ${size} bytes`);
  };
  await pipeline(stream, counted, response);
}

/**
 * Reads a JSON body.
 * @throws {ValidationError} that names the field and what it may be
 */
async function readJson<Schema extends z.ZodType>(request: IncomingMessage, schema: Schema): Promise<z.infer<Schema>> {
  const parsed = schema.safeParse(parseJson(await readBody(request)));
  if (parsed.success) return parsed.data;
  const problems = parsed.error.issues.map(({ path, message }) => `${path.join(".") || "the body"}: ${message}`);
  throw new ValidationError(problems.join("; "));
}

async function readBody(request: IncomingMessage): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let length = 0;
  for await (const chunk of request as AsyncIterable<Buffer>) {
    length += chunk.length;
    // Over the limit, the rest is read but not kept: a client hears the answer only when it could send everything.
    if (length <= LONGEST_JSON) chunks.push(chunk);
  }
  if (length > LONGEST_JSON) throw new RequestError(413, `The body must not be longer than ${LONGEST_JSON} bytes`);
  return Buffer.concat(chunks);
}

function parseJson(body: Buffer): unknown {
  try {
    return JSON.parse(body.toString("utf8"));
  } catch {
    throw new ValidationError("The body must be JSON");
  }
}

function operationId({ id }: Exchange): string {
  if (!uuidSchema.safeParse(id).success) throw new ValidationError("The operation's id must be a UUID in lower case");
  return id;
}

function filePath({ url }: Exchange): string {
  const path = url.searchParams.get("path");
  if (path === null) throw new ValidationError("The query must name a path");
  return resolvePath(path);
}

/** Aborts when the client goes away before it is answered. */
function clientGone(response: ServerResponse): AbortSignal {
  const gone = new AbortController();
  response.on("close", () => {
    if (!response.writableFinished) gone.abort(new OperationAbortedError("The client closed the connection."));
  });
  return gone.signal;
}

function routesOf(backups: Backups): Route[] {
  const route = (method: string, path: string, handle: Handle): Route => ({
    method,
    path: new RegExp(`^${path}$`),
    handle,
  });
  const ANY_ID = "([^/]+)";
  return [
    route("GET", agentRoutes.health, async ({ response }) => {
      sendJson(response, { ok: true, version });
    }),

    route("POST", agentRoutes.exec, async ({ request, response }) => {
      const body = await readJson(request, execRequestSchema);
      await streamEvents<ExecEventMessage>(response, (emit, signal) =>
        logOperation(
          "exec",
          {},
          () => exec(body, emit, signal),
          (event) => ("exitCode" in event ? { exitCode: event.exitCode } : {}),
        ),
      );
    }),

    route("POST", agentRoutes.gitCheckout, async ({ request, response }) => {
      const body = await readJson(request, gitCheckoutRequestSchema);
      const signal = clientGone(response);
      sendJson(response, await logOperation("git.checkout", {}, () => gitCheckout(body, signal)));
    }),

    route("GET", agentRoutes.fileContent, async (exchange) => {
      const path = filePath(exchange);
      await logOperation("files.read", { path }, async () => {
        const { stream, size, mimeType } = await readFile(path);
        await sendStream(exchange.response, stream, size, mimeType);
      });
    }),
    route("PUT", agentRoutes.fileContent, async (exchange) => {
      const path = filePath(exchange);
      await logOperation("files.write", { path }, () => writeFile(path, exchange.request));
      sendJson(exchange.response, { path });
    }),
    route("POST", agentRoutes.files, async ({ request, response }) => {
      const body = await readJson(request, fileRequestSchema);
      const path = resolvePath(body.path);
      sendJson(response, await logOperation(`files.${body.action}`, { path }, () => answerFileRequest(body, path)));
    }),

    route("POST", agentRoutes.archives, async ({ request, response }) => {
      const body = await readJson(request, archiveRequestSchema);
      const { operationId, backupId, dir } = body;
      await streamEvents<ArchiveEvent>(response, (emit, signal) =>
        logOperation("archive", { operationId, backupId, dir }, () => backups.archive(body, emit, signal)),
      );
    }),
    route("POST", agentRoutes.restores, async ({ request, response }) => {
      const body = await readJson(request, restoreRequestSchema);
      const { operationId, backupId, dir } = body;
      await streamEvents<RestoreEvent>(response, (emit, signal) =>
        logOperation("restore", { operationId, backupId, dir }, () => backups.restore(body, emit, signal)),
      );
    }),

    route("DELETE", agentRoutes.operation(ANY_ID), async (exchange) => {
      const id = operationId(exchange);
      await logOperation("operation.stop", { operationId: id }, () => backups.stop(id));
      sendNothing(exchange.response);
    }),
    route("POST", agentRoutes.operationUrls(ANY_ID), async (exchange) => {
      const id = operationId(exchange);
      backups.answerUrls(id, await readJson(exchange.request, urlsSchema));
      sendNothing(exchange.response);
    }),
    route("GET", agentRoutes.operationArchive(ANY_ID), async (exchange) => {
      const { size, stream } = backups.takeArchive(operationId(exchange));
      await sendStream(exchange.response, stream, size, "application/octet-stream");
    }),
    route("PUT", agentRoutes.operationArchive(ANY_ID), async (exchange) => {
      await backups.giveArchive(operationId(exchange), exchange.request);
      sendNothing(exchange.response);
    }),
  ];
}

type FileAnswer =
  | z.infer<typeof fileResultSchema>
  | z.infer<typeof existsResultSchema>
  | z.infer<typeof listResultSchema>;

async function answerFileRequest(request: FileRequest, path: string): Promise<FileAnswer> {
  switch (request.action) {
    case "exists":
      return { path, exists: await exists(path) };
    case "mkdir":
      await makeDirectory(path, request.recursive);
      return { path };
    case "delete":
      await deleteFile(path);
      return { path };
    case "rename": {
      const newPath = resolvePath(request.newPath, "newPath");
      await renameFile(path, newPath);
      return { path: newPath };
    }
    case "move":
      return { path: await moveFile(path, resolvePath(request.newPath, "newPath")) };
    case "list":
      return { path, files: await listFiles(path, request) };
  }
}

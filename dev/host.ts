import { createHash, randomBytes, timingSafeEqual } from "node:crypto";
import { once } from "node:events";
import { mkdtemp, readdir, stat } from "node:fs/promises";
import { Agent, createServer, request as httpRequest, type IncomingMessage, type ServerResponse } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { pipeline } from "node:stream/promises";
import type { z } from "zod";
import { type SandboxError, SandboxUnavailableError, ValidationError } from "../src/errors.js";
import { hostErrorHeader, startRequestSchema, type startResultSchema } from "../src/protocol.js";
import { listenOnLoopback } from "./loopback.js";
import { isRunning, PROCESS_TAG, processTag } from "./process-tag.js";
import { removeDirectory, type Sandbox } from "./sandbox.js";
import { Sandboxes } from "./sandboxes.js";

/** The development host: what Workers under `wrangler dev` reach their sandboxes through. See `hostRoutes` in src/protocol.ts. */

const NAME = /^[A-Za-z0-9_-]{1,128}$/;

/** Headers that concern one connection and not the message, and the token, which is none of the agent's business. */
const NOT_PASSED_ON = ["authorization", "host", "connection", "keep-alive", "proxy-connection", "upgrade", "expect"];

/**
 * A connection for every request: one that is kept may be closed by the agent just when it is used again. But `keep-alive`
 * is what the agent is told, for after `close` it may hang up before Node has made its last, empty write of a request, and
 * then the answer is lost.
 */
const connections = new Agent({ keepAlive: true, maxFreeSockets: 0 });

/** Prefix of the directory that holds the files of all sandboxes of a host. */
const DIRECTORY_PREFIX = "sandbox-backup-";

export interface HostOptions {
  /** The agent, one file. */
  agentPath: string;
  /** Gets a line to show to the developer. */
  log: (line: string) => void;
}

export interface Host {
  /** For `SANDBOX_HOST_URL`. */
  readonly url: string;
  /** For `SANDBOX_HOST_TOKEN`. */
  readonly token: string;
  /** Ends all sandboxes. Resolves when nothing of them and of the host is left. */
  close(): Promise<void>;
}

/** Starts a host on a free loopback port, and removes the files that killed hosts left behind. */
export async function startHost(options: HostOptions): Promise<Host> {
  await removeLeftovers();
  const parent = await mkdtemp(join(tmpdir(), `${DIRECTORY_PREFIX}${processTag()}-`));
  const sandboxes = new Sandboxes({ parent, ...options });
  const token = randomBytes(32).toString("base64url");

  const server = createServer((request, response) => {
    handle(sandboxes, token, request, response).catch((error: unknown) => {
      // What the client sees of it is a connection that broke.
      response.destroy();
      if (!isDisconnect(error)) options.log(`${request.method} ${request.url}: ${String(error)}`);
    });
  });
  // Streams last as long as the work that they report on, and workerd reuses connections after any pause.
  server.requestTimeout = 0;
  server.keepAliveTimeout = 0;
  const port = await listenOnLoopback(server);

  return {
    url: `http://127.0.0.1:${port}`,
    token,
    async close() {
      server.close();
      await sandboxes.close();
      server.closeAllConnections();
      await removeDirectory(parent);
    },
  };
}

async function handle(
  sandboxes: Sandboxes,
  token: string,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  if (!isAuthorized(request, token)) {
    return refuse(response, 401, "unauthorized", new ValidationError("The host's token is missing or wrong."));
  }
  const [, name, agentPath] = /^\/v1\/sandboxes\/([^/?]+)(?:\/agent(\/.*))?$/.exec(request.url ?? "") ?? [];
  if (name === undefined) {
    return refuse(response, 404, "bad-request", new ValidationError(`The host has no ${request.url}.`));
  }
  if (!NAME.test(name)) {
    return refuse(response, 400, "bad-request", new ValidationError(`This is no name of a sandbox: ${name}`));
  }
  if (agentPath !== undefined) {
    return sandboxes.use(name, (sandbox) =>
      sandbox === undefined
        ? refuse(response, 503, "not-running", new SandboxUnavailableError("The sandbox does not run."))
        : passOn(sandbox, agentPath, request, response),
    );
  }
  switch (request.method) {
    case "PUT":
      return start(sandboxes, name, request, response);
    case "DELETE":
      await sandboxes.stop(name);
      response.writeHead(204).end();
      return;
    default:
      return refuse(response, 405, "bad-request", new ValidationError(`The host has no ${request.method} here.`));
  }
}

async function start(
  sandboxes: Sandboxes,
  name: string,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  const body = startRequestSchema.safeParse(parseJson(await text(request)));
  if (!body.success) return refuse(response, 400, "bad-request", new ValidationError(body.error.message));
  let sandbox: Sandbox;
  try {
    sandbox = await sandboxes.start(name, body.data);
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error);
    return refuse(response, 503, "not-running", new SandboxUnavailableError(message));
  }
  const result: z.infer<typeof startResultSchema> = { instance: sandbox.instance };
  response.writeHead(200, { "content-type": "application/json" }).end(JSON.stringify(result));
}

/** Streams a request to the agent and its answer back. When either side goes away, so does the other. */
async function passOn(
  sandbox: Sandbox,
  path: string,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  const headers = Object.fromEntries(Object.entries(request.headers).filter(([name]) => !NOT_PASSED_ON.includes(name)));
  const upstream = httpRequest({
    socketPath: sandbox.socketPath,
    method: request.method,
    path,
    headers: { ...headers, host: "sandbox" },
    agent: connections,
  });
  response.once("close", () => upstream.destroy());
  // Whoever waits for the answer learns of it below.
  upstream.on("error", () => {});
  // An agent that answers before it has read the whole request closes this way; its answer counts.
  pipeline(request, upstream).catch(() => {});
  let answer: IncomingMessage;
  try {
    [answer] = (await once(upstream, "response")) as [IncomingMessage];
  } catch (error) {
    if (!isNotListening(error)) throw error;
    return refuse(response, 503, "not-running", new SandboxUnavailableError("The sandbox has stopped."));
  }
  const answerHeaders = Object.fromEntries(
    Object.entries(answer.headers).filter(([name]) => !NOT_PASSED_ON.includes(name)),
  );
  // Behind a body that nobody reads to its end, no further request would be seen.
  if (!request.complete) answerHeaders.connection = "close";
  response.writeHead(answer.statusCode ?? 502, answerHeaders);
  response.flushHeaders();
  await pipeline(answer, response);
}

/** Answers with an error of the host's own. */
async function refuse(
  response: ServerResponse,
  status: number,
  reason: "not-running" | "unauthorized" | "bad-request",
  error: SandboxError,
): Promise<void> {
  response.writeHead(status, { "content-type": "application/json", [hostErrorHeader]: reason });
  response.end(JSON.stringify(error));
}

function isAuthorized(request: IncomingMessage, token: string): boolean {
  const digest = (value: string) => createHash("sha256").update(value).digest();
  return timingSafeEqual(digest(request.headers.authorization ?? ""), digest(`Bearer ${token}`));
}

/** Undefined for what is no JSON, which no schema accepts. */
function parseJson(body: string): unknown {
  try {
    return JSON.parse(body);
  } catch (error) {
    if (error instanceof SyntaxError) return undefined;
    throw error;
  }
}

function errorCode(error: unknown): unknown {
  return error instanceof Error && "code" in error ? error.code : undefined;
}

/** The agent's socket is gone or nobody listens on it: it cannot have seen the request. */
function isNotListening(error: unknown): boolean {
  return ["ENOENT", "ECONNREFUSED"].includes(String(errorCode(error)));
}

function isDisconnect(error: unknown): boolean {
  return ["ECONNRESET", "EPIPE", "ERR_STREAM_PREMATURE_CLOSE"].includes(String(errorCode(error)));
}

/** Removes the directories of hosts that were killed. Their sandboxes ended with them. */
async function removeLeftovers(): Promise<void> {
  const pattern = new RegExp(`^${DIRECTORY_PREFIX}${PROCESS_TAG}-`);
  for (const entry of await readdir(tmpdir())) {
    const tag = pattern.exec(entry)?.[1];
    if (tag === undefined || isRunning(tag)) continue;
    const path = join(tmpdir(), entry);
    // The temp directory belongs to all users: another one's directory is his to remove.
    if ((await stat(path)).uid === process.getuid?.()) await removeDirectory(path);
  }
}

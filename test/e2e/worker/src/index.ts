import { type BackupProgress, Sandbox as BaseSandbox, getSandbox, isSandboxError } from "sandbox-backup";
import type { Call, Outcome } from "../../../support/call.js";

/**
 * The Worker of the end-to-end tests: it does what a request says, by the package's public API, and answers with what came
 * of it. It guards nothing: set E2E_TOKEN where others can reach it.
 */

interface Env {
  Sandbox: DurableObjectNamespace<Sandbox>;
  FaultySandbox: DurableObjectNamespace<FaultySandbox>;
  BACKUP_BUCKET: R2Bucket;
  BACKUP_BUCKET_ENDPOINT?: string;
  /** A proxy before the S3 endpoint, which fails as a test tells it to. */
  FAULTY_ENDPOINT?: string;
  R2_ACCESS_KEY_ID?: string;
  R2_SECRET_ACCESS_KEY?: string;
  SANDBOX_HOST_TOKEN?: string;
  E2E_TOKEN?: string;
  /** Environment of every agent, as JSON. */
  AGENT_ENV?: string;
}

/** More of its agent's environment can be in its name: `env-<JSON in hexadecimal>-…`. */
export class Sandbox extends BaseSandbox<Env> {
  constructor(ctx: DurableObjectState, env: Env) {
    super(ctx, env);
    const [, own = ""] = /^env-([0-9a-f]*)-/.exec(ctx.id.name ?? "") ?? [];
    const json = new TextDecoder().decode(Uint8Array.from(own.match(/../g) ?? [], (byte) => Number.parseInt(byte, 16)));
    this.envVars = { ...JSON.parse(env.AGENT_ENV ?? "{}"), ...JSON.parse(json || "{}") };
  }
}

/**
 * Sends its archives by the faulty endpoint, and knows which objects of the bucket it has touched. The port of its proxy,
 * and how long it waits for an answer in ms, are in its name: `faulty-<port>-<stall timeout>-…`.
 */
export class FaultySandbox extends Sandbox {
  readonly #use: BucketUse;

  constructor(ctx: DurableObjectState, env: Env) {
    const use: BucketUse = { keys: new Set(), failingPuts: undefined };
    const endpoint = new URL(env.FAULTY_ENDPOINT ?? env.BACKUP_BUCKET_ENDPOINT ?? "");
    const [, port = "", stallTimeout = ""] = /^faulty-(\d+)-(\d+)-/.exec(ctx.id.name ?? "") ?? [];
    endpoint.port = port;
    super(ctx, { ...env, BACKUP_BUCKET: watched(env.BACKUP_BUCKET, use), BACKUP_BUCKET_ENDPOINT: endpoint.href });
    // What it restores is to come from the bucket.
    this.envVars = { ...this.envVars, SANDBOX_BACKUP_STALL_TIMEOUT: stallTimeout, SANDBOX_BACKUP_CACHE: "0" };
    this.#use = use;
  }

  /** Keys of the objects that this run of the Durable Object has written, read or deleted. */
  touchedKeys(): string[] {
    return [...this.#use.keys];
  }

  /** Names its container: the engine's name for that ends with it. */
  durableObjectId(): string {
    return this.ctx.id.toString();
  }

  /** From now on the binding stores no object whose key ends so. */
  failPuts(keyEnd: string): void {
    this.#use.failingPuts = keyEnd;
  }

  /** Ends this run of the Durable Object, as the platform may at any moment. */
  restart(): void {
    this.ctx.abort("restarted by a test");
  }
}

/** What a bucket was called with, and which calls are to fail. */
interface BucketUse {
  keys: Set<string>;
  failingPuts: string | undefined;
}

function watched(bucket: R2Bucket, use: BucketUse): R2Bucket {
  return new Proxy(bucket, {
    get(target, name) {
      const member: unknown = Reflect.get(target, name);
      if (typeof member !== "function") return member;
      return async (...args: unknown[]) => {
        const keys = [args[0]].flat().filter((key) => typeof key === "string");
        for (const key of keys) use.keys.add(key);
        if (name === "put" && use.failingPuts !== undefined && keys[0]?.endsWith(use.failingPuts)) {
          throw new Error("put: We encountered an internal error. Please try again. (10001)");
        }
        return member.apply(target, args);
      };
    },
  });
}

export default {
  async fetch(request, env): Promise<Response> {
    const url = new URL(request.url);
    if (env.E2E_TOKEN && request.headers.get("authorization") !== `Bearer ${env.E2E_TOKEN}`) {
      return new Response("unauthorized", { status: 401 });
    }
    const key = url.searchParams.get("key") ?? "";
    switch (`${request.method} ${url.pathname}`) {
      case "POST /call":
        return Response.json(await perform(await request.json<Call>(), env));
      case "GET /objects":
        return Response.json(await listKeys(env.BACKUP_BUCKET, url.searchParams.get("prefix") ?? ""));
      case "GET /object": {
        const object = await env.BACKUP_BUCKET.get(key);
        return object ? new Response(object.body) : new Response("no such object", { status: 404 });
      }
      case "PUT /object": {
        const object = await env.BACKUP_BUCKET.put(key, request.body);
        return Response.json({ etag: object?.etag });
      }
      case "DELETE /object":
        await env.BACKUP_BUCKET.delete(key);
        return new Response(null, { status: 204 });
      case "GET /secrets":
        // For the test that searches for them where they must not be.
        return Response.json([env.R2_ACCESS_KEY_ID, env.R2_SECRET_ACCESS_KEY, env.SANDBOX_HOST_TOKEN]);
      default:
        return new Response("ok");
    }
  },
} satisfies ExportedHandler<Env>;

async function perform(call: Call, env: Env): Promise<Outcome> {
  const progress: BackupProgress[] = [];
  try {
    const client = call.faulty ? getSandbox(env.FaultySandbox, call.sandbox) : getSandbox(env.Sandbox, call.sandbox);
    const value = await Reflect.get(client, call.method)(...argumentsOf(call, progress));
    return { value, progress };
  } catch (error) {
    if (!(error instanceof Error))
      return { error: { name: typeof error, message: String(error), isSandboxError: false }, progress };
    const { name, message } = error;
    const fields = isSandboxError(error)
      ? { code: error.code, context: error.context, httpStatus: error.httpStatus }
      : {};
    return { error: { name, message, ...fields, isSandboxError: isSandboxError(error) }, progress };
  }
}

function argumentsOf({ args, optionsAt, abortAtPhase, abortAfter }: Call, progress: BackupProgress[]): unknown[] {
  if (optionsAt === undefined) return args;
  const controller = new AbortController();
  const abort = () => controller.abort(new Error("aborted by the test"));
  if (abortAfter !== undefined) setTimeout(abort, abortAfter);
  const onProgress = (report: BackupProgress) => {
    progress.push(report);
    if (report.phase === abortAtPhase) abort();
  };
  const filled = [...args];
  filled[optionsAt] = { ...(args[optionsAt] as object), onProgress, signal: controller.signal };
  return filled;
}

async function listKeys(bucket: R2Bucket, prefix: string): Promise<string[]> {
  const keys: string[] = [];
  let cursor: string | undefined;
  do {
    const page = await bucket.list({ prefix, ...(cursor === undefined ? {} : { cursor }) });
    keys.push(...page.objects.map((object) => object.key));
    cursor = page.truncated ? page.cursor : undefined;
  } while (cursor !== undefined);
  return keys;
}

import { getSandbox, Sandbox as PackageSandbox } from "sandbox-backup";
import type { Calls, StepResult } from "./calls.ts";
import { StoreBucket } from "./store-bucket.ts";

/** The Worker of the benchmark: it does what a request says, by the package's public API, and answers how long that took. */

interface Env {
  Sandbox: DurableObjectNamespace<Sandbox>;
  LocalSandbox: DurableObjectNamespace<LocalSandbox>;
  BACKUP_BUCKET: R2Bucket;
  BACKUP_BUCKET_ENDPOINT: string;
  BACKUP_BUCKET_NAME: string;
}

/** Longer than a run: a sandbox that waits for its turn keeps its data. */
const SLEEP_AFTER = "24h";

type StoreEnv = Omit<Env, "BACKUP_BUCKET"> & { BACKUP_BUCKET: StoreBucket };

/** Its bucket is the benchmark's store. A name `<layers>@…` says which layers its restored directories get. */
export class Sandbox extends PackageSandbox<StoreEnv> {
  override sleepAfter = SLEEP_AFTER;

  constructor(ctx: DurableObjectState, env: Env) {
    super(ctx, { ...env, BACKUP_BUCKET: new StoreBucket(env.BACKUP_BUCKET_ENDPOINT, env.BACKUP_BUCKET_NAME) });
    const layers = /^([\w-]+)@/.exec(ctx.id.name ?? "")?.[1];
    if (layers !== undefined) this.envVars = { SANDBOX_BACKUP_LAYERS: layers };
  }
}

/** Its bucket is the R2 binding. */
export class LocalSandbox extends PackageSandbox<Env> {
  override sleepAfter = SLEEP_AFTER;
}

export default {
  async fetch(request, env): Promise<Response> {
    const url = new URL(request.url);
    const key = url.searchParams.get("key") ?? "";
    try {
      switch (`${request.method} ${url.pathname}`) {
        case "POST /calls":
          return Response.json(await perform(await request.json<Calls>(), env));
        case "PUT /object":
          await env.BACKUP_BUCKET.put(key, request.body);
          return new Response(null, { status: 204 });
        case "GET /object":
          return new Response((await env.BACKUP_BUCKET.get(key))?.body ?? null);
        case "DELETE /object":
          await env.BACKUP_BUCKET.delete(key);
          return new Response(null, { status: 204 });
        default:
          return new Response("ready");
      }
    } catch (error) {
      return new Response(error instanceof Error ? `${error.name}: ${error.message}` : String(error), { status: 500 });
    }
  },
} satisfies ExportedHandler<Env>;

async function perform({ path, sandbox, steps }: Calls, env: Env): Promise<StepResult[]> {
  const client = path === "production" ? getSandbox(env.Sandbox, sandbox) : getSandbox(env.LocalSandbox, sandbox);
  const results: StepResult[] = [];
  for (const { method, args } of steps) {
    const start = Date.now();
    const value: unknown = await Reflect.get(client, method)(...args);
    results.push({ value: value ?? null, duration: Date.now() - start });
  }
  return results;
}

import { type BackupProgress, type DirectoryBackup, getSandbox, isSandboxError, Sandbox } from "sandbox-backup";

/**
 * Workspaces with checkpoints over HTTP. Every workspace is a sandbox, and the handles of its checkpoints are kept in KV.
 *
 *     POST   /:workspace/clone               { repoUrl }           check out a repository into /workspace
 *     POST   /:workspace/exec                { command, env? }     run a command there
 *     GET    /:workspace/files/:path                               read a file; PUT writes it
 *     GET    /:workspace/checkpoints/:name                         the handle; DELETE deletes the checkpoint
 *     POST   /:workspace/checkpoints/:name   { ttl?, localBucket? } take it
 *     POST   /:workspace/rollback            { checkpoint }        bring /workspace back as it was then
 *     POST   /:workspace/fork                { from, checkpoint }  start from a checkpoint of another workspace
 *     DELETE /:workspace                                           stop the sandbox; checkpoints stay
 *
 * A request with `Accept: text/event-stream` that takes or restores a checkpoint is told of progress while it runs.
 */

export { Sandbox };

interface Env {
  Sandbox: DurableObjectNamespace<Sandbox>;
  BACKUP_BUCKET: R2Bucket;
  KV: KVNamespace;
  /** Who knows it may run commands. */
  API_TOKEN: string;
}

const DIR = "/workspace";

export default {
  async fetch(request, env): Promise<Response> {
    if (!(await isAuthorized(request, env)))
      return failure(401, "UNAUTHORIZED", "Send the header: Authorization: Bearer …");
    try {
      return await route(request, env);
    } catch (error) {
      return errorResponse(error);
    }
  },
} satisfies ExportedHandler<Env>;

async function route(request: Request, env: Env): Promise<Response> {
  const [workspace = "", action = "", ...rest] = new URL(request.url).pathname
    .slice(1)
    .split("/")
    .map(decodeURIComponent);
  if (workspace === "") return failure(404, "NO_SUCH_ROUTE", "Name a workspace in the path");
  const sandbox = getSandbox(env.Sandbox, workspace);
  const checkpoint = rest.join("/");

  switch (`${request.method} /${action}`) {
    case "POST /clone": {
      const { repoUrl } = await request.json<{ repoUrl: string }>();
      return Response.json(await sandbox.gitCheckout(repoUrl, { targetDir: DIR }));
    }
    case "POST /exec": {
      const { command, env: variables } = await request.json<{ command: string; env?: Record<string, string> }>();
      return Response.json(await sandbox.exec(command, { cwd: DIR, env: variables, signal: request.signal }));
    }
    case "GET /files": {
      const file = await sandbox.readFile(`/${rest.join("/")}`, { encoding: "none" });
      return new Response(file.content, { headers: { "content-type": file.mimeType } });
    }
    case "PUT /files":
      return Response.json(await sandbox.writeFile(`/${rest.join("/")}`, request.body ?? ""));

    case "POST /checkpoints": {
      const { ttl, localBucket } = await request.json<{ ttl?: number; localBucket?: boolean }>();
      return withProgress(request, async (options) => {
        const backup = await sandbox.createBackup({ dir: DIR, name: checkpoint, ttl, localBucket, ...options });
        await env.KV.put(handleKey(workspace, checkpoint), JSON.stringify(backup));
        return backup;
      });
    }
    case "GET /checkpoints": {
      const backup = await findHandle(env, workspace, checkpoint);
      return backup ? Response.json(backup) : noCheckpoint(workspace, checkpoint);
    }
    case "DELETE /checkpoints": {
      const backup = await findHandle(env, workspace, checkpoint);
      if (!backup) return noCheckpoint(workspace, checkpoint);
      await env.BACKUP_BUCKET.delete([`backups/${backup.id}/data.sqsh`, `backups/${backup.id}/meta.json`]);
      await env.KV.delete(handleKey(workspace, checkpoint));
      return Response.json({ deleted: backup.id });
    }
    case "POST /rollback": {
      const { checkpoint } = await request.json<{ checkpoint: string }>();
      const backup = await findHandle(env, workspace, checkpoint);
      if (!backup) return noCheckpoint(workspace, checkpoint);
      return withProgress(request, (options) => sandbox.restoreBackup(backup, options));
    }
    case "POST /fork": {
      const { from, checkpoint } = await request.json<{ from: string; checkpoint: string }>();
      const backup = await findHandle(env, from, checkpoint);
      if (!backup) return noCheckpoint(from, checkpoint);
      return withProgress(request, async (options) => {
        const result = await sandbox.restoreBackup(backup, options);
        // So the fork can be rolled back to where it began.
        await env.KV.put(handleKey(workspace, checkpoint), JSON.stringify(backup));
        return result;
      });
    }
    case "DELETE /":
      await sandbox.destroy();
      return Response.json({ stopped: workspace });
    default:
      return failure(404, "NO_SUCH_ROUTE", `There is no ${request.method} /:workspace/${action}`);
  }
}

function handleKey(workspace: string, checkpoint: string): string {
  return `checkpoint:${workspace}/${checkpoint}`;
}

function findHandle(env: Env, workspace: string, checkpoint: string): Promise<DirectoryBackup | null> {
  return env.KV.get<DirectoryBackup>(handleKey(workspace, checkpoint), "json");
}

type ProgressOptions = { signal: AbortSignal; onProgress?: (progress: BackupProgress) => void };

/** Answers with the result as JSON or, where the client asked for it, with events `progress` and a last `result` or `error`. */
async function withProgress(request: Request, work: (options: ProgressOptions) => Promise<unknown>): Promise<Response> {
  const { signal } = request;
  if (request.headers.get("accept") !== "text/event-stream") return Response.json(await work({ signal }));
  const { readable, writable } = new TransformStream<Uint8Array, Uint8Array>();
  const writer = writable.getWriter();
  const encoder = new TextEncoder();
  const send = (event: string, data: unknown) =>
    writer.write(encoder.encode(`event: ${event}\ndata: ${JSON.stringify(data)}\n\n`));
  const onProgress = (progress: BackupProgress) => void send("progress", progress).catch(() => {});
  void work({ signal, onProgress })
    .then((result) => send("result", result))
    .catch(async (error: unknown) => send("error", await errorResponse(error).json()))
    .then(() => writer.close())
    .catch(() => {}); // The client has gone away.
  return new Response(readable, { headers: { "content-type": "text/event-stream" } });
}

/** What went wrong, by its code: the client can tell what it may do about it. */
function errorResponse(error: unknown): Response {
  if (error instanceof SyntaxError) return failure(400, "BAD_JSON", error.message);
  if (!isSandboxError(error)) {
    console.error(error);
    return failure(500, "INTERNAL_ERROR", "The request failed");
  }
  switch (error.code) {
    case "BACKUP_NOT_FOUND":
    case "BACKUP_EXPIRED":
      return failure(410, error.code, `The checkpoint can no longer be restored. ${error.message}`);
    case "BACKUP_CREATE_FAILED":
    case "BACKUP_RESTORE_FAILED":
      console.error(error);
      return failure(502, error.code, `${error.message}. The workspace is as it was.`);
    default:
      return failure(error.httpStatus, error.code, error.message);
  }
}

function noCheckpoint(workspace: string, checkpoint: string): Response {
  return failure(404, "NO_SUCH_CHECKPOINT", `The workspace ${workspace} has no checkpoint ${checkpoint}`);
}

function failure(status: number, code: string, message: string): Response {
  return Response.json({ error: { code, message } }, { status });
}

/** Compares digests: how long that takes tells nothing about the token. */
async function isAuthorized(request: Request, env: Env): Promise<boolean> {
  if (!env.API_TOKEN) return false;
  const digest = (text: string) => crypto.subtle.digest("SHA-256", new TextEncoder().encode(text));
  const [sent, expected] = [request.headers.get("authorization") ?? "", `Bearer ${env.API_TOKEN}`];
  return crypto.subtle.timingSafeEqual(await digest(sent), await digest(expected));
}

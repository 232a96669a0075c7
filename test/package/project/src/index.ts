import { type DirectoryBackup, getSandbox, isSandboxError, Sandbox as PackageSandbox } from "sandbox-backup";
import checkpointAndRollback from "./checkpoint-and-rollback.js";
import configureTtl from "./configure-ttl.js";
import copyOnWrite from "./copy-on-write.js";
import createABackup from "./create-a-backup.js";
import deleteABackupById from "./delete-a-backup-by-id.js";
import deleteOldBackups from "./delete-old-backups.js";
import excludeGitignoredFiles from "./exclude-gitignored-files.js";
import fixPermissionsAtRuntime from "./fix-permissions-at-runtime.js";
import handleErrors from "./handle-errors.js";
import insteadOfReinstalling from "./instead-of-reinstalling.js";
import localBucket from "./local-bucket.js";
import localBucketByVariable from "./local-bucket-by-variable.js";
import replaceTheLatestBackup from "./replace-the-latest-backup.js";
import restoreABackup from "./restore-a-backup.js";
import storeBackupHandles from "./store-backup-handles.js";
import type { Env, Surroundings } from "./surroundings.js";
import useNamedBackups from "./use-named-backups.js";

/** Runs the examples, and tells what there is afterwards. */

const examples: Record<string, (surroundings: Surroundings) => Promise<void>> = {
  "checkpoint-and-rollback": checkpointAndRollback,
  "configure-ttl": configureTtl,
  "copy-on-write": copyOnWrite,
  "create-a-backup": createABackup,
  "delete-a-backup-by-id": deleteABackupById,
  "delete-old-backups": deleteOldBackups,
  "exclude-gitignored-files": excludeGitignoredFiles,
  "fix-permissions-at-runtime": fixPermissionsAtRuntime,
  "handle-errors": handleErrors,
  "instead-of-reinstalling": insteadOfReinstalling,
  "local-bucket": localBucket,
  "local-bucket-by-variable": localBucketByVariable,
  "replace-the-latest-backup": replaceTheLatestBackup,
  "restore-a-backup": restoreABackup,
  "store-backup-handles": storeBackupHandles,
  "use-named-backups": useNamedBackups,
};

export class Sandbox extends PackageSandbox<Env> {
  // The examples' npm commands are to fail, and without asking anybody.
  envVars = { npm_config_offline: "true" };
}

export default {
  async fetch(request, env): Promise<Response> {
    const sandbox = getSandbox(env.Sandbox, "my-sandbox");
    const url = new URL(request.url);
    switch (url.pathname) {
      case "/exec":
        return Response.json(await sandbox.exec(await request.text()));
      case "/objects":
        return Response.json((await env.BACKUP_BUCKET.list()).objects.map(({ key }) => key));
      case "/object":
        return new Response((await env.BACKUP_BUCKET.get(url.searchParams.get("key") ?? ""))?.body ?? null);
      case "/kv":
        return new Response(await env.KV.get(url.searchParams.get("key") ?? ""));
      case "/backup":
        return Response.json(await sandbox.createBackup({ dir: "/workspace" }));
      case "/restore":
        return Response.json(await sandbox.restoreBackup(await request.json<DirectoryBackup>()));
      case "/run": {
        const { name, backup } = await request.json<{ name: string; backup: DirectoryBackup }>();
        const example = examples[name];
        if (example === undefined) return Response.json({ error: `no example ${name}` });
        return Response.json(
          await withConsole(() =>
            example({ env, sandbox, backup, userId: "u1", previousBackup: backup, endUserRepo: "/tmp/repository" }),
          ),
        );
      }
      default:
        return new Response("ready");
    }
  },
} satisfies ExportedHandler<Env>;

/** Does the work and gives what it wrote to the console, and how it failed. */
async function withConsole(work: () => Promise<void>): Promise<{ lines: string[]; error?: string }> {
  const { log, error } = console;
  const lines: string[] = [];
  console.log = console.error = (...words: unknown[]) => void lines.push(words.join(" "));
  try {
    await work();
    return { lines };
  } catch (failure) {
    return { lines, error: isSandboxError(failure) ? `${failure.code} ${failure.message}` : String(failure) };
  } finally {
    console.log = log;
    console.error = error;
  }
}

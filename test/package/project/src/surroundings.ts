import type { DirectoryBackup, Sandbox, SandboxClient } from "sandbox-backup";

/** What the documentation's examples use and do not declare. */
export interface Surroundings {
  env: Env;
  sandbox: SandboxClient;
  backup: DirectoryBackup;
  userId: string;
  previousBackup: DirectoryBackup | undefined;
  endUserRepo: string;
}

export interface Env {
  Sandbox: DurableObjectNamespace<Sandbox>;
  BACKUP_BUCKET: R2Bucket;
  KV: KVNamespace;
  LOCAL_DEV?: string;
}

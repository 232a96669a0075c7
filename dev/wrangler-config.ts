import { randomBytes } from "node:crypto";
import type { Unstable_Config as Config, Unstable_RawConfig as RawConfig } from "wrangler";
import { HOST_TOKEN_VAR, HOST_URL_VAR } from "../src/protocol.js";

/**
 * What `sandbox-backup dev` changes in the configuration that a Worker is developed with. The user's own file stays as it
 * is, and what he set himself wins.
 */

/** The R2 binding that holds the backups. */
export const BUCKET_BINDING = "BACKUP_BUCKET";

/** Where wrangler serves the local buckets over S3. */
const LOCAL_S3_PATH = "/cdn-cgi/local/r2/s3";

/** Keys of the local S3 endpoint. */
export interface S3Credentials {
  accessKeyId: string;
  secretAccessKey: string;
}

/** Keys that are good for one run of `sandbox-backup dev`. */
export function newS3Credentials(): S3Credentials {
  return { accessKeyId: randomBytes(16).toString("hex"), secretAccessKey: randomBytes(32).toString("hex") };
}

export interface DevelopmentSetup {
  /** The user's configuration as it is written, all environments. */
  raw: RawConfig;
  /** The same as wrangler reads it for the environment that was chosen. */
  config: Config;
  /** The variables that the Worker has by the user's own settings: configuration, `.dev.vars`, `.env`, `--var`. */
  userVars: Record<string, unknown>;
  /** True when bindings marked `remote` are served locally all the same (`--local`). */
  allLocal: boolean;
  /** Where `wrangler dev` listens: `http://127.0.0.1:8787`. */
  origin: string;
  /** The development host. */
  host: { url: string; token: string };
  /** For the local S3 endpoint, where the user chose none. */
  credentials: S3Credentials;
}

export interface DerivedConfig {
  /** To be written as JSON beside the user's file, so that its relative paths mean the same. */
  raw: RawConfig;
  /** To be given to the Worker besides its own. Holds secrets. */
  vars: Record<string, string>;
  /** The local bucket and where it is served; undefined when backups go where the user's settings say. */
  bucket: { name: string; endpoint: string } | undefined;
}

/** Derives the configuration for development. Touches nothing. */
export function deriveConfig(setup: DevelopmentSetup): DerivedConfig {
  const { userVars } = setup;
  const raw = structuredClone(setup.raw);
  // The sandboxes run in bubblewrap, so wrangler has no images to build and needs no container engine.
  raw.dev = { ...raw.dev, enable_containers: false };

  const vars: Record<string, string> = {};
  if (userVars[HOST_URL_VAR] === undefined) {
    vars[HOST_URL_VAR] = setup.host.url;
    vars[HOST_TOKEN_VAR] = setup.host.token;
  }
  const bucket = localBucket(setup);
  if (bucket !== undefined) {
    const credentials = bucket.credentials ?? {
      accessKeyId: stringOr(userVars.R2_ACCESS_KEY_ID, setup.credentials.accessKeyId),
      secretAccessKey: stringOr(userVars.R2_SECRET_ACCESS_KEY, setup.credentials.secretAccessKey),
    };
    for (const binding of bucketBindings(raw)) {
      binding.local_dev = { ...binding.local_dev, experimental_s3_credentials: credentials };
    }
    vars.BACKUP_BUCKET_ENDPOINT = bucket.endpoint;
    // Where the endpoint is ours the name is too: the user's own may be that of the bucket in production.
    vars.BACKUP_BUCKET_NAME = bucket.name;
    if (userVars.R2_ACCESS_KEY_ID === undefined) vars.R2_ACCESS_KEY_ID = credentials.accessKeyId;
    if (userVars.R2_SECRET_ACCESS_KEY === undefined) vars.R2_SECRET_ACCESS_KEY = credentials.secretAccessKey;
  }

  // wrangler warns of required secrets that no file of the user's has; these the Worker gets another way.
  for (const { secrets } of scopes(raw)) {
    if (secrets?.required !== undefined) secrets.required = secrets.required.filter((name) => !(name in vars));
  }
  return { raw, vars, bucket: bucket && { name: bucket.name, endpoint: bucket.endpoint } };
}

/** True when the environment that was chosen has the binding that backups need. */
export function hasBucketBinding(config: Config): boolean {
  return config.r2_buckets.some(({ binding }) => binding === BUCKET_BINDING);
}

/** The bucket as wrangler serves it locally; undefined when the user chose another place for his backups. */
function localBucket({ config, userVars, allLocal, origin }: DevelopmentSetup) {
  const binding = config.r2_buckets.find(({ binding }) => binding === BUCKET_BINDING);
  if (binding === undefined || userVars.BACKUP_BUCKET_ENDPOINT !== undefined) return undefined;
  if (binding.remote && !allLocal) return undefined;
  return {
    // The name by which wrangler stores and serves it.
    name:
      binding.preview_bucket_name ?? (typeof binding.bucket_name === "string" ? binding.bucket_name : BUCKET_BINDING),
    endpoint: `${origin}${LOCAL_S3_PATH}`,
    credentials: binding.local_dev?.experimental_s3_credentials,
  };
}

/** The top level of a configuration and its environments: none of them inherits bindings or secrets. */
function scopes(raw: RawConfig) {
  return [raw, ...Object.values(raw.env ?? {})];
}

function bucketBindings(raw: RawConfig) {
  return scopes(raw)
    .flatMap(({ r2_buckets }) => r2_buckets ?? [])
    .filter(({ binding }) => binding === BUCKET_BINDING);
}

function stringOr(value: unknown, otherwise: string): string {
  return typeof value === "string" && value !== "" ? value : otherwise;
}

import { z } from "zod";
import { InvalidBackupConfigError } from "../errors.js";

/** The Worker's bindings and variables that backups need. */

/** What the production path signs URLs with. */
export interface PresignSettings {
  /** Where the S3 API is; without a slash at the end. */
  endpoint: string;
  bucketName: string;
  accessKeyId: string;
  secretAccessKey: string;
}

const LOOPBACK = new Set(["localhost", "127.0.0.1", "[::1]"]);

const isBucket = (value: unknown): value is R2Bucket =>
  typeof value === "object" && value !== null && "head" in value && "put" in value && "createMultipartUpload" in value;

const bucketSchema = z.custom<R2Bucket>(isBucket);
const envSchema = z.record(z.string(), z.unknown());

/**
 * The bucket that backups are in.
 * @throws {InvalidBackupConfigError} when the Worker has no R2 binding `BACKUP_BUCKET`
 */
export function backupBucket(env: unknown): R2Bucket {
  const bucket = bucketSchema.safeParse(envSchema.safeParse(env).data?.BACKUP_BUCKET);
  if (bucket.success) return bucket.data;
  throw new InvalidBackupConfigError(
    'The R2 binding BACKUP_BUCKET is missing. Add { "binding": "BACKUP_BUCKET", "bucket_name": "…" } to `r2_buckets` of the Wrangler configuration.',
  );
}

/**
 * Where and with which credentials URLs are signed.
 * @throws {InvalidBackupConfigError} that names every variable that is missing, or the endpoint when that is wrong
 */
export function presignSettings(env: unknown): PresignSettings {
  const variables = envSchema.parse(env);
  const missing: string[] = [];
  const read = (name: string) => {
    const value = variables[name];
    if (typeof value === "string" && value !== "") return value;
    missing.push(name);
    return "";
  };
  const configured = variables.BACKUP_BUCKET_ENDPOINT;
  const bucketName = read("BACKUP_BUCKET_NAME");
  const endpoint =
    typeof configured === "string" && configured !== ""
      ? checkEndpoint(configured)
      : `https://${read("CLOUDFLARE_ACCOUNT_ID")}.r2.cloudflarestorage.com`;
  const accessKeyId = read("R2_ACCESS_KEY_ID");
  const secretAccessKey = read("R2_SECRET_ACCESS_KEY");
  if (missing.length === 0) return { endpoint, bucketName, accessKeyId, secretAccessKey };
  const [subject, verb] = missing.length === 1 ? ["The setting", "is"] : ["The settings", "are"];
  throw new InvalidBackupConfigError(
    `${subject} ${missing.join(", ")} ${verb} missing, which presigned URLs need. Set them as variables and secrets of the Worker, run \`sandbox-backup dev\` for local development, or pass \`localBucket: true\`.`,
  );
}

function checkEndpoint(endpoint: string): string {
  const refuse = (why: string): never => {
    throw new InvalidBackupConfigError(`BACKUP_BUCKET_ENDPOINT ${why}`);
  };
  const url = URL.canParse(endpoint)
    ? new URL(endpoint)
    : refuse("is not a URL: https://<account>.r2.cloudflarestorage.com");
  if (url.username !== "" || url.password !== "") refuse("must not hold credentials");
  if (url.search !== "" || url.hash !== "") refuse("must not have a query or a fragment");
  if (url.protocol !== "https:" && url.protocol !== "http:") refuse("has to be an https: URL");
  if (!LOOPBACK.has(url.hostname)) {
    if (url.protocol === "http:") refuse("has to be an https: URL; http: is for loopback addresses only");
    if (url.pathname !== "/") refuse("must not have a path; that is for loopback addresses only");
  }
  return `${url.origin}${url.pathname}`.replace(/\/+$/, "");
}

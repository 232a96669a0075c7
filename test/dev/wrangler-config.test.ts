import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { Problem } from "../../dev/problem.js";
import { findWrangler, readUserConfig } from "../../dev/wrangler.js";
import { deriveConfig } from "../../dev/wrangler-config.js";
import { readWranglerFlags } from "../../dev/wrangler-flags.js";

const wrangler = await findWrangler(import.meta.dirname);
const host = { url: "http://127.0.0.1:1", token: "token" };
const credentials = { accessKeyId: "new-id", secretAccessKey: "new-secret" };
const HOST_VARS = { SANDBOX_HOST_URL: host.url, SANDBOX_HOST_TOKEN: host.token };
const LOCAL_BUCKET = {
  BACKUP_BUCKET_ENDPOINT: "http://127.0.0.1:8787/cdn-cgi/local/r2/s3",
  BACKUP_BUCKET_NAME: "backups",
};
const LOCAL_KEYS = { R2_ACCESS_KEY_ID: "new-id", R2_SECRET_ACCESS_KEY: "new-secret" };

let directory: string;
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "wrangler-config-"));
});
afterEach(() => rmSync(directory, { recursive: true }));

function write(name: string, content: unknown): void {
  writeFileSync(join(directory, name), typeof content === "string" ? content : JSON.stringify(content));
}
/** Derives from the files in `directory`, as `sandbox-backup dev <args>` in it does. */
function derive(file = "wrangler.jsonc", args: string[] = []) {
  const flags = readWranglerFlags(["--config", join(directory, file), ...args]);
  const user = readUserConfig(wrangler, flags);
  return deriveConfig({
    ...user,
    userVars: user.vars,
    allLocal: flags.local,
    origin: "http://127.0.0.1:8787",
    host,
    credentials,
  });
}
const BUCKET = { binding: "BACKUP_BUCKET", bucket_name: "backups" };
const BASE = { name: "worker", main: "index.js", compatibility_date: "2026-11-01", r2_buckets: [BUCKET] };
const withKeys = (bucket: object, accessKeyId = "new-id", secretAccessKey = "new-secret") => ({
  ...bucket,
  local_dev: { experimental_s3_credentials: { accessKeyId, secretAccessKey } },
});

test("a configuration without settings gets the local bucket, keys for it, and the host", () => {
  write("wrangler.jsonc", `// a comment\n${JSON.stringify(BASE)}`);
  const derived = derive();
  expect(derived.vars).toEqual({ ...HOST_VARS, ...LOCAL_BUCKET, ...LOCAL_KEYS });
  expect(derived.raw).toEqual({ ...BASE, r2_buckets: [withKeys(BUCKET)], dev: { enable_containers: false } });
  expect(derived.bucket).toEqual({ name: "backups", endpoint: LOCAL_BUCKET.BACKUP_BUCKET_ENDPOINT });
});

test("a TOML configuration is derived from in the same way", () => {
  write(
    "wrangler.toml",
    `name = "worker"
main = "index.js"
compatibility_date = "2026-11-01"
r2_buckets = [{ binding = "BACKUP_BUCKET", bucket_name = "backups" }]
[dev]
port = 9000`,
  );
  const derived = derive("wrangler.toml");
  expect(derived.vars).toEqual({ ...HOST_VARS, ...LOCAL_BUCKET, ...LOCAL_KEYS });
  expect(derived.raw).toEqual({
    ...BASE,
    r2_buckets: [withKeys(BUCKET)],
    dev: { port: 9000, enable_containers: false },
  });
});

test("the user's files stay as they are and nothing is written beside them", () => {
  const text = `{ // mine\n "name": "worker", "compatibility_date": "2026-11-01",\n "r2_buckets": [${JSON.stringify(BUCKET)}], }`;
  write("wrangler.jsonc", text);
  derive();
  expect(readFileSync(join(directory, "wrangler.jsonc"), "utf8")).toBe(text);
  expect(readdirSync(directory)).toEqual(["wrangler.jsonc"]);
});

test("an environment has its own bucket, and the keys are added wherever the binding stands", () => {
  const staging = { binding: "BACKUP_BUCKET", bucket_name: "staging" };
  write("wrangler.jsonc", { ...BASE, env: { staging: { r2_buckets: [staging] } } });
  const derived = derive("wrangler.jsonc", ["--env", "staging"]);
  expect(derived.vars.BACKUP_BUCKET_NAME).toBe("staging");
  expect(derived.raw.r2_buckets).toEqual([withKeys(BUCKET)]);
  expect(derived.raw.env?.staging?.r2_buckets).toEqual([withKeys(staging)]);
});

test("other buckets get no keys", () => {
  const other = { binding: "OTHER", bucket_name: "other" };
  write("wrangler.jsonc", { ...BASE, r2_buckets: [other, BUCKET] });
  expect(derive().raw.r2_buckets).toEqual([other, withKeys(BUCKET)]);
});

test("the bucket's name is the one that wrangler serves locally, whatever the bucket in production is called", () => {
  const bucket = { ...BUCKET, preview_bucket_name: "preview" };
  write("wrangler.jsonc", { ...BASE, r2_buckets: [bucket], vars: { BACKUP_BUCKET_NAME: "production" } });
  expect(derive().vars.BACKUP_BUCKET_NAME).toBe("preview");
  write("wrangler.jsonc", { ...BASE, r2_buckets: [{ binding: "BACKUP_BUCKET" }] });
  expect(derive().vars.BACKUP_BUCKET_NAME).toBe("BACKUP_BUCKET");
});

test.each(["vars", ".dev.vars", ".env", "--env-file", "--var"])(
  "an endpoint of the user's, in %s, keeps his bucket and his keys",
  (place) => {
    const [name, value] = ["BACKUP_BUCKET_ENDPOINT", "https://elsewhere.example"];
    write("wrangler.jsonc", place === "vars" ? { ...BASE, vars: { [name]: value } } : BASE);
    if (place.startsWith(".")) write(place, `${name}=${value}`);
    if (place === "--env-file") write("my.env", `${name}=${value}`);
    const args = { "--env-file": [place, join(directory, "my.env")], "--var": [place, `${name}:${value}`] }[place];
    const derived = derive("wrangler.jsonc", args);
    expect(derived.vars).toEqual(HOST_VARS);
    expect(derived.raw.r2_buckets).toEqual([BUCKET]);
    expect(derived.bucket).toBeUndefined();
  },
);

test("keys of the user's without an endpoint become those of the local bucket", () => {
  write("wrangler.jsonc", BASE);
  write(".dev.vars", "R2_ACCESS_KEY_ID=mine\nR2_SECRET_ACCESS_KEY=my-secret");
  const derived = derive();
  expect(derived.vars).toEqual({ ...HOST_VARS, ...LOCAL_BUCKET });
  expect(derived.raw.r2_buckets).toEqual([withKeys(BUCKET, "mine", "my-secret")]);
});

test("one key of the user's is completed by a new one", () => {
  write("wrangler.jsonc", { ...BASE, vars: { R2_ACCESS_KEY_ID: "mine" } });
  const derived = derive();
  expect(derived.vars).toEqual({ ...HOST_VARS, ...LOCAL_BUCKET, R2_SECRET_ACCESS_KEY: "new-secret" });
  expect(derived.raw.r2_buckets).toEqual([withKeys(BUCKET, "mine")]);
});

test("keys that the user gave the local bucket are the Worker's too", () => {
  write("wrangler.jsonc", { ...BASE, r2_buckets: [withKeys(BUCKET, "theirs", "their-secret")] });
  const derived = derive();
  expect(derived.vars).toMatchObject({ R2_ACCESS_KEY_ID: "theirs", R2_SECRET_ACCESS_KEY: "their-secret" });
  expect(derived.raw.r2_buckets).toEqual([withKeys(BUCKET, "theirs", "their-secret")]);
});

test("a bucket marked remote stays remote, unless all bindings are local", () => {
  write("wrangler.jsonc", { ...BASE, r2_buckets: [{ ...BUCKET, remote: true }] });
  expect(derive().vars).toEqual(HOST_VARS);
  expect(derive("wrangler.jsonc", ["--local"]).vars).toEqual({ ...HOST_VARS, ...LOCAL_BUCKET, ...LOCAL_KEYS });
});

test("the variables that count are those of the file that wrangler loads", () => {
  write("wrangler.jsonc", { ...BASE, env: { staging: { r2_buckets: [BUCKET] } } });
  write(".env", "R2_ACCESS_KEY_ID=from-env-file");
  expect(derive().vars.R2_ACCESS_KEY_ID).toBeUndefined();
  write(".dev.vars", "OTHER=1");
  expect(derive().vars.R2_ACCESS_KEY_ID).toBe("new-id");
  write(".dev.vars.staging", "R2_ACCESS_KEY_ID=from-staging");
  expect(derive("wrangler.jsonc", ["-e", "staging"]).vars.R2_ACCESS_KEY_ID).toBeUndefined();
  expect(derive().vars.R2_ACCESS_KEY_ID).toBe("new-id");
});

test("a host that the user named keeps its token", () => {
  write("wrangler.jsonc", { ...BASE, vars: { SANDBOX_HOST_URL: "http://127.0.0.1:2" } });
  expect(derive().vars).toEqual({ ...LOCAL_BUCKET, ...LOCAL_KEYS });
});

test("required secrets that the Worker gets here are not asked of the user's files", () => {
  write("wrangler.jsonc", { ...BASE, secrets: { required: ["R2_ACCESS_KEY_ID", "R2_SECRET_ACCESS_KEY", "OTHER"] } });
  expect(derive().raw.secrets).toEqual({ required: ["OTHER"] });
});

test("without the binding there is no bucket", () => {
  write("wrangler.jsonc", { ...BASE, r2_buckets: [] });
  expect(derive()).toMatchObject({ vars: HOST_VARS, bucket: undefined });
});

test("a configuration that cannot be read is a problem that says where", () => {
  write("wrangler.jsonc", `{ "name": `);
  expect(() => derive()).toThrow(Problem);
  expect(() => derive()).toThrow(/wrangler\.jsonc:1: /);
});

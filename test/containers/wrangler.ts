import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { open, readFile, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { dirname, join, resolve } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import type { Unstable_RawConfig } from "wrangler";
import type { S3Credentials } from "../../dev/wrangler-config.js";
import type { CleanUp } from "./clean-up.js";

/** The first start builds the image. */
const START_TIMEOUT = 300_000;

/** Where wrangler serves its buckets. */
export const S3_PATH = "/cdn-cgi/local/r2/s3";

export interface WranglerOptions {
  /** Path of the Worker's configuration: JSON without comments. */
  config: string;
  /** Gets the derived configuration and what wrangler stores. */
  directory: string;
  /** On 127.0.0.1. */
  port: number;
  /** Gets what wrangler writes. */
  logFile: string;
  /** Of the S3 endpoint. */
  credentials: S3Credentials;
  /** More variables of the Worker. */
  vars: Record<string, string>;
  env: Record<string, string>;
}

/** Plain `wrangler dev` with its bucket served over S3. Resolves when the Worker answers. */
export async function startWrangler(options: WranglerOptions, cleanUp: CleanUp): Promise<void> {
  const { directory, port, logFile, credentials } = options;
  const config = join(directory, "wrangler.json");
  await writeFile(config, JSON.stringify(await deriveConfig(options)), { mode: 0o600 });
  const url = `http://127.0.0.1:${port}`;
  const vars = {
    BACKUP_BUCKET_ENDPOINT: url + S3_PATH,
    R2_ACCESS_KEY_ID: credentials.accessKeyId,
    R2_SECRET_ACCESS_KEY: credentials.secretAccessKey,
    ...options.vars,
  };
  const flags = [
    ...["--config", config, "--ip", "127.0.0.1", "--port", String(port), "--inspector-port", "0"],
    ...["--persist-to", join(directory, "state")],
    ...Object.entries(vars).flatMap(([name, value]) => ["--var", `${name}:${value}`]),
  ];
  const log = await open(logFile, "a");
  const cli = createRequire(import.meta.url).resolve("wrangler");
  const wrangler = spawn(process.execPath, ["--no-warnings", cli, "dev", ...flags], {
    stdio: ["ignore", log.fd, log.fd],
    env: { ...process.env, ...options.env },
  });
  cleanUp.add(() => end(wrangler));
  await log.close();
  await waitUntilReady(url, wrangler, logFile);
}

/** The images that wrangler has built, by its own words. */
export async function builtImages(logFile: string): Promise<string[]> {
  const log = await readFile(logFile, "utf8");
  return [...new Set(log.match(/cloudflare-dev\/[\w.-]+:\w+/g) ?? [])];
}

async function deriveConfig({ config, credentials }: WranglerOptions): Promise<Unstable_RawConfig> {
  const raw = JSON.parse(await readFile(config, "utf8")) as Unstable_RawConfig;
  const absolute = (path: string | undefined) => resolve(dirname(config), path ?? "");
  return {
    ...raw,
    main: absolute(raw.main),
    containers: (raw.containers ?? []).map((container) => ({ ...container, image: absolute(container.image) })),
    r2_buckets: (raw.r2_buckets ?? []).map((bucket) => ({
      ...bucket,
      local_dev: { experimental_s3_credentials: credentials },
    })),
  };
}

async function waitUntilReady(url: string, wrangler: ChildProcess, logFile: string): Promise<void> {
  const deadline = Date.now() + START_TIMEOUT;
  const answers = () =>
    fetch(url).then(
      () => true,
      () => false,
    );
  while (!(await answers())) {
    if (wrangler.exitCode !== null || wrangler.signalCode !== null || Date.now() > deadline)
      throw new Error(`wrangler dev did not start:\n${await readFile(logFile, "utf8")}`);
    await delay(100);
  }
}

async function end(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  child.kill("SIGTERM");
  await once(child, "exit");
}

import { spawnSync } from "node:child_process";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { build } from "tsup";

/**
 * Bundles the example Worker and the test Worker as a deploy would, without one, and says how large they are. Fails when one cannot be
 * deployed, or when the Worker's part of this package has grown too large.
 */

const ROOT = new URL("../../", import.meta.url).pathname;
const WORKERS = ["wrangler.jsonc", "test/e2e/worker/wrangler.jsonc"];

/** All that the package exports, minified, with its dependencies. In bytes. */
const LARGEST = 150 * 1024;

function bundleWorker(config: string): void {
  const args = ["deploy", "--dry-run", "--containers-rollout=none", "--config", join(ROOT, config)];
  const { status, stdout, stderr } = spawnSync("wrangler", args, { encoding: "utf8" });
  const size = /Total Upload: (.*)/.exec(stdout)?.[1];
  if (status !== 0 || size === undefined) throw new Error(`wrangler ${args.join(" ")} failed:\n${stdout}${stderr}`);
  console.log(`${config}: ${size}`);
}

async function bundlePackage(): Promise<void> {
  const outDir = await mkdtemp(join(tmpdir(), "bundle-"));
  try {
    await build({
      entry: { index: join(ROOT, "dist/index.js") },
      outDir,
      config: false,
      silent: true,
      format: "esm",
      target: "es2022",
      minify: true,
      noExternal: [/^(?!cloudflare:)/],
      external: ["cloudflare:workers"],
    });
    const bundle = await readFile(join(outDir, "index.js"));
    const kib = (bytes: number) => `${(bytes / 1024).toFixed(1)} KiB`;
    const size = `${kib(bundle.length)} / gzip: ${kib(gzipSync(bundle).length)}`;
    console.log(`the package's part of a Worker, minified, with zod and aws4fetch: ${size}`);
    if (bundle.length > LARGEST) throw new Error(`That is more than ${kib(LARGEST)}.`);
  } finally {
    await rm(outDir, { recursive: true, force: true });
  }
}

for (const config of WORKERS) bundleWorker(config);
await bundlePackage();

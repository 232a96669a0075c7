import { readFile } from "node:fs/promises";
import { defineConfig, type Options } from "tsup";

/**
 * The object `z` holds all of zod, its translations too, and no bundler can take it apart; of a namespace
 * import it keeps what is used. That makes the agent a third as large, and every Worker that uses the package smaller.
 */
const zodNamespace: NonNullable<Options["esbuildPlugins"]>[number] = {
  name: "zod-namespace",
  setup(build) {
    build.onLoad({ filter: /\/(src|container)\/.*\.ts$/ }, async ({ path }) => ({
      loader: "ts",
      contents: (await readFile(path, "utf8")).replace('import { z } from "zod"', 'import * as z from "zod"'),
    }));
  },
};

export default defineConfig([
  {
    // The Worker's side. zod and aws4fetch stay imports, so that a Worker that has them too bundles one copy.
    entry: { index: "src/index.ts" },
    outDir: "dist",
    format: "esm",
    target: "es2022",
    dts: true,
    external: ["cloudflare:workers"],
    esbuildPlugins: [zodNamespace],
  },
  {
    // The agent: one file that needs nothing but Node 20 or later in the image.
    entry: { agent: "container/main.ts" },
    splitting: false,
    outDir: "dist",
    format: "esm",
    target: "node20",
    platform: "node",
    noExternal: [/.*/],
    esbuildPlugins: [zodNamespace],
    banner: { js: "#!/usr/bin/env node" },
  },
  {
    entry: { cli: "dev/cli.ts" },
    outDir: "dist",
    format: "esm",
    target: "node20",
    platform: "node",
    banner: { js: "#!/usr/bin/env node" },
  },
]);

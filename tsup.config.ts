import { defineConfig } from "tsup";

export default defineConfig([
  {
    // The Worker's side. zod and aws4fetch stay imports, so that a Worker that has them too bundles one copy.
    entry: { index: "src/index.ts" },
    outDir: "dist",
    format: "esm",
    target: "es2022",
    dts: true,
    external: ["cloudflare:workers"],
  },
  {
    // The agent: one file that needs nothing but Node 20 or later in the image.
    entry: { agent: "container/main.ts" },
    outDir: "dist",
    format: "esm",
    target: "node20",
    platform: "node",
    noExternal: [/.*/],
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

import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { build } from "tsup";
import { afterAll, beforeAll } from "vitest";
import { temporaryDirectory } from "./support.js";

/** Has the agent be built for a file's tests as it runs in a container: one file, whose path this gives. */
export async function buildAgent(): Promise<string> {
  const directory = await temporaryDirectory();
  beforeAll(async () => {
    await writeFile(join(directory.path, "package.json"), '{ "type": "module" }');
    await build({
      config: false,
      entry: { agent: join(import.meta.dirname, "../../container/main.ts") },
      outDir: directory.path,
      format: "esm",
      target: "node20",
      platform: "node",
      noExternal: [/.*/],
      splitting: false,
      silent: true,
    });
  });
  afterAll(() => directory[Symbol.asyncDispose]());
  return join(directory.path, "agent.js");
}

import { createHash } from "node:crypto";
import { cp, mkdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { homedir } from "node:os";
import { dirname, join } from "node:path";
import { exists, run } from "../run.ts";
import { miniatureSources, projectSources } from "./node-app/sources.ts";

/** The real project among the data sets: its dependencies come from the npm registry, once. */

const MANIFEST = new URL("./node-app/package.json", import.meta.url).pathname;
const TYPESCRIPT = new URL("../../node_modules/typescript", import.meta.url).pathname;

/** Builds the project, in its directory. */
export const NODE_APP_JOB = "node node_modules/vite/bin/vite.js build --logLevel error";
export const MINIATURE_JOB = "node node_modules/typescript/bin/tsc --noEmit -p .";

/** Copies the project, which is installed first where it is not yet. */
export async function fillNodeApp(directory: string): Promise<void> {
  await run("cp", ["-a", `${await installed()}/.`, directory]);
  await writeSources(directory, projectSources());
}

/** A small project, with the one package that its job needs. */
export async function fillMiniature(directory: string): Promise<void> {
  await writeSources(directory, miniatureSources());
  await cp(TYPESCRIPT, join(directory, "node_modules/typescript"), { recursive: true, dereference: true });
}

/** The directory of the user's cache that holds the project with its dependencies. */
async function installed(): Promise<string> {
  const manifest = await readFile(MANIFEST, "utf8");
  const version = createHash("sha256").update(manifest).digest("hex").slice(0, 12);
  const cache = join(process.env.XDG_CACHE_HOME || join(homedir(), ".cache"), "sandbox-backup/bench");
  const project = join(cache, `node-app-${version}`);
  if (await exists(project)) return project;
  const unfinished = `${project}.${process.pid}`;
  await rm(unfinished, { recursive: true, force: true });
  await mkdir(unfinished, { recursive: true });
  await writeFile(join(unfinished, "package.json"), manifest);
  const options = ["--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock"];
  await run("npm", ["install", ...options], { cwd: unfinished });
  await rename(unfinished, project);
  return project;
}

async function writeSources(directory: string, sources: ReadonlyMap<string, string>): Promise<void> {
  for (const [path, text] of sources) {
    await mkdir(dirname(join(directory, path)), { recursive: true });
    await writeFile(join(directory, path), text);
  }
}

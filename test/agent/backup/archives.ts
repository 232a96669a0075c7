import { execFileSync } from "node:child_process";
import { mkdirSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type ArchiveOptions, makeArchive } from "../../../container/backup/archive.js";
import { type ExcludeOptions, writeExcludeFile } from "../../../container/backup/exclude.js";
import { temporaryDirectory } from "../support.js";

export const NEVER = new AbortController().signal;

const SUPPORT = join(import.meta.dirname, "../../support");

/** Makes files of these paths, with their directories; a path that ends with a slash is an empty directory. */
export function makeFiles(dir: string, paths: readonly string[]): void {
  const made = new Set<string>();
  for (const path of paths) {
    const parent = path.slice(0, path.lastIndexOf("/") + 1);
    if (!made.has(parent)) mkdirSync(pathOf(dir, parent), { recursive: true });
    made.add(parent);
    if (!path.endsWith("/")) writeFileSync(pathOf(dir, path), path, "latin1");
  }
}

/** The bytes of a path, whose characters below `dir` stand for one byte each. */
export function pathOf(dir: string, path: string): Buffer {
  return Buffer.concat([Buffer.from(`${dir}/`), Buffer.from(path, "latin1")]);
}

/** Paths of everything below a directory, one character a byte; directories end with a slash. */
export function listTree(dir: string | Buffer): string[] {
  const root = Buffer.from(dir);
  const found: string[] = [];
  const visit = (parent: Buffer) => {
    for (const entry of readdirSync(Buffer.concat([root, parent]), { withFileTypes: true, encoding: "buffer" })) {
      const path = Buffer.concat([parent, Buffer.from("/"), entry.name]);
      found.push(path.subarray(1).toString("latin1") + (entry.isDirectory() ? "/" : ""));
      if (entry.isDirectory()) visit(path);
    }
  };
  visit(Buffer.alloc(0));
  return found.sort();
}

/** Archives a directory as the agent does. */
export async function archive(
  dir: string,
  file: string,
  excludes: Partial<ExcludeOptions> = {},
  options: Partial<ArchiveOptions> = {},
): Promise<number> {
  const excludeFile = `${file}.exclude`;
  const written = await writeExcludeFile(excludeFile, {
    dir,
    gitignore: false,
    excludes: [],
    paths: [],
    signal: NEVER,
    ...excludes,
  });
  return makeArchive({
    dir,
    file,
    excludeFile: written ? excludeFile : undefined,
    compression: { format: "zstd", level: 1 },
    signal: NEVER,
    onProgress: () => {},
    ...options,
  });
}

/** The paths that an archive of a directory holds, as `listTree` gives them. */
export async function archivedPaths(dir: string, excludes: Partial<ExcludeOptions>): Promise<string[]> {
  await using scratch = await temporaryDirectory();
  const file = join(scratch.path, "archive.sqsh");
  await archive(dir, file, excludes);
  execFileSync("unsquashfs", ["-quiet", "-no-progress", "-dest", join(scratch.path, "tree"), file]);
  return listTree(join(scratch.path, "tree"));
}

export function makeTree(kind: "special" | "random", dir: string, seed = 0): void {
  execFileSync(process.execPath, [join(SUPPORT, "make-tree.mjs"), kind, dir, String(seed)]);
}

export function manifest(dir: string): string {
  return execFileSync(process.execPath, [join(SUPPORT, "manifest.mjs"), dir], { encoding: "utf8" });
}

import { execFile } from "node:child_process";
import { cp, mkdtemp, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { promisify } from "node:util";
import { guideExamples } from "./guide.js";

const run = promisify(execFile);

const ROOT = new URL("../../", import.meta.url).pathname;

/** A Worker project, as a user makes one, that has installed the packed package. */
export interface Installed {
  directory: string;
  /** Paths in the package's tarball. */
  packed: string[];
  /** In bytes. */
  tarballSize: number;
}

/** Packs the package as it was built last, and installs it into a project with the Worker of `project/` and the guide's examples. */
export async function installPackage(): Promise<Installed & { remove(): Promise<void> }> {
  const directory = await mkdtemp(join(tmpdir(), "package-"));
  const remove = () => rm(directory, { recursive: true, force: true });
  try {
    const { tarball, ...about } = await pack(directory);
    await cp(new URL("project/", import.meta.url), directory, { recursive: true });
    for (const example of guideExamples())
      await writeFile(join(directory, "src", `${example.name}.ts`), example.module);
    await writeFile(join(directory, "package.json"), JSON.stringify({ private: true, type: "module" }));
    const { devDependencies } = JSON.parse(await readFile(join(ROOT, "package.json"), "utf8")) as {
      devDependencies: Record<string, string>;
    };
    const others = ["typescript", "@cloudflare/workers-types"].map((name) => `${name}@${devDependencies[name]}`);
    const flags = ["--no-audit", "--no-fund", "--prefer-offline", "--loglevel=error"];
    await run("npm", ["install", ...flags, tarball, ...others], { cwd: directory });
    // The same that the project would install, without 200 MB of it.
    await symlink(join(ROOT, "node_modules/wrangler"), join(directory, "node_modules/wrangler"));
    return { directory, ...about, remove };
  } catch (error) {
    await remove();
    throw error;
  }
}

async function pack(directory: string) {
  const { stdout } = await run("npm", ["pack", "--json", "--ignore-scripts", "--pack-destination", directory], {
    cwd: ROOT,
  });
  const [packed] = JSON.parse(stdout) as [{ filename: string; size: number; files: { path: string }[] }];
  return {
    tarball: join(directory, basename(packed.filename)),
    packed: packed.files.map(({ path }) => path).sort(),
    tarballSize: packed.size,
  };
}

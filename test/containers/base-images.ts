import { mkdir, mkdtemp, realpath, rename, rm, writeFile } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { exists, run } from "./run.js";

/**
 * What images are built upon, where no registry of images can be reached. Debian is made by debootstrap from its packages, the
 * way that the official slim image is. From the same packages comes docker's plugin for builds, which older Debians do not
 * have. Node is the official build that runs this.
 */

const SUITE = "trixie";

/** What the official slim images leave out, and how they keep apt from filling its caches. */
const SLIM_FILES = {
  "etc/dpkg/dpkg.cfg.d/slim": [
    ...["doc", "man", "info", "locale", "groff", "lintian", "linda"].map((name) => `path-exclude /usr/share/${name}/*`),
    "path-include /usr/share/doc/*/copyright",
  ],
  "etc/apt/apt.conf.d/slim": [
    'DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb /var/cache/apt/*.bin || true"; };',
    'APT::Update::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb /var/cache/apt/*.bin || true"; };',
    'Dir::Cache::pkgcache ""; Dir::Cache::srcpkgcache ""; Acquire::Languages "none";',
  ],
};
const SLIM_REMOVED =
  "usr/share/doc/* usr/share/man/* usr/share/info/* usr/share/locale/* var/cache/apt/* var/lib/apt/lists/*";

/** The files made from Debian's packages. */
export interface DebianFiles {
  /** The base image, as a tar archive for `docker import`. */
  image: string;
  /** Directory for DOCKER_CONFIG, with the plugin for builds. */
  dockerConfig: string;
}

/** Makes them, or finds those of an earlier run in the cache. Needs root and debootstrap. */
export async function debianFiles(cache: string): Promise<DebianFiles> {
  const directory = join(cache, `debian-${SUITE}`);
  const files = { image: join(directory, "slim.tar"), dockerConfig: join(directory, "docker-config") };
  if (await exists(directory)) return files;
  await mkdir(cache, { recursive: true });
  const scratch = await mkdtemp(join(cache, "making-"));
  try {
    const root = join(scratch, "root");
    await run("debootstrap", ["--variant=minbase", SUITE, root]);
    await mkdir(join(scratch, "made"));
    await extractPlugin(root, join(scratch, "made/docker-config/cli-plugins"));
    await makeSlim(root);
    await run("tar", ["-C", root, "--numeric-owner", "--exclude=./dev/*", "-cf", join(scratch, "made/slim.tar"), "."]);
    await rename(join(scratch, "made"), directory);
  } finally {
    await rm(scratch, { recursive: true, force: true });
  }
  return files;
}

async function extractPlugin(root: string, plugins: string): Promise<void> {
  await run("chroot", [root, "apt-get", "update"]);
  await run("chroot", [root, "sh", "-c", "cd /tmp && apt-get download -o APT::Sandbox::User=root docker-buildx"]);
  await run("sh", ["-c", "dpkg-deb -x tmp/docker-buildx_*.deb tmp/buildx"], { cwd: root });
  await mkdir(plugins, { recursive: true });
  await rename(join(root, "tmp/buildx/usr/libexec/docker/cli-plugins/docker-buildx"), join(plugins, "docker-buildx"));
  await run("sh", ["-c", "rm -rf tmp/*"], { cwd: root });
}

async function makeSlim(root: string): Promise<void> {
  for (const [path, lines] of Object.entries(SLIM_FILES)) await writeFile(join(root, path), `${lines.join("\n")}\n`);
  await run("sh", ["-c", `rm -rf ${SLIM_REMOVED}`], { cwd: root });
}

/** Makes a tar archive in `directory` that has Node where the official image has it. */
export async function packNode(directory: string): Promise<string> {
  const node = await realpath(process.execPath);
  const archive = join(directory, "node.tar");
  const place = ["--owner=0", "--group=0", "--transform", "s,.*,usr/local/bin/node,"];
  await run("tar", ["-C", dirname(node), ...place, "-cf", archive, basename(node)]);
  return archive;
}

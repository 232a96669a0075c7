import { execFile } from "node:child_process";
import { constants } from "node:fs";
import { access, open } from "node:fs/promises";
import { promisify } from "node:util";
import { Problem } from "./problem.js";

const run = promisify(execFile);

interface Tool {
  /** Any one of these programs will do. */
  programs: readonly string[];
  /** The Debian and Ubuntu package that has it. */
  package: string;
  purpose: string;
}

/** The system programs that a sandbox on this machine needs. */
const TOOLS: readonly Tool[] = [
  { programs: ["bwrap"], package: "bubblewrap", purpose: "isolates a sandbox" },
  { programs: ["mksquashfs"], package: "squashfs-tools", purpose: "writes archives" },
  { programs: ["unsquashfs"], package: "squashfs-tools", purpose: "extracts archives" },
  { programs: ["squashfuse_ll", "squashfuse"], package: "squashfuse", purpose: "mounts archives" },
  { programs: ["fuse-overlayfs"], package: "fuse-overlayfs", purpose: "makes a mounted archive writable" },
  { programs: ["fusermount3"], package: "fuse3", purpose: "mounts and unmounts without root" },
  { programs: ["git"], package: "git", purpose: "checks out repositories and knows what is ignored" },
];

/** Something that this machine lacks. */
export interface Missing {
  /** What it is: a program or a device. */
  what: string;
  purpose: string;
  /** The Debian and Ubuntu package that brings it; without one, `hint` says what to do. */
  package?: string;
  hint?: string;
}

/** What this machine lacks of what sandboxes need; empty when it is ready for them. */
export async function missingTools(): Promise<Missing[]> {
  const missing: Missing[] = [];
  for (const tool of TOOLS) {
    const found = await Promise.all(tool.programs.map(isInstalled));
    if (!found.includes(true)) {
      missing.push({ what: tool.programs.join(" or "), purpose: tool.purpose, package: tool.package });
    }
  }
  const fuse = await fuseProblem();
  if (fuse !== undefined) missing.push(fuse);
  if (await isInstalled("bwrap")) {
    const isolation = await isolationProblem();
    if (isolation !== undefined) missing.push(isolation);
  }
  return missing;
}

/** A report of what is missing, for people. */
export function describeMissing(missing: readonly Missing[]): string {
  return missing
    .map(({ what, purpose, hint }) => `  ${what}: ${purpose}${hint === undefined ? "" : `\n    ${hint}`}`)
    .join("\n");
}

/** The command line that installs the missing packages; undefined when no package would help. */
export function installLine(missing: readonly Missing[]): string | undefined {
  const packages = packagesOf(missing);
  if (packages.length === 0) return undefined;
  const sudo = process.getuid?.() === 0 ? "" : "sudo ";
  return `${sudo}apt-get update && ${sudo}apt-get install -y --no-install-recommends ${packages.join(" ")}`;
}

/** The packages that bring what is missing. */
export function packagesOf(missing: readonly Missing[]): string[] {
  return [...new Set(missing.flatMap((item) => item.package ?? []))];
}

/**
 * Installs packages with apt-get. Needs root.
 * @throws {Problem} with what apt-get wrote when it fails
 */
export async function installPackages(packages: readonly string[]): Promise<void> {
  const env = { ...process.env, DEBIAN_FRONTEND: "noninteractive" };
  const aptGet = async (...args: string[]) => {
    try {
      await run("apt-get", args, { env, maxBuffer: 64 * 1024 * 1024 });
    } catch (error) {
      const output = error instanceof Error && "stderr" in error ? `\n${String(error.stderr).trim()}` : "";
      throw new Problem(`apt-get ${args.join(" ")} failed.${output}`, { cause: error });
    }
  };
  await aptGet("update");
  await aptGet("install", "-y", "--no-install-recommends", ...packages);
}

/** True when this process may use apt-get to install packages. */
export async function canInstall(): Promise<boolean> {
  return process.getuid?.() === 0 && (await isInstalled("apt-get"));
}

async function isInstalled(program: string): Promise<boolean> {
  const directories = (process.env.PATH ?? "").split(":").filter((directory) => directory !== "");
  const executable = await Promise.all(
    directories.map((directory) =>
      access(`${directory}/${program}`, constants.X_OK).then(
        () => true,
        () => false,
      ),
    ),
  );
  return executable.includes(true);
}

/** Opens /dev/fuse the way that a mount does, since its mode alone does not tell whether that is allowed. */
async function fuseProblem(): Promise<Missing | undefined> {
  try {
    await (await open("/dev/fuse", "r+")).close();
    return undefined;
  } catch (error) {
    const code = error instanceof Error && "code" in error ? error.code : undefined;
    const hint =
      code === "ENOENT" || code === "ENODEV" || code === "ENXIO"
        ? "The kernel has no FUSE here: run `modprobe fuse` as root, or start this container or virtual machine with /dev/fuse."
        : "This user may not open it: run `chmod 666 /dev/fuse` as root, or run this program as root.";
    return { what: "/dev/fuse", purpose: "mounts archives", hint: `${hint} (${String(error)})` };
  }
}

/** Starts bwrap with the namespaces of a sandbox: many containers and hardened kernels forbid them. */
async function isolationProblem(): Promise<Missing | undefined> {
  const asRoot = process.getuid?.() === 0 ? [] : ["--unshare-user", "--uid", "0", "--gid", "0"];
  const args = ["--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "--unshare-pid", "--unshare-ipc"];
  try {
    await run("bwrap", [...args, "--unshare-uts", "--cap-add", "ALL", ...asRoot, "true"]);
    return undefined;
  } catch (error) {
    const words = error instanceof Error && "stderr" in error ? String(error.stderr).trim() : String(error);
    const hint =
      process.getuid?.() === 0
        ? "This machine does not let root make namespaces: in a container, start it with --privileged."
        : "This machine does not let users make namespaces: run as root, or allow it (sysctl kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns).";
    return { what: "a bwrap that can start", purpose: "isolates a sandbox", hint: `${hint} (${words})` };
  }
}

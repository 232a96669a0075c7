import { readdir, readlink } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import type { StartRequest } from "../src/protocol.js";

/**
 * What a sandbox on this machine looks like, as the arguments of bwrap: the system of this machine, read-only, with
 * writable directories of its own, its own processes, and FUSE. It keeps sandboxes apart so that they behave as
 * containers do; it is no boundary against hostile code.
 */

/** Where the sandbox sees what only it and its agent use. The rest of the machine's home and temp directories is hidden. */
const INSIDE = "/.sandbox-backup";

/** Directories of the sandbox's own, empty at start: where it sees each, and the mode that it has there. */
const OWN_DIRECTORIES = [
  { path: "/workspace", mode: 0o755 },
  { path: "/home", mode: 0o755 },
  { path: "/tmp", mode: 0o1777 },
  { path: "/var/tmp", mode: 0o1777 },
  { path: "/app", mode: 0o755 },
  { path: "/var/backups", mode: 0o755 },
  { path: "/root", mode: 0o700 },
] as const;

/** Entries of the machine's `/` that the sandbox does not see as they are there. */
const NOT_MIRRORED = ["workspace", "home", "tmp", "var", "app", "root", "proc", "dev", "sys", "lost+found"];
const NOT_MIRRORED_IN_VAR = ["tmp", "backups"];

/** By these the kernel mounts archives. Where they do not exist, or all are taken, FUSE does. */
const LOOP_DEVICES = ["/dev/loop-control", ...Array.from({ length: 32 }, (_, index) => `/dev/loop${index}`)];

/** The longest path that a Unix socket can have, in bytes, without the NUL at its end. */
const MAX_SOCKET_PATH = 107;

/** An entry of a directory of the machine; `target` when it is a symbolic link. */
export interface RootEntry {
  path: string;
  target?: string;
}

export interface SandboxPlanOptions {
  /** Directory on the machine that belongs to this sandbox alone. */
  directory: string;
  /** What `/` and `/var` of the sandbox show of the machine's: `readMirroredRoot()`. */
  mirrored: readonly RootEntry[];
  /** The agent, one file. */
  agentPath: string;
  /** The program `node` that runs it, inside its installation: `<prefix>/bin/node`. */
  nodePath: string;
  /** Whether this process runs as root. Otherwise the sandbox gets a user namespace, in which it is. */
  isRoot: boolean;
  env: StartRequest["env"];
  enableInternet: boolean;
}

export interface SandboxPlan {
  /** Directories to make on the machine first. */
  directories: { path: string; mode: number }[];
  /** Where the machine sees the agent's socket. */
  socketPath: string;
  /** Arguments of bwrap, the agent's command line included. */
  args: string[];
  /** More arguments, to come before the others: they hold the environment, which a command line would show to everyone. */
  secretArgs: string[];
}

/** Plans one sandbox. Touches nothing. */
export function planSandbox(options: SandboxPlanOptions): SandboxPlan {
  const { directory } = options;
  const own = OWN_DIRECTORIES.map(({ path, mode }) => ({
    outside: join(directory, path.slice(1).replaceAll("/", "-")),
    inside: path,
    mode,
  }));
  const runDirectory = join(directory, "run");
  const socketPath = join(runDirectory, "agent.sock");
  if (Buffer.byteLength(socketPath) > MAX_SOCKET_PATH) {
    throw new Error(
      `The path of the temp directory is too long for a Unix socket: ${socketPath}. Set TMPDIR to a shorter one.`,
    );
  }
  const env = {
    PATH: `${INSIDE}/node/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin`,
    HOME: "/root",
    LANG: "C.UTF-8",
    ...options.env,
  };
  return {
    directories: [...own.map(({ outside, mode }) => ({ path: outside, mode })), { path: runDirectory, mode: 0o700 }],
    socketPath,
    args: [
      ...options.mirrored.flatMap(({ path, target }) =>
        target === undefined ? ["--ro-bind", path, path] : ["--symlink", target, path],
      ),
      ...own.flatMap(({ outside, inside }) => ["--bind", outside, inside]),
      ...["--ro-bind", dirname(dirname(options.nodePath)), `${INSIDE}/node`],
      ...["--ro-bind", options.agentPath, `${INSIDE}/agent.js`],
      ...["--bind", runDirectory, `${INSIDE}/run`],
      ...["--proc", "/proc", "--dev", "/dev", "--dev-bind", "/dev/fuse", "/dev/fuse", "--ro-bind", "/sys", "/sys"],
      ...(options.isRoot ? LOOP_DEVICES.flatMap((path) => ["--dev-bind-try", path, path]) : []),
      ...["--unshare-pid", "--unshare-ipc", "--unshare-uts"],
      // Without a network it cannot reach the bucket's S3 endpoint either; `localBucket` still works.
      ...(options.enableInternet ? [] : ["--unshare-net"]),
      ...(options.isRoot ? [] : ["--unshare-user", "--uid", "0", "--gid", "0"]),
      ...["--cap-add", "ALL", "--die-with-parent", "--chdir", "/workspace"],
      "--",
      `${INSIDE}/node/bin/${basename(options.nodePath)}`,
      `${INSIDE}/agent.js`,
      "--listen",
      `${INSIDE}/run/agent.sock`,
    ],
    secretArgs: ["--clearenv", ...Object.entries(env).flatMap(([name, value]) => ["--setenv", name, value])],
  };
}

/** What a sandbox sees of the machine: everything in `/` and `/var` but what it has of its own. */
export async function readMirroredRoot(): Promise<RootEntry[]> {
  return [...(await readEntries("/", NOT_MIRRORED)), ...(await readEntries("/var", NOT_MIRRORED_IN_VAR))];
}

async function readEntries(directory: string, except: readonly string[]): Promise<RootEntry[]> {
  const entries = await readdir(directory, { withFileTypes: true });
  return Promise.all(
    entries
      .filter((entry) => !except.includes(entry.name))
      .map(async (entry) => {
        const path = join(directory, entry.name);
        return entry.isSymbolicLink() ? { path, target: await readlink(path) } : { path };
      }),
  );
}

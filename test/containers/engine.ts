import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdir, mkdtemp, open, readFile, rm } from "node:fs/promises";
import { homedir, tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { canInstall, installPackages } from "../../dev/tools.js";
import { debianFiles } from "./base-image.js";
import { isInstalled, type RunOptions, run, succeeds } from "./run.js";

/**
 * The container engine that tests use: the Docker that runs on this machine, or else one of their own, which is installed if
 * need be. What takes long to make stays in a cache: the base image, and the images and build cache of an engine of its own.
 */

const BASE_IMAGE = "debian:trixie-slim";
const START_TIMEOUT = 30_000;

/** Debian's packages of the programs that a machine without Docker needs. */
const PACKAGES = { dockerd: "docker.io", debootstrap: "debootstrap" };

/** Addresses of the engine's own network; no packet leaves the machine by it. */
const BRIDGE = "172.29.0.1/24";

export class Engine {
  /** Undone in reverse. */
  readonly #started: (() => Promise<unknown>)[] = [];
  /** Whether images can be pulled. */
  hasRegistry = false;

  private constructor(
    /** Path of its socket. */
    readonly socket: string,
    /** Environment in which docker reaches it and can build. */
    readonly env: Record<string, string>,
  ) {}

  /** Resolves when it runs and has the base image. */
  static async open(): Promise<Engine> {
    const running = await findRunning();
    const engine = running ?? (await Engine.#start());
    try {
      await engine.#bringBuilds();
      await engine.#bringBaseImage();
      return engine;
    } catch (error) {
      await engine.close();
      throw error;
    }
  }

  /** Ends and removes what was started and brought; the cache stays. */
  async close(): Promise<void> {
    for (const undo of this.#started.reverse()) await undo();
  }

  /** Runs docker and gives what it wrote. */
  docker(args: readonly string[], options: RunOptions = {}): Promise<string> {
    return run("docker", args, { ...options, env: { ...this.env, ...options.env } });
  }

  static use(socket: string): Engine {
    return new Engine(socket, { DOCKER_HOST: `unix://${socket}` });
  }

  static async #start(): Promise<Engine> {
    await installMissing();
    const directory = await mkdtemp(join(tmpdir(), "engine-"));
    const engine = Engine.use(join(directory, "docker.sock"));
    engine.#started.push(() => rm(directory, { recursive: true, force: true }));
    const hadBridge = await succeeds("ip", ["link", "show", "docker0"]);
    const daemon = await startDaemon(engine.socket, directory);
    engine.#started.push(async () => {
      await endDaemon(daemon);
      if (!hadBridge) await run("ip", ["link", "delete", "docker0"]);
    });
    try {
      await engine.#waitUntilReady(daemon, join(directory, "log"));
      await engine.#removeLeftovers();
      return engine;
    } catch (error) {
      await engine.close();
      throw error;
    }
  }

  async #waitUntilReady(daemon: ChildProcess, log: string): Promise<void> {
    const deadline = Date.now() + START_TIMEOUT;
    while (!(await succeeds("docker", ["info"], { env: this.env }))) {
      if (daemon.exitCode !== null || Date.now() > deadline)
        throw new Error(`dockerd did not start:\n${(await readFile(log, "utf8")).slice(-4_000)}`);
      await delay(100);
    }
  }

  /** What a run left that was killed: the engine's files are the tests' own. */
  async #removeLeftovers(): Promise<void> {
    const containers = await this.docker(["ps", "--all", "--quiet"]);
    if (containers !== "") await this.docker(["rm", "--force", ...containers.split("\n")]);
    const images = await this.docker(["images", "--format", "{{.Repository}}:{{.Tag}}"]);
    if (images !== "") await this.docker(["image", "rm", "--force", ...images.split("\n")]);
  }

  /** wrangler builds with BuildKit, which is a plugin of docker. */
  async #bringBuilds(): Promise<void> {
    if (await succeeds("docker", ["buildx", "version"], { env: this.env })) return;
    this.env.DOCKER_CONFIG = (await this.#debianFiles("docker's plugin buildx")).dockerConfig;
  }

  async #bringBaseImage(): Promise<void> {
    this.hasRegistry = await succeeds("docker", ["pull", "--quiet", BASE_IMAGE], { env: this.env });
    if (await succeeds("docker", ["image", "inspect", BASE_IMAGE], { env: this.env })) return;
    await this.docker(["import", (await this.#debianFiles(`the image ${BASE_IMAGE}`)).image, BASE_IMAGE]);
    this.#started.push(() => this.docker(["image", "rm", BASE_IMAGE]));
  }

  async #debianFiles(what: string) {
    if (process.getuid?.() !== 0) throw new Error(`This machine lacks ${what}, which only root can make here.`);
    await installMissing();
    return debianFiles(cacheDirectory());
  }
}

/** Where what takes long to make is kept. */
function cacheDirectory(): string {
  return join(process.env.XDG_CACHE_HOME ?? join(homedir(), ".cache"), "sandbox-backup");
}

async function findRunning(): Promise<Engine | undefined> {
  if (!(await isInstalled("docker"))) return undefined;
  const host =
    process.env.DOCKER_HOST ?? (await run("docker", ["context", "inspect", "--format", "{{.Endpoints.docker.Host}}"]));
  if (!host.startsWith("unix://")) return undefined;
  const engine = Engine.use(host.slice("unix://".length));
  return (await succeeds("docker", ["info"], { env: engine.env })) ? engine : undefined;
}

async function installMissing(): Promise<void> {
  const missing: string[] = [];
  for (const [program, name] of Object.entries(PACKAGES)) if (!(await isInstalled(program))) missing.push(name);
  if (missing.length === 0) return;
  if (!(await canInstall())) {
    const line = `apt-get install --no-install-recommends ${missing.join(" ")}`;
    throw new Error(`Docker does not run on this machine. Start it; or run this as root on Debian, after: ${line}`);
  }
  await installPackages(missing);
}

/** A daemon that leaves the machine's packet filter alone, publishes ports on loopback only, and ends with this process. */
async function startDaemon(socket: string, directory: string): Promise<ChildProcess> {
  const root = join(cacheDirectory(), "docker");
  await mkdir(root, { recursive: true });
  const log = await open(join(directory, "log"), "w");
  const daemon = spawn(
    "setpriv",
    [
      ...["--pdeathsig", "TERM", "dockerd"],
      ...["--host", `unix://${socket}`, "--data-root", root, "--exec-root", join(directory, "exec")],
      ...["--pidfile", join(directory, "pid"), "--bip", BRIDGE, "--ip", "127.0.0.1"],
      ...["--iptables=false", "--ip-masq=false", "--ip-forward=false"],
    ],
    { stdio: ["ignore", log.fd, log.fd] },
  );
  await log.close();
  return daemon;
}

async function endDaemon(daemon: ChildProcess): Promise<void> {
  if (daemon.exitCode !== null) return;
  daemon.kill("SIGTERM");
  await once(daemon, "exit");
}

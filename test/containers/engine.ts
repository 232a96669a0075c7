import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdir, mkdtemp, open, readFile, rm } from "node:fs/promises";
import { homedir, tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { canInstall, installPackages } from "../../dev/tools.js";
import { debianFiles, packNode } from "./base-images.js";
import type { CleanUp } from "./clean-up.js";
import { isInstalled, type RunOptions, run, succeeds } from "./run.js";

/**
 * The container engine that tests use: the Docker that runs on this machine, or else one of their own, which is installed if
 * need be. What takes long to make stays in a cache: the base images, and the build cache of their own engine.
 */

const BASE_IMAGE = "debian:trixie-slim";
const NODE_IMAGE = "node:22-slim";
const START_TIMEOUT = 30_000;

/** Debian's packages of the programs that a machine without Docker needs. */
const PACKAGES = { dockerd: "docker.io", debootstrap: "debootstrap", ip: "iproute2" };

/** From Debian 13 on, docker itself is not in docker.io any more. */
const CLIENT_PACKAGE = "docker-cli";

/** The network of the tests' own engine; no packet leaves the machine by it. */
const BRIDGE = { name: "sandbox-e2e0", address: "172.29.0.1/24" };

export class Engine {
  /** Whether images can be pulled. */
  hasRegistry = false;

  /** Environment in which docker reaches it and can build. */
  readonly env: Record<string, string>;

  private constructor(
    /** Path of its socket. */
    readonly socket: string,
    /** Whether it is the tests' own, with its images in their cache. */
    readonly isOwn: boolean,
  ) {
    this.env = { DOCKER_HOST: `unix://${socket}` };
  }

  /** Resolves when it runs and can build upon the base images. What was started and brought is undone; the cache stays. */
  static async open(cleanUp: CleanUp): Promise<Engine> {
    const engine = (await Engine.#findRunning()) ?? (await Engine.#startOwn(cleanUp));
    await engine.#bringBuilds();
    await engine.#bringBaseImages(cleanUp);
    return engine;
  }

  /** The engine that DOCKER_HOST or docker's context names. */
  static async #findRunning(): Promise<Engine | undefined> {
    if (!(await isInstalled("docker"))) return undefined;
    const context = ["context", "inspect", "--format", "{{.Endpoints.docker.Host}}"];
    const host = process.env.DOCKER_HOST ?? (await run("docker", context));
    if (!host.startsWith("unix://")) return undefined;
    const engine = new Engine(host.slice("unix://".length), false);
    return (await engine.accepts("info")) ? engine : undefined;
  }

  static async #startOwn(cleanUp: CleanUp): Promise<Engine> {
    await installMissing();
    await lockCache(cleanUp);
    const directory = await mkdtemp(join(tmpdir(), "engine-"));
    cleanUp.add(() => rm(directory, { recursive: true, force: true }));
    await addBridge();
    cleanUp.add(() => run("ip", ["link", "delete", BRIDGE.name]));
    const engine = new Engine(join(directory, "docker.sock"), true);
    const daemon = await startDaemon(engine.socket, directory);
    cleanUp.add(() => endDaemon(daemon));
    await engine.#waitUntilReady(daemon, join(directory, "log"));
    await engine.#removeLeftovers();
    return engine;
  }

  async #waitUntilReady(daemon: ChildProcess, log: string): Promise<void> {
    const deadline = Date.now() + START_TIMEOUT;
    while (!(await this.accepts("info"))) {
      if (daemon.exitCode !== null || Date.now() > deadline)
        throw new Error(`dockerd did not start:\n${(await readFile(log, "utf8")).slice(-4_000)}`);
      await delay(100);
    }
  }

  /** What a run left that was killed. */
  async #removeLeftovers(): Promise<void> {
    const containers = await this.docker(["ps", "--all", "--quiet"]);
    if (containers !== "") await this.docker(["rm", "--force", "--volumes", ...containers.split("\n")]);
    const images = (await this.docker(["images", "--format", "{{.Repository}}:{{.Tag}}"])).split("\n");
    const built = images.filter((image) => image !== "" && image !== BASE_IMAGE && image !== NODE_IMAGE);
    if (built.length > 0) await this.docker(["image", "rm", "--force", ...built]);
  }

  /** Runs docker and gives what it wrote. */
  docker(args: readonly string[], options: RunOptions = {}): Promise<string> {
    return run("docker", args, { ...options, env: { ...this.env, ...options.env } });
  }

  /** Whether docker succeeds with that. */
  accepts(...args: readonly string[]): Promise<boolean> {
    return succeeds("docker", args, { env: this.env });
  }

  /** wrangler builds with BuildKit, which is a plugin of docker. */
  async #bringBuilds(): Promise<void> {
    if (await this.accepts("buildx", "version")) return;
    this.env.DOCKER_CONFIG = (await makeDebianFiles("docker's plugin buildx")).dockerConfig;
  }

  async #bringBaseImages(cleanUp: CleanUp): Promise<void> {
    this.hasRegistry = await this.accepts("buildx", "imagetools", "inspect", BASE_IMAGE);
    // Builds pull what they need.
    if (this.hasRegistry) return;
    await this.#bring(BASE_IMAGE, cleanUp, async () => (await makeDebianFiles(`the image ${BASE_IMAGE}`)).image);
    const directory = await mkdtemp(join(tmpdir(), "node-image-"));
    try {
      await this.#bring(NODE_IMAGE, cleanUp, () => packNode(directory));
    } finally {
      await rm(directory, { recursive: true });
    }
  }

  /** @param pack makes the image's files a tar archive, whose path it gives */
  async #bring(image: string, cleanUp: CleanUp, pack: () => Promise<string>): Promise<void> {
    if (await this.accepts("image", "inspect", image)) return;
    await this.docker(["import", await pack(), image]);
    if (!this.isOwn) cleanUp.add(() => this.docker(["image", "rm", image]));
  }
}

/** Where what takes long to make is kept. */
function cacheDirectory(): string {
  return join(process.env.XDG_CACHE_HOME ?? join(homedir(), ".cache"), "sandbox-backup");
}

async function makeDebianFiles(what: string) {
  if (process.getuid?.() !== 0) throw new Error(`This machine lacks ${what}, which only root can make here.`);
  await installMissing();
  return debianFiles(cacheDirectory());
}

async function installMissing(): Promise<void> {
  const missing: string[] = [];
  for (const [program, name] of Object.entries(PACKAGES)) if (!(await isInstalled(program))) missing.push(name);
  if (missing.length > 0 && (await canInstall())) {
    console.error(`Installing ${missing.join(", ")} …`);
    await installPackages(missing);
    if (!(await isInstalled("docker"))) await installPackages([CLIENT_PACKAGE]);
    return;
  }
  if (missing.length === 0 && process.getuid?.() === 0) return;
  const install = `apt-get install --no-install-recommends ${Object.values(PACKAGES).join(" ")}`;
  throw new Error(
    `No Docker runs that this user may use. Start Docker, or let this user use it; or run this as root on Debian or Ubuntu, where it installs and starts an engine of its own. That needs:\n  ${install}`,
  );
}

/** One run after another uses the engine's files; one that was killed may still be cleaning up. */
async function lockCache(cleanUp: CleanUp): Promise<void> {
  await mkdir(cacheDirectory(), { recursive: true });
  const holder = spawn("flock", [join(cacheDirectory(), "lock"), "sh", "-c", "echo locked; cat"], {
    stdio: ["pipe", "pipe", "inherit"],
  });
  cleanUp.add(() => holder.stdin.end());
  const waiting = setTimeout(() => console.error("Waiting for another run that uses the engine …"), 1_000);
  const [answer] = await Promise.race([once(holder.stdout, "data"), once(holder, "exit")]);
  clearTimeout(waiting);
  if (!Buffer.isBuffer(answer)) throw new Error(`flock ended with ${answer}`);
}

/** One that a killed run has left will do. */
async function addBridge(): Promise<void> {
  const { name, address } = BRIDGE;
  if (await succeeds("ip", ["link", "show", name])) return;
  await run("ip", ["link", "add", "name", name, "type", "bridge"]);
  await run("ip", ["address", "add", address, "dev", name]);
  await run("ip", ["link", "set", name, "up"]);
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
      ...["--pidfile", join(directory, "pid"), "--bridge", BRIDGE.name, "--ip", "127.0.0.1"],
      ...["--iptables=false", "--ip-masq=false", "--ip-forward=false"],
    ],
    { stdio: ["ignore", log.fd, log.fd] },
  );
  await log.close();
  return daemon;
}

async function endDaemon(daemon: ChildProcess): Promise<void> {
  if (daemon.exitCode !== null || daemon.signalCode !== null) return;
  daemon.kill("SIGTERM");
  await once(daemon, "exit");
}

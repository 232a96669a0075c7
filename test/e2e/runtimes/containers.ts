import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdir, mkdtemp, open, readFile, rm, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { experimental_readRawConfig, type Unstable_RawConfig } from "wrangler";
import { newS3Credentials } from "../../../dev/wrangler-config.js";
import { Engine } from "../../containers/engine.js";
import { type ContainerSpec, EngineApi } from "../../containers/engine-api.js";
import { HostPorts } from "../../containers/host-ports.js";
import { exists } from "../../containers/run.js";
import { freePort } from "../../support/dev-server.js";
import { FaultProxy } from "../../support/fault-proxy.js";
import type { System } from "../system.js";

/**
 * Plain `wrangler dev` with the test Worker, in real containers: as wrangler starts them by default, or allowed FUSE and led to
 * wrangler's S3 endpoint, as they are on Cloudflare.
 */

/** The first start builds the image. */
const START_TIMEOUT = 300_000;

const S3_PATH = "/cdn-cgi/local/r2/s3";

/** In place of the networking side-car's image, which needs a registry, and a network that leads out. */
const STAND_IN = "egress-stand-in:local";
const STAND_IN_SCRIPT = new URL("../../containers/egress-stand-in.mjs", import.meta.url).pathname;

/** Marks the containers of one run. */
const LABEL = "sandbox-backup.e2e";

export async function startContainers(config: string, { fuse }: { fuse: boolean }): Promise<System> {
  const cleanUp = new CleanUp();
  try {
    const directory = await mkdtemp(join(tmpdir(), "e2e-"));
    cleanUp.add(() => rm(directory, { recursive: true, force: true }));
    const engine = await Engine.open();
    cleanUp.add(() => engine.close());
    const port = await freePort();
    const url = `http://127.0.0.1:${port}`;
    await mkdir(join(directory, "ready"));
    const hostPorts = await HostPorts.open(join(directory, "host"));
    cleanUp.add(() => hostPorts.close());
    if (fuse) await hostPorts.share(port);
    const faults = fuse ? await FaultProxy.start(url, (port) => hostPorts.share(port)) : undefined;
    cleanUp.add(() => faults?.stop());
    const logFile = join(directory, "log");
    const useStandIn = fuse || !engine.hasRegistry;
    const api = await EngineApi.start({
      engine: engine.socket,
      socket: join(directory, "docker.sock"),
      standIn: STAND_IN,
      adapt: async (spec, name) => {
        const marked = { ...spec, Labels: { ...spec.Labels, [LABEL]: url } };
        if (spec.Image === STAND_IN) {
          await rm(join(directory, "ready", name), { force: true });
          return standIn(marked, (await builtImages(logFile))[0], name, directory);
        }
        return fuse ? allowFuse(marked) : marked;
      },
      // docker accepts connections for a side-car that does not listen yet, and breaks them off; workerd then gives up.
      started: async (name) => {
        if (!name.endsWith("-proxy")) await followLog(engine, name, logFile);
        else if (useStandIn) await appears(join(directory, "ready", name));
      },
    });
    cleanUp.add(() => api.stop());
    cleanUp.add(() => removeTraces(engine, url, logFile));
    const env = {
      ...engine.env,
      DOCKER_HOST: `unix://${join(directory, "docker.sock")}`,
      WRANGLER_DOCKER_HOST: `unix://${join(directory, "docker.sock")}`,
      WRANGLER_CI_OVERRIDE_NETWORK_MODE_HOST: "true",
      ...(useStandIn && { MINIFLARE_CONTAINER_EGRESS_IMAGE: STAND_IN }),
    };
    const { path, vars } = await deriveConfig(config, directory, url);
    if (faults !== undefined) vars.FAULTY_ENDPOINT = `${faults.origin}${S3_PATH}`;
    const wrangler = await startWrangler({ path, vars, port, directory, logFile, env });
    cleanUp.add(() => end(wrangler));
    await waitUntilReady(url, wrangler, logFile);
    return {
      url,
      hasProduction: fuse,
      // The files of a container are on an overlay here, and the kernel puts none over another.
      hasKernelLayers: false,
      faults: faults?.origin,
      logFile,
      engine: { env: engine.env, label: `${LABEL}=${url}` },
      stop: () => cleanUp.run(),
    };
  } catch (error) {
    await cleanUp.run();
    throw error;
  }
}

/** Steps that undo others, in reverse. */
class CleanUp {
  readonly #steps: (() => unknown)[] = [];

  add(step: () => unknown): void {
    this.#steps.push(step);
  }

  async run(): Promise<void> {
    for (const step of this.#steps.splice(0).reverse()) await step();
  }
}

/** What docker run's `--cap-add SYS_ADMIN --device /dev/fuse --security-opt …` would ask for. */
function allowFuse(spec: ContainerSpec): ContainerSpec {
  const device = { PathOnHost: "/dev/fuse", PathInContainer: "/dev/fuse", CgroupPermissions: "rwm" };
  return {
    ...spec,
    HostConfig: {
      ...spec.HostConfig,
      CapAdd: ["SYS_ADMIN"],
      Devices: [device],
      SecurityOpt: ["apparmor=unconfined"],
    },
  };
}

/** The side-car as a script on the sandbox's own image, which has Node. */
function standIn(spec: ContainerSpec, image: string | undefined, name: string, directory: string): ContainerSpec {
  return {
    ...spec,
    Image: image ?? STAND_IN,
    Entrypoint: ["node", "/egress-stand-in.mjs", name],
    Healthcheck: { Test: ["NONE"] },
    HostConfig: {
      ...spec.HostConfig,
      Binds: [`${STAND_IN_SCRIPT}:/egress-stand-in.mjs:ro`, `${directory}/host:/host`, `${directory}/ready:/ready`],
    },
  };
}

/** Adds what a container writes, until it ends, to the log of the system. */
async function followLog(engine: Engine, container: string, logFile: string): Promise<void> {
  const log = await open(logFile, "a");
  const env = { ...process.env, ...engine.env };
  spawn("docker", ["logs", "--follow", container], { stdio: ["ignore", log.fd, log.fd], env });
  await log.close();
}

async function appears(path: string): Promise<void> {
  const deadline = Date.now() + 30_000;
  while (!(await exists(path)) && Date.now() < deadline) await delay(20);
}

/** The images that wrangler has built, by its own words. */
async function builtImages(logFile: string): Promise<string[]> {
  const log = await readFile(logFile, "utf8");
  return [...new Set(log.match(/cloudflare-dev\/[\w.-]+:\w+/g) ?? [])];
}

async function removeTraces(engine: Engine, url: string, logFile: string): Promise<void> {
  const list = async () =>
    (await engine.docker(["ps", "--all", "--quiet", "--filter", `label=${LABEL}=${url}`])).split("\n").filter(Boolean);
  // Some wrangler is removing, which it leaves to the engine when it ends.
  for (let left = await list(); left.length > 0; left = await list())
    await engine.docker(["rm", "--force", "--volumes", ...left]).catch(() => delay(100));
  const images = await builtImages(logFile);
  if (images.length > 0) await engine.docker(["image", "rm", "--force", ...images]);
}

/** The test Worker's configuration with the local bucket served over S3, and the variables that lead to it. */
async function deriveConfig(config: string, directory: string, url: string) {
  const raw: Unstable_RawConfig = experimental_readRawConfig({ config }).rawConfig;
  const credentials = newS3Credentials();
  const absolute = (path: string) => resolve(dirname(config), path);
  const derived = {
    ...raw,
    main: absolute(raw.main ?? ""),
    containers: raw.containers?.map((container) => ({ ...container, image: absolute(container.image ?? "") })),
    r2_buckets: raw.r2_buckets?.map((bucket) => ({
      ...bucket,
      local_dev: { experimental_s3_credentials: credentials },
    })),
  };
  const path = join(directory, "wrangler.json");
  await writeFile(path, JSON.stringify(derived), { mode: 0o600 });
  const vars: Record<string, string> = {
    BACKUP_BUCKET_ENDPOINT: `${url}${S3_PATH}`,
    R2_ACCESS_KEY_ID: credentials.accessKeyId,
    R2_SECRET_ACCESS_KEY: credentials.secretAccessKey,
  };
  return { path, vars };
}

interface WranglerOptions {
  path: string;
  vars: Record<string, string>;
  port: number;
  directory: string;
  logFile: string;
  env: Record<string, string>;
}

async function startWrangler({ path, vars, port, directory, logFile, env }: WranglerOptions): Promise<ChildProcess> {
  const log = await open(logFile, "a");
  const cli = createRequire(import.meta.url).resolve("wrangler");
  const flags = [
    ...["--config", path, "--ip", "127.0.0.1", "--port", String(port), "--inspector-port", "0"],
    ...["--persist-to", join(directory, "state")],
    ...Object.entries(vars).flatMap(([name, value]) => ["--var", `${name}:${value}`]),
  ];
  const wrangler = spawn(process.execPath, ["--no-warnings", cli, "dev", ...flags], {
    stdio: ["ignore", log.fd, log.fd],
    env: { ...process.env, ...env },
  });
  await log.close();
  return wrangler;
}

async function waitUntilReady(url: string, wrangler: ChildProcess, logFile: string): Promise<void> {
  const deadline = Date.now() + START_TIMEOUT;
  const answers = () =>
    fetch(url).then(
      () => true,
      () => false,
    );
  while (!(await answers())) {
    if (wrangler.exitCode !== null || Date.now() > deadline)
      throw new Error(`wrangler dev did not start:\n${await readFile(logFile, "utf8")}`);
    await delay(100);
  }
}

async function end(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  child.kill("SIGTERM");
  await once(child, "exit");
}

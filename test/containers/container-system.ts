import { createWriteStream } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { newS3Credentials } from "../../dev/wrangler-config.js";
import type { System } from "../e2e/system.js";
import { freePort } from "../support/dev-server.js";
import { FaultProxy } from "../support/fault-proxy.js";
import type { CleanUp } from "./clean-up.js";
import { followLog } from "./container-log.js";
import type { Engine } from "./engine.js";
import { type ContainerSpec, EngineApi } from "./engine-api.js";
import { HostPorts } from "./host-ports.js";
import { SideCars, STAND_IN } from "./side-car.js";
import { builtImages, S3_PATH, startWrangler } from "./wrangler.js";

/** Marks the containers of one system. */
const LABEL = "sandbox-backup.e2e";

export interface ContainerSystemOptions {
  engine: Engine;
  /** Path of the Worker's configuration. */
  config: string;
  /** Whether containers may mount with FUSE, and reach wrangler's S3 endpoint. */
  fuse: boolean;
}

/**
 * Plain `wrangler dev` in real containers: as wrangler starts them by default, or allowed FUSE and led to wrangler's S3
 * endpoint, as they are on Cloudflare.
 */
export async function startContainerSystem(options: ContainerSystemOptions, cleanUp: CleanUp): Promise<System> {
  const { engine, config, fuse } = options;
  const directory = await mkdtemp(join(tmpdir(), "e2e-"));
  cleanUp.add(() => rm(directory, { recursive: true, force: true }));
  const port = await freePort();
  const url = `http://127.0.0.1:${port}`;
  const logFile = join(directory, "log");
  const hostPorts = await HostPorts.open(join(directory, "host"));
  cleanUp.add(() => hostPorts.close());
  const faults = fuse ? await openEndpoint(url, hostPorts, cleanUp) : undefined;
  const sideCars = fuse || !engine.hasRegistry ? await SideCars.prepare(directory, hostPorts.directory) : undefined;
  const containers = new Containers(engine, `${LABEL}=${url}`, logFile, fuse, sideCars);
  const api = await EngineApi.start({
    engine: engine.socket,
    socket: join(directory, "docker.sock"),
    adapt: (spec, name) => containers.adapt(spec, name),
    started: (name) => containers.started(name),
    pull: (image) => containers.pull(image),
  });
  cleanUp.add(() => api.stop());
  cleanUp.add(() => containers.removeAll());
  await startWrangler(
    {
      config,
      directory,
      port,
      logFile,
      credentials: newS3Credentials(),
      vars: faults === undefined ? {} : { FAULTY_ENDPOINT: faults.origin + S3_PATH },
      env: {
        ...engine.env,
        DOCKER_HOST: `unix://${api.socket}`,
        WRANGLER_DOCKER_HOST: `unix://${api.socket}`,
        // Lets builds reach the package registries where the engine's own network leads nowhere.
        WRANGLER_CI_OVERRIDE_NETWORK_MODE_HOST: "true",
        ...(sideCars && { MINIFLARE_CONTAINER_EGRESS_IMAGE: STAND_IN }),
      },
    },
    cleanUp,
  );
  return {
    url,
    hasProduction: fuse,
    faults: faults?.origin,
    logFile,
    engine: { env: engine.env, label: containers.label },
  };
}

/** Lets containers reach wrangler's S3 endpoint, and proxies before it that fail as tests tell them. */
async function openEndpoint(url: string, hostPorts: HostPorts, cleanUp: CleanUp): Promise<FaultProxy> {
  await hostPorts.share(Number(new URL(url).port));
  const faults = await FaultProxy.start(url, (port) => hostPorts.share(port));
  cleanUp.add(() => faults.stop());
  return faults;
}

/** The containers and images of one system. */
class Containers {
  readonly #pulled: string[] = [];

  constructor(
    private readonly engine: Engine,
    /** What all the containers have. */
    readonly label: string,
    private readonly logFile: string,
    private readonly fuse: boolean,
    private readonly sideCars: SideCars | undefined,
  ) {}

  async adapt(spec: ContainerSpec, name: string): Promise<ContainerSpec> {
    const [key = "", value = ""] = this.label.split("=");
    // Dozens at a time would be busy with checks of their health.
    const marked = { ...spec, Labels: { ...spec.Labels, [key]: value }, Healthcheck: { Test: ["NONE"] } };
    if (spec.Image !== STAND_IN) return this.fuse ? allowFuse(marked) : marked;
    const [image] = await builtImages(this.logFile);
    if (image === undefined || this.sideCars === undefined) throw new Error(`No image stands in for ${spec.Image}.`);
    return this.sideCars.adapt(marked, image, name);
  }

  async started(name: string): Promise<void> {
    if (SideCars.isNameOfOne(name)) await this.sideCars?.waitFor(name);
    else await followLog(this.engine.socket, name, createWriteStream(this.logFile, { flags: "a" }));
  }

  async pull(image: string): Promise<boolean> {
    if (image === STAND_IN) return false;
    if (!(await this.engine.accepts("image", "inspect", image))) this.#pulled.push(image);
    return true;
  }

  /** With their volumes, and the images that came for them. */
  async removeAll(): Promise<void> {
    const list = async () => {
      const ids = await this.engine.docker(["ps", "--all", "--quiet", "--filter", `label=${this.label}`]);
      return ids.split("\n").filter(Boolean);
    };
    // Some wrangler is removing, which it leaves to the engine when it ends.
    for (let left = await list(); left.length > 0; left = await list())
      await this.engine.docker(["rm", "--force", "--volumes", ...left]).catch(() => delay(100));
    for (const image of [...(await builtImages(this.logFile)), ...this.#pulled]) {
      if (await this.engine.accepts("image", "inspect", image))
        await this.engine.docker(["image", "rm", "--force", image]);
    }
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

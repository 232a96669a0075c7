import { mkdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import type { ContainerSpec } from "./engine-api.js";
import { exists } from "./run.js";

/** What stands in for the networking side-car's image, which needs a registry, and a network that leads out. */
export const STAND_IN = "egress-stand-in:local";

const SCRIPT = new URL("egress-stand-in.mjs", import.meta.url).pathname;

const START_TIMEOUT = 30_000;

/** The side-cars of one system: a script on the image of its sandboxes. */
export class SideCars {
  private constructor(
    /** Holds a file for each one that listens. */
    private readonly ready: string,
    /** Holds a socket for each port of this machine that they let the containers reach. */
    private readonly host: string,
  ) {}

  static async prepare(directory: string, host: string): Promise<SideCars> {
    const ready = join(directory, "ready");
    await mkdir(ready);
    return new SideCars(ready, host);
  }

  static isNameOfOne(container: string): boolean {
    return container.endsWith("-proxy");
  }

  async adapt(spec: ContainerSpec, image: string, name: string): Promise<ContainerSpec> {
    await rm(join(this.ready, name), { force: true });
    return {
      ...spec,
      Image: image,
      Entrypoint: ["node", "/egress-stand-in.mjs", name],
      HostConfig: {
        ...spec.HostConfig,
        Binds: [`${SCRIPT}:/egress-stand-in.mjs:ro`, `${this.host}:/host`, `${this.ready}:/ready`],
      },
    };
  }

  /** docker accepts connections for one that does not listen yet, and breaks them off; workerd then gives up. */
  async waitFor(name: string): Promise<void> {
    const deadline = Date.now() + START_TIMEOUT;
    while (!(await exists(join(this.ready, name)))) {
      if (Date.now() > deadline) throw new Error(`The side-car ${name} does not listen.`);
      await delay(10);
    }
  }
}

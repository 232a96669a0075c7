import { SandboxUnavailableError } from "../errors.js";
import { AGENT_PORT, agentRoutes, type StartRequest } from "../protocol.js";
import type { Runtime } from "./runtime.js";

/** How long a container may take until its agent answers, in ms: the first start on a machine pulls the image. */
const START_TIMEOUT = 60_000;
const FIRST_PAUSE = 25;
const LONGEST_PAUSE = 1_000;

/** The container that the platform gives to the Durable Object: on Cloudflare, and under `wrangler dev` with an engine. */
export class ContainerRuntime implements Runtime {
  /** Set while the container that runs is known to answer, or is being waited for. */
  #ready: Promise<void> | undefined;

  constructor(private readonly container: Container) {}

  async start({ env, enableInternet, sleepAfter }: StartRequest): Promise<void> {
    if (!this.container.running) {
      this.container.start({ env, enableInternet });
      this.#ready = undefined;
      // The end of the container is met by the next call, or breaks the one that runs.
      const forget = () => {
        this.#ready = undefined;
      };
      this.container.monitor().then(forget, forget);
    }
    this.#ready ??= this.#waitUntilReady();
    try {
      await this.#ready;
    } catch (error) {
      this.#ready = undefined;
      throw error;
    }
    await this.container.setInactivityTimeout(sleepAfter);
  }

  async fetch(path: string, init: RequestInit = {}): Promise<Response> {
    if (!this.container.running) throw new SandboxUnavailableError("The container does not run");
    try {
      return await this.container.getTcpPort(AGENT_PORT).fetch(`http://container${path}`, init);
    } catch (error) {
      if (init.signal?.aborted) throw init.signal.reason;
      throw new SandboxUnavailableError(
        `The connection to the container broke off: it stopped during the call (${error})`,
        {},
        { cause: error },
      );
    }
  }

  async stop(): Promise<void> {
    this.#ready = undefined;
    if (this.container.running) await this.container.destroy();
  }

  async #waitUntilReady(): Promise<void> {
    const deadline = Date.now() + START_TIMEOUT;
    for (let pause = FIRST_PAUSE; ; pause = Math.min(pause * 2, LONGEST_PAUSE)) {
      const failure = await this.#probe();
      if (failure === undefined) return;
      if (Date.now() > deadline || !this.container.running) {
        const why = this.container.running
          ? `did not answer on port ${AGENT_PORT} within ${START_TIMEOUT / 1000} s`
          : "stopped";
        throw new SandboxUnavailableError(
          `The container was started but ${why}. Does its image run the agent?`,
          {},
          { cause: failure },
        );
      }
      await new Promise((resolve) => setTimeout(resolve, pause));
    }
  }

  /** @returns why the agent does not answer yet, or undefined when it does */
  async #probe(): Promise<unknown> {
    try {
      const response = await this.fetch(agentRoutes.health, { signal: AbortSignal.timeout(LONGEST_PAUSE * 5) });
      await response.text();
      return response.ok ? undefined : new Error(`HTTP ${response.status}`);
    } catch (error) {
      return error;
    }
  }
}

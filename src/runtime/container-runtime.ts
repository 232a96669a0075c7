import { SandboxUnavailableError } from "../errors.js";
import { AGENT_PORT, agentRoutes, type StartRequest } from "../protocol.js";
import type { Runtime } from "./runtime.js";

/** How long a container may take until its agent answers, in ms: the first start on a machine pulls the image. */
const START_TIMEOUT = 60_000;
/** How often a container is started that stops before it answers: the platform may have none to give for a moment. */
const START_ATTEMPTS = 3;
const FIRST_PAUSE = 25;
const LONGEST_PAUSE = 1_000;

/** The container that the platform gives to the Durable Object: on Cloudflare, and under `wrangler dev` with an engine. */
export class ContainerRuntime implements Runtime {
  /** Set while the container is started or waited for. */
  #starting: Promise<void> | undefined;
  /** How the last container ended. */
  #end = "";

  constructor(private readonly container: Container) {}

  async start(request: StartRequest): Promise<void> {
    // Asked each time: the platform may take a moment to notice that the container has ended.
    if ((await this.#probe()) !== undefined) {
      this.#starting ??= this.#bringUp(request).finally(() => {
        this.#starting = undefined;
      });
      await this.#starting;
    }
    await this.container.setInactivityTimeout(request.sleepAfter);
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
    if (this.container.running) await this.container.destroy();
  }

  async #bringUp(request: StartRequest): Promise<void> {
    for (let attempt = 1; ; attempt++) {
      if (!this.container.running) this.#launch(request);
      const failure = await this.#waitUntilReady();
      if (failure === undefined) return;
      if (attempt < START_ATTEMPTS && !this.container.running) continue;
      const why = this.container.running
        ? `did not answer on port ${AGENT_PORT} within ${START_TIMEOUT / 1000} s`
        : `stopped${this.#end}`;
      throw new SandboxUnavailableError(
        `The container was started but ${why}. Does its image run the agent?`,
        {},
        { cause: failure },
      );
    }
  }

  #launch({ env, enableInternet }: StartRequest): void {
    this.container.start({ env, enableInternet });
    // Otherwise its end is met by the next call, or breaks the one that runs.
    this.#end = "";
    this.container.monitor().catch((error: unknown) => {
      this.#end = ` (${error})`;
    });
  }

  /** @returns why the agent does not answer, when it has stopped or taken too long; undefined when it answers */
  async #waitUntilReady(): Promise<unknown> {
    const deadline = Date.now() + START_TIMEOUT;
    for (let pause = FIRST_PAUSE; ; pause = Math.min(pause * 2, LONGEST_PAUSE)) {
      const failure = await this.#probe();
      if (failure === undefined) return undefined;
      await new Promise((resolve) => setTimeout(resolve, pause));
      if (Date.now() > deadline || !this.container.running) return failure;
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

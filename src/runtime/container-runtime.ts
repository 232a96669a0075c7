import { SandboxUnavailableError } from "../errors.js";
import { AGENT_PORT, agentRoutes, type StartRequest } from "../protocol.js";
import { NotDeliveredError, type Runtime } from "./runtime.js";

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
  /** Whether the agent has answered, and has not been seen to end. */
  #answers = false;
  /** How long it stays without a call, as the platform was told, in ms. */
  #sleepAfter: number | undefined;
  /** How the last container ended. */
  #end = "";

  constructor(private readonly container: Container) {}

  async start(request: StartRequest, certain = false): Promise<void> {
    if (!this.#answers || !this.container.running || certain) {
      this.#starting ??= this.#bringUp(request).finally(() => {
        this.#starting = undefined;
      });
      await this.#starting;
    }
    if (this.#sleepAfter === request.sleepAfter) return;
    await this.container.setInactivityTimeout(request.sleepAfter);
    this.#sleepAfter = request.sleepAfter;
  }

  async fetch(path: string, init: RequestInit = {}): Promise<Response> {
    if (!this.container.running) {
      this.#answers = false;
      throw new NotDeliveredError("The container does not run");
    }
    try {
      return await this.container.getTcpPort(AGENT_PORT).fetch(`http://container${path}`, init);
    } catch (error) {
      if (init.signal?.aborted) throw init.signal.reason;
      this.#answers = false;
      const message = `The connection to the container broke off: it stopped during the call (${error})`;
      // workerd's words for a connection that it could not open.
      const Failure = /not (?:running|listening)/.test(String(error)) ? NotDeliveredError : SandboxUnavailableError;
      throw new Failure(message, {}, { cause: error });
    }
  }

  async stop(): Promise<void> {
    this.#answers = false;
    if (this.container.running) await this.container.destroy();
  }

  async #bringUp(request: StartRequest): Promise<void> {
    for (let attempt = 1; ; attempt++) {
      if (!this.container.running) this.#launch(request);
      const failure = await this.#waitUntilReady();
      if (failure === undefined) {
        this.#answers = true;
        return;
      }
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
    this.#end = "";
    this.#sleepAfter = undefined;
    // Where its end is not noticed in time, it is met by the next call, or breaks the one that runs.
    this.container
      .monitor()
      .catch((error: unknown) => {
        this.#end = ` (${error})`;
      })
      .finally(() => {
        this.#answers = false;
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

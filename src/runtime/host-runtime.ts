import { SandboxUnavailableError } from "../errors.js";
import { HOST_TOKEN_VAR, HOST_URL_VAR, hostErrorHeader, hostRoutes, type StartRequest } from "../protocol.js";
import { NotDeliveredError, type Runtime } from "./runtime.js";

/** A sandbox of the development host, which `sandbox-backup dev` runs beside `wrangler dev`. */
export class HostRuntime implements Runtime {
  /** What the sandbox was last started with; undefined when it may not run. */
  #started: string | undefined;

  constructor(
    private readonly host: { url: string; token: string },
    /** Of the Durable Object. */
    private readonly name: string,
  ) {}

  async start(request: StartRequest, certain = false): Promise<void> {
    const body = JSON.stringify(request);
    if (this.#started === body && !certain) return;
    const headers = { "content-type": "application/json" };
    const response = await this.#send(hostRoutes.sandbox(this.name), { method: "PUT", headers, body });
    const answer = await response.text();
    if (!response.ok) throw new SandboxUnavailableError(`The development host could not start the sandbox: ${answer}`);
    this.#started = body;
  }

  async fetch(path: string, init: RequestInit = {}): Promise<Response> {
    const response = await this.#send(hostRoutes.agent(this.name, path), init);
    const hostError = response.headers.get(hostErrorHeader);
    if (hostError === null) return response;
    await response.body?.cancel();
    this.#started = undefined;
    throw new NotDeliveredError(`The sandbox cannot be reached: the development host says ${hostError}`);
  }

  async stop(): Promise<void> {
    this.#started = undefined;
    const response = await this.#send(hostRoutes.sandbox(this.name), { method: "DELETE" });
    const answer = await response.text();
    if (!response.ok) throw new SandboxUnavailableError(`The development host could not stop the sandbox: ${answer}`);
  }

  async #send(path: string, init: RequestInit): Promise<Response> {
    const headers = new Headers(init.headers);
    headers.set("authorization", `Bearer ${this.host.token}`);
    try {
      return await fetch(`${this.host.url}${path}`, { ...init, headers });
    } catch (error) {
      if (init.signal?.aborted) throw init.signal.reason;
      this.#started = undefined;
      throw new SandboxUnavailableError(
        `The connection to the sandbox broke off: it stopped during the call, or the development host has ended (${error})`,
        {},
        { cause: error },
      );
    }
  }
}

/** The development host that the Worker's variables name, or undefined when they name none. */
export function findHost(env: unknown): { url: string; token: string } | undefined {
  const read = (name: string) => {
    const value = typeof env === "object" && env !== null ? Reflect.get(env, name) : undefined;
    return typeof value === "string" && value !== "" ? value : undefined;
  };
  const url = read(HOST_URL_VAR);
  return url === undefined ? undefined : { url: url.replace(/\/+$/, ""), token: read(HOST_TOKEN_VAR) ?? "" };
}

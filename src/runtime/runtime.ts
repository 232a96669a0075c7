import type { StartRequest } from "../protocol.js";

/** How the Durable Object reaches the agent of its sandbox. One file for each kind of sandbox implements it. */
export interface Runtime {
  /**
   * Resolves when the agent answers. Starts the sandbox when it does not run; what runs is left as it is.
   * @throws {SandboxUnavailableError} when it cannot be started, or does not answer in time
   */
  start(request: StartRequest): Promise<void>;
  /**
   * Sends a request to the agent of the running sandbox. A body is streamed both ways.
   * @param path with a leading slash
   * @throws {SandboxUnavailableError} when the sandbox does not run or the connection breaks; the body of an answer fails
   *   when the sandbox stops meanwhile
   */
  fetch(path: string, init?: RequestInit): Promise<Response>;
  /** Stops the sandbox; its files are gone. Harmless when it does not run. */
  stop(): Promise<void>;
}

import { SandboxUnavailableError } from "../errors.js";
import type { StartRequest } from "../protocol.js";

/** How the Durable Object reaches the agent of its sandbox. One file for each kind of sandbox implements it. */
export interface Runtime {
  /**
   * Starts the sandbox when it does not run, and resolves when its agent answers. One that has answered and has not been seen
   * to end is taken to run, unless `certain` asks it.
   * @throws {SandboxUnavailableError} when it cannot be started, or does not answer in time
   */
  start(request: StartRequest, certain?: boolean): Promise<void>;
  /**
   * Sends a request to the agent of the running sandbox. A body is streamed both ways.
   * @param path with a leading slash
   * @throws {NotDeliveredError} when the sandbox does not run, and has seen nothing of the request
   * @throws {SandboxUnavailableError} when the connection breaks; the body of an answer fails when the sandbox stops meanwhile
   */
  fetch(path: string, init?: RequestInit): Promise<Response>;
  /** Stops the sandbox; its files are gone. Harmless when it does not run. */
  stop(): Promise<void>;
}

/** A request did not reach the sandbox, which had stopped: it can be sent again when that is started. */
export class NotDeliveredError extends SandboxUnavailableError {}

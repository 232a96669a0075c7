import type { SandboxErrorJSON } from "./errors.js";

/**
 * The form in which `getSandbox`'s client calls the Durable Object. Workers RPC drops the class and the fields of an error
 * on compatibility dates before 2026-04-21, and does not carry an AbortSignal: so both travel as plain data.
 */

export interface ClientCall {
  method: string;
  args: unknown[];
  /** Names the call for `abortCall`, when one of its arguments had a signal. */
  callId?: string;
  /** Which argument had a `signal`; the Durable Object puts one of its own there. */
  signalAt?: number;
  /** From `getSandbox`'s options. */
  sleepAfter?: string | number;
}

export type Envelope = { ok: true; value: unknown } | { ok: false; error: SandboxErrorJSON };

/** What the client needs of the Durable Object besides its own methods. */
export interface ClientFacing {
  callFromClient(call: ClientCall): Promise<Envelope>;
  abortCall(callId: string): Promise<void>;
}

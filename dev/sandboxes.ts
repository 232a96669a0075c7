import type { StartRequest } from "../src/protocol.js";
import { type Sandbox, startSandbox } from "./sandbox.js";

/** The longest delay of a timer in Node, in ms; about 25 days. */
const MAX_DELAY = 2 ** 31 - 1;

interface Slot {
  sandbox: Promise<Sandbox>;
  /** Ends a start that is under way. */
  abort: AbortController;
  /** In ms. */
  sleepAfter: number;
  requestsInFlight: number;
  sleepTimer?: NodeJS.Timeout;
}

export interface SandboxesOptions {
  /** Directory for the files of all sandboxes. */
  parent: string;
  /** The agent, one file. */
  agentPath: string;
  /** Gets a line to show to the developer. */
  log: (line: string) => void;
}

/** The sandboxes of this machine by name, at most one for each. */
export class Sandboxes {
  readonly #options: SandboxesOptions;
  readonly #slots = new Map<string, Slot>();
  /** What is ending, by name, until nothing of it is left. */
  readonly #ending = new Set<{ name: string; gone: Promise<void> }>();
  #closed = false;

  constructor(options: SandboxesOptions) {
    this.#options = options;
  }

  /**
   * Starts the sandbox, or finds the one that runs or is being started: that one keeps its environment.
   * Rejects when it cannot be started; then nothing of it is left.
   */
  async start(name: string, request: StartRequest): Promise<Sandbox> {
    if (this.#closed) throw new Error("The development host is stopping.");
    const slot = this.#slots.get(name) ?? this.#launch(name, request);
    slot.sleepAfter = request.sleepAfter;
    return this.#use(name, slot, () => slot.sandbox);
  }

  /** Calls `work` with the running sandbox, which does not fall asleep meanwhile; with undefined when it does not run. */
  async use<T>(name: string, work: (sandbox: Sandbox | undefined) => Promise<T>): Promise<T> {
    const slot = this.#slots.get(name);
    if (slot === undefined) return work(undefined);
    return this.#use(name, slot, async () => work(await slot.sandbox.catch(() => undefined)));
  }

  /** Ends the sandbox and resolves when nothing of it is left; also when there is none. */
  async stop(name: string): Promise<void> {
    const slot = this.#slots.get(name);
    if (slot !== undefined) this.#end(name, slot);
    await Promise.all([...this.#ending].filter((ending) => ending.name === name).map(({ gone }) => gone));
  }

  /** Ends all sandboxes and starts no more. Resolves when nothing of them is left. */
  async close(): Promise<void> {
    this.#closed = true;
    for (const [name, slot] of this.#slots) this.#end(name, slot);
    await Promise.all([...this.#ending].map(({ gone }) => gone));
  }

  #launch(name: string, request: StartRequest): Slot {
    const label = `[sandbox ${name.slice(0, 8)}]`;
    const abort = new AbortController();
    const onLine = (line: string) => this.#options.log(`${label} ${line}`);
    const { parent, agentPath } = this.#options;
    const slot: Slot = {
      sandbox: startSandbox({ parent, agentPath, request, onLine }, abort.signal),
      abort,
      sleepAfter: request.sleepAfter,
      requestsInFlight: 0,
    };
    this.#slots.set(name, slot);
    slot.sandbox.then(
      (sandbox) => sandbox.ended.then(() => this.#end(name, slot)),
      () => this.#end(name, slot),
    );
    return slot;
  }

  /** Forgets the sandbox at once, so that the next start makes another one, and ends it. */
  #end(name: string, slot: Slot): void {
    if (this.#slots.get(name) !== slot) return;
    this.#slots.delete(name);
    clearTimeout(slot.sleepTimer);
    slot.abort.abort(new Error("The sandbox was stopped."));
    const gone = slot.sandbox.then(
      (sandbox) => {
        sandbox.kill();
        return sandbox.gone;
      },
      // It never started, and who asked for it was told why.
      () => {},
    );
    const ending = { name, gone };
    this.#ending.add(ending);
    gone
      .catch((error: unknown) => this.#options.log(`Something of sandbox ${name} is left: ${String(error)}`))
      .finally(() => this.#ending.delete(ending));
  }

  async #use<T>(name: string, slot: Slot, work: () => Promise<T>): Promise<T> {
    clearTimeout(slot.sleepTimer);
    slot.requestsInFlight++;
    try {
      return await work();
    } finally {
      slot.requestsInFlight--;
      if (slot.requestsInFlight === 0 && this.#slots.get(name) === slot) {
        slot.sleepTimer = setTimeout(() => this.#end(name, slot), Math.min(slot.sleepAfter, MAX_DELAY));
      }
    }
  }
}

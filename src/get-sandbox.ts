import { errorFromJSON } from "./errors.js";
import { parseArguments, type SandboxOptions, sandboxOptionsSchema } from "./options.js";
import type { ClientCall, ClientFacing } from "./rpc.js";
import type { Sandbox } from "./sandbox.js";

/** `Sandbox` or a subclass of it, whatever its environment. */
type AnySandbox = Rpc.DurableObjectBranded & ClientFacing;

/** Methods of the class that are not calls of a client. */
type NotForClients = keyof ClientFacing | "fetch" | "alarm" | "webSocketMessage" | "webSocketClose" | "webSocketError";

type AsClientCall<Method> = Method extends (...args: infer Args) => infer Result
  ? (...args: Args) => Promise<Awaited<Result>>
  : never;

type ClientMethods<T> = {
  [Name in keyof T as Name extends NotForClients | symbol
    ? never
    : T[Name] extends (...args: never) => unknown
      ? Name
      : never]: Name extends "readFile" ? T[Name] : AsClientCall<T[Name]>;
};

/** What `getSandbox` returns: the methods of the sandbox, a subclass's own among them, and the stub's `fetch`, `id` and `name`. */
export type SandboxClient<T extends AnySandbox = Sandbox> = ClientMethods<T> &
  Pick<DurableObjectStub, "fetch" | "id" | "name">;

/**
 * A client of the sandbox named `id`. Nothing is started before the first call.
 *
 * Errors arrive as they were thrown: `instanceof`, `code`, `context` and the message are those of the class. `signal` and
 * callbacks may be given to every method.
 * @throws {ValidationError} when an option is wrong
 */
export function getSandbox<T extends AnySandbox>(
  namespace: DurableObjectNamespace<T>,
  id: string,
  options?: SandboxOptions,
): SandboxClient<T>;
/** The same for a namespace that does not say its class: that is `Sandbox`, or the one given as `getSandbox<MySandbox>(…)`. */
export function getSandbox<T extends AnySandbox = Sandbox>(
  namespace: DurableObjectNamespace,
  id: string,
  options?: SandboxOptions,
): SandboxClient<T>;
export function getSandbox<T extends AnySandbox>(
  namespace: DurableObjectNamespace<T> | DurableObjectNamespace,
  id: string,
  options: SandboxOptions = {},
): SandboxClient<T> {
  const { sleepAfter, normalizeId } = parseArguments("getSandbox", sandboxOptionsSchema, options);
  const stub = namespace.get(namespace.idFromName(normalizeId ? id.toLowerCase() : id)) as DurableObjectStub &
    ClientFacing;
  const methods = new Map<string, (...args: unknown[]) => Promise<unknown>>();

  return new Proxy({} as SandboxClient<T>, {
    get(_target, property) {
      switch (property) {
        case "then": // Not a promise: `await getSandbox(…)` gives the client.
          return undefined;
        case "id":
        case "name":
          return stub[property];
        case "fetch":
          return stub.fetch.bind(stub);
      }
      if (typeof property === "symbol") return undefined;
      const known = methods.get(property);
      if (known !== undefined) return known;
      const method = (...args: unknown[]) =>
        call(stub, { method: property, args, ...(sleepAfter === undefined ? {} : { sleepAfter }) });
      methods.set(property, method);
      return method;
    },
  });
}

/** Calls a method of the Durable Object, and throws at the caller's what it threw. */
async function call(stub: ClientFacing, request: ClientCall): Promise<unknown> {
  const control = new CallControl(request.args);
  control.signal?.throwIfAborted();
  const callId = control.isNeeded ? crypto.randomUUID() : undefined;
  const abort = () => void (callId && stub.abortCall(callId));
  control.onAbort(abort);
  try {
    const answer = await stub.callFromClient({
      ...request,
      args: control.args,
      ...control.place,
      ...(callId ? { callId } : {}),
    });
    control.throwIfStopped();
    if (answer.ok) return answer.value;
    throw errorFromJSON(answer.error);
  } catch (error) {
    control.throwIfStopped();
    throw error;
  } finally {
    control.release(abort);
  }
}

/** Callbacks of our own methods: what they throw ends the call. A subclass's method deals with its callbacks itself. */
const CALLBACKS = ["onProgress", "onOutput"];

/** What stops a call from the caller's side: the `signal` among its arguments, or a callback that throws. */
class CallControl {
  /** The arguments as they go over RPC. */
  readonly args: unknown[];
  readonly signal: AbortSignal | undefined;
  /** Which argument had the signal. */
  readonly place: Pick<ClientCall, "signalAt">;
  readonly isNeeded: boolean;
  #thrown: { error: unknown } | undefined;
  #abort = () => {};

  constructor(args: readonly unknown[]) {
    const signalAt = args.findIndex((arg) => isPlainObject(arg) && arg.signal instanceof AbortSignal);
    const holder = args[signalAt];
    this.signal = isPlainObject(holder) && holder.signal instanceof AbortSignal ? holder.signal : undefined;
    this.args = args.map((arg) => (isPlainObject(arg) ? this.#forRpc(arg) : arg));
    this.isNeeded = args.some(
      (arg) => isPlainObject(arg) && ("signal" in arg || CALLBACKS.some((name) => name in arg)),
    );
    // The place is given for callbacks too: they stop the call by the same way.
    const place =
      signalAt >= 0 ? signalAt : args.findIndex((arg) => isPlainObject(arg) && CALLBACKS.some((name) => name in arg));
    this.place = place >= 0 ? { signalAt: place } : {};
  }

  onAbort(abort: () => void): void {
    this.#abort = abort;
    this.signal?.addEventListener("abort", abort, { once: true });
  }

  release(abort: () => void): void {
    this.signal?.removeEventListener("abort", abort);
  }

  /** The reason of the caller's own signal, or what its callback threw, is what the call rejects with. */
  throwIfStopped(): void {
    if (this.#thrown !== undefined) throw this.#thrown.error;
    this.signal?.throwIfAborted();
  }

  #forRpc({ ...arg }: Record<string, unknown>): Record<string, unknown> {
    if (arg.signal instanceof AbortSignal) delete arg.signal;
    for (const name of CALLBACKS) {
      const callback = arg[name];
      if (typeof callback === "function")
        arg[name] = (...values: unknown[]) => this.#callBack(() => callback(...values));
    }
    return arg;
  }

  async #callBack(callback: () => unknown): Promise<void> {
    if (this.#thrown !== undefined) return;
    try {
      await callback();
    } catch (error) {
      this.#thrown = { error };
      this.#abort();
    }
  }
}

function isPlainObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && Object.getPrototypeOf(value) === Object.prototype;
}

import { type Resolvers, withResolvers } from "../../src/promises.js";
import type { PartUrl } from "../../src/protocol.js";
import type { UrlSource } from "./object-request.js";

/** URLs asked for at once: one round trip for the parts of 256 MiB or more. */
const URL_BATCH = 16;

/** Asks the client for URLs, many at once, and waits for the answers. */
export class UrlRequests implements UrlSource {
  readonly #answers = new Map<number, Resolvers<string>>();

  constructor(
    known: readonly PartUrl[],
    private readonly ask: (parts: number[]) => Promise<void>,
    private readonly lastPart: number,
    private readonly signal: AbortSignal,
  ) {
    for (const { part, url } of known) this.#await(part).resolve(url);
    signal.addEventListener("abort", () => {
      for (const answer of this.#answers.values()) answer.reject(signal.reason);
    });
  }

  async get(part: number): Promise<string> {
    const known = this.#answers.get(part);
    if (known !== undefined) return known.promise;
    const next = Array.from({ length: URL_BATCH }, (_, index) => part + index);
    return this.#request(
      next.filter((other) => other === part || (other <= this.lastPart && !this.#answers.has(other))),
      part,
    );
  }

  async renew(part: number, refused: string): Promise<string> {
    const known = this.#answers.get(part);
    // The ranges of a download share one URL: the first that is refused asks for another, the others wait for that.
    if (known !== undefined && (await known.promise) !== refused) return known.promise;
    if (this.#answers.get(part) !== known) return this.renew(part, refused);
    return this.#request([part], part);
  }

  answer(part: number, url: string): void {
    this.#answers.get(part)?.resolve(url);
  }

  async #request(parts: number[], wanted: number): Promise<string> {
    this.signal.throwIfAborted();
    for (const part of parts) this.#await(part);
    const answer = this.#answers.get(wanted);
    await this.ask(parts);
    if (answer === undefined) throw new Error(`part ${wanted} is not among the ones asked for`);
    return answer.promise;
  }

  #await(part: number): Resolvers<string> {
    const answer = withResolvers<string>();
    this.#answers.set(part, answer);
    return answer;
  }
}

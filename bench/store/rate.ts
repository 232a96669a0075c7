/** How far behind its rate something may fall and still catch up, in ms: timers are late by a millisecond or more. */
const SLACK = 10;

/** A bandwidth: whoever moves bytes reserves them and waits as long as that says. Many may share one. */
export class Rate {
  /** When all that was reserved so far has passed. */
  #free = Number.NEGATIVE_INFINITY;

  readonly #bytesPerSecond: number;
  readonly #now: () => number;

  constructor(bytesPerSecond: number, now: () => number = () => performance.now()) {
    this.#bytesPerSecond = bytesPerSecond;
    this.#now = now;
  }

  /** @returns how long it takes until these bytes have passed, in ms */
  reserve(bytes: number): number {
    const now = this.#now();
    this.#free = Math.max(this.#free, now - SLACK) + (bytes / this.#bytesPerSecond) * 1000;
    return Math.max(0, this.#free - now);
  }
}

import { setTimeout as delay } from "node:timers/promises";
import type { Profile } from "../profiles.ts";
import { Rate } from "./rate.ts";

/** What the store has moved since it was last asked to count anew. */
export type Traffic = {
  requests: number;
  /** Bytes that clients sent. */
  sent: number;
  /** Bytes that clients fetched. */
  fetched: number;
};

/** Shorter waits add up to one, in ms: a timer for every chunk would cost more than it tells. */
const SHORTEST_WAIT = 4;

type Direction = "up" | "down";

/** The way between the store and its clients: slow as the profile says, and counted. */
export class Network {
  #profile: Profile;
  #total: Record<Direction, Rate>;
  #traffic: Traffic = { requests: 0, sent: 0, fetched: 0 };
  #active = 0;
  #lastEnd = 0;

  constructor(profile: Profile) {
    this.#profile = profile;
    this.#total = totalRates(profile);
  }

  /** Takes effect with the next request. */
  useProfile(profile: Profile): void {
    this.#profile = profile;
    this.#total = totalRates(profile);
  }

  get traffic(): Traffic {
    return { ...this.#traffic };
  }

  countAnew(): void {
    this.#traffic = { requests: 0, sent: 0, fetched: 0 };
  }

  /** How long no request has been in progress, in ms; 0 while one is. */
  get idleTime(): number {
    return this.#active > 0 ? 0 : performance.now() - this.#lastEnd;
  }

  /** Counts a request, and lasts as long as it. */
  async request(work: () => Promise<void>): Promise<void> {
    this.#traffic.requests += 1;
    this.#active += 1;
    try {
      await work();
    } finally {
      this.#active -= 1;
      this.#lastEnd = performance.now();
    }
  }

  /** Resolves when the first byte of an answer may leave. */
  async firstByte(): Promise<void> {
    if (this.#profile.latency > 0) await delay(this.#profile.latency);
  }

  /**
   * The two bandwidths that the bytes of one message share, its own connection's and everyone's.
   * @returns what is told of bytes and says how long to wait before the next, in ms
   */
  message(direction: Direction): (bytes: number) => number {
    const own = new Rate(this.#profile[direction].connection);
    const total = this.#total[direction];
    return (bytes) => {
      this.#traffic[direction === "up" ? "sent" : "fetched"] += bytes;
      const wait = Math.max(own.reserve(bytes), total.reserve(bytes));
      return wait < SHORTEST_WAIT ? 0 : wait;
    };
  }
}

function totalRates({ up, down }: Profile): Record<Direction, Rate> {
  return { up: new Rate(up.total), down: new Rate(down.total) };
}

/** How far away the bucket is. */

/** In bytes a second. */
export interface Bandwidth {
  connection: number;
  total: number;
}

export interface Profile {
  up: Bandwidth;
  down: Bandwidth;
  /** From a request to the first byte of its answer, in ms. */
  latency: number;
}

const MB = 1_000_000;

/** A number that JSON has, and that nothing here reaches. */
const UNLIMITED: Bandwidth = { connection: Number.MAX_SAFE_INTEGER, total: Number.MAX_SAFE_INTEGER };

export const PROFILES = {
  /** What the tools and the package take by themselves. */
  lan: { up: UNLIMITED, down: UNLIMITED, latency: 0 },
  /** A container and its R2 bucket. */
  r2: { up: { connection: 25 * MB, total: 150 * MB }, down: { connection: 90 * MB, total: 250 * MB }, latency: 25 },
  /** A bucket on another continent. */
  far: { up: { connection: 10 * MB, total: 40 * MB }, down: { connection: 30 * MB, total: 80 * MB }, latency: 120 },
} as const satisfies Record<string, Profile>;

export type ProfileName = keyof typeof PROFILES;

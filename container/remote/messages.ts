import { z } from "zod";
import type { ChunkDigests } from "../../src/protocol.js";

/** What the agent and the process that serves a remote archive tell each other: a JSON object a line, by its standard streams. */

/** The first line that the process gets. */
export interface ServeRequest {
  /** Where what was fetched is kept. */
  file: string;
  /** Chunks of it that are there, by number. */
  present: readonly number[];
  size: number;
  etag: string;
  digests: ChunkDigests;
  url: string;
  /** In ms. */
  stallTimeout: number;
}

/** The answer to `need-url`; null when there is none. */
export interface UrlMessage {
  url: string | null;
}

export const reportSchema = z.discriminatedUnion("type", [
  /** The URL was refused as expired. */
  z.object({ type: z.literal("need-url") }),
  /** All of the archive is on the disk, and was checked. */
  z.object({ type: z.literal("filled") }),
  /** Nothing more will come of the bucket: reads of what is not there fail. */
  z.object({ type: z.literal("failed"), message: z.string() }),
]);
export type Report = z.infer<typeof reportSchema>;

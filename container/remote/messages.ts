import { z } from "zod";
import { chunkDigestsSchema } from "../../src/protocol.js";

/** What the agent and the process that serves a remote archive tell each other: a JSON object a line, by its standard streams. */

export const serveRequestSchema = z.object({
  /** An empty file, over which the archive is mounted. */
  mountPoint: z.string(),
  /** Where what was fetched is kept. */
  file: z.string(),
  size: z.number(),
  etag: z.string(),
  digests: chunkDigestsSchema,
  url: z.string(),
  /** In ms. */
  stallTimeout: z.number(),
});
export type ServeRequest = z.infer<typeof serveRequestSchema>;

/** The answer to `need-url`; null when there is none. */
export const urlMessageSchema = z.object({ url: z.string().nullable() });
export type UrlMessage = z.infer<typeof urlMessageSchema>;

export const reportSchema = z.discriminatedUnion("type", [
  /** The URL was refused as expired. */
  z.object({ type: z.literal("need-url") }),
  /** All of the archive is on the disk, and was checked. */
  z.object({ type: z.literal("filled") }),
  /** Nothing more will come of the bucket: reads of what is not there fail. */
  z.object({ type: z.literal("failed"), message: z.string() }),
]);
export type Report = z.infer<typeof reportSchema>;

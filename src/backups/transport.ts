import type { ArchiveResult, PartUrl } from "../protocol.js";
import type { AgentOperation } from "../runtime/agent-client.js";
import type { StoredArchive } from "./bucket.js";
import type { UnfinishedBackup } from "./unfinished.js";

/** How an archive gets from the container to the bucket and back. One for each way; each is used for one call. */
export interface Transport {
  /** Who moves the bytes: the agent, by URLs that it asks for, or the Durable Object, by a stream from and to the agent. */
  readonly transfer: "urls" | "stream";
  /** How the directory is brought back. */
  readonly method: "mount" | "replace";
  /**
   * Begins the way of one archive into the bucket. Touches nothing yet.
   * @param record told the id of a multipart upload before anything is sent by it
   */
  upload(backupId: string, record: (uploadId: string) => Promise<void>): Upload;
  /** Begins the way of one archive out of the bucket. Touches nothing yet. */
  download(backupId: string, archive: StoredArchive): TransferHandler;
  /** Removes what an upload has left in the bucket, finished or not. Harmless where there is nothing. */
  discard(unfinished: UnfinishedBackup): Promise<void>;
}

/** Answers what the agent needs while it works. A rejection ends the operation with that error. */
export interface TransferHandler {
  /** Presigned URLs that most archives need: the agent gets them with its operation. */
  firstUrls(): Promise<PartUrl[]>;
  /** Presigned URLs of these parts. May be asked again for the same part. */
  urls(parts: readonly number[]): Promise<PartUrl[]>;
  /** Moves the archive of `size` bytes between the agent's operation and the bucket. */
  move(operation: AgentOperation, size: number): Promise<void>;
}

/** The way of one archive into the bucket. */
export interface Upload extends TransferHandler {
  /**
   * Makes an object of what was sent.
   * @returns the ETag that the bucket gave it, without quotes
   */
  complete(archive: ArchiveResult): Promise<string>;
  /** Removes what was sent, finished or not. May be called at any time, when nothing is being sent any more. */
  abort(): Promise<void>;
}

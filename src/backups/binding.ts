import { type ArchiveResult, LARGEST_PUT } from "../protocol.js";
import type { AgentOperation } from "../runtime/agent-client.js";
import { withLength } from "../streams.js";
import { archiveKey, type StoredArchive } from "./bucket.js";
import type { TransferHandler, Transport, Upload } from "./transport.js";
import type { UnfinishedBackup } from "./unfinished.js";

/** `localBucket`: the archive is streamed through the Durable Object, in constant memory, by the R2 binding. */
export class BindingTransport implements Transport {
  readonly transfer = "stream";
  readonly method = "replace";

  constructor(private readonly bucket: R2Bucket) {}

  upload(backupId: string): Upload {
    return new BindingUpload(this.bucket, archiveKey(backupId));
  }

  async discard({ backupId }: UnfinishedBackup): Promise<void> {
    await this.bucket.delete(archiveKey(backupId));
  }

  download(backupId: string, { etag }: StoredArchive): TransferHandler {
    return {
      firstUrls: noUrls,
      urls: refuseToSign,
      move: async (operation, size) => {
        const object = await this.bucket.get(archiveKey(backupId), { onlyIf: { etagMatches: etag } });
        if (object === null) throw new Error("the archive was deleted while it was being restored");
        if (!("body" in object)) throw new Error("the archive was replaced while it was being restored");
        await operation.giveArchive(object.body, size);
      },
    };
  }
}

class BindingUpload implements Upload {
  #etag: string | undefined;
  readonly firstUrls = noUrls;
  readonly urls = refuseToSign;

  constructor(
    private readonly bucket: R2Bucket,
    private readonly key: string,
  ) {}

  async move(operation: AgentOperation, size: number): Promise<void> {
    if (size > LARGEST_PUT) {
      throw new Error(
        `an archive of ${size} bytes does not go through the binding, whose limit is ${LARGEST_PUT}; use the production path`,
      );
    }
    const stored = await withLength(await operation.takeArchive(), size, (archive) =>
      this.bucket.put(this.key, archive),
    );
    this.#etag = stored?.etag;
  }

  async complete(_archive: ArchiveResult): Promise<string> {
    if (this.#etag === undefined) throw new Error("The agent ended before its archive was taken");
    return this.#etag;
  }

  async abort(): Promise<void> {
    await this.bucket.delete(this.key);
  }
}

async function noUrls(): Promise<[]> {
  return [];
}

async function refuseToSign(): Promise<never> {
  throw new Error("With localBucket the Durable Object moves the archive; the agent needs no URL");
}

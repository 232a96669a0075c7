import { createInterface } from "node:readline";
import { setTimeout as delay } from "node:timers/promises";
import { ExpectedDigests } from "../backup/digests.js";
import { DEFAULT_REQUEST_LIMITS, type UrlSource } from "../backup/object-request.js";
import { DEVICE, serveFile } from "./fuse-file.js";
import type { Report, ServeRequest, UrlMessage } from "./messages.js";
import { RemoteFile } from "./remote-file.js";

/**
 * What nobody waits for yet is fetched so much later, in ms: the archive is mounted meanwhile and a first file read, which would
 * share the processors and the network with it.
 */
const FILL_DELAY = 150;

/**
 * A process that serves one remote archive as a file. Not the agent itself: that reads restored directories too, and would
 * wait for what only it could bring. It is waited for, so it loads no more than it needs: what it is told by the agent, which
 * is the same program, no schema checks.
 */
export async function serveArchive(): Promise<void> {
  const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
  const first = await lines.next();
  const { file, size, etag, digests, present, url, stallTimeout }: ServeRequest = JSON.parse(first.value ?? "");
  const remote = await RemoteFile.open({
    path: file,
    present,
    archive: { size, etag, digests: new ExpectedDigests(digests, size) },
    urls: new AgentUrls(url, lines),
    limits: { ...DEFAULT_REQUEST_LIMITS, stallTimeout },
    onFailure: fail,
  });
  delay(FILL_DELAY)
    .then(() => remote.fill())
    .then(() => report({ type: "filled" }), fail);
  await serveFile(DEVICE, remote);
  // A thread may still wait for the device, and Node would wait for the thread.
  process.kill(process.pid, "SIGKILL");
}

let failed = false;

/** Said once: what fails later does so for the same reason. */
function fail(error: unknown): void {
  if (!failed) report({ type: "failed", message: error instanceof Error ? error.message : String(error) });
  failed = true;
}

function report(message: Report): void {
  process.stdout.write(`${JSON.stringify(message)}\n`);
}

/** The archive's URL; the agent knows how to get another. */
class AgentUrls implements UrlSource {
  #url: Promise<string>;

  constructor(
    url: string,
    private readonly answers: AsyncIterator<string>,
  ) {
    this.#url = Promise.resolve(url);
  }

  get(): Promise<string> {
    return this.#url;
  }

  async renew(_part: number, refused: string): Promise<string> {
    const current = this.#url;
    // Requests side by side are refused together: the first asks, the others wait for its answer.
    if ((await current) === refused && this.#url === current) this.#url = this.#ask();
    return this.#url;
  }

  async #ask(): Promise<string> {
    report({ type: "need-url" });
    const { value } = await this.answers.next();
    const { url }: UrlMessage = JSON.parse(value ?? '{ "url": null }');
    if (url === null)
      throw new Error("the URL of the archive has expired, and there is nobody any more who gives another");
    return url;
  }
}

import { createServer, type IncomingMessage, request, type Server, type ServerResponse } from "node:http";
import { listenOnLoopback } from "../../dev/loopback.ts";

/**
 * A proxy before an S3 endpoint, which fails as a test tells it to, and remembers what passed. Signatures stay good: it
 * passes the Host header on. Tests control it over HTTP, for it runs in the process that started the system.
 */

/** How requests are to fail. */
export interface Fault {
  /** Of requests whose method and URL match. */
  method?: string;
  /** A regular expression on path and query. */
  url?: string;
  /** After so many that pass. @default 0 */
  after?: number;
  /** So many. @default all */
  times?: number;
  /** Answer with this status, and S3's error of this code. */
  status?: number;
  code?: string;
  /** Close the connection, or never answer. */
  instead?: "reset" | "hang";
  /** Let it pass, but close the connection before its answer, or in the middle of that. */
  lose?: "answer" | "half";
  /** Let it pass, but answer with this ETag. */
  etag?: string;
}

/** A request that the proxy has seen. */
export interface SeenRequest {
  method: string;
  url: string;
  /** Undefined while it is not answered. */
  status?: number;
  /** From the answer to CreateMultipartUpload. */
  uploadId?: string;
}

const CONTROL = "/__control";
const ANOTHER = "/__another";

type Announce = (port: number) => Promise<void>;

export class FaultProxy {
  #faults: (Fault & { seen: number; done: number })[] = [];
  #requests: SeenRequest[] = [];
  readonly #others: FaultProxy[] = [];
  readonly #server: Server;
  #port = 0;

  private constructor(
    private readonly upstream: URL,
    private readonly announce: Announce,
  ) {
    this.#server = createServer((incoming, response) => void this.#handle(incoming, response));
  }

  /**
   * @param upstream origin of the S3 endpoint
   * @param announce is told the port, also of each proxy that this one starts
   */
  static async start(upstream: string, announce: Announce = async () => {}): Promise<FaultProxy> {
    const proxy = new FaultProxy(new URL(upstream), announce);
    proxy.#port = await listenOnLoopback(proxy.#server);
    await announce(proxy.#port);
    return proxy;
  }

  get origin(): string {
    return `http://127.0.0.1:${this.#port}`;
  }

  stop(): void {
    for (const other of this.#others) other.stop();
    this.#server.close();
    this.#server.closeAllConnections();
  }

  async #handle(incoming: IncomingMessage, response: ServerResponse): Promise<void> {
    if (incoming.url === CONTROL) return this.#control(incoming, response);
    if (incoming.url === ANOTHER) return this.#startAnother(response);
    const seen: SeenRequest = { method: incoming.method ?? "", url: incoming.url ?? "" };
    this.#requests.push(seen);
    const fault = this.#match(seen);
    if (fault?.instead === "reset") return void incoming.socket.destroy();
    if (fault?.instead === "hang") return void incoming.resume();
    if (fault?.status !== undefined) {
      seen.status = fault.status;
      incoming.resume();
      response.writeHead(fault.status, { "content-type": "application/xml" });
      return void response.end(`<?xml version="1.0"?><Error><Code>${fault.code ?? "InternalError"}</Code></Error>`);
    }
    this.#forward(incoming, response, seen, fault);
  }

  #forward(incoming: IncomingMessage, response: ServerResponse, seen: SeenRequest, fault: Fault | undefined): void {
    const { hostname, port } = this.upstream;
    const outgoing = request({
      hostname,
      port,
      method: incoming.method,
      path: incoming.url,
      headers: incoming.headers,
    });
    outgoing.on("response", (answer) => {
      seen.status = answer.statusCode ?? 0;
      if (fault?.lose === "answer") return void incoming.socket.destroy();
      response.writeHead(seen.status, { ...answer.headers, ...(fault?.etag && { etag: `"${fault.etag}"` }) });
      if (/[?&]uploads(=|&|$)/.test(seen.url)) {
        let body = "";
        answer.on("data", (chunk) => {
          body += chunk;
          seen.uploadId = /<UploadId>([^<]+)/.exec(body)?.[1] ?? "";
        });
      }
      if (fault?.lose === "half") {
        answer.once("data", (chunk: Buffer) =>
          response.write(chunk.subarray(0, chunk.length >> 1), () => response.destroy()),
        );
      } else answer.pipe(response);
    });
    outgoing.on("error", () => response.destroy());
    response.on("close", () => outgoing.destroy());
    incoming.pipe(outgoing);
  }

  #match({ method, url }: SeenRequest): Fault | undefined {
    for (const fault of this.#faults) {
      if (fault.method !== undefined && fault.method !== method) continue;
      if (fault.url !== undefined && !new RegExp(fault.url).test(url)) continue;
      fault.seen++;
      if (fault.seen <= (fault.after ?? 0) || fault.done >= (fault.times ?? Number.POSITIVE_INFINITY)) continue;
      fault.done++;
      return fault;
    }
    return undefined;
  }

  /** Another proxy before the same endpoint, with faults of its own. */
  async #startAnother(response: ServerResponse): Promise<void> {
    const other = await FaultProxy.start(this.upstream.origin, this.announce);
    this.#others.push(other);
    response.writeHead(200, { "content-type": "application/json" });
    response.end(JSON.stringify(other.origin));
  }

  async #control(incoming: IncomingMessage, response: ServerResponse): Promise<void> {
    if (incoming.method === "PUT") {
      let body = "";
      for await (const chunk of incoming) body += chunk;
      this.#faults = (JSON.parse(body) as Fault[]).map((fault) => ({ ...fault, seen: 0, done: 0 }));
      this.#requests = [];
    }
    response.writeHead(200, { "content-type": "application/json" });
    response.end(JSON.stringify(this.#requests));
  }
}

/** A test's hold on the proxy. */
export class FaultControl {
  constructor(readonly origin: string) {}

  /** The hold on a proxy of its own. */
  async another(): Promise<FaultControl> {
    return new FaultControl((await (await fetch(this.origin + ANOTHER)).json()) as string);
  }

  /** From now on these faults, and none of before; forgets the requests seen. */
  async set(faults: Fault[]): Promise<void> {
    await fetch(this.origin + CONTROL, { method: "PUT", body: JSON.stringify(faults) });
  }

  async requests(): Promise<SeenRequest[]> {
    return (await fetch(this.origin + CONTROL)).json() as Promise<SeenRequest[]>;
  }
}

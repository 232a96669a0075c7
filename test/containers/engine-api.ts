import { createServer, type IncomingMessage, request, type Server, type ServerResponse } from "node:http";
import type { Duplex } from "node:stream";
import { text } from "node:stream/consumers";

/**
 * Stands before a container engine's socket and passes everything on, but for two things: containers are created as
 * `adapt` says, and images are pulled as `pull` says. It is how tests change what workerd asks of the engine.
 */

/** What a container is created with: the fields of the engine's API that are changed here, and all others. */
export interface ContainerSpec {
  Image: string;
  Entrypoint?: string[];
  Labels?: Record<string, string>;
  Healthcheck?: { Test: string[] };
  HostConfig: {
    Binds?: string[];
    CapAdd?: string[];
    Devices?: { PathOnHost: string; PathInContainer: string; CgroupPermissions: string }[];
    SecurityOpt?: string[];
  };
}

export interface EngineApiOptions {
  /** Socket of the engine. */
  engine: string;
  /** Where this one listens: the path of a socket. */
  socket: string;
  adapt: (spec: ContainerSpec, name: string) => ContainerSpec | Promise<ContainerSpec>;
  /** Told after a container has started; whoever started it hears of that when this resolves. */
  started: (name: string) => Promise<void>;
  /** Told before an image is pulled; where the answer is false, it counts as pulled. */
  pull: (image: string) => Promise<boolean>;
}

export class EngineApi {
  private constructor(
    private readonly options: EngineApiOptions,
    private readonly server: Server,
  ) {}

  static async start(options: EngineApiOptions): Promise<EngineApi> {
    const server = createServer();
    const api = new EngineApi(options, server);
    server.on("request", (incoming, response) => void api.#answer(incoming, response));
    server.on("upgrade", (incoming, client, head) => api.#upgrade(incoming, client, head));
    await new Promise<void>((resolve) => server.listen(options.socket, resolve));
    return api;
  }

  /** Where it listens. */
  get socket(): string {
    return this.options.socket;
  }

  stop(): void {
    this.server.close();
    this.server.closeAllConnections();
  }

  async #answer(incoming: IncomingMessage, response: ServerResponse): Promise<void> {
    const url = new URL(incoming.url ?? "/", "http://engine");
    const call = `${incoming.method} ${url.pathname.replace(/^\/v[\d.]+/, "")}`;
    try {
      if (call === "POST /images/create" && !(await this.options.pull(imageOf(url.searchParams)))) {
        response.writeHead(200, { "content-type": "application/json" });
        response.end('{"status":"Image is up to date"}\n');
      } else if (call === "POST /containers/create") {
        const spec = JSON.stringify(
          await this.options.adapt(JSON.parse(await text(incoming)), url.searchParams.get("name") ?? ""),
        );
        this.#forward(incoming, response, { newLength: Buffer.byteLength(spec) }).end(spec);
      } else {
        const started = /^POST \/containers\/([^/]+)\/start$/.exec(call)?.[1];
        incoming.pipe(
          this.#forward(
            incoming,
            response,
            started === undefined ? {} : { before: () => this.options.started(started) },
          ),
        );
      }
    } catch (error) {
      refuse(response, error);
    }
  }

  #forward(
    incoming: IncomingMessage,
    response: ServerResponse,
    { newLength, before }: { newLength?: number; before?: (() => Promise<void>) | undefined },
  ) {
    const outgoing = this.#request(incoming, newLength);
    outgoing.on("response", async (answer) => {
      try {
        await before?.();
      } catch (error) {
        return refuse(response, error);
      }
      response.writeHead(answer.statusCode ?? 502, answer.headers);
      answer.pipe(response);
    });
    outgoing.on("error", () => response.destroy());
    response.on("close", () => outgoing.destroy());
    return outgoing;
  }

  /** A connection that becomes a stream of its own, as BuildKit's do. */
  #upgrade(incoming: IncomingMessage, client: Duplex, head: Buffer): void {
    const outgoing = this.#request(incoming);
    outgoing.on("upgrade", (answer, engine, rest) => {
      const headers = pairs(answer.rawHeaders).map(([name, value]) => `${name}: ${value}\r\n`);
      client.write(`HTTP/1.1 101 Switching Protocols\r\n${headers.join("")}\r\n`);
      client.write(rest);
      engine.write(head);
      join(client, engine);
    });
    outgoing.on("response", () => client.destroy());
    outgoing.on("error", () => client.destroy());
    outgoing.end();
  }

  #request(incoming: IncomingMessage, newLength?: number) {
    // As they came: BuildKit's repeat, and must not be joined to one.
    const headers = pairs(incoming.rawHeaders).map(([name, value]) =>
      name.toLowerCase() === "content-length" ? [name, String(newLength ?? value)] : [name, value],
    );
    return request({
      socketPath: this.options.engine,
      method: incoming.method,
      path: incoming.url,
      headers: headers.flat(),
    });
  }
}

function refuse(response: ServerResponse, error: unknown): void {
  response.writeHead(500, { "content-type": "application/json" });
  response.end(JSON.stringify({ message: String(error) }));
}

/** The image that a pull is for, as a user would name it: the engine is given `docker.io/library/<name>`. */
function imageOf(query: URLSearchParams): string {
  const name = (query.get("fromImage") ?? "").replace(/^docker\.io\/(library\/)?/, "");
  return query.get("tag") ? `${name}:${query.get("tag")}` : name;
}

/** Each stream's data goes to the other, and the end of one ends both. */
export function join(one: Duplex, other: Duplex): void {
  one.pipe(other);
  other.pipe(one);
  for (const [stream, peer] of [
    [one, other],
    [other, one],
  ] as const) {
    stream.on("error", () => peer.destroy());
    stream.on("close", () => peer.destroy());
  }
}

function pairs(flat: readonly string[]): [string, string][] {
  return Array.from({ length: flat.length / 2 }, (_, index) => [flat[2 * index] ?? "", flat[2 * index + 1] ?? ""]);
}

import { mkdir } from "node:fs/promises";
import { connect, createServer, type Server } from "node:net";
import { join as joinPath } from "node:path";
import { join } from "./engine-api.js";

/** Ports of this machine's loopback that containers reach at the same address: each is a socket in a directory that they get. */
export class HostPorts {
  readonly #servers: Server[] = [];

  private constructor(readonly directory: string) {}

  static async open(directory: string): Promise<HostPorts> {
    await mkdir(directory);
    return new HostPorts(directory);
  }

  /** For containers that are started from now on. */
  async share(port: number): Promise<void> {
    const server = createServer((client) => join(client, connect(port, "127.0.0.1")));
    await new Promise<void>((resolve) => server.listen(joinPath(this.directory, String(port)), resolve));
    this.#servers.push(server);
  }

  close(): void {
    for (const server of this.#servers) server.close();
  }
}

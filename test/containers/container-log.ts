import { once } from "node:events";
import type { WriteStream } from "node:fs";
import { type IncomingMessage, request } from "node:http";

/** Each piece of a log comes after its stream's number and, in the last four of these bytes, its length. */
const HEADER = 8;

/** Writes what a container writes, until it ends, as `docker logs --follow` does, which takes long to start. */
export async function followLog(engine: string, container: string, log: WriteStream): Promise<void> {
  const path = `/containers/${container}/logs?follow=1&stdout=1&stderr=1`;
  const asked = request({ socketPath: engine, path }).end();
  const [answer] = (await once(asked, "response")) as [IncomingMessage];
  let rest = Buffer.alloc(0);
  answer.on("data", (chunk: Buffer) => {
    rest = Buffer.concat([rest, chunk]);
    while (rest.length >= HEADER && rest.length >= HEADER + rest.readUInt32BE(4)) {
      const end = HEADER + rest.readUInt32BE(4);
      log.write(rest.subarray(HEADER, end));
      rest = rest.subarray(end);
    }
  });
  // The engine may end before the container does.
  answer.on("error", () => log.write(`The log of ${container} broke off.\n`));
}

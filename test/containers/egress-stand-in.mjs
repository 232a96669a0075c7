// Takes the place of the side-car that workerd starts beside each container, in the container's network: it lets workerd in,
// and the container out to those ports of the host's loopback that the directory /host has a socket for. When it listens, it
// makes the file /ready/<its first argument>.
// Plain JavaScript, because nothing else is in the container.
import { readdirSync, writeFileSync } from "node:fs";
import { createServer as createHttpServer } from "node:http";
import { connect, createServer } from "node:net";

/** Where workerd looks for its side-car. */
const INGRESS_PORT = 39001;

const ingress = createHttpServer((request, response) => {
  // It says what to intercept, and asks for the certificate to do it with: nothing is intercepted here.
  request.resume();
  request.on("end", () => response.end());
});
ingress.on("connect", (request, client, head) => {
  const port = Number(/:(\d+)$/.exec(request.headers["x-dst-addr"] ?? request.url)?.[1]);
  const target = connect(port, "127.0.0.1");
  target.once("connect", () => {
    client.write("HTTP/1.1 200 OK\r\n\r\n");
    target.write(head);
    join(client, target);
  });
  target.once("error", () => client.end("HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n"));
  client.on("error", () => target.destroy());
});

for (const name of readdirSync("/host")) {
  createServer((client) => join(client, connect(`/host/${name}`))).listen(Number(name), "127.0.0.1");
}

ingress.listen(INGRESS_PORT, "0.0.0.0", () => writeFileSync(`/ready/${process.argv[2]}`, ""));

function join(one, other) {
  one.pipe(other);
  other.pipe(one);
  for (const [stream, peer] of [
    [one, other],
    [other, one],
  ]) {
    stream.on("error", () => peer.destroy());
    stream.on("close", () => peer.destroy());
  }
}

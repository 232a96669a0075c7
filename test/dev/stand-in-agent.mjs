// Stands in for the agent: listens where the development host wants it, and does what the tests of the host need.
import { spawn } from "node:child_process";
import { createServer } from "node:http";

const routes = {
  "/v1/health": (_request, response) => response.end(JSON.stringify({ ok: true, version: "stand-in" })),
  "/env": (_request, response) => response.end(JSON.stringify(process.env)),
  "/echo": (request, response) => {
    response.writeHead(201, { "x-method": request.method, "x-headers": JSON.stringify(request.headers) });
    request.pipe(response);
  },
  /** Runs the body as a shell script; its output is the answer, sent as it comes. */
  "/sh": async (request, response) => {
    const script = (await request.toArray()).join("");
    const child = spawn("sh", ["-c", script], { stdio: ["ignore", "pipe", "pipe"] });
    response.on("close", () => child.kill("SIGKILL"));
    child.stdout.pipe(response);
    child.stderr.pipe(process.stderr);
  },
  "/exit": () => process.exit(7),
};

if (process.env.FAIL_TO_START) {
  console.error("stand-in agent: told to fail");
  process.exit(3);
}
createServer((request, response) => {
  const path = new URL(request.url, "http://agent").pathname;
  if (routes[path]) routes[path](request, response);
  else response.writeHead(404).end();
}).listen(process.argv[process.argv.indexOf("--listen") + 1]);

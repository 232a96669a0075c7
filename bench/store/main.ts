import { startStore } from "./server.ts";

/** The store as a process of its own, until its standard input ends. Its first line of output is where it listens. */
const { server, origin } = await startStore();
console.log(origin);
process.stdin.resume().once("end", () => {
  server.close();
  server.closeAllConnections();
});

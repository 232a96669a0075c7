import { once } from "node:events";
import { lstat, mkdir, unlink } from "node:fs/promises";
import type { Server } from "node:http";
import { connect } from "node:net";
import { isAbsolute } from "node:path";
import { parseArgs } from "node:util";
import { AGENT_PORT, WORKSPACE } from "../src/protocol.js";
import { BackupOperations } from "./backup/operations.js";
import { log, logOperation } from "./log.js";
import { type AgentServer, type Backups, createServer } from "./server.js";

/** A port on all addresses, or the path of a Unix socket. */
type Address = number | string;

export const USAGE = "Usage: node agent.js [--listen <port or absolute path of a socket>]";

/** Starts the agent and resolves when it answers requests. */
export async function main(args: string[]): Promise<void> {
  const address = parseAddress(args);
  // A mistake of the agent's; ending it would end the container, and with that its files.
  process.on("unhandledRejection", (reason) => log("unhandled-rejection", { message: String(reason) }));
  const backups = new BackupOperations();
  const server = createServer(backups);
  stopOnSignal(server, backups);
  await makeWorkspace();
  if (typeof address === "string") await removeStaleSocket(address);
  await listen(server.http, address);
  log("listen", { address: typeof address === "string" ? address : portOf(server.http) });
}

/** Something is wrong with how the agent was called. */
export class UsageError extends Error {}

function parseAddress(args: string[]): Address {
  const listen = parseListenOption(args) ?? String(AGENT_PORT);
  if (isAbsolute(listen)) return listen;
  const port = Number(listen);
  if (/^\d+$/.test(listen) && port <= 65535) return port;
  throw new UsageError(`--listen must be a port from 0 to 65535 or the absolute path of a socket, not ${listen}`);
}

function parseListenOption(args: string[]): string | undefined {
  try {
    return parseArgs({ args, options: { listen: { type: "string" } } }).values.listen;
  } catch (error) {
    throw new UsageError(error instanceof Error ? error.message : String(error));
  }
}

async function makeWorkspace(): Promise<void> {
  try {
    await mkdir(WORKSPACE, { recursive: true });
  } catch (error) {
    log("workspace", { outcome: "failed", message: String(error) });
  }
}

/** Takes away the socket of an agent that was killed. One that still answers, and what is no socket, stay. */
async function removeStaleSocket(path: string): Promise<void> {
  const stats = await lstat(path).catch(() => undefined);
  if (stats === undefined) return;
  if (!stats.isSocket()) throw new UsageError(`--listen: ${path} exists and is not a socket`);
  if (await answers(path)) throw new UsageError(`--listen: another process listens on ${path}`);
  await unlink(path);
}

async function answers(path: string): Promise<boolean> {
  const socket = connect(path);
  try {
    await once(socket, "connect");
    return true;
  } catch {
    return false;
  } finally {
    socket.destroy();
  }
}

async function listen(server: Server, address: Address): Promise<void> {
  // Whoever can open the socket can run commands.
  const umask = process.umask(0o077);
  if (typeof address === "string") server.listen(address);
  else server.listen(address, "0.0.0.0");
  process.umask(umask);
  await once(server, "listening");
}

function portOf(server: Server): number | null {
  const address = server.address();
  return typeof address === "object" && address !== null ? address.port : null;
}

/** Stops everything at the first signal; a second one ends the agent at once. */
function stopOnSignal(server: AgentServer, backups: Backups): void {
  const stop = async (signal: NodeJS.Signals) => {
    server.http.close();
    // Before the connections end, so that the clients of the operations hear why they do.
    await logOperation("stop", { signal }, () => backups.shutdown()).catch(() => {});
    await server.close();
    process.exit(0);
  };
  for (const signal of ["SIGTERM", "SIGINT"] as const) {
    process.once(signal, () => void stop(signal));
  }
}

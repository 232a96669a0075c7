import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { setTimeout as delay } from "node:timers/promises";
import { PROFILES, type ProfileName } from "../profiles.ts";
import type { Traffic } from "./network.ts";

/** How long nothing is asked of the store before what moved archives counts as over, in ms. */
const IDLE = 400;

/** The store, in a process of its own, and its controls. */
export class Store {
  readonly origin: string;
  readonly #child: ChildProcess;

  private constructor(origin: string, child: ChildProcess) {
    this.origin = origin;
    this.#child = child;
  }

  static async start(): Promise<Store> {
    const script = new URL("./main.ts", import.meta.url).pathname;
    const child = spawn(process.execPath, ["--no-warnings", script], { stdio: ["pipe", "pipe", "inherit"] });
    for await (const line of createInterface({ input: child.stdout })) return new Store(line, child);
    throw new Error("The store did not start");
  }

  async stop(): Promise<void> {
    const exit = once(this.#child, "exit");
    this.#child.stdin?.end();
    await exit;
  }

  async useProfile(name: ProfileName): Promise<void> {
    await this.#ask("PUT", "profile", JSON.stringify(PROFILES[name]));
  }

  /** Forgets all objects. */
  async clear(): Promise<void> {
    await this.#ask("DELETE", "objects");
  }

  /** Forgets the objects under a prefix of their keys, when nothing is being moved any more. */
  async forget(prefix: string): Promise<void> {
    await this.settle();
    await this.#ask("DELETE", `objects?prefix=${encodeURIComponent(prefix)}`);
  }

  /** From now on traffic is counted from zero. */
  async countAnew(): Promise<void> {
    await this.#ask("DELETE", "traffic");
  }

  async traffic(): Promise<Traffic> {
    const { requests, sent, fetched } = await this.#readTraffic();
    return { requests, sent, fetched };
  }

  /** Waits until nothing is being moved any more, also in the background. */
  async settle(): Promise<void> {
    for (;;) {
      const { idleTime } = await this.#readTraffic();
      if (idleTime >= IDLE) return;
      await delay(IDLE - idleTime);
    }
  }

  async #readTraffic(): Promise<Traffic & { idleTime: number }> {
    return (await (await this.#ask("GET", "traffic")).json()) as Traffic & { idleTime: number };
  }

  async #ask(method: string, path: string, body?: string): Promise<Response> {
    const response = await fetch(`${this.origin}/-/${path}`, { method, ...(body !== undefined && { body }) });
    if (!response.ok) throw new Error(`The store refused ${method} ${path}: ${await response.text()}`);
    return response;
  }
}

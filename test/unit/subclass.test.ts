import { env } from "cloudflare:workers";
import { expect, test } from "vitest";
import { getSandbox, ValidationError } from "../../src/index.js";

const sandbox = () => getSandbox(env.TEST_SANDBOX, crypto.randomUUID());

test("a subclass's own methods are callable, with their arguments and results", async () => {
  expect(await sandbox().greet("you")).toBe("hello you");
  expect(await sandbox().greet("you", { loud: true })).toBe("HELLO YOU");
});

test("a subclass's method can call its caller back", async () => {
  expect(await sandbox().callBack((value) => value * 2)).toBe(41);
});

test("streams pass in both directions", async () => {
  const { readable, writable } = new TransformStream<Uint8Array, Uint8Array>();
  const writer = writable.getWriter();
  void writer.write(new TextEncoder().encode("there and back")).then(() => writer.close());

  expect(await new Response(await sandbox().echo(readable)).text()).toBe("there and back");
  expect(await new Response(await sandbox().count()).text()).toBe("one two three");
});

test("a subclass's method gets a signal that the caller's signal aborts", async () => {
  const controller = new AbortController();
  const client = sandbox();
  expect(await client.hasSignal({ signal: controller.signal })).toBe(true);

  const waiting = client.wait({ signal: controller.signal });
  controller.abort(new Error("enough"));

  await expect(waiting).rejects.toThrow("enough");
});

test("a call whose signal has aborted already is not made", async () => {
  const signal = AbortSignal.abort(new Error("too late"));

  await expect(sandbox().wait({ signal })).rejects.toThrow("too late");
});

test.each(["noSuchMethod", "constructor", "callFromClient", "abortCall", "alarm", "sleepAfter", "toString", "ctx"])(
  "%s is no method of a client",
  async (name) => {
    const method = Reflect.get(sandbox(), name) as () => Promise<unknown>;

    await expect(method()).rejects.toBeInstanceOf(ValidationError);
  },
);

test("a client is no promise, and has the id and name of its Durable Object", async () => {
  const client = getSandbox(env.TEST_SANDBOX, "Named");

  expect(await Promise.resolve(client)).toBe(client);
  expect(client.name).toBe("Named");
  expect(client.id.toString()).toBe(env.TEST_SANDBOX.idFromName("Named").toString());
});

test("the same name is the same sandbox, in any case of letters when that is asked for", async () => {
  const id = (name: string, options = {}) => getSandbox(env.TEST_SANDBOX, name, options).id.toString();

  expect(id("Mine")).toBe(id("Mine"));
  expect(id("Mine")).not.toBe(id("mine"));
  expect(id("Mine", { normalizeId: true })).toBe(id("mine"));
});

test("sleepAfter of the client replaces that of the class", async () => {
  const name = crypto.randomUUID();

  expect(await getSandbox(env.TEST_SANDBOX, name).readSleepAfter()).toBe("5m");
  expect(await getSandbox(env.TEST_SANDBOX, name, { sleepAfter: 90 }).readSleepAfter()).toBe(90);
  expect(await getSandbox(env.TEST_SANDBOX, name, { sleepAfter: "1h" }).readSleepAfter()).toBe("1h");
});

test.each([
  [{ sleepAfter: 0 }, "`sleepAfter`"],
  [{ sleepAfter: "soon" }, "`sleepAfter`"],
  [{ sleepAfter: true }, "`sleepAfter`"],
  [{ normalizeId: "yes" }, "`normalizeId`"],
  [{ transport: "rpc" }, "transport"],
])("getSandbox refuses the options %j", (options, name) => {
  const get = () => Reflect.apply(getSandbox, undefined, [env.TEST_SANDBOX, "x", options]) as unknown;

  expect(get).toThrow(ValidationError);
  expect(get).toThrow(name);
});

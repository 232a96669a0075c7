import { describe, expect, test } from "vitest";
import { Queue } from "../../src/queue.js";
import { encodeEvent, parseSSEStream } from "../../src/sse.js";
import { decodeBase64, decodeText, encodeBase64 } from "../../src/text.js";

const bytes = (text: string) => new TextEncoder().encode(text);

/** A stream of these chunks. */
function streamOf(...chunks: Uint8Array[]): ReadableStream<Uint8Array> {
  return new ReadableStream({
    pull(controller) {
      const chunk = chunks.shift();
      if (chunk === undefined) controller.close();
      else controller.enqueue(chunk);
    },
  });
}

async function collect<Value>(values: AsyncIterable<Value>): Promise<Value[]> {
  const collected: Value[] = [];
  for await (const value of values) collected.push(value);
  return collected;
}

const parse = (...chunks: Uint8Array[]) => collect(parseSSEStream<unknown>(streamOf(...chunks)));

describe("parseSSEStream", () => {
  const time = "2026-01-01T00:00:00.000Z";
  const events = [
    { type: "stdout" as const, data: "ünïcödé 🗂\r\n\n", timestamp: time },
    { type: "complete" as const, exitCode: 0, duration: 5, timestamp: time },
  ];

  test("reads what execStream writes, wherever the stream is cut", async () => {
    const whole = new Uint8Array(await new Response(streamOf(...events.map(encodeEvent))).arrayBuffer());

    for (const size of [1, 2, 3, 7, whole.length]) {
      const chunks = Array.from({ length: Math.ceil(whole.length / size) }, (_, index) =>
        whole.slice(index * size, (index + 1) * size),
      );
      expect(await parse(...chunks)).toEqual(events);
    }
  });

  test.each([
    ["LF", "\n"],
    ["CRLF", "\r\n"],
    ["CR", "\r"],
  ])("reads lines that end with %s", async (_name, end) => {
    expect(await parse(bytes(`data: 1${end}${end}data: 2${end}${end}`))).toEqual([1, 2]);
  });

  test("joins the lines of one event's data, and reads data with no blank after the colon", async () => {
    expect(await parse(bytes('data: {"a":\ndata: 1}\n\ndata:2\n\n'))).toEqual([{ a: 1 }, 2]);
  });

  test("passes over comments, other fields and events without data", async () => {
    expect(await parse(bytes(": hello\n\nevent: x\nid: 5\ndata: 1\nretry: 3\n\nevent: none\n\n"))).toEqual([1]);
  });

  test("reads a last event that no blank line follows", async () => {
    expect(await parse(bytes("data: 1\n\ndata: 2"))).toEqual([1, 2]);
  });

  test("throws at data that is not JSON", async () => {
    await expect(parse(bytes("data: oops\n\n"))).rejects.toBeInstanceOf(SyntaxError);
  });

  test("cancels the stream when its reader stops early", async () => {
    let cancelled = false;
    const stream = new ReadableStream<Uint8Array>({
      pull: (controller) => controller.enqueue(bytes("data: 1\n\n")),
      cancel: () => {
        cancelled = true;
      },
    });

    for await (const _event of parseSSEStream(stream)) break;

    expect(cancelled).toBe(true);
  });

  test("rejects with the signal's reason, also while it waits", async () => {
    const controller = new AbortController();
    const events = parseSSEStream(new ReadableStream<Uint8Array>(), controller.signal);
    const next = events.next();

    controller.abort(new Error("enough"));

    await expect(next).rejects.toThrow("enough");
  });
});

describe("the queue", () => {
  const { signal } = new AbortController();

  test("runs one piece of work after another, in order", async () => {
    const queue = new Queue();
    const log: string[] = [];
    const work = (name: string) => async () => {
      log.push(`${name} begins`);
      await Promise.resolve();
      log.push(`${name} ends`);
      return name;
    };

    expect(await Promise.all(["a", "b", "c"].map((name) => queue.run(work(name), signal)))).toEqual(["a", "b", "c"]);
    expect(log).toEqual(["a begins", "a ends", "b begins", "b ends", "c begins", "c ends"]);
  });

  test("goes on after a failure", async () => {
    const queue = new Queue();
    const failed = queue.run(async () => {
      throw new Error("no");
    }, signal);
    const next = queue.run(async () => "next", signal);

    await expect(failed).rejects.toThrow("no");
    expect(await next).toBe("next");
  });

  test("never runs work whose signal has aborted while it waited", async () => {
    const queue = new Queue();
    const controller = new AbortController();
    let ran = false;
    let release = () => {};
    const first = queue.run(() => new Promise<void>((resolve) => (release = resolve)), signal);
    const second = queue.run(async () => {
      ran = true;
    }, controller.signal);

    await Promise.resolve();
    controller.abort(new Error("not any more"));
    release();

    await first;
    await expect(second).rejects.toThrow("not any more");
    expect(ran).toBe(false);
  });
});

describe("text", () => {
  const everyByte = Uint8Array.from({ length: 100_000 }, (_, index) => (index * 7) % 256);

  test("base64 goes there and back, of any size", () => {
    expect(decodeBase64(encodeBase64(everyByte))).toEqual(everyByte);
    expect(encodeBase64(new Uint8Array())).toBe("");
    expect(encodeBase64(bytes("hello"))).toBe("aGVsbG8=");
  });

  test("what is not base64 is told apart", () => {
    expect(decodeBase64("a!b")).toBeUndefined();
    expect(decodeBase64("abcde")).toBeUndefined();
  });

  test("bytes that are not UTF-8 are told apart when that is asked for", () => {
    expect(decodeText(everyByte, true)).toBeUndefined();
    expect(decodeText(Uint8Array.of(0x61, 0xff), false)).toBe("a\ufffd");
    expect(decodeText(bytes("ünïcödé"), true)).toBe("ünïcödé");
  });

  test("a byte order mark stays", () => {
    expect(decodeText(Uint8Array.of(0xef, 0xbb, 0xbf, 0x61), true)).toBe("\ufeffa");
  });
});

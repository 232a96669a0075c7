import { env } from "cloudflare:workers";
import { describe, expect, test } from "vitest";
import { errorFromJSON, isSandboxError, SandboxError } from "../../src/errors.js";
import { getSandbox } from "../../src/index.js";
import { oneOfEach } from "./worker.js";

const sandbox = () => getSandbox(env.TEST_SANDBOX, crypto.randomUUID());

/** What a promise rejects with. */
const rejection = (promise: Promise<unknown>): Promise<Error> =>
  promise.then(
    (value) => {
      throw new Error(`it resolved with ${value}`);
    },
    (error: Error) => error,
  );

describe("an error that a Durable Object throws arrives at the client", () => {
  test.each(oneOfEach().map((error, index) => ({ name: error.name, error, index })))(
    "as a $name, with its fields",
    async ({ error, index }) => {
      const arrived = await rejection(sandbox().throwError(index));

      expect(arrived).toBeInstanceOf(error.constructor);
      expect(arrived).toBeInstanceOf(SandboxError);
      expect(isSandboxError(arrived)).toBe(true);
      expect(arrived).toMatchObject({
        name: error.name,
        code: error.code,
        message: error.message,
        context: error.context,
        httpStatus: error.httpStatus,
        suggestion: error.suggestion,
      });
      expect(String(arrived)).toBe(`${error.name}: ${error.message}`);
    },
  );

  test("with the time at which it happened, and as the JSON that it was", async () => {
    const arrived = await rejection(sandbox().throwError(0));
    if (!isSandboxError(arrived)) throw arrived;

    const json: unknown = JSON.parse(JSON.stringify(arrived));

    expect(Date.parse(arrived.timestamp)).toBeGreaterThan(Date.now() - 60_000);
    expect(new Date(arrived.timestamp).toISOString()).toBe(arrived.timestamp);
    expect(errorFromJSON(json).toJSON()).toEqual(arrived.toJSON());
  });

  test("as it is when it is none of the package's", async () => {
    const arrived = await rejection(sandbox().throwPlain());

    expect(isSandboxError(arrived)).toBe(false);
    expect(arrived.message).toContain("a plain error");
  });
});

test("every code has its own class, and the HTTP status of the contract", () => {
  const statuses = Object.fromEntries(oneOfEach().map(({ code, httpStatus }) => [code, httpStatus]));

  expect(new Set(oneOfEach().map(Object.getPrototypeOf)).size).toBe(oneOfEach().length);
  expect(statuses).toEqual({
    INVALID_BACKUP_CONFIG: 400,
    BACKUP_CREATE_FAILED: 500,
    BACKUP_NOT_FOUND: 404,
    BACKUP_EXPIRED: 400,
    BACKUP_RESTORE_FAILED: 500,
    FILE_NOT_FOUND: 404,
    PERMISSION_DENIED: 403,
    FILESYSTEM_ERROR: 500,
    GIT_CLONE_FAILED: 500,
    COMMAND_TIMEOUT: 408,
    VALIDATION_FAILED: 400,
    OPERATION_ABORTED: 499,
    SANDBOX_UNAVAILABLE: 503,
    INTERNAL_ERROR: 500,
  });
});

test("what is not an error on the wire is refused", () => {
  for (const value of [null, "text", {}, { ...oneOfEach()[0]?.toJSON(), code: "ANOTHER_CODE" }]) {
    expect(() => errorFromJSON(value)).toThrow();
  }
});

test("an error of another copy of the package is known by its code", () => {
  const foreign = Object.assign(new Error("elsewhere"), { code: "BACKUP_EXPIRED" });

  expect(isSandboxError(foreign)).toBe(true);
  expect(isSandboxError(Object.assign(new Error("no"), { code: "ENOENT" }))).toBe(false);
  expect(isSandboxError({ code: "BACKUP_EXPIRED" })).toBe(false);
});

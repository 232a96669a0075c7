import { z } from "zod";
import { ValidationError } from "./errors.js";
import type { FileInfo } from "./protocol.js";

/** Arguments and results of the calls other than backup and restore, and the check of these arguments. */

/** Options of `exec` and `execStream`. */
export interface ExecOptions {
  /** Directory that the command starts in. @default "/workspace" */
  cwd?: string | undefined;
  /** Added to the environment; what is undefined is left out. @default {} */
  env?: Record<string, string | undefined> | undefined;
  /** Then the command and what it started are killed, in milliseconds. @default no limit */
  timeout?: number | undefined;
  /** What the command reads from its standard input. @default nothing */
  stdin?: string | undefined;
  /** False keeps `exec` from calling `onOutput`. @default true */
  stream?: boolean | undefined;
  /** Called by `exec` with output as it comes. */
  onOutput?: ((stream: "stdout" | "stderr", data: string) => void) | undefined;
  /** Kills the command and what it started; the call then rejects with the signal's reason. */
  signal?: AbortSignal | undefined;
}

/** How a command ended. */
export interface ExecResult {
  /** True when the exit code is 0. */
  success: boolean;
  /** 128 + n when signal n ended the command. */
  exitCode: number;
  stdout: string;
  stderr: string;
  command: string;
  /** In milliseconds. */
  duration: number;
  /** When the command started, ISO 8601. */
  timestamp: string;
}

export interface WriteFileOptions {
  /** How `content` is encoded when it is a string. @default "utf-8" */
  encoding?: "utf-8" | "utf8" | "base64" | undefined;
}

export interface ReadFileOptions {
  /** `none` gives the bytes as a stream. @default "utf-8" for text, "base64" for anything else */
  encoding?: "utf-8" | "utf8" | "base64" | "none" | undefined;
}

/** What every file call answers with. */
export interface FileResult {
  success: true;
  /** As it was given. */
  path: string;
  /** ISO 8601. */
  timestamp: string;
}

export interface MovedFileResult extends FileResult {
  newPath: string;
}

export interface MkdirResult extends FileResult {
  recursive: boolean;
}

export interface ExistsResult extends FileResult {
  exists: boolean;
}

export interface ReadFileResult<Content = string> extends FileResult {
  content: Content;
  encoding: "utf-8" | "base64" | "none";
  /** In bytes; 0 for a stream whose length only reading tells, as in /proc. */
  size: number;
  mimeType: string;
}

export interface ListFilesOptions {
  /** Also what is in directories below. @default false */
  recursive?: boolean | undefined;
  /** Also names that begin with a dot. @default false */
  includeHidden?: boolean | undefined;
}

export interface ListFilesResult extends FileResult {
  files: FileInfo[];
  count: number;
}

/** Options of `gitCheckout`. */
export interface GitCheckoutOptions {
  /** Branch or tag. @default the repository's own */
  branch?: string | undefined;
  /** @default "/workspace/" and the name of the repository */
  targetDir?: string | undefined;
  /** Only this many of the last commits, above 0. @default all */
  depth?: number | undefined;
}

export interface GitCheckoutResult {
  success: true;
  repoUrl: string;
  branch: string;
  targetDir: string;
  /** ISO 8601. */
  timestamp: string;
}

/** Options of `getSandbox`. */
export interface SandboxOptions {
  /** Time without a call after which the sandbox stops: seconds, or a number with `s`, `m` or `h`. @default "10m", or the class's own */
  sleepAfter?: string | number | undefined;
  /** Use the id in lower case, as host names need it. @default false */
  normalizeId?: boolean | undefined;
}

const signal = z.instanceof(AbortSignal, { error: "has to be an AbortSignal" }).optional();
const text = (what: string) => z.string({ error: `has to be a string: ${what}` });
const path = text("a path")
  .min(1, { error: "must not be empty" })
  .refine((value) => !value.includes("\0"), {
    error: "must not contain a NUL character",
  });
const flag = z.boolean({ error: "has to be true or false" }).optional();

/** Environment variables; those that are undefined are left out. */
export const envSchema = z
  .record(z.string().regex(/^[^=\0]+$/, { error: "is not a name of a variable" }), text("a value").optional(), {
    error: "has to be an object of strings",
  })
  .transform((env) =>
    Object.fromEntries(Object.entries(env).filter((entry): entry is [string, string] => entry[1] !== undefined)),
  );

export const execArguments = z.object({
  command: text("a command of the shell").min(1, { error: "must not be empty" }),
  options: z
    .object(
      {
        cwd: path.optional(),
        env: envSchema.optional(),
        timeout: z
          .number({ error: "has to be a number of milliseconds above 0" })
          .positive({ error: "has to be a number of milliseconds above 0" })
          .optional(),
        stdin: text("what the command reads").optional(),
        stream: flag,
        onOutput: z
          .custom<(stream: "stdout" | "stderr", data: string) => void>((value) => typeof value === "function", {
            error: "has to be a function",
          })
          .optional(),
        signal,
      },
      { error: "has to be an object { cwd?, env?, timeout?, … }" },
    )
    .prefault({}),
});

export const writeFileArguments = z.object({
  path,
  content: z.union(
    [
      z.string(),
      z.instanceof(Uint8Array),
      z.custom<ReadableStream<Uint8Array>>((value) => value instanceof ReadableStream),
    ],
    {
      error: "has to be a string, a Uint8Array or a ReadableStream",
    },
  ),
  options: z
    .object({
      encoding: z.enum(["utf-8", "utf8", "base64"], { error: 'has to be "utf-8" or "base64"' }).prefault("utf-8"),
    })
    .prefault({}),
});

export const readFileArguments = z.object({
  path,
  options: z
    .object({
      encoding: z
        .enum(["utf-8", "utf8", "base64", "none"], { error: 'has to be "utf-8", "base64" or "none"' })
        .optional(),
    })
    .prefault({}),
});

export const pathArguments = z.object({ path });
export const twoPathsArguments = z.object({ path, newPath: path });
export const mkdirArguments = z.object({ path, options: z.object({ recursive: flag }).prefault({}) });
export const listFilesArguments = z.object({
  path,
  options: z.object({ recursive: flag, includeHidden: flag }).prefault({}),
});

export const gitCheckoutArguments = z.object({
  repoUrl: text("a URL or path of a repository").min(1, { error: "must not be empty" }),
  options: z
    .object({
      branch: text("a branch").min(1, { error: "must not be empty" }).optional(),
      targetDir: path.optional(),
      depth: z
        .int({ error: "has to be a whole number above 0" })
        .positive({ error: "has to be a whole number above 0" })
        .optional(),
    })
    .prefault({}),
});

const DURATION = /^(\d+(?:\.\d+)?)\s*(s|m|h)?$/;
const SECONDS = { s: 1, m: 60, h: 3600 } as const;

/** Milliseconds, of seconds or a text such as `30s`, `10m`, `1h`. */
export const durationSchema = z.union([z.number(), z.string()]).transform((value, context) => {
  const match = DURATION.exec(String(value));
  const milliseconds = match && Number(match[1]) * SECONDS[(match[2] ?? "s") as keyof typeof SECONDS] * 1000;
  if (milliseconds) return milliseconds;
  context.addIssue({
    code: "custom",
    message: 'has to be a number of seconds above 0, or a text such as "30s", "10m" or "1h"',
  });
  return z.NEVER;
});

export const sandboxOptionsSchema = z.strictObject({
  sleepAfter: z
    .union([z.string(), z.number()], { error: 'has to be a number of seconds, or a text such as "10m"' })
    .refine((value) => durationSchema.safeParse(value).success, {
      error: 'has to be a number of seconds above 0, or a text such as "30s", "10m" or "1h"',
    })
    .optional(),
  normalizeId: flag,
}) satisfies z.ZodType<SandboxOptions>;

/** @throws {ValidationError} that names the argument and what it may be */
export function parseArguments<Output>(call: string, schema: z.ZodType<Output>, value: unknown): Output {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const reason = result.error.issues
    .map(({ path, message }) =>
      path.length === 0
        ? message
        : `\`${path.filter((part) => part !== "options").join(".") || "options"}\` ${message}`,
    )
    .join("; ");
  throw new ValidationError(`Invalid arguments of ${call}: ${reason}`, { reason });
}

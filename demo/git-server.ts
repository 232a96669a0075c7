import { execFile, spawn } from "node:child_process";
import { writeFile } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { promisify } from "node:util";

const run = promisify(execFile);

export interface GitServer {
  /** To clone from. */
  url: string;
  stop(): Promise<void>;
}

/**
 * Serves the git repository that `root` is a working copy of, with `git daemon` on 127.0.0.1, for as long as it runs.
 * @param directory gets git's settings
 */
export async function startGitServer(root: string, directory: string, port: number): Promise<GitServer> {
  const settings = join(directory, "gitconfig");
  // In CI the working copy may belong to another user, whom git would not serve otherwise.
  await writeFile(settings, "[safe]\n\tdirectory = *\n");
  const env = { ...process.env, GIT_CONFIG_GLOBAL: settings };
  const gitDirectory = await commonDirectory(root, env);
  const child = spawn(
    "git",
    [
      ...["daemon", "--verbose", "--export-all", "--reuseaddr", "--listen=127.0.0.1", `--port=${port}`],
      ...[`--base-path=${dirname(gitDirectory)}`, dirname(gitDirectory)],
    ],
    { env, stdio: ["ignore", "ignore", "pipe"] },
  );
  const ended = new Promise<void>((resolve) => {
    child.once("error", () => resolve());
    child.once("exit", () => resolve());
  });
  const stop = async () => {
    child.kill("SIGTERM");
    await ended;
  };
  const lines: string[] = [];
  const ready = new Promise<boolean>((resolve) => {
    createInterface({ input: child.stderr }).on("line", (line) => {
      lines.push(line);
      if (line.includes("Ready to rumble")) resolve(true);
    });
    void ended.then(() => resolve(false));
  });
  if (await ready) return { url: `git://127.0.0.1:${port}/${basename(gitDirectory)}`, stop };
  throw new Error(`git daemon did not start: ${lines.join("\n")}`);
}

/** The repository itself; of a linked working tree, that which it belongs to. */
async function commonDirectory(root: string, env: NodeJS.ProcessEnv): Promise<string> {
  try {
    const { stdout } = await run("git", ["-C", root, "rev-parse", "--path-format=absolute", "--git-common-dir"], {
      env,
    });
    return stdout.trim();
  } catch (error) {
    throw new Error("The demo checks out this project's own repository: run it in a git clone.", { cause: error });
  }
}

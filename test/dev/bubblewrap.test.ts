import { expect, test } from "vitest";
import { planSandbox, readMirroredRoot, type SandboxPlanOptions } from "../../dev/bubblewrap.js";

const OPTIONS: SandboxPlanOptions = {
  directory: "/tmp/host/one",
  mirrored: [{ path: "/usr" }, { path: "/bin", target: "usr/bin" }, { path: "/var/lib" }],
  agentPath: "/project/node_modules/sandbox-backup/dist/agent.js",
  nodePath: "/home/me/.nvm/versions/node/v22/bin/node",
  isRoot: true,
  env: { KEY: "value" },
  enableInternet: true,
};

/** The arguments as options, each with its values. */
function options(args: readonly string[]): string[] {
  return args.slice(0, args.indexOf("--")).reduce<string[]>((list, arg) => {
    if (arg.startsWith("--")) list.push(arg);
    else list.push(`${list.pop()} ${arg}`);
    return list;
  }, []);
}

test("the machine's system is shown read-only, its links as links", () => {
  expect(options(planSandbox(OPTIONS).args)).toEqual(
    expect.arrayContaining(["--ro-bind /usr /usr", "--symlink usr/bin /bin", "--ro-bind /var/lib /var/lib"]),
  );
});

test("nothing of the machine is shown writable but the sandbox's own directories, FUSE and, to root, loop devices", () => {
  const loop = (option: string) => /^--dev-bind-try (\/dev\/loop(?:-control|\d+)) \1$/.test(option);
  expect(options(planSandbox(OPTIONS).args).filter(loop)).toHaveLength(33);
  expect(options(planSandbox({ ...OPTIONS, isRoot: false }).args).filter(loop)).toEqual([]);
  expect(
    options(planSandbox(OPTIONS).args).filter((option) => /^--(dev-)?bind(-try)? /.test(option) && !loop(option)),
  ).toEqual([
    "--bind /tmp/host/one/workspace /workspace",
    "--bind /tmp/host/one/home /home",
    "--bind /tmp/host/one/tmp /tmp",
    "--bind /tmp/host/one/var-tmp /var/tmp",
    "--bind /tmp/host/one/app /app",
    "--bind /tmp/host/one/var-backups /var/backups",
    "--bind /tmp/host/one/root /root",
    "--bind /tmp/host/one/run /.sandbox-backup/run",
    "--dev-bind /dev/fuse /dev/fuse",
  ]);
});

test("directories are made before, temp directories for everyone", () => {
  const { directories } = planSandbox(OPTIONS);
  expect(directories).toHaveLength(8);
  expect(directories).toContainEqual({ path: "/tmp/host/one/tmp", mode: 0o1777 });
  expect(directories).toContainEqual({ path: "/tmp/host/one/var-tmp", mode: 0o1777 });
  expect(directories).toContainEqual({ path: "/tmp/host/one/run", mode: 0o700 });
});

test("the agent runs from places that a hidden home or temp directory does not hide", () => {
  const { args, socketPath } = planSandbox(OPTIONS);
  expect(options(args)).toEqual(
    expect.arrayContaining([
      "--ro-bind /home/me/.nvm/versions/node/v22 /.sandbox-backup/node",
      "--ro-bind /project/node_modules/sandbox-backup/dist/agent.js /.sandbox-backup/agent.js",
    ]),
  );
  expect(args.slice(args.indexOf("--") + 1)).toEqual([
    "/.sandbox-backup/node/bin/node",
    "/.sandbox-backup/agent.js",
    "--listen",
    "/.sandbox-backup/run/agent.sock",
  ]);
  expect(socketPath).toBe("/tmp/host/one/run/agent.sock");
});

test("the environment is not among the arguments that a list of processes shows", () => {
  const { args, secretArgs } = planSandbox(OPTIONS);
  expect(args).not.toContain("KEY");
  expect(secretArgs[0]).toBe("--clearenv");
  expect(secretArgs.join(" ")).toContain("--setenv KEY value");
  expect(secretArgs.join(" ")).toContain("--setenv HOME /root");
});

test("the network is taken away only where Internet access is off", () => {
  expect(planSandbox(OPTIONS).args).not.toContain("--unshare-net");
  expect(planSandbox({ ...OPTIONS, enableInternet: false }).args).toContain("--unshare-net");
});

test("a user who is not root gets a user namespace in which he is", () => {
  expect(planSandbox(OPTIONS).args).not.toContain("--unshare-user");
  expect(options(planSandbox({ ...OPTIONS, isRoot: false }).args)).toEqual(
    expect.arrayContaining(["--unshare-user", "--uid 0", "--gid 0"]),
  );
});

test("a directory too deep for a socket is refused with what to do", () => {
  expect(() => planSandbox({ ...OPTIONS, directory: `/tmp/${"x".repeat(100)}` })).toThrow(/TMPDIR/);
});

test("what is mirrored of this machine leaves out what sandboxes have of their own", async () => {
  const paths = (await readMirroredRoot()).map(({ path }) => path);
  expect(paths).toEqual(expect.arrayContaining(["/usr", "/etc", "/var/lib"]));
  for (const own of [
    "/workspace",
    "/home",
    "/tmp",
    "/var",
    "/app",
    "/root",
    "/proc",
    "/dev",
    "/sys",
    "/var/tmp",
    "/var/backups",
  ]) {
    expect(paths).not.toContain(own);
  }
});

/** The flags of `wrangler dev` that matter to `sandbox-backup dev`. */
export interface WranglerFlags {
  /** `--config`: more than one starts several Workers. */
  configs: string[];
  env?: string;
  envFiles: string[];
  /** `--var`, by name. */
  vars: Record<string, string>;
  ip?: string;
  port?: number;
  cwd?: string;
  /** The entry point, when it is the first argument: wrangler looks for the configuration from its directory upward. */
  script?: string;
  /** `--local`: bindings that are `remote` are served locally. */
  local: boolean;
  remote: boolean;
  https: boolean;
  help: boolean;
  /** All arguments but `--config`, `--ip`, `--port` and `--cwd`, unchanged. */
  others: string[];
}

const ALIASES: Record<string, string> = {
  c: "config",
  e: "env",
  envFile: "env-file",
  localProtocol: "local-protocol",
  r: "remote",
  l: "local",
  h: "help",
};
/** Take one value. */
const SINGLE = ["config", "env", "ip", "port", "cwd", "local-protocol"];
/** Take values up to the next flag. */
const LISTS = ["env-file", "var"];
const REPLACED = ["config", "ip", "port", "cwd"];

/** Reads the arguments after `wrangler dev` the way that wrangler does. */
export function readWranglerFlags(args: readonly string[]): WranglerFlags {
  const values = new Map<string, string[]>();
  const others: string[] = [];
  for (let i = 0; i < args.length; ) {
    const start = i;
    const [, flag, inline] = /^--?([A-Za-z][^=]*)(?:=(.*))?$/s.exec(args[i++] ?? "") ?? [];
    const name = flag === undefined ? undefined : (ALIASES[flag] ?? flag);
    if (name !== undefined) {
      const found = inline === undefined ? [] : [inline];
      if (SINGLE.includes(name) && inline === undefined) found.push(args[i++] ?? "");
      while (LISTS.includes(name) && args[i]?.startsWith("-") === false) found.push(args[i++] ?? "");
      values.set(name, [...(values.get(name) ?? []), ...found]);
    }
    if (name === undefined || !REPLACED.includes(name)) others.push(...args.slice(start, i));
  }

  const all = (name: string) => values.get(name) ?? [];
  const isOn = (name: string) => values.has(name) && all(name).at(-1) !== "false";
  const last = <Name extends string>(name: Name) => {
    const value = all(name).at(-1);
    return value === undefined ? {} : ({ [name]: value } as Record<Name, string>);
  };
  const script = args[0]?.startsWith("-") === false ? { script: args[0] } : {};
  const port = all("port").at(-1);
  return {
    configs: all("config"),
    ...last("env"),
    envFiles: all("env-file"),
    vars: Object.fromEntries(all("var").map(splitVar)),
    ...last("ip"),
    ...(port === undefined ? {} : { port: Number(port) }),
    ...last("cwd"),
    ...script,
    local: isOn("local"),
    remote: isOn("remote"),
    https: all("local-protocol").at(-1) === "https",
    help: isOn("help"),
    others,
  };
}

/** `NAME:value`, in which the value may hold colons. */
function splitVar(text: string): [string, string] {
  const [name = "", ...value] = text.split(":");
  return [name, value.join(":")];
}

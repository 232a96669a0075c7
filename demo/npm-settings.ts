import { execFile } from "node:child_process";
import { readFile } from "node:fs/promises";
import { promisify } from "node:util";

const run = promisify(execFile);

const KEYS = ["registry", "cafile", "https-proxy", "proxy", "noproxy"] as const;

export interface NpmSettings {
  /** For npm in a sandbox, which does not see this user's own settings. */
  env: Record<string, string>;
  /** Certificates to trust besides npm's own. */
  certificates: string;
  /** Takes what names the registry out of npm's words. */
  redact(text: string): string;
}

/**
 * How npm on this machine reaches its registry.
 * @param certificatesPath where the sandbox will have the certificates
 */
export async function readNpmSettings(certificatesPath: string): Promise<NpmSettings> {
  const { stdout } = await run("npm", ["config", "get", ...KEYS]);
  const values = new Map(stdout.split("\n").map((line) => splitOnce(line.trim())));
  const env: Record<string, string> = {};
  for (const key of ["registry", "https-proxy", "proxy", "noproxy"] as const) {
    const value = values.get(key);
    if (isSet(value)) env[`npm_config_${key.replace("-", "_")}`] = value;
  }
  const files = [values.get("cafile"), process.env.NODE_EXTRA_CA_CERTS].filter(isSet);
  const certificates = (await Promise.all([...new Set(files)].map((path) => readFile(path, "utf8")))).join("\n");
  if (certificates !== "") {
    env.npm_config_cafile = certificatesPath;
    env.NODE_EXTRA_CA_CERTS = certificatesPath;
  }
  const names = [env.npm_config_registry, env.npm_config_https_proxy, env.npm_config_proxy].filter(isSet).map(hostOf);
  return {
    env,
    certificates,
    redact: (text) => names.reduce((rest, name) => rest.replaceAll(name, "<host>"), text),
  };
}

function splitOnce(line: string): [string, string] {
  const [key = "", ...value] = line.split("=");
  return [key, value.join("=")];
}

function isSet(value: string | undefined): value is string {
  return value !== undefined && value !== "" && value !== "null" && value !== "undefined";
}

function hostOf(url: string): string {
  return URL.canParse(url) ? new URL(url).host : url;
}

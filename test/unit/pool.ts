import { cloudflareTest } from "@cloudflare/vitest-pool-workers";
import { defineConfig } from "vitest/config";

/** The unit tests in workerd, with a Worker of their own (`worker.ts`), as of one compatibility date. */
export function unitTests(name: string, compatibilityDate: string, compatibilityFlags: readonly string[] = []) {
  return defineConfig({
    cacheDir: `../../node_modules/.vite/${name}`,
    plugins: [
      cloudflareTest({
        main: "./worker.ts",
        miniflare: {
          compatibilityDate,
          compatibilityFlags: ["nodejs_compat", ...compatibilityFlags],
          durableObjects: {
            SANDBOX: { className: "Sandbox", useSQLite: true },
            TEST_SANDBOX: { className: "TestSandbox", useSQLite: true },
          },
          r2Buckets: ["BACKUP_BUCKET"],
          bindings: {
            COMPATIBILITY_DATE: compatibilityDate,
            SANDBOX_HOST_URL: "http://host.test",
            SANDBOX_HOST_TOKEN: "token-of-the-host",
            BACKUP_BUCKET_NAME: "backups-of-the-test",
            CLOUDFLARE_ACCOUNT_ID: "0123456789abcdef",
            R2_ACCESS_KEY_ID: "key-id-of-the-test",
            R2_SECRET_ACCESS_KEY: "secret-key-of-the-test",
          },
        },
      }),
    ],
    test: { name, root: import.meta.dirname, include: ["*.test.ts"] },
  });
}

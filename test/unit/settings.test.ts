import { env } from "cloudflare:workers";
import { describe, expect, test } from "vitest";
import { backupBucket, presignSettings } from "../../src/backups/settings.js";
import { InvalidBackupConfigError } from "../../src/errors.js";

const settings = {
  BACKUP_BUCKET_NAME: "backups",
  CLOUDFLARE_ACCOUNT_ID: "account",
  R2_ACCESS_KEY_ID: "id-1234",
  R2_SECRET_ACCESS_KEY: "secret-5678",
};

describe("the production path", () => {
  test("uses the account's R2 endpoint when no other is set", () => {
    expect(presignSettings(settings)).toEqual({
      endpoint: "https://account.r2.cloudflarestorage.com",
      bucketName: "backups",
      accessKeyId: "id-1234",
      secretAccessKey: "secret-5678",
    });
    expect(presignSettings({ ...settings, BACKUP_BUCKET_ENDPOINT: "" }).endpoint).toBe(
      "https://account.r2.cloudflarestorage.com",
    );
  });

  test.each(Object.keys(settings))("names %s when it is missing or empty", (name) => {
    for (const value of [undefined, ""]) {
      const act = () => presignSettings({ ...settings, [name]: value });
      expect(act).toThrow(InvalidBackupConfigError);
      expect(act).toThrow(`The setting ${name} is missing`);
    }
  });

  test("names all that are missing in one error, and no value of the others", () => {
    const act = () => presignSettings({ R2_SECRET_ACCESS_KEY: "secret-5678" });

    expect(act).toThrow("The settings BACKUP_BUCKET_NAME, CLOUDFLARE_ACCOUNT_ID, R2_ACCESS_KEY_ID are missing");
    expect(act).not.toThrow("secret-5678");
  });

  test("needs no account when an endpoint is set", () => {
    const { CLOUDFLARE_ACCOUNT_ID: _account, ...others } = settings;

    expect(presignSettings({ ...others, BACKUP_BUCKET_ENDPOINT: "https://r2.example" }).endpoint).toBe(
      "https://r2.example",
    );
  });

  test.each([
    ["https://account.eu.r2.cloudflarestorage.com", "https://account.eu.r2.cloudflarestorage.com"],
    ["https://account.fedramp.r2.cloudflarestorage.com/", "https://account.fedramp.r2.cloudflarestorage.com"],
    ["http://127.0.0.1:8787/cdn-cgi/local/r2/s3", "http://127.0.0.1:8787/cdn-cgi/local/r2/s3"],
    ["http://localhost:9000/", "http://localhost:9000"],
    ["http://[::1]:9000/s3/", "http://[::1]:9000/s3"],
    ["https://localhost/s3", "https://localhost/s3"],
  ])("accepts the endpoint %s", (endpoint, expected) => {
    expect(presignSettings({ ...settings, BACKUP_BUCKET_ENDPOINT: endpoint }).endpoint).toBe(expected);
  });

  test.each([
    ["account.r2.cloudflarestorage.com", "is not a URL"],
    ["ftp://account.r2.cloudflarestorage.com", "has to be an https: URL"],
    ["http://account.r2.cloudflarestorage.com", "has to be an https: URL; http: is for loopback addresses only"],
    ["http://127.0.0.1.example.com", "has to be an https: URL; http: is for loopback addresses only"],
    ["http://10.0.0.1", "has to be an https: URL; http: is for loopback addresses only"],
    ["https://account.r2.cloudflarestorage.com/backups", "must not have a path"],
    ["https://user:password-90@r2.example", "must not hold credentials"],
    ["https://r2.example/?token=password-90", "must not have a query"],
    ["https://r2.example/#x", "must not have a query or a fragment"],
  ])("refuses the endpoint %s", (endpoint, reason) => {
    const act = () => presignSettings({ ...settings, BACKUP_BUCKET_ENDPOINT: endpoint });

    expect(act).toThrow(InvalidBackupConfigError);
    expect(act).toThrow(`BACKUP_BUCKET_ENDPOINT ${reason}`);
    expect(act).not.toThrow("password-90");
  });
});

describe("the bucket", () => {
  test("is the R2 binding BACKUP_BUCKET", () => {
    expect(backupBucket(env)).toBe(env.BACKUP_BUCKET);
  });

  test.each([[undefined], [null], [{}], [{ BACKUP_BUCKET: "backups" }], [{ BACKUP_BUCKET: {} }]])(
    "is missing from %j",
    (bindings) => {
      expect(() => backupBucket(bindings)).toThrow(InvalidBackupConfigError);
      expect(() => backupBucket(bindings)).toThrow("The R2 binding BACKUP_BUCKET is missing");
    },
  );
});

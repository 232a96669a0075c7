/** As wrangler starts containers by default; and allowed FUSE and led to wrangler's S3 endpoint, as on Cloudflare. */
export const CONTAINER_RUNTIMES = ["containers", "containers-fuse"] as const;

export type ContainerRuntime = (typeof CONTAINER_RUNTIMES)[number];

export function isContainerRuntime(name: string): name is ContainerRuntime {
  return (CONTAINER_RUNTIMES as readonly string[]).includes(name);
}

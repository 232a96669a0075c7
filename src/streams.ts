/**
 * Gives a stream whose length is known to a consumer that has to know it first, as R2 does.
 * Rejects when either fails; neither of them goes on then.
 */
export async function withLength<Result>(
  source: ReadableStream<Uint8Array>,
  length: number,
  consume: (stream: ReadableStream<Uint8Array>) => Promise<Result>,
): Promise<Result> {
  const { readable, writable } = new FixedLengthStream(length);
  const consumed = consume(readable);
  const failed = new AbortController();
  // A consumer that fails without reading would let the source wait forever.
  consumed.catch((error: unknown) => failed.abort(error));
  await Promise.allSettled([consumed, source.pipeTo(writable, { signal: failed.signal })]);
  return consumed;
}

/** Bytes as text and back. */

/** @returns undefined when the bytes are not UTF-8 and `strict` is set */
export function decodeText(bytes: Uint8Array, strict: boolean): string | undefined {
  try {
    return new TextDecoder("utf-8", { fatal: strict, ignoreBOM: true }).decode(bytes);
  } catch {
    return undefined;
  }
}

/** In slices: a call takes a limited number of arguments. */
export function encodeBase64(bytes: Uint8Array): string {
  const SLICE = 0x8000;
  let binary = "";
  for (let start = 0; start < bytes.length; start += SLICE) {
    binary += String.fromCharCode(...bytes.subarray(start, start + SLICE));
  }
  return btoa(binary);
}

/** @returns undefined when the text is not base64 */
export function decodeBase64(text: string): Uint8Array | undefined {
  try {
    return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  } catch {
    return undefined;
  }
}

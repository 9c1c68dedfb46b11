/** Grey levels as PNG, in base64: what links, curl lines and scripts hold of a picture. Without loss. */

const CRCS = Uint32Array.from({ length: 256 }, (_, n) => {
  let crc = n;
  for (let bit = 0; bit < 8; bit += 1) crc = crc & 1 ? 0xedb88320 ^ (crc >>> 1) : crc >>> 1;
  return crc;
});

/**
 * An 8-bit grey PNG.
 * @param {Uint8Array} plane (H, W)
 * @returns {Promise<Uint8Array<ArrayBuffer>>}
 */
export async function encodePng(plane, H, W) {
  const rows = new Uint8Array(H * (W + 1));
  for (let row = 0; row < H; row += 1) {
    rows[row * (W + 1)] = 2; // the filter "up": the difference to the row above
    for (let column = 0; column < W; column += 1) {
      const above = row ? plane[(row - 1) * W + column] : 0;
      rows[row * (W + 1) + 1 + column] = plane[row * W + column] - above;
    }
  }
  const header = new Uint8Array(13);
  new DataView(header.buffer).setUint32(0, W);
  new DataView(header.buffer).setUint32(4, H);
  header[8] = 8; // bits; the colour type 0, grey, and the standard methods follow
  const signature = Uint8Array.of(0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a);
  const chunks = [
    signature,
    chunk("IHDR", header),
    chunk("IDAT", await deflate(rows)),
    chunk("IEND", new Uint8Array()),
  ];
  return new Uint8Array(await new Blob(chunks).arrayBuffer());
}

async function deflate(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new CompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function chunk(name, data) {
  const bytes = new Uint8Array(12 + data.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, data.length);
  bytes.set(new TextEncoder().encode(name), 4);
  bytes.set(data, 8);
  let crc = 0xffffffff;
  for (const byte of bytes.subarray(4, 8 + data.length)) crc = CRCS[(crc ^ byte) & 255] ^ (crc >>> 8);
  view.setUint32(8 + data.length, ~crc >>> 0);
  return bytes;
}

/** @param {Uint8Array} bytes */
export function toBase64(bytes) {
  let text = "";
  for (let i = 0; i < bytes.length; i += 0x8000) text += String.fromCharCode(...bytes.subarray(i, i + 0x8000));
  return btoa(text);
}

/** @param {string} text */
export function fromBase64(text) {
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}

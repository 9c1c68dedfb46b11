/** .npy: typed arrays to the bytes of a file, and back. */

/** @typedef {{ data: Float32Array | Float64Array | Uint8Array, shape: number[] }} NumpyArray */

const TYPES = { "<f4": Float32Array, "<f8": Float64Array, "|u1": Uint8Array };

/**
 * @param {Float32Array | Uint8Array} data in row-major order
 * @param {number[]} shape
 * @returns {Uint8Array<ArrayBuffer>}
 */
export function encodeNpy(data, shape) {
  const kind = data instanceof Uint8Array ? "|u1" : "<f4";
  const header = `{'descr': '${kind}', 'fortran_order': False, 'shape': (${shape.join(", ")},), }`;
  const padded = `${header.padEnd(Math.ceil((header.length + 11) / 64) * 64 - 11)}\n`; // 10 bytes stand before it
  const bytes = new Uint8Array(10 + padded.length + data.byteLength);
  bytes.set([0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, 1, 0, padded.length & 255, padded.length >> 8]);
  bytes.set(new TextEncoder().encode(padded), 10);
  bytes.set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength), 10 + padded.length);
  return bytes;
}

/**
 * All arrays of a file that holds one .npy after another.
 * @param {ArrayBuffer} buffer
 * @returns {NumpyArray[]}
 */
export function decodeNpy(buffer) {
  const arrays = [];
  for (let start = 0; start < buffer.byteLength;) {
    const length = new DataView(buffer, start).getUint16(8, true);
    const header = new TextDecoder().decode(new Uint8Array(buffer, start + 10, length));
    const [, kind] = /'descr': '([^']*)'/.exec(header) ?? [];
    const Type = TYPES[kind];
    if (!Type) throw new Error(`a .npy of ${kind} numbers`);
    const shape = (/'shape': \(([^)]*)\)/.exec(header)?.[1].match(/\d+/g) ?? []).map(Number);
    const first = start + 10 + length;
    const bytes = shape.reduce((n, size) => n * size, 1) * Type.BYTES_PER_ELEMENT;
    const isAligned = first % Type.BYTES_PER_ELEMENT === 0;
    const [own, at] = isAligned ? [buffer, first] : [buffer.slice(first, first + bytes), 0];
    arrays.push({ data: new Type(own, at, bytes / Type.BYTES_PER_ELEMENT), shape });
    start = first + bytes;
  }
  return arrays;
}

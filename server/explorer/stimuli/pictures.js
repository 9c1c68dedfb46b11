/** Picture files of any kind that the browser reads, to grey levels of the mouse's size. */

import { encodePng, fromBase64, toBase64 } from "./png.js";

/** A file that cannot be shown, and what to do about it. */
export class UnreadablePicture extends Error {}

const KINDS = /** @type {const} */ ([
  ["TIFF", [0x49, 0x49, 0x2a, 0x00]],
  ["TIFF", [0x4d, 0x4d, 0x00, 0x2a]],
  ["PDF", [0x25, 0x50, 0x44, 0x46]],
  ["NumPy array", [0x93, 0x4e, 0x55, 0x4d]],
]);

/** Pictures that were read, by their PNG. @type {Map<string, { plane: Uint8Array, H: number, W: number }>} */
const pictures = new Map();

/** The grey levels (H, W) of a picture that was read before, enlarged or shrunk if it was read for another mouse. */
export function levelsOf(png, { H, W }) {
  const picture = pictures.get(png);
  if (!picture || (picture.H === H && picture.W === W)) return picture?.plane ?? null;
  const scale = Math.min(picture.H / H, picture.W / W);
  const [top, left] = [(picture.H - H * scale) / 2, (picture.W - W * scale) / 2];
  return Uint8Array.from({ length: H * W }, (_, i) => {
    const row = Math.floor(top + (Math.floor(i / W) + 0.5) * scale);
    return picture.plane[row * picture.W + Math.floor(left + ((i % W) + 0.5) * scale)];
  });
}

/**
 * Reads a file, shrinks it so that it fills the screen, and cuts what overflows.
 * @param {File | Blob} file
 * @param {string} name
 * @param {import("./stimulus.js").Screen} screen
 * @returns {Promise<import("./stimulus.js").Stimulus>}
 */
export async function readPicture(file, name, screen) {
  const bitmap = await decode(file, name);
  const { width, height } = bitmap;
  const { H, W } = screen;
  const scale = Math.min(width / W, height / H);
  const [w, h] = [Math.max(Math.round(W * scale), 1), Math.max(Math.round(H * scale), 1)];
  const [x, y] = [Math.floor((width - w) / 2), Math.floor((height - h) / 2)];
  const isExact = width === W && height === H;
  const fitted = isExact
    ? bitmap
    : await createImageBitmap(bitmap, x, y, w, h, { resizeWidth: W, resizeHeight: H, resizeQuality: "high" });
  const plane = greyLevels(fitted, screen);
  bitmap.close();
  const png = toBase64(await encodePng(plane, H, W));
  pictures.set(png, { plane, H, W });
  const notes = isExact ? [] : [`${width} × ${height} px, scaled to the screen's ${W} × ${H} and cut to its shape`];
  if (file.type === "image/gif" || file.type === "image/apng") notes.push("of an animation, the first frame");
  return { kind: "picture", name, png, note: notes.join("; ") };
}

/** Reads the pixels of a picture that came with a link. */
export async function restorePicture(stimulus, screen) {
  const bitmap = await decode(new Blob([fromBase64(stimulus.png)]), "The link's picture");
  pictures.set(stimulus.png, { plane: greyLevels(bitmap, screen), H: bitmap.height, W: bitmap.width });
}

async function decode(file, name) {
  try {
    return await createImageBitmap(file, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    throw new UnreadablePicture(await problemWith(file, name));
  }
}

async function problemWith(file, name) {
  const bytes = new Uint8Array(await file.slice(0, 512).arrayBuffer());
  const [kind] = KINDS.find(([, magic]) => magic.every((byte, i) => bytes[i] === byte)) ?? [];
  const isText = bytes.length > 0 && bytes.every((byte) => byte >= 32 || byte === 9 || byte === 10 || byte === 13);
  const found = kind ?? (isText ? "text" : bytes.length ? "in no format that this browser reads" : "empty");
  const what = ["TIFF", "PDF", "NumPy array"].includes(found) ? `a ${found} file` : found;
  return `${name} is ${what}. The explorer shows PNG, JPEG, WebP and GIF: save it as PNG.`;
}

/** Rec. 601 luma as Pillow computes it, over the screen's middle grey where the picture is transparent. */
function greyLevels(bitmap, { middle }) {
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
  return Uint8Array.from({ length: data.length / 4 }, (_, i) => {
    const [r, g, b, alpha] = [data[4 * i], data[4 * i + 1], data[4 * i + 2], data[4 * i + 3] / 255];
    const luma = (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16;
    return alpha === 1 ? luma : Math.round(luma * alpha + middle * (1 - alpha));
  });
}

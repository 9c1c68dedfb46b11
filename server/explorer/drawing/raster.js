/** Thousands of soft discs, as pixels: a fraction of the time that a canvas takes to draw as many images. */

/**
 * How much of each pixel a disc covers, with a glow around it.
 * @typedef {{ size: number, cover: Uint8Array, pixel: number, rgb: number[] }} Sprite
 */

/**
 * @param {number} radius of the disc, in pixels
 * @param {number} glow radius of what shines around it; not more than the radius: none
 * @param {number[]} rgb
 * @returns {Sprite}
 */
export function spriteOf(radius, glow, rgb) {
  const reach = Math.max(radius, glow);
  const size = 2 * Math.ceil(reach) + 1;
  const middle = (size - 1) / 2;
  const cover = Uint8Array.from({ length: size * size }, (_, p) => {
    const distance = Math.hypot((p % size) - middle, Math.floor(p / size) - middle);
    const disc = Math.min(Math.max(radius - distance + 0.5, 0), 1);
    const shine = glow > radius && distance < glow ? 0.4 * ((glow - distance) / (glow - radius)) ** 1.5 : 0;
    return 255 * Math.max(disc, Math.min(shine, 0.4));
  });
  const [r, g, b] = rgb;
  return { size, cover, pixel: ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0, rgb };
}

/**
 * A white ring, for what is selected.
 * @param {number} radius of its middle, in pixels
 * @param {number} width
 * @returns {Sprite}
 */
export function ringOf(radius, width) {
  const size = 2 * Math.ceil(radius + width / 2 + 0.5) + 1;
  const middle = (size - 1) / 2;
  const cover = Uint8Array.from({ length: size * size }, (_, p) => {
    const distance = Math.hypot((p % size) - middle, Math.floor(p / size) - middle);
    return 255 * Math.min(Math.max(width / 2 - Math.abs(distance - radius) + 0.5, 0), 1);
  });
  return { size, cover, pixel: 0xffffffff, rgb: [255, 255, 255] };
}

const GROUND = 0xff20120d; // alpha, blue, green, red: --stage of styles/theme.css

/** A picture that discs are drawn into. */
export class Raster {
  #image;
  #words;

  constructor(width, height) {
    this.#image = new ImageData(width, height);
    this.#words = new Uint32Array(this.#image.data.buffer);
  }

  get width() {
    return this.#image.width;
  }

  get height() {
    return this.#image.height;
  }

  clear() {
    this.#words.fill(GROUND);
  }

  /** Draws a sprite about a pixel, over what is there. @param {Sprite} sprite */
  draw({ size, cover, pixel, rgb: [r, g, b] }, x, y) {
    const { width, height, data } = this.#image;
    const words = this.#words;
    const left = Math.round(x) - (size >> 1);
    const top = Math.round(y) - (size >> 1);
    const [first, last] = [Math.max(0, -left), Math.min(size, width - left)];
    for (let row = Math.max(0, -top); row < Math.min(size, height - top); row += 1) {
      let at = (top + row) * width + left + first;
      for (let p = row * size + first; p < row * size + last; p += 1, at += 1) {
        const alpha = cover[p];
        if (alpha === 255) words[at] = pixel;
        else if (alpha > 0) {
          const byte = 4 * at;
          data[byte] += ((r - data[byte]) * alpha) / 255;
          data[byte + 1] += ((g - data[byte + 1]) * alpha) / 255;
          data[byte + 2] += ((b - data[byte + 2]) * alpha) / 255;
        }
      }
    }
  }

  /** @param {CanvasRenderingContext2D} context */
  show(context) {
    context.putImageData(this.#image, 0, 0);
  }
}

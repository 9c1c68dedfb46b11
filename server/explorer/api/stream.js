/** The server's streams: each event a line of JSON, and as many bytes as it says. */

/**
 * @param {ReadableStream<Uint8Array>} body
 * @returns {AsyncGenerator<{ line: any, bytes: ArrayBuffer }>}
 */
export async function* readEvents(body) {
  const source = new Buffered(body.getReader());
  for (;;) {
    const text = await source.line();
    if (text === null) return;
    const line = JSON.parse(text);
    yield { line, bytes: line.bytes ? await source.exactly(line.bytes) : new ArrayBuffer(0) };
  }
}

/** Chunks of a stream, read by line or by number of bytes. */
class Buffered {
  #chunks = /** @type {Uint8Array[]} */ ([]);
  #reader;

  constructor(reader) {
    this.#reader = reader;
  }

  async #more() {
    const { done, value } = await this.#reader.read();
    if (!done) this.#chunks.push(value);
    return !done;
  }

  async line() {
    for (let chunk = 0, before = 0; ; chunk += 1) {
      if (chunk === this.#chunks.length && !(await this.#more())) return null;
      const end = this.#chunks[chunk].indexOf(10);
      if (end >= 0) return new TextDecoder().decode(this.#take(before + end + 1)).trimEnd();
      before += this.#chunks[chunk].length;
    }
  }

  async exactly(size) {
    const taken = new Uint8Array(size);
    for (let filled = 0; filled < size;) {
      if (!this.#chunks.length && !(await this.#more())) throw new Error("the stream ended too early");
      filled += this.#move(taken.subarray(filled)); // each chunk as it comes: megabytes at once would take long
    }
    return taken.buffer;
  }

  #take(size) {
    const taken = new Uint8Array(size);
    for (let filled = 0; filled < size;) filled += this.#move(taken.subarray(filled));
    return taken;
  }

  /** Moves what the first chunk has, and there is room for. @param {Uint8Array} room */
  #move(room) {
    const [first] = this.#chunks;
    const part = first.subarray(0, room.length);
    room.set(part);
    if (part.length === first.length) this.#chunks.shift();
    else this.#chunks[0] = first.subarray(part.length);
    return part.length;
  }
}

// The tokens of a vocabulary in flat arrays, which go from one thread to another without being copied.

/** Plain data. Offsets are into `bytes` (UTF-8): token i is bytes[offsets[i] .. offsets[i + 1]). */
export interface PackedStrings {
  bytes: Uint8Array
  offsets: Uint32Array
}

export interface PackedTokens {
  /** As the vocabulary has them. */
  names: PackedStrings
  /** For decoding, after the decoder's `prepare`. */
  texts: PackedStrings
  /** FLAGS of each id. */
  flags: Uint8Array
  /** A hash table of ids by name, open addressing; EMPTY where there is none. */
  slots: Int32Array
}

export const FLAGS = { present: 1, special: 2 } as const

const EMPTY = -1

const encoder = new TextEncoder()

export function packTokens(
  names: readonly (string | undefined)[],
  texts: readonly (string | undefined)[],
  isSpecial: (id: number) => boolean,
): PackedTokens {
  const flags = Uint8Array.from(names, (name, id) =>
    name === undefined ? 0 : FLAGS.present | (isSpecial(id) ? FLAGS.special : 0),
  )
  const slots = new Int32Array(2 ** Math.ceil(Math.log2(Math.max(names.length, 4) * 2))).fill(EMPTY)
  names.forEach((name, id) => {
    if (name === undefined) return
    let slot = hash(name) & (slots.length - 1)
    while (slots[slot] !== EMPTY) slot = (slot + 1) & (slots.length - 1)
    slots[slot] = id
  })
  return { names: pack(names), texts: pack(texts), flags, slots }
}

/** The buffers that can be transferred. */
export function buffersOf({ names, texts, flags, slots }: PackedTokens): ArrayBuffer[] {
  return [names.bytes, names.offsets, texts.bytes, texts.offsets, flags, slots].map(
    (array) => array.buffer as ArrayBuffer,
  )
}

function pack(strings: readonly (string | undefined)[]): PackedStrings {
  const encoded = strings.map((string) => encoder.encode(string ?? ''))
  const offsets = new Uint32Array(strings.length + 1)
  encoded.forEach((bytes, i) => {
    offsets[i + 1] = (offsets[i] as number) + bytes.length
  })
  const bytes = new Uint8Array(offsets.at(-1) ?? 0)
  encoded.forEach((part, i) => {
    bytes.set(part, offsets[i])
  })
  return { bytes, offsets }
}

function hash(text: string): number {
  let value = 0
  for (let i = 0; i < text.length; i++) value = Math.imul(value, 31) + text.charCodeAt(i)
  return value ^ (value >>> 15)
}

export class TokenTable {
  readonly #packed: PackedTokens
  readonly #names: Buffer
  readonly #texts: Buffer

  constructor(packed: PackedTokens) {
    this.#packed = packed
    const view = ({ bytes }: PackedStrings) =>
      Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
    this.#names = view(packed.names)
    this.#texts = view(packed.texts)
  }

  /** Ids are below it. */
  get size(): number {
    return this.#packed.flags.length
  }

  /** Of the token with this name; undefined where there is none. */
  id(name: string): number | undefined {
    const { slots, names } = this.#packed
    for (let slot = hash(name); ; slot++) {
      const id = slots[slot & (slots.length - 1)] as number
      if (id === EMPTY) return undefined
      if (at(this.#names, names.offsets, id) === name) return id
    }
  }

  has(id: number): boolean {
    return ((this.#packed.flags[id] ?? 0) & FLAGS.present) !== 0
  }

  isSpecial(id: number): boolean {
    return ((this.#packed.flags[id] ?? 0) & FLAGS.special) !== 0
  }

  /** For decoding. */
  text(id: number): string {
    return at(this.#texts, this.#packed.texts.offsets, id)
  }
}

function at(bytes: Buffer, offsets: Uint32Array, i: number): string {
  return bytes.toString('utf8', offsets[i], offsets[i + 1])
}

// The character map of SentencePiece models: a double-array trie (Darts) of byte strings, each with the text
// that takes its place.

import { checkString, invalid } from '../validate'

const encoder = new TextEncoder()

/** A grapheme of at least this many UTF-8 bytes is mapped character by character. */
const MAX_GRAPHEME_BYTES = 6

/** `value`: base64 of the trie's size in bytes (u32), the trie (u32 each) and the texts, each ended by NUL. */
export function parsePrecompiled(value: unknown, name: string): (text: string) => string {
  const blob = Buffer.from(checkString(value, name, 'HOGWILD_INVALID_MODEL'), 'base64')
  const trieBytes = blob.length >= 4 ? blob.readUInt32LE(0) : blob.length
  if (trieBytes > blob.length - 4) throw invalid(name, 'a character map', value, 'HOGWILD_INVALID_MODEL')
  const trie = Uint32Array.from({ length: trieBytes >>> 2 }, (_, i) => blob.readUInt32LE(4 + 4 * i))
  const map = new CharacterMap(trie, blob.subarray(4 + trieBytes))
  return (text) => map.normalize(text)
}

class CharacterMap {
  readonly #trie: Uint32Array
  readonly #texts: Buffer
  readonly #ofCharacter = new Map<string, string>()
  readonly #graphemes = new Intl.Segmenter('en', { granularity: 'grapheme' })

  constructor(trie: Uint32Array, texts: Buffer) {
    this.#trie = trie
    this.#texts = texts
  }

  normalize(text: string): string {
    let normalized = ''
    // An ASCII character before another one is a grapheme, but for CR LF. Segmenting is slow, so only the
    // rest is segmented.
    for (const [run] of text.matchAll(/(?:(?!\r\n)[\0-\x7f](?![^\0-\x7f]))+|(?:\r\n|[\0-\x7f]?[^\0-\x7f]+)/g)) {
      if (run.charCodeAt(0) < 0x80 && run.charCodeAt(run.length - 1) < 0x80 && run !== '\r\n') {
        for (const character of run) normalized += this.#character(character)
      } else {
        for (const { segment } of this.#graphemes.segment(run)) normalized += this.#grapheme(segment)
      }
    }
    return normalized
  }

  #grapheme(grapheme: string): string {
    const bytes = encoder.encode(grapheme)
    const mapped = bytes.length < MAX_GRAPHEME_BYTES ? this.#find(bytes) : undefined
    if (mapped !== undefined) return mapped
    return Array.from(grapheme, (character) => this.#character(character)).join('')
  }

  #character(character: string): string {
    let mapped = this.#ofCharacter.get(character)
    if (mapped === undefined) {
      mapped = this.#find(encoder.encode(character)) ?? character
      this.#ofCharacter.set(character, mapped)
    }
    return mapped
  }

  /** The text of the shortest string of the trie that `key` begins with. */
  #find(key: Uint8Array): string | undefined {
    let node = offset(this.#trie[0] ?? 0)
    for (const byte of key) {
      if (byte === 0) return undefined
      node ^= byte
      const unit = this.#trie[node]
      // A unit's label has the top bit set where it is a value.
      if (unit === undefined || (unit & 0x800000ff) !== byte) return undefined
      node ^= offset(unit)
      if ((unit & 0x100) !== 0) {
        const start = (this.#trie[node] ?? 0) & 0x7fffffff
        const end = this.#texts.indexOf(0, start)
        return this.#texts.toString('utf8', start, end < 0 ? undefined : end)
      }
    }
    return undefined
  }
}

function offset(unit: number): number {
  return (unit >>> 10) << ((unit & 0x200) >>> 6)
}

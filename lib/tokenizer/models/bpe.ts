// Byte-pair encoding: neighbours are merged, the pair that was learned first before the others. The order is
// kept in a heap, so that a piece of n characters takes O(n log n).

import { HogwildError } from '../../errors'
import { checkArray, checkBoolean, checkString, invalid } from '../../validate'
import { PairTable } from '../pair-table'
import { checkPair, parseVocab, type TokenModel } from './model'
import { byteToken } from './unigram'
import { needUnknown } from './word-level'

const CODE = 'HOGWILD_INVALID_MODEL'

const MAX_CACHED = 50_000
const MAX_CACHED_LENGTH = 64

const encoder = new TextEncoder()

interface BpeOptions {
  /** The token for characters that the vocabulary lacks; '' drops them. */
  unknown: string
  fuseUnknown: boolean
  byteFallback: boolean
  /** A piece that is in the vocabulary is that token, whatever its merges give. */
  ignoreMerges: boolean
  /** Before the characters of a piece but the first. */
  prefix: string
  /** After the last character of a piece. */
  suffix: string
}

export function parseBpe(object: Record<string, unknown>): TokenModel {
  const vocab = parseVocab(object.vocab)
  const optional = (key: string) => checkString(object[key] ?? '', `model.${key}`, CODE)
  const flag = (key: string) => checkBoolean(object[key] ?? false, `model.${key}`, CODE)
  if (object.dropout !== undefined && object.dropout !== null && object.dropout !== 0) {
    throw invalid('model.dropout', 'absent, or 0: it makes ids random', object.dropout, CODE)
  }
  const options = {
    unknown: optional('unk_token'),
    fuseUnknown: flag('fuse_unk'),
    byteFallback: flag('byte_fallback'),
    ignoreMerges: flag('ignore_merges'),
    prefix: optional('continuing_subword_prefix'),
    suffix: optional('end_of_word_suffix'),
  }
  return new Bpe(vocab, checkArray(object.merges ?? [], 'model.merges', CODE), options)
}

class Bpe implements TokenModel {
  readonly vocab: ReadonlyMap<string, number>
  readonly unknownId: number | undefined
  readonly #options: BpeOptions
  /** Ids of two neighbours to the index of their merge. */
  readonly #merges: PairTable
  /** The ids that merges make. */
  readonly #made: Int32Array
  readonly #byteIds: readonly (number | undefined)[]
  readonly #cache = new Map<string, readonly number[]>()
  /** Code units that a token has before a U+2581: only they keep a piece together there. */
  readonly #beforeSpace: Uint8Array | undefined
  #heap = new MergeHeap()

  constructor(vocab: Map<string, number>, merges: readonly unknown[], options: BpeOptions) {
    this.vocab = vocab
    this.unknownId = vocab.get(options.unknown)
    this.#options = options
    this.#merges = new PairTable(merges.length)
    this.#made = new Int32Array(merges.length)
    merges.forEach((merge, rank) => {
      const name = `model.merges[${rank}]`
      const [left, right] = checkPair(typeof merge === 'string' ? merge.split(' ') : merge, name).map(
        (part) => checkString(part, name, CODE),
      ) as [string, string]
      const ids = [left, right, left + right.slice(options.prefix.length)].map((token) => {
        const id = vocab.get(token)
        if (id === undefined) throw notInVocabulary(name, token)
        return id
      }) as [number, number, number]
      this.#merges.set(ids[0], ids[1], rank)
      this.#made[rank] = ids[2]
    })
    this.#byteIds = Array.from({ length: 256 }, (_, byte) => vocab.get(byteToken(byte)))
    if (vocab.has('▁') && options.prefix === '' && options.suffix === '') {
      this.#beforeSpace = unitsBeforeSpace(vocab.keys())
    }
  }

  tokenize(piece: string, ids: number[], forbidden?: (id: number) => boolean): void {
    if (this.#options.ignoreMerges) {
      const id = this.vocab.get(piece)
      if (id !== undefined && !forbidden?.(id)) {
        ids.push(id)
        return
      }
    }
    if (this.#beforeSpace === undefined) {
      this.#tokenizePart(piece, ids, forbidden)
      return
    }
    // SentencePiece's texts are one piece. It is cut where no token reaches across, which changes no id and
    // makes parts that come again.
    let start = 0
    for (let at = piece.indexOf('▁', 1); at > 0; at = piece.indexOf('▁', at + 1)) {
      if (this.#beforeSpace[piece.charCodeAt(at - 1)] === 1) continue
      this.#tokenizePart(piece.slice(start, at), ids, forbidden)
      start = at
    }
    this.#tokenizePart(start === 0 ? piece : piece.slice(start), ids, forbidden)
  }

  #tokenizePart(part: string, ids: number[], forbidden?: (id: number) => boolean): void {
    if (forbidden !== undefined || part.length > MAX_CACHED_LENGTH) {
      for (const id of this.#merged(part, forbidden)) ids.push(id)
      return
    }
    let cached = this.#cache.get(part)
    if (cached === undefined) {
      cached = Array.from(this.#merged(part, forbidden))
      // All at once: a text with other words than the one before begins anew.
      if (this.#cache.size >= MAX_CACHED) this.#cache.clear()
      this.#cache.set(part, cached)
    }
    for (const id of cached) ids.push(id)
  }

  /** The ids of the characters, before merging. Characters without one are dropped or unknown. */
  #characters(part: string, forbidden: ((id: number) => boolean) | undefined): number[] {
    const { unknown, fuseUnknown, byteFallback, prefix, suffix } = this.#options
    const ids: number[] = []
    // An unknown token that is not in `ids` yet, as unknown neighbours may become one.
    let pending: number | undefined
    for (let at = 0; at < part.length; ) {
      const length = (part.codePointAt(at) as number) > 0xffff ? 2 : 1
      let character = part.slice(at, at + length)
      if (at > 0) character = prefix + character
      at += length
      if (at >= part.length) character += suffix
      const id = this.vocab.get(character)
      if (id !== undefined && !forbidden?.(id)) {
        if (pending !== undefined) ids.push(pending)
        pending = undefined
        ids.push(id)
        continue
      }
      const bytes = byteFallback ? this.#bytes(character) : undefined
      if (bytes !== undefined) {
        ids.push(...bytes)
      } else if (unknown !== '') {
        if (pending !== undefined && !fuseUnknown) ids.push(pending)
        pending = needUnknown(this.unknownId, character)
      }
    }
    if (pending !== undefined) ids.push(pending)
    return ids
  }

  #bytes(character: string): number[] | undefined {
    const ids = Array.from(encoder.encode(character), (byte) => this.#byteIds[byte])
    return ids.every((id) => id !== undefined) ? (ids as number[]) : undefined
  }

  #merged(part: string, forbidden: ((id: number) => boolean) | undefined): ArrayLike<number> & Iterable<number> {
    const ids = this.#characters(part, forbidden)
    if (ids.length < 2) return ids
    const length = ids.length
    const tokens = Int32Array.from(ids)
    // Doubly linked list of what is left.
    const next = Int32Array.from(ids, (_, i) => i + 1)
    const previous = Int32Array.from(ids, (_, i) => i - 1)
    const heap = this.#heap
    heap.clear()
    const consider = (left: number) => {
      const right = next[left] as number
      if (left < 0 || right >= length) return
      const rank = this.#merges.get(tokens[left] as number, tokens[right] as number)
      if (rank >= 0 && !forbidden?.(this.#made[rank] as number)) heap.push(rank, left)
    }
    for (let i = 0; i + 1 < length; i++) consider(i)
    while (heap.size > 0) {
      const rank = heap.topRank
      const left = heap.topPosition
      heap.pop()
      const right = next[left] as number
      if (tokens[left] === GONE || right >= length) continue
      // Another merge may have changed the pair since.
      if (this.#merges.get(tokens[left] as number, tokens[right] as number) !== rank) continue
      tokens[left] = this.#made[rank] as number
      tokens[right] = GONE
      const after = next[right] as number
      next[left] = after
      if (after < length) previous[after] = left
      consider(previous[left] as number)
      consider(left)
    }
    return tokens.filter((token) => token !== GONE)
  }
}

const GONE = -1

function notInVocabulary(name: string, token: string): HogwildError {
  const shown = JSON.stringify(token.slice(0, 60))
  return new HogwildError(`${name}: ${shown} is not in the vocabulary`, CODE)
}

function unitsBeforeSpace(tokens: Iterable<string>): Uint8Array {
  const units = new Uint8Array(0x10000)
  for (const token of tokens) {
    for (let at = token.indexOf('▁', 1); at > 0; at = token.indexOf('▁', at + 1)) {
      units[token.charCodeAt(at - 1)] = 1
    }
  }
  return units
}

/** A min-heap of merges: by rank, then from left to right. */
class MergeHeap {
  #ranks = new Int32Array(64)
  #positions = new Int32Array(64)
  size = 0

  get topRank(): number {
    return this.#ranks[0] as number
  }

  get topPosition(): number {
    return this.#positions[0] as number
  }

  clear(): void {
    this.size = 0
  }

  push(rank: number, position: number): void {
    if (this.size === this.#ranks.length) this.#grow()
    const [ranks, positions] = [this.#ranks, this.#positions]
    let at = this.size++
    while (at > 0) {
      const parent = (at - 1) >> 1
      const parentRank = ranks[parent] as number
      if (parentRank < rank) break
      if (parentRank === rank && (positions[parent] as number) <= position) break
      ranks[at] = parentRank
      positions[at] = positions[parent] as number
      at = parent
    }
    ranks[at] = rank
    positions[at] = position
  }

  pop(): void {
    const [ranks, positions] = [this.#ranks, this.#positions]
    const size = --this.size
    const rank = ranks[size] as number
    const position = positions[size] as number
    let at = 0
    for (;;) {
      let child = 2 * at + 1
      if (child >= size) break
      if (child + 1 < size && this.#isBefore(child + 1, child)) child++
      const childRank = ranks[child] as number
      if (childRank > rank) break
      if (childRank === rank && (positions[child] as number) >= position) break
      ranks[at] = childRank
      positions[at] = positions[child] as number
      at = child
    }
    ranks[at] = rank
    positions[at] = position
  }

  #isBefore(a: number, b: number): boolean {
    const [rankA, rankB] = [this.#ranks[a] as number, this.#ranks[b] as number]
    if (rankA !== rankB) return rankA < rankB
    return (this.#positions[a] as number) < (this.#positions[b] as number)
  }

  #grow(): void {
    this.#ranks = doubled(this.#ranks)
    this.#positions = doubled(this.#positions)
  }
}

function doubled(array: Int32Array): Int32Array<ArrayBuffer> {
  const grown = new Int32Array(array.length * 2)
  grown.set(array)
  return grown
}

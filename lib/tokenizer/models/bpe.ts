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
  const { merges } = object
  return new Bpe(
    vocab,
    merges instanceof PieceScores
      ? new ScoredMerges(vocab, merges)
      : new ListedMerges(vocab, checkArray(merges ?? [], 'model.merges', CODE), options.prefix),
    options,
  )
}

/**
 * In place of a list of merges, which SentencePiece's models do not have: two pieces are merged where their texts are one
 * of the pieces, the best score first; then the longest left, then the longest right piece.
 */
export class PieceScores {
  /** By id; NaN: not a piece that merges make or take. */
  constructor(readonly scores: Float64Array) {}
}

interface Merges {
  /** Of two neighbours; -1: they are not merged. Good until the next call. */
  find(left: number, right: number): number
  /** The id that a merge makes. */
  made(merge: number): number
  /** Of two merges the one with the lower number comes first. */
  order(merge: number): number
}

/** Merges in the order in which they were learned. */
class ListedMerges implements Merges {
  readonly #merges: PairTable
  readonly #made: Int32Array

  constructor(vocab: ReadonlyMap<string, number>, merges: readonly unknown[], prefix: string) {
    this.#merges = new PairTable(merges.length)
    this.#made = new Int32Array(merges.length)
    merges.forEach((merge, rank) => {
      const name = `model.merges[${rank}]`
      const [left, right] = checkPair(
        typeof merge === 'string' ? merge.split(' ') : merge,
        name,
      ).map((part) => checkString(part, name, CODE)) as [string, string]
      const ids = [left, right, left + right.slice(prefix.length)].map((token) => {
        const id = vocab.get(token)
        if (id === undefined) throw notInVocabulary(name, token)
        return id
      }) as [number, number, number]
      this.#merges.set(ids[0], ids[1], rank)
      this.#made[rank] = ids[2]
    })
  }

  find(left: number, right: number): number {
    return this.#merges.get(left, right)
  }

  made(merge: number): number {
    return this.#made[merge] as number
  }

  order(merge: number): number {
    return merge
  }
}

/** Pairs that are remembered, most of which are not merged. */
const MAX_PAIRS = 2 ** 21

/** Longer pieces count as this long; real ones have up to 48 characters. */
const MAX_LENGTH = 2 ** 7 - 1

/** Merges that are found out when they are asked for: a list takes seconds to make, and few of it are used. */
class ScoredMerges implements Merges {
  readonly #vocab: ReadonlyMap<string, number>
  readonly #scores: Float64Array
  /** How many scores are better, by id. */
  readonly #places: Int32Array
  readonly #texts: (string | undefined)[]
  readonly #lengths: Uint8Array
  /** Of pairs: an index of the lists below, or NOT_MERGED. */
  #found = new PairTable()
  #pairs = 0
  readonly #made: number[] = []
  readonly #orders: number[] = []

  constructor(vocab: ReadonlyMap<string, number>, { scores }: PieceScores) {
    this.#vocab = vocab
    this.#scores = scores
    this.#places = placesOf(scores)
    this.#texts = new Array(scores.length).fill(undefined)
    this.#lengths = new Uint8Array(scores.length)
    for (const [text, id] of vocab) {
      this.#texts[id] = text
      this.#lengths[id] = Math.min(characters(text), MAX_LENGTH)
    }
  }

  find(left: number, right: number): number {
    const known = this.#found.get(left, right)
    if (known >= 0) return known === NOT_MERGED ? -1 : known
    if (this.#pairs++ === MAX_PAIRS) {
      this.#found = new PairTable()
      this.#made.length = 0
      this.#orders.length = 0
      this.#pairs = 1
    }
    const merge = this.#findOut(left, right)
    this.#found.set(left, right, merge)
    return merge === NOT_MERGED ? -1 : merge
  }

  #findOut(left: number, right: number): number {
    const id = this.#vocab.get(`${this.#texts[left]}${this.#texts[right]}`)
    const isPiece = (piece: number) => !Number.isNaN(this.#scores[piece])
    if (id === undefined || !isPiece(left) || !isPiece(right) || !isPiece(id)) return NOT_MERGED
    const shorter = (piece: number) => MAX_LENGTH - (this.#lengths[piece] as number)
    const place = (this.#places[id] as number) * (MAX_LENGTH + 1) + shorter(left)
    this.#orders.push(place * (MAX_LENGTH + 1) + shorter(right))
    return this.#made.push(id) - 1
  }

  made(merge: number): number {
    return this.#made[merge] as number
  }

  order(merge: number): number {
    return this.#orders[merge] as number
  }
}

/** Beyond any index. */
const NOT_MERGED = 2 ** 31 - 1

function placesOf(scores: Float64Array): Int32Array {
  const sorted = scores.filter((score) => !Number.isNaN(score)).sort()
  const places = new Map<number, number>()
  for (let i = sorted.length - 1; i >= 0; i--) {
    const score = sorted[i] as number
    if (!places.has(score)) places.set(score, places.size)
  }
  return Int32Array.from(scores, (score) => places.get(score) ?? 0)
}

function characters(text: string): number {
  let count = 0
  for (let at = 0; at < text.length; count++) {
    at += (text.codePointAt(at) as number) > 0xffff ? 2 : 1
  }
  return count
}

class Bpe implements TokenModel {
  readonly vocab: ReadonlyMap<string, number>
  readonly unknownId: number | undefined
  readonly #options: BpeOptions
  readonly #merges: Merges
  readonly #byteIds: readonly (number | undefined)[]
  readonly #cache = new Map<string, readonly number[]>()
  /** Code units that a token has before a U+2581: only they keep a piece together there. */
  readonly #beforeSpace: Uint8Array | undefined
  #heap = new MergeHeap()

  constructor(vocab: ReadonlyMap<string, number>, merges: Merges, options: BpeOptions) {
    this.vocab = vocab
    this.unknownId = vocab.get(options.unknown)
    this.#options = options
    this.#merges = merges
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

  #merged(
    part: string,
    forbidden: ((id: number) => boolean) | undefined,
  ): ArrayLike<number> & Iterable<number> {
    const ids = this.#characters(part, forbidden)
    if (ids.length < 2) return ids
    const length = ids.length
    const tokens = Int32Array.from(ids)
    // Doubly linked list of what is left.
    const next = Int32Array.from(ids, (_, i) => i + 1)
    const previous = Int32Array.from(ids, (_, i) => i - 1)
    const heap = this.#heap
    const merges = this.#merges
    heap.clear()
    const consider = (left: number) => {
      const right = next[left] as number
      if (left < 0 || right >= length) return
      const merge = merges.find(tokens[left] as number, tokens[right] as number)
      if (merge >= 0 && !forbidden?.(merges.made(merge))) heap.push(merges.order(merge), left)
    }
    for (let i = 0; i + 1 < length; i++) consider(i)
    while (heap.size > 0) {
      const rank = heap.topRank
      const left = heap.topPosition
      heap.pop()
      const right = next[left] as number
      if (tokens[left] === GONE || right >= length) continue
      // Another merge may have changed the pair since.
      const merge = merges.find(tokens[left] as number, tokens[right] as number)
      if (merge < 0 || merges.order(merge) !== rank) continue
      tokens[left] = merges.made(merge)
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
  #ranks = new Float64Array(64)
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
    const [ranks, positions] = [this.#ranks, this.#positions]
    this.#ranks = new Float64Array(ranks.length * 2)
    this.#ranks.set(ranks)
    this.#positions = new Int32Array(positions.length * 2)
    this.#positions.set(positions)
  }
}

// Unigram (SentencePiece): the segmentation with the best sum of scores, found by dynamic programming.

import { checkArray, checkBoolean, checkInteger, checkString, invalid } from '../../validate'
import { PairTable } from '../pair-table'
import { checkPair, MAX_TOKEN_ID, type TokenModel } from './model'
import { needUnknown } from './word-level'

const CODE = 'HOGWILD_INVALID_MODEL'

/** How much worse than the worst token an unknown character is. */
const UNKNOWN_PENALTY = 10

const MAX_CACHED = 50_000
const MAX_CACHED_LENGTH = 32

const encoder = new TextEncoder()

export function parseUnigram(object: Record<string, unknown>): TokenModel {
  const entries = checkArray(object.vocab, 'model.vocab', CODE)
  if (entries.length > MAX_TOKEN_ID) throw invalid('model.vocab', `at most ${MAX_TOKEN_ID} tokens`, entries.length, CODE)
  const tokens: string[] = []
  const scores = new Float64Array(entries.length)
  entries.forEach((entry, i) => {
    const [token, score] = checkPair(entry, `model.vocab[${i}]`)
    if (typeof score !== 'number') throw invalid(`model.vocab[${i}][1]`, 'a number', score, CODE)
    tokens.push(checkString(token, `model.vocab[${i}][0]`, CODE))
    scores[i] = score
  })
  const unknownId =
    object.unk_id === undefined || object.unk_id === null
      ? undefined
      : checkInteger(object.unk_id, 'model.unk_id', 0, tokens.length - 1, CODE)
  const byteFallback = checkBoolean(object.byte_fallback ?? false, 'model.byte_fallback', CODE)
  return new Unigram(tokens, scores, unknownId, byteFallback)
}

class Unigram implements TokenModel {
  readonly vocab: ReadonlyMap<string, number>
  readonly list: readonly string[]
  readonly unknownId: number | undefined
  readonly #scores: Float64Array
  readonly #unknownScore: number
  readonly #byteIds: readonly number[] | undefined
  // A trie of code units. Node 0 is the root; #ids has the token that ends at a node, or -1.
  readonly #edges: PairTable
  readonly #ids: number[] = [-1]
  readonly #cache = new Map<string, readonly number[]>()

  constructor(
    tokens: readonly string[],
    scores: Float64Array,
    unknownId: number | undefined,
    byteFallback: boolean,
  ) {
    this.vocab = new Map(tokens.map((token, id) => [token, id]))
    this.list = tokens
    this.unknownId = unknownId
    this.#scores = scores
    this.#unknownScore = scores.reduce((a, b) => Math.min(a, b), Number.POSITIVE_INFINITY) - UNKNOWN_PENALTY
    const bytes = Array.from({ length: 256 }, (_, byte) => this.vocab.get(byteToken(byte)))
    const complete = bytes.every((id) => id !== undefined)
    this.#byteIds = byteFallback && complete ? (bytes as number[]) : undefined
    this.#edges = new PairTable(tokens.length * 2)
    for (const [token, id] of this.vocab) this.#add(token, id)
  }

  tokenize(piece: string, ids: number[], forbidden?: (id: number) => boolean): void {
    if (forbidden !== undefined || piece.length > MAX_CACHED_LENGTH) {
      this.#segment(piece, ids, forbidden ?? (() => false))
      return
    }
    let cached = this.#cache.get(piece)
    if (cached === undefined) {
      const segmented: number[] = []
      this.#segment(piece, segmented, () => false)
      cached = segmented
      if (this.#cache.size < MAX_CACHED) this.#cache.set(piece, cached)
    }
    for (const id of cached) ids.push(id)
  }

  #add(token: string, id: number): void {
    let node = 0
    for (let i = 0; i < token.length; i++) {
      const unit = token.charCodeAt(i)
      let next = this.#edges.get(node, unit)
      if (next < 0) {
        next = this.#ids.push(-1) - 1
        this.#edges.set(node, unit, next)
      }
      node = next
    }
    this.#ids[node] = id
  }

  #segment(piece: string, ids: number[], forbidden: (id: number) => boolean): void {
    // Of the best segmentation that ends at a place: its score, the last token and where that begins.
    const size = piece.length
    const best = new Float64Array(size + 1)
    const lastToken = new Int32Array(size + 1)
    const begins = new Int32Array(size + 1).fill(-1)
    const offer = (start: number, end: number, id: number, score: number) => {
      if (begins[end] === -1 || score > (best[end] as number)) {
        best[end] = score
        lastToken[end] = id
        begins[end] = start
      }
    }
    for (let start = 0; start < size; ) {
      const next = start + ((piece.codePointAt(start) as number) > 0xffff ? 2 : 1)
      const before = best[start] as number
      let single = false
      let node = 0
      for (let end = start; end < size; ) {
        node = this.#edges.get(node, piece.charCodeAt(end))
        if (node < 0) break
        end++
        const id = this.#ids[node] as number
        if (id < 0 || forbidden(id)) continue
        offer(start, end, id, before + (this.#scores[id] as number))
        if (end === next) single = true
      }
      if (!single) {
        offer(start, next, needUnknown(this.unknownId, piece), before + this.#unknownScore)
      }
      start = next
    }
    const parts: [start: number, end: number][] = []
    for (let end = size; end > 0; ) {
      const start = begins[end] as number
      const unknown = lastToken[end] === this.unknownId
      const last = parts.at(-1)
      // Unknown neighbours are one part.
      if (unknown && last !== undefined && lastToken[last[1]] === this.unknownId) last[0] = start
      else parts.push([start, end])
      end = start
    }
    for (const [start, end] of parts.reverse()) {
      this.#append(piece.slice(start, end), ids, forbidden)
    }
  }

  #append(part: string, ids: number[], forbidden: (id: number) => boolean): void {
    const id = this.vocab.get(part)
    if (id !== undefined && !forbidden(id)) ids.push(id)
    else if (this.#byteIds === undefined) ids.push(needUnknown(this.unknownId, part))
    else for (const byte of encoder.encode(part)) ids.push(this.#byteIds[byte] as number)
  }
}

/** How vocabularies write a byte. */
export function byteToken(byte: number): string {
  return `<0x${byte.toString(16).toUpperCase().padStart(2, '0')}>`
}

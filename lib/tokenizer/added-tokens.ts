// Tokens that are found in the text before anything else happens to it, special ones among them. The rules
// are those of the Rust library `tokenizers`.

import { HogwildError } from '../errors'
import { checkArray, checkBoolean, checkObject, checkString } from '../validate'
import type { Normalizer } from './normalizers'
import { PairTable } from './pair-table'
import { WORD } from './unicode'

const CODE = 'HOGWILD_INVALID_MODEL'

export interface AddedToken {
  id: number
  content: string
  /** Only where neither neighbour is part of a word. */
  singleWord: boolean
  /** Takes the white space before it. */
  lstrip: boolean
  /** Takes the white space behind it. */
  rstrip: boolean
  /** Searched for in the normalized text, after the others. */
  normalized: boolean
  special: boolean
}

/** [start, end) of text in which special tokens are plain text. */
export type Range = readonly [start: number, end: number]

/** Receives text between added tokens (`start`: where it begins) and the ids of added tokens. */
export interface SectionSink {
  text(section: string, start: number): void
  token(id: number): void
}

/**
 * `modelId` is the id of a token of the model's vocabulary, `modelSize` the number of tokens in it. A token that
 * the model has keeps the model's id; others are numbered on. Where that differs from the id in the file,
 * `renumbered` has the token.
 */
export function parseAddedTokens(
  value: unknown,
  modelId: (token: string) => number | undefined,
  modelSize: number,
): { tokens: AddedToken[]; renumbered: string[] } {
  const byContent = new Map<string, AddedToken>()
  const renumbered: string[] = []
  let next = modelSize
  checkArray(value ?? [], 'added_tokens', CODE).forEach((entry, i) => {
    const name = `added_tokens[${i}]`
    const object = checkObject(entry, name, CODE)
    const content = checkString(object.content, `${name}.content`, CODE)
    if (content === '') return
    const flag = (key: string, ifAbsent = false) =>
      checkBoolean(object[key] ?? ifAbsent, `${name}.${key}`, CODE)
    const special = flag('special')
    const id = modelId(content) ?? byContent.get(content)?.id ?? next++
    if (object.id !== id) renumbered.push(content)
    byContent.delete(content)
    byContent.set(content, {
      id,
      content,
      singleWord: flag('single_word'),
      lstrip: flag('lstrip'),
      rstrip: flag('rstrip'),
      normalized: flag('normalized', !special),
      special,
    })
  })
  return { tokens: [...byContent.values()], renumbered }
}

/** Finds the added tokens of one kind, the leftmost and then the longest first. */
export class AddedTokenFinder {
  readonly #tokens: readonly AddedToken[]
  // A trie of code units. Node 0 is the root; #ends has the token that ends at a node, or -1.
  readonly #edges = new PairTable()
  readonly #ends: number[] = [-1]
  readonly #begins = new Uint8Array(0x10000)

  /** Without a normalizer the tokens are searched for as they are written. */
  constructor(tokens: readonly AddedToken[], normalizer?: Normalizer) {
    this.#tokens = tokens
    tokens.forEach((token, index) => {
      this.#add(normalizer === undefined ? token.content : normalizer(token.content), index)
    })
  }

  #add(pattern: string, index: number): void {
    if (pattern === '') return
    this.#begins[pattern.charCodeAt(0)] = 1
    let node = 0
    for (let i = 0; i < pattern.length; i++) {
      const unit = pattern.charCodeAt(i)
      let next = this.#edges.get(node, unit)
      if (next < 0) {
        next = this.#ends.push(-1) - 1
        this.#edges.set(node, unit, next)
      }
      node = next
    }
    if ((this.#ends[node] as number) < 0) this.#ends[node] = index
  }

  /** `isText` tells of a special token's match whether it is plain text there. */
  split(text: string, isText: (start: number, end: number) => boolean, sink: SectionSink): void {
    let done = 0
    for (let at = 0; at < text.length; ) {
      const match = this.#begins[text.charCodeAt(at)] === 1 ? this.#longest(text, at) : undefined
      if (match === undefined) {
        at++
        continue
      }
      const { token } = match
      let [start, end] = [at, match.end]
      at = end
      if (token.special && isText(start, end)) continue
      if (token.singleWord && (isWordBefore(text, start) || isWordAt(text, end))) continue
      if (token.lstrip) {
        while (start > done && isSpace(text.charCodeAt(start - 1))) start--
      }
      if (token.rstrip) {
        while (end < text.length && isSpace(text.charCodeAt(end))) end++
      }
      if (done < start) sink.text(text.slice(done, start), done)
      sink.token(token.id)
      done = end
    }
    if (done < text.length) sink.text(text.slice(done), done)
  }

  #longest(text: string, at: number): { token: AddedToken; end: number } | undefined {
    let found: { token: AddedToken; end: number } | undefined
    let node = 0
    for (let i = at; i < text.length; i++) {
      node = this.#edges.get(node, text.charCodeAt(i))
      if (node < 0) break
      const token = this.#tokens[this.#ends[node] as number]
      if (token !== undefined) found = { token, end: i + 1 }
    }
    return found
  }
}

const WORD_BEGIN = new RegExp(`^[${WORD}]`, 'v')
const WORD_END = new RegExp(`[${WORD}]$`, 'v')
const SPACE = /^\p{White_Space}$/u

function isWordAt(text: string, at: number): boolean {
  return WORD_BEGIN.test(text.slice(at, at + 2))
}

function isWordBefore(text: string, at: number): boolean {
  return WORD_END.test(text.slice(Math.max(at - 2, 0), at))
}

function isSpace(unit: number): boolean {
  return unit < 0x80
    ? unit === 0x20 || (unit >= 9 && unit <= 13)
    : SPACE.test(String.fromCharCode(unit))
}

/** Refuses a tokenizer that gives two tokens one id. */
export function duplicateId(id: number, first: string, second: string): HogwildError {
  const names = [first, second].map((token) => JSON.stringify(token.slice(0, 60))).join(' and ')
  return new HogwildError(`tokens ${names} have the same id ${id}`, CODE)
}

// Tokens that are found in the text before anything else happens to it, special ones among them. The rules
// are those of the Rust library `tokenizers`.

import type { DeclaredToken } from '../chat/special-tokens'
import { HogwildError } from '../errors'
import { checkArray, checkBoolean, checkInteger, checkObject, checkString } from '../validate'
import { MAX_TOKEN_ID, type TokenModel } from './models/model'
import type { Normalizer } from './normalizers'
import { PairTable } from './pair-table'
import { WORD } from './unicode'

const CODE = 'HOGWILD_INVALID_MODEL'

/**
 * A token with its id. `singleWord`: only where neither neighbour is part of a word. `lstrip`, `rstrip`: takes the
 * white space before or behind it. `normalized`: searched for in the normalized text, after the others.
 */
export interface AddedToken extends DeclaredToken {
  id: number
}

/** [start, end) of text in which special tokens are plain text. */
export type Range = readonly [start: number, end: number]

/** Receives text between added tokens (`start`: where it begins) and the ids of added tokens. */
export interface SectionSink {
  text(section: string, start: number): void
  token(id: number): void
}

/** The field `added_tokens` of tokenizer.json. Throws HOGWILD_INVALID_MODEL. */
export function parseAddedTokens(value: unknown): DeclaredToken[] {
  return checkArray(value ?? [], 'added_tokens', CODE).map((entry, i) => {
    const name = `added_tokens[${i}]`
    const object = checkObject(entry, name, CODE)
    const flag = (key: string, ifAbsent = false) =>
      checkBoolean(object[key] ?? ifAbsent, `${name}.${key}`, CODE)
    const special = flag('special')
    return {
      content: checkString(object.content, `${name}.content`, CODE),
      id: checkInteger(object.id, `${name}.id`, 0, MAX_TOKEN_ID, CODE),
      singleWord: flag('single_word'),
      lstrip: flag('lstrip'),
      rstrip: flag('rstrip'),
      normalized: flag('normalized', !special),
      special,
    }
  })
}

/**
 * Numbers added tokens: one that the model has keeps the model's id, others follow the model's vocabulary.
 * Where that is not the declared id, `renumbered` has the token.
 *
 * `inFile` are those of tokenizer.json, `besideIt` those of the files beside it. With an id (added_tokens_decoder)
 * these say how a token is, without (a named special token) only that there is one.
 */
export function numberAddedTokens(
  model: TokenModel,
  inFile: readonly DeclaredToken[],
  besideIt: readonly DeclaredToken[],
): { tokens: AddedToken[]; renumbered: string[] } {
  const byContent = new Map<string, AddedToken>()
  const renumbered = new Set<string>()
  let next = model.vocab.size
  const add = (token: DeclaredToken) => {
    const known = byContent.get(token.content)
    if (token.content === '' || (known !== undefined && token.id === undefined)) return
    const id = known?.id ?? model.vocab.get(token.content) ?? next++
    if (token.id !== undefined && token.id !== id) renumbered.add(token.content)
    byContent.set(token.content, { ...token, id })
  }
  for (const token of [...inFile, ...besideIt]) add(token)
  return { tokens: [...byContent.values()], renumbered: [...renumbered] }
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

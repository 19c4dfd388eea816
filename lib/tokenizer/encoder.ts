// Text to token ids, by a tokenizer.json: what the Rust library `tokenizers` gives for it is the measure.
// `truncation` and `padding` are left out: a prompt is never cut or filled up silently.
//
// Why not a library. `@huggingface/tokenizers` 0.2.0 (JavaScript) gives other ids for Unicode digits and white
// space, for bytes that a vocabulary lacks, single_word, StripAccents, Precompiled, most split behaviours, and
// takes quadratic time for SentencePiece; a repair of each stage would have left nothing of it. npm `tokenizers`
// 0.23.2 (the Rust library) is right, but 28 MB, and native code cannot be stopped at a deadline.

import type { DeclaredToken } from '../chat/special-tokens'
import { checkObject } from '../validate'
import {
  type AddedToken,
  AddedTokenFinder,
  duplicateId,
  numberAddedTokens,
  parseAddedTokens,
  type Range,
} from './added-tokens'
import type { TokenModel } from './models/model'
import { parseModel, type TokenizerKind } from './models/parse'
import { type Normalizer, parseNormalizer } from './normalizers'
import { parsePostProcessor, type Surroundings } from './post-processors'
import { type PreTokenizer, parsePreTokenizer } from './pre-tokenizers'

export interface EncodeRequest {
  text: string
  /** Puts the post-processor's tokens around the text. */
  addSpecialTokens: boolean
  /** Where special tokens are plain text: all of the text, or sorted ranges of it. */
  plainText: true | readonly Range[]
}

export class Encoder {
  /** Tokens found in the text as they are, in the order of the file. */
  readonly addedTokens: readonly AddedToken[]
  /** Added tokens whose id is not the one that the file names. */
  readonly renumbered: readonly string[]
  /** The token of each id; holes are undefined. */
  readonly tokens: readonly (string | undefined)[]
  /** The same for decoding: of added tokens that are searched for in normalized text, what is searched for. */
  readonly decodableTokens: readonly (string | undefined)[]
  readonly kind: TokenizerKind
  readonly #model: TokenModel
  readonly #normalizer: Normalizer
  readonly #preTokenizer: PreTokenizer
  readonly #surroundings: Surroundings
  readonly #asWritten: AddedTokenFinder
  readonly #normalized: AddedTokenFinder
  readonly #special: ReadonlySet<number>
  readonly #normalizedSpecial: boolean

  /** `besideIt`: tokens that the files beside tokenizer.json declare. Throws HOGWILD_INVALID_MODEL. */
  constructor(tokenizerJson: unknown, besideIt: readonly DeclaredToken[] = []) {
    const json = checkObject(tokenizerJson, 'tokenizer.json', 'HOGWILD_INVALID_MODEL')
    const { kind, model } = parseModel(json.model)
    this.kind = kind
    this.#model = model
    this.#normalizer = parseNormalizer(json.normalizer, 'normalizer')
    this.#preTokenizer = parsePreTokenizer(json.pre_tokenizer, 'pre_tokenizer')
    this.#surroundings = parsePostProcessor(json.post_processor, 'post_processor')
    const added = numberAddedTokens(this.#model, parseAddedTokens(json.added_tokens), besideIt)
    this.addedTokens = added.tokens
    this.renumbered = added.renumbered
    const [normalized, asWritten] = [true, false].map((kind) =>
      added.tokens.filter((token) => token.normalized === kind),
    ) as [AddedToken[], AddedToken[]]
    this.#asWritten = new AddedTokenFinder(asWritten)
    this.#normalized = new AddedTokenFinder(normalized, this.#normalizer)
    this.#special = new Set(added.tokens.filter(({ special }) => special).map(({ id }) => id))
    this.#normalizedSpecial = normalized.some(({ special }) => special)
    this.tokens = tokensById(this.#model, added.tokens)
    const decodable = [...this.tokens]
    for (const { id, content } of normalized) decodable[id] = this.#normalizer(content)
    this.decodableTokens = decodable
  }

  /** The unknown token's id, where there is one: special or not, a text may give it. */
  get unknownId(): number | undefined {
    return this.#model.unknownId
  }

  encode({ text, addSpecialTokens, plainText }: EncodeRequest): number[] {
    const ids: number[] = addSpecialTokens ? [...this.#surroundings.before] : []
    const wellFormed = text.toWellFormed()
    const forbidden =
      plainText === true || plainText.length > 0
        ? (id: number) => this.#special.has(id) && id !== this.unknownId
        : undefined
    const overlaps = overlapTest(plainText)
    // Metaspace asks whether a piece begins the text, which it does not where that begins with removed text.
    const keepsStart = this.#normalizer(firstCharacter(wellFormed)) !== ''
    this.#asWritten.split(wellFormed, overlaps, {
      token: (id) => ids.push(id),
      text: (section, start) => {
        const normalized = this.#normalizer(section)
        const isPlain = this.#normalizedSpecial
          ? overlapTest(this.#normalizedRanges(section, start, plainText))
          : () => false
        this.#normalized.split(normalized, isPlain, {
          token: (id) => ids.push(id),
          text: (part, partStart) => {
            this.#preTokenizer(part, start === 0 && partStart === 0 && keepsStart, (piece) => {
              this.#tokenize(piece, ids, forbidden)
            })
          },
        })
      },
    })
    if (addSpecialTokens) ids.push(...this.#surroundings.behind)
    return ids
  }

  /** Without special tokens where they are forbidden. */
  #tokenize(piece: string, ids: number[], forbidden: ((id: number) => boolean) | undefined): void {
    const before = ids.length
    this.#model.tokenize(piece, ids)
    if (forbidden === undefined) return
    for (let i = before; i < ids.length; i++) {
      if (!forbidden(ids[i] as number)) continue
      ids.length = before
      this.#model.tokenize(piece, ids, forbidden)
      return
    }
  }

  /** Ranges of the whole text as such of a section's normalized text. */
  #normalizedRanges(
    section: string,
    start: number,
    plainText: true | readonly Range[],
  ): true | readonly Range[] {
    if (plainText === true) return true
    const position = (at: number) => this.#normalizer(section.slice(0, at)).length
    return plainText
      .map(
        ([from, to]) => [Math.max(from - start, 0), Math.min(to - start, section.length)] as const,
      )
      .filter(([from, to]) => from < to)
      .map(([from, to]) => [position(from), position(to)] as const)
  }
}

function firstCharacter(text: string): string {
  const code = text.codePointAt(0)
  return code === undefined ? 'a' : String.fromCodePoint(code)
}

/** Whether [start, end) overlaps one of the ranges; asked from left to right. */
function overlapTest(ranges: true | readonly Range[]): (start: number, end: number) => boolean {
  if (ranges === true) return () => true
  let next = 0
  return (start, end) => {
    while (next < ranges.length && (ranges[next]?.[1] ?? 0) <= start) next++
    const range = ranges[next]
    return range !== undefined && range[0] < end
  }
}

function tokensById(
  { vocab, list = [] }: TokenModel,
  added: readonly AddedToken[],
): (string | undefined)[] {
  let size = list.length
  for (const id of vocab.values()) size = Math.max(size, id + 1)
  for (const { id } of added) size = Math.max(size, id + 1)
  const tokens = new Array<string | undefined>(size).fill(undefined)
  list.forEach((token, id) => {
    tokens[id] = token
  })
  for (const [token, id] of vocab) {
    const other = tokens[id]
    if (other !== undefined && other !== token) throw duplicateId(id, other, token)
    tokens[id] = token
  }
  for (const { id, content } of added) tokens[id] = content
  return tokens
}

// Pre-tokenizers of tokenizer.json: they split text into the pieces that the model works on. As the Rust
// library `tokenizers` runs them.

import {
  checkArray,
  checkBoolean,
  checkInteger,
  checkObject,
  checkOneOf,
  checkString,
  invalid,
} from '../validate'
import { byteCharacters } from './bytes'
import { parsePattern } from './normalizers'
import { compilePattern, eachMatch } from './pattern'
import { LATER_PUNCTUATION, WORD } from './unicode'

const CODE = 'HOGWILD_INVALID_MODEL'

/** `first`: the piece begins where the text begins. Pieces are never empty. */
export type PieceSink = (piece: string, first: boolean) => void

export type PreTokenizer = (text: string, first: boolean, emit: PieceSink) => void

const TYPES = [
  'BertPreTokenizer',
  'ByteLevel',
  'CharDelimiterSplit',
  'Digits',
  'FixedLength',
  'Metaspace',
  'Punctuation',
  'Sequence',
  'Split',
  'Whitespace',
  'WhitespaceSplit',
] as const

const BEHAVIORS = [
  'Contiguous',
  'Isolated',
  'MergedWithNext',
  'MergedWithPrevious',
  'Removed',
] as const

type Behavior = (typeof BEHAVIORS)[number]

// The pattern of GPT-2.
const GPT2 = compilePattern(
  "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+",
)

const WORDS_OR_SYMBOLS = new RegExp(`[${WORD}]+|[^${WORD}\\p{White_Space}]+`, 'gv')

const WHITE_SPACE = /\p{White_Space}/gu

const NUMERIC = /\p{N}/gu

const PUNCTUATION = new RegExp(
  `[[\\p{P}--[${LATER_PUNCTUATION}]]\\u{166d}\\u{111c9}!-\\/:-@\\[-\`\\{-~]`,
  'gv',
)

/** `value` is the field `name` of tokenizer.json; null is no pre-tokenizer. Throws HOGWILD_INVALID_MODEL. */
export function parsePreTokenizer(value: unknown, name: string): PreTokenizer {
  if (value === undefined || value === null) return (text, first, emit) => emit(text, first)
  const object = checkObject(value, name, CODE)
  const flag = (key: string, ifAbsent: boolean) =>
    checkBoolean(object[key] ?? ifAbsent, `${name}.${key}`, CODE)
  const type = checkOneOf(object.type, `${name}.type`, TYPES, CODE)
  switch (type) {
    case 'ByteLevel':
      return byteLevel(flag('add_prefix_space', true), flag('use_regex', true))
    case 'Metaspace':
      return parseMetaspace(object, name)
    case 'Split': {
      const pattern = parsePattern(object.pattern, `${name}.pattern`)
      const behavior = checkOneOf(object.behavior, `${name}.behavior`, BEHAVIORS, CODE)
      return split(pattern, behavior, flag('invert', false))
    }
    case 'Digits':
      return split(NUMERIC, flag('individual_digits', false) ? 'Isolated' : 'Contiguous')
    case 'Punctuation': {
      const behavior = object.behavior ?? 'Isolated'
      return split(PUNCTUATION, checkOneOf(behavior, `${name}.behavior`, BEHAVIORS, CODE))
    }
    case 'Whitespace':
      return split(WORDS_OR_SYMBOLS, 'Removed', true)
    case 'WhitespaceSplit':
      return split(WHITE_SPACE, 'Removed')
    case 'BertPreTokenizer':
      return sequence([split(WHITE_SPACE, 'Removed'), split(PUNCTUATION, 'Isolated')])
    case 'CharDelimiterSplit': {
      const delimiter = checkCharacter(object.delimiter, `${name}.delimiter`)
      return split(new RegExp(`\\u{${delimiter.codePointAt(0)?.toString(16)}}`, 'gu'), 'Removed')
    }
    case 'FixedLength': {
      const length = checkInteger(object.length ?? 5, `${name}.length`, 1, 1 << 20, CODE)
      return split(new RegExp(`[^]{1,${length}}`, 'gu'), 'Isolated')
    }
    case 'Sequence':
      return sequence(
        checkArray(object.pretokenizers, `${name}.pretokenizers`, CODE).map((one, i) =>
          parsePreTokenizer(one, `${name}.pretokenizers[${i}]`),
        ),
      )
  }
}

/** Each one splits the pieces of the one before. */
function sequence(preTokenizers: readonly PreTokenizer[]): PreTokenizer {
  return (text, first, emit) => {
    const sink = preTokenizers.reduceRight<PieceSink>(
      (next, preTokenizer) => (piece, isFirst) => preTokenizer(piece, isFirst, next),
      emit,
    )
    sink(text, first)
  }
}

/** What to do with the matches of a pattern (`invert`: with the text between them). */
function split(pattern: RegExp, behavior: Behavior, invert = false): PreTokenizer {
  const merge = MERGES[behavior]
  return (text, first, emit) => {
    // [start, end) and whether it counts as a match, of all parts of the text; empty parts too, because
    // they keep their neighbours apart.
    const starts: number[] = []
    const matches: boolean[] = []
    let done = 0
    eachMatch(pattern, text, (start, end) => {
      if (done < start) {
        starts.push(done)
        matches.push(invert)
      }
      starts.push(start)
      matches.push(!invert)
      done = end
    })
    if (done < text.length) {
      starts.push(done)
      matches.push(invert)
    }
    starts.push(text.length)
    for (let part = 0, begin = 0; part < matches.length; part++) {
      const joins = part + 1 < matches.length && merge(matches, part)
      if (joins) continue
      const [start, end] = [starts[begin] as number, starts[part + 1] as number]
      const removed = behavior === 'Removed' && matches[part]
      if (start < end && !removed) emit(text.slice(start, end), first && start === 0)
      begin = part + 1
    }
  }
}

/** Whether part i and the next one stay together. */
const MERGES: Readonly<Record<Behavior, (matches: readonly boolean[], i: number) => boolean>> = {
  Removed: () => false,
  Isolated: () => false,
  Contiguous: (matches, i) => matches[i] === matches[i + 1],
  MergedWithPrevious: (matches, i) => !matches[i] && matches[i + 1] === true,
  MergedWithNext: (matches, i) => matches[i] === true && !matches[i + 1],
}

function byteLevel(addPrefixSpace: boolean, useRegex: boolean): PreTokenizer {
  const splitText: PreTokenizer = useRegex
    ? split(GPT2, 'Isolated')
    : (text, first, emit) => emit(text, first)
  return (text, first, emit) => {
    const prefixed = addPrefixSpace && !text.startsWith(' ') ? ` ${text}` : text
    splitText(prefixed, first, (piece, isFirst) => emit(byteCharacters(piece), isFirst))
  }
}

const PREPEND_SCHEMES = ['always', 'first', 'never'] as const

/** `prepend_scheme` of a Metaspace pre-tokenizer or decoder; `add_prefix_space` is its older form. */
export function prependScheme(
  object: Record<string, unknown>,
  name: string,
): (typeof PREPEND_SCHEMES)[number] {
  const ifAbsent = object.add_prefix_space === false ? 'never' : 'always'
  const scheme = object.prepend_scheme ?? ifAbsent
  return checkOneOf(scheme, `${name}.prepend_scheme`, PREPEND_SCHEMES, CODE)
}

/** A string of one code point. */
export function checkCharacter(value: unknown, name: string): string {
  const character = checkString(value, name, CODE)
  if (Array.from(character).length !== 1) throw invalid(name, 'one character', value, CODE)
  return character
}

function parseMetaspace(object: Record<string, unknown>, name: string): PreTokenizer {
  const replacement = checkCharacter(object.replacement ?? '▁', `${name}.replacement`)
  const scheme = prependScheme(object, name)
  const splits = checkBoolean(object.split ?? true, `${name}.split`, CODE)
  const code = (replacement.codePointAt(0) as number).toString(16)
  const splitText: PreTokenizer = splits
    ? split(new RegExp(`\\u{${code}}`, 'gu'), 'MergedWithNext')
    : (text, first, emit) => emit(text, first)
  return (text, first, emit) => {
    const replaced = text.replaceAll(' ', () => replacement)
    const prepends = scheme === 'always' || (scheme === 'first' && first)
    splitText(
      prepends && !replaced.startsWith(replacement) ? replacement + replaced : replaced,
      first,
      emit,
    )
  }
}

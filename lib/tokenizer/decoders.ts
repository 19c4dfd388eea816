// Decoders of tokenizer.json: tokens to text, as the Rust library `tokenizers` runs them, but one token after the
// other, so that a stream gives what a whole list gives. Only bytes that are no UTF-8 come out differently: as one
// U+FFFD for each maximal bad part (WHATWG), where the library's ByteFallback has one for each byte.

import {
  checkArray,
  checkBoolean,
  checkInteger,
  checkObject,
  checkOneOf,
  checkString,
  invalid,
} from '../validate'
import { tokenBytes } from './bytes'
import { type Normalizer, parseReplace } from './normalizers'
import { checkCharacter, prependScheme } from './pre-tokenizers'

const CODE = 'HOGWILD_INVALID_MODEL'

/** Receives tokens in pieces: `close` ends a token, `end` the list of them. */
export interface TextSink {
  text(piece: string): void
  close(): void
  end(): void
}

/** One decoder, before the next one. */
type Stage = (next: TextSink) => TextSink

/** All decoders of a tokenizer. */
export interface Decoder {
  /** What the first of them make of each token on its own. Apply it once per token of the vocabulary. */
  prepare: Normalizer
  /** The others. */
  start(sink: TextSink): TextSink
  /**
   * The bytes that a prepared token adds to a text that it does not begin; undefined where that depends on its
   * neighbours.
   */
  bytes: ((token: string) => Uint8Array) | undefined
}

const TYPES = [
  'BPEDecoder',
  'ByteFallback',
  'ByteLevel',
  'CTC',
  'Fuse',
  'Metaspace',
  'Replace',
  'Sequence',
  'Strip',
  'WordPiece',
] as const

/**
 * `value` is the field `decoder` of tokenizer.json; null puts spaces between tokens. Throws HOGWILD_INVALID_MODEL.
 *
 * A pattern of a stranger may take for ever, so patterns are run in `prepare` only: a Replace by pattern that
 * comes after another kind of decoder is refused.
 */
export function parseDecoder(value: unknown): Decoder {
  const decoders = value === undefined || value === null ? undefined : flatten(value, 'decoder')
  const maps: Normalizer[] = []
  const stages: Stage[] = []
  const later: DecoderJson[] = []
  for (const decoder of decoders ?? []) {
    const { object, name, type } = decoder
    if (stages.length === 0 && (type === 'Replace' || type === 'Strip')) {
      maps.push(type === 'Replace' ? replaceInToken(object, name) : stripToken(object, name))
    } else {
      stages.push(parseStage(type, object, name))
      later.push(decoder)
    }
  }
  if (decoders === undefined) stages.push(separate)
  return {
    prepare: (token) => maps.reduce((text, map) => map(text), token),
    start: (sink) => stages.reduceRight((next, stage) => stage(next), sink),
    bytes: decoders && bytesInside(later),
  }
}

type TokenPart = string | Uint8Array

/** See Decoder.bytes. */
function bytesInside(decoders: readonly DecoderJson[]): Decoder['bytes'] {
  const maps: ((token: string) => TokenPart)[] = []
  let isFused = false
  for (const { object, name, type } of decoders) {
    const map = partInside(type, object, name, isFused)
    if (map === undefined) return undefined
    maps.push(map)
    isFused ||= type === 'Fuse'
  }
  return (token) => {
    let part: TokenPart = token
    for (const map of maps) if (typeof part === 'string') part = map(part)
    return typeof part === 'string' ? encoder.encode(part) : part
  }
}

function partInside(
  type: DecoderJson['type'],
  object: Record<string, unknown>,
  name: string,
  isFused: boolean,
): ((token: string) => TokenPart) | undefined {
  switch (type) {
    case 'ByteLevel':
      return tokenBytes
    case 'ByteFallback':
      return (token) => {
        const byte = fallbackByte(token)
        return byte === undefined ? token : Uint8Array.of(byte)
      }
    case 'Fuse':
      return (token) => token
    case 'Metaspace': {
      const replacement = checkCharacter(object.replacement ?? '▁', `${name}.replacement`)
      return (token) => token.replaceAll(replacement, ' ')
    }
    case 'Strip': // of the text's ends
      return isFused ? (token) => token : undefined
    case 'BPEDecoder':
    case 'CTC':
    case 'Replace': // across tokens
    case 'WordPiece':
      return undefined
  }
}

const encoder = new TextEncoder()

interface DecoderJson {
  object: Record<string, unknown>
  name: string
  type: Exclude<(typeof TYPES)[number], 'Sequence'>
}

function flatten(value: unknown, name: string): DecoderJson[] {
  const object = checkObject(value, name, CODE)
  const type = checkOneOf(object.type, `${name}.type`, TYPES, CODE)
  if (type !== 'Sequence') return [{ object, name, type }]
  return checkArray(object.decoders, `${name}.decoders`, CODE).flatMap((one, i) =>
    flatten(one, `${name}.decoders[${i}]`),
  )
}

function parseStage(
  type: DecoderJson['type'],
  object: Record<string, unknown>,
  name: string,
): Stage {
  const text = (key: string, ifAbsent?: string) =>
    checkString(object[key] ?? ifAbsent, `${name}.${key}`, CODE)
  const flag = (key: string, ifAbsent: boolean) =>
    checkBoolean(object[key] ?? ifAbsent, `${name}.${key}`, CODE)
  switch (type) {
    case 'ByteLevel':
      return byteLevel
    case 'ByteFallback':
      return byteFallback
    case 'Fuse':
      return fuse
    case 'Metaspace': {
      const replacement = checkCharacter(object.replacement ?? '▁', `${name}.replacement`)
      return metaspace(replacement, prependScheme(object, name) === 'never')
    }
    case 'Replace': {
      const pattern = checkObject(object.pattern, `${name}.pattern`, CODE)
      if (pattern.String === undefined) {
        throw invalid(
          `${name}.pattern`,
          'a String, as other decoders come before it',
          object.pattern,
          CODE,
        )
      }
      return replaceLiteral(
        checkString(pattern.String, `${name}.pattern.String`, CODE),
        text('content'),
      )
    }
    case 'Strip':
      return strip(parseStrip(object, name))
    case 'WordPiece':
      return wordPiece(text('prefix', '##'), flag('cleanup', true))
    case 'BPEDecoder':
      return bpe(text('suffix', '</w>'))
    case 'CTC':
      return ctc(
        text('pad_token', '<pad>'),
        text('word_delimiter_token', '|'),
        flag('cleanup', true),
      )
  }
}

// Decoders that come first: token by token

function replaceInToken(object: Record<string, unknown>, name: string): Normalizer {
  const replace = parseReplace(object, name)
  return (token) => (token === '' ? '' : replace(token))
}

interface StripOptions {
  content: string
  start: number
  stop: number
}

function parseStrip(object: Record<string, unknown>, name: string): StripOptions {
  const count = (key: string) =>
    checkInteger(object[key] ?? 0, `${name}.${key}`, 0, 2 ** 31 - 1, CODE)
  const content = checkCharacter(object.content, `${name}.content`)
  return { content, start: count('start'), stop: count('stop') }
}

function stripToken(object: Record<string, unknown>, name: string): Normalizer {
  const options = parseStrip(object, name)
  return (token) => {
    let stripped = ''
    const stage = strip(options)({ text: (piece) => (stripped += piece), close() {}, end() {} })
    stage.text(token)
    stage.close()
    return stripped
  }
}

// Stages

/** Collects each token and hands it over as a whole, with its index. */
function wholeTokens(
  next: TextSink,
  take: (token: string, index: number) => void,
  end: () => void = () => next.end(),
): TextSink {
  let token = ''
  let index = 0
  return {
    text(piece) {
      token += piece
    },
    close() {
      const whole = token
      token = ''
      take(whole, index++)
    },
    end,
  }
}

function emit(next: TextSink, token: string): void {
  next.text(token)
  next.close()
}

/** Without a decoder. */
const separate: Stage = (next) =>
  wholeTokens(next, (token, index) => emit(next, index > 0 ? ` ${token}` : token))

const fuse: Stage = (next) => {
  let any = false
  return {
    text: (piece) => next.text(piece),
    close() {
      any = true
    },
    end() {
      if (any) next.close()
      next.end()
    },
  }
}

function utf8(): InstanceType<typeof TextDecoder> {
  return new TextDecoder('utf-8', { ignoreBOM: true })
}

/** All tokens are one text of bytes. */
const byteLevel: Stage = (next) => {
  const decoder = utf8()
  return wholeTokens(
    next,
    (token) => next.text(decoder.decode(tokenBytes(token), { stream: true })),
    () => {
      emit(next, decoder.decode())
      next.end()
    },
  )
}

function fallbackByte(token: string): number | undefined {
  // The library's parser of numbers takes a plus sign.
  const hex = /^<0x(\+[0-9A-Fa-f]|[0-9A-Fa-f]{2})>$/.exec(token)?.[1]
  return hex === undefined ? undefined : Number.parseInt(hex, 16)
}

/** Tokens like <0x0A> are bytes; neighbours of that kind are one text. */
const byteFallback: Stage = (next) => {
  const decoder = utf8()
  let inBytes = false
  const endBytes = () => {
    if (inBytes) emit(next, decoder.decode())
    inBytes = false
  }
  return wholeTokens(
    next,
    (token) => {
      const byte = fallbackByte(token)
      if (byte === undefined) {
        endBytes()
        emit(next, token)
      } else {
        inBytes = true
        next.text(decoder.decode(Uint8Array.of(byte), { stream: true }))
      }
    },
    () => {
      endBytes()
      next.end()
    },
  )
}

function metaspace(replacement: string, keepsFirst: boolean): Stage {
  return (next) => {
    let first = true
    return {
      text: (piece) => next.text(piece.replaceAll(replacement, first && !keepsFirst ? '' : ' ')),
      close() {
        first = false
        next.close()
      },
      end: () => next.end(),
    }
  }
}

/** Longest literal of which a beginning is held back; a longer one waits for the token's end. */
const MAX_HELD = 64

function replaceLiteral(literal: string, content: string): Stage {
  return (next) => {
    let held = ''
    return {
      text(piece) {
        held += piece
        if (literal === '' || literal.length > MAX_HELD) return
        const last = held.lastIndexOf(literal)
        const replaced = held.replaceAll(literal, () => content)
        // What may be the beginning of the literal: at most all that follows its last occurrence.
        const rest =
          last < 0
            ? held
            : replaced.slice(replaced.length - (held.length - endOfLast(held, literal)))
        const waiting = beginningAtEnd(rest, literal)
        next.text(replaced.slice(0, replaced.length - waiting))
        held = rest.slice(rest.length - waiting)
      },
      close() {
        emit(
          next,
          held.replaceAll(literal, () => content),
        )
        held = ''
      },
      end: () => next.end(),
    }
  }
}

/** Where the last of the occurrences that are replaced, from left to right, ends. */
function endOfLast(text: string, literal: string): number {
  let end = 0
  for (let at = text.indexOf(literal); at >= 0; at = text.indexOf(literal, end)) {
    end = at + literal.length
  }
  return end
}

/** Length of the longest proper beginning of `literal` that `text` ends with. */
function beginningAtEnd(text: string, literal: string): number {
  let length = Math.min(text.length, literal.length - 1)
  while (length > 0 && !text.endsWith(literal.slice(0, length))) length--
  return length
}

/** Takes up to `start` and `stop` of one character from the ends of each token. */
function strip({ content, start, stop }: StripOptions): Stage {
  return (next) => {
    let left = start
    let held = ''
    return {
      text(piece) {
        let at = 0
        while (left > 0 && piece.startsWith(content, at)) {
          at += content.length
          left--
        }
        if (at < piece.length) left = 0
        const text = held + piece.slice(at)
        let end = text.length
        for (let n = 0; n < stop && end > 0 && text.endsWith(content, end); n++)
          end -= content.length
        next.text(text.slice(0, end))
        held = text.slice(end)
      },
      close() {
        left = start
        held = ''
        next.close()
      },
      end: () => next.end(),
    }
  }
}

function wordPiece(prefix: string, cleanup: boolean): Stage {
  return (next) =>
    wholeTokens(next, (token, index) => {
      const word =
        index > 0 ? (token.startsWith(prefix) ? token.slice(prefix.length) : ` ${token}`) : token
      emit(next, cleanup ? cleanUp(word) : word)
    })
}

/** The suffix is a space, but nothing in the last token: it waits for the next one. */
function bpe(suffix: string): Stage {
  return (next) => {
    let waiting: string | undefined
    const settle = (space: string) => {
      if (waiting !== undefined) emit(next, replaceSuffix(waiting, suffix, space))
      waiting = undefined
    }
    return wholeTokens(
      next,
      (token) => {
        settle(' ')
        const at = suffix === '' ? 0 : token.indexOf(suffix)
        next.text(at < 0 ? token : token.slice(0, at))
        waiting = at < 0 ? '' : token.slice(at)
      },
      () => {
        settle('')
        next.end()
      },
    )
  }
}

function replaceSuffix(text: string, suffix: string, space: string): string {
  if (suffix !== '') return text.replaceAll(suffix, space)
  return space + Array.from(text, (character) => character + space).join('')
}

function ctc(pad: string, delimiter: string, cleanup: boolean): Stage {
  return (next) => {
    let previous: string | undefined
    return wholeTokens(next, (token) => {
      if (token === previous) return
      previous = token
      let text = token.replaceAll(pad, '')
      if (cleanup) text = cleanUp(text).replaceAll(delimiter, ' ')
      if (text !== '') emit(next, text)
    })
  }
}

/** Takes out the spaces that tokenizers of English words put before punctuation and endings. */
export function cleanUp(text: string): string {
  return text
    .replaceAll(' .', '.')
    .replaceAll(' ?', '?')
    .replaceAll(' !', '!')
    .replaceAll(' ,', ',')
    .replaceAll(" ' ", "'")
    .replaceAll(" n't", "n't")
    .replaceAll(" 'm", "'m")
    .replaceAll(' do not', " don't")
    .replaceAll(" 's", "'s")
    .replaceAll(" 've", "'ve")
    .replaceAll(" 're", "'re")
}

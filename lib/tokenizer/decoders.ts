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
  /** The same with all that comes behind it, in the state it is in, before another end. */
  copy(end: TextSink): TextSink
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
    const stage = strip(options)({
      text: (piece) => (stripped += piece),
      close() {},
      end() {},
      copy: (end) => end,
    })
    stage.text(token)
    stage.close()
    return stripped
  }
}

// Stages

/** A stage whose state is one object. `copyOf`: of a state that holds more than plain values. */
function stage<State extends object>(
  begin: () => State,
  run: (next: TextSink, state: State) => Omit<TextSink, 'copy'>,
  copyOf: (state: State) => State = (state) => ({ ...state }),
): Stage {
  const go = (next: TextSink, state: State): TextSink => ({
    ...run(next, state),
    copy: (end) => go(next.copy(end), copyOf(state)),
  })
  return (next) => go(next, begin())
}

/** How far a stage is that takes whole tokens. */
interface TokenState {
  token: string
  index: number
}

const noToken = (): TokenState => ({ token: '', index: 0 })

/** Collects each token and hands it over as a whole, with its index. */
function wholeTokens(
  next: TextSink,
  state: TokenState,
  take: (token: string, index: number) => void,
  end: () => void = () => next.end(),
): Omit<TextSink, 'copy'> {
  return {
    text(piece) {
      state.token += piece
    },
    close() {
      const whole = state.token
      state.token = ''
      take(whole, state.index++)
    },
    end,
  }
}

function emit(next: TextSink, token: string): void {
  next.text(token)
  next.close()
}

/** Without a decoder. */
const separate: Stage = stage(noToken, (next, state) =>
  wholeTokens(next, state, (token, index) => emit(next, index > 0 ? ` ${token}` : token)),
)

const fuse: Stage = stage(
  () => ({ any: false }),
  (next, state) => ({
    text: (piece) => next.text(piece),
    close() {
      state.any = true
    },
    end() {
      if (state.any) next.close()
      next.end()
    },
  }),
)

/** Text of bytes that come in pieces. */
class Utf8 {
  readonly #decoder = new TextDecoder('utf-8', { ignoreBOM: true })
  /** The last bytes, in which an incomplete character may stand. */
  #last: number[] = []

  push(bytes: Uint8Array): string {
    this.#last = [...this.#last, ...bytes.subarray(-3)].slice(-3)
    return this.#decoder.decode(bytes, { stream: true })
  }

  end(): string {
    this.#last = []
    return this.#decoder.decode()
  }

  copy(): Utf8 {
    const copy = new Utf8()
    // A byte that is no continuation begins anew, whatever came before it.
    const begin = this.#last.findLastIndex((byte) => (byte & 0xc0) !== 0x80)
    if (begin >= 0) copy.push(Uint8Array.from(this.#last.slice(begin)))
    return copy
  }
}

interface BytesState extends TokenState {
  utf8: Utf8
}

const noBytes = (): BytesState => ({ ...noToken(), utf8: new Utf8() })
const copyBytes = <State extends BytesState>(state: State): State => {
  return { ...state, utf8: state.utf8.copy() }
}

/** All tokens are one text of bytes. */
const byteLevel: Stage = stage(
  noBytes,
  (next, state) =>
    wholeTokens(
      next,
      state,
      (token) => next.text(state.utf8.push(tokenBytes(token))),
      () => {
        emit(next, state.utf8.end())
        next.end()
      },
    ),
  copyBytes,
)

function fallbackByte(token: string): number | undefined {
  // The library's parser of numbers takes a plus sign.
  const hex = /^<0x(\+[0-9A-Fa-f]|[0-9A-Fa-f]{2})>$/.exec(token)?.[1]
  return hex === undefined ? undefined : Number.parseInt(hex, 16)
}

/** Tokens like <0x0A> are bytes; neighbours of that kind are one text. */
const byteFallback: Stage = stage(
  () => ({ ...noBytes(), inBytes: false }),
  (next, state) => {
    const endBytes = () => {
      if (state.inBytes) emit(next, state.utf8.end())
      state.inBytes = false
    }
    return wholeTokens(
      next,
      state,
      (token) => {
        const byte = fallbackByte(token)
        if (byte === undefined) {
          endBytes()
          emit(next, token)
        } else {
          state.inBytes = true
          next.text(state.utf8.push(Uint8Array.of(byte)))
        }
      },
      () => {
        endBytes()
        next.end()
      },
    )
  },
  copyBytes,
)

function metaspace(replacement: string, keepsFirst: boolean): Stage {
  return stage(
    () => ({ first: true }),
    (next, state) => ({
      text: (piece) =>
        next.text(piece.replaceAll(replacement, state.first && !keepsFirst ? '' : ' ')),
      close() {
        state.first = false
        next.close()
      },
      end: () => next.end(),
    }),
  )
}

/** Longest literal of which a beginning is held back; a longer one waits for the token's end. */
const MAX_HELD = 64

function replaceLiteral(literal: string, content: string): Stage {
  return stage(
    () => ({ held: '' }),
    (next, state) => ({
      text(piece) {
        state.held += piece
        if (literal === '' || literal.length > MAX_HELD) return
        const { held } = state
        const last = held.lastIndexOf(literal)
        const replaced = held.replaceAll(literal, () => content)
        // What may be the beginning of the literal: at most all that follows its last occurrence.
        const rest =
          last < 0
            ? held
            : replaced.slice(replaced.length - (held.length - endOfLast(held, literal)))
        const waiting = beginningAtEnd(rest, literal)
        next.text(replaced.slice(0, replaced.length - waiting))
        state.held = rest.slice(rest.length - waiting)
      },
      close() {
        emit(
          next,
          state.held.replaceAll(literal, () => content),
        )
        state.held = ''
      },
      end: () => next.end(),
    }),
  )
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
  return stage(
    () => ({ left: start, held: '' }),
    (next, state) => ({
      text(piece) {
        let at = 0
        while (state.left > 0 && piece.startsWith(content, at)) {
          at += content.length
          state.left--
        }
        if (at < piece.length) state.left = 0
        const text = state.held + piece.slice(at)
        let end = text.length
        for (let n = 0; n < stop && end > 0 && text.endsWith(content, end); n++)
          end -= content.length
        next.text(text.slice(0, end))
        state.held = text.slice(end)
      },
      close() {
        state.left = start
        state.held = ''
        next.close()
      },
      end: () => next.end(),
    }),
  )
}

function wordPiece(prefix: string, cleanup: boolean): Stage {
  return stage(noToken, (next, state) =>
    wholeTokens(next, state, (token, index) => {
      const word =
        index > 0 ? (token.startsWith(prefix) ? token.slice(prefix.length) : ` ${token}`) : token
      emit(next, cleanup ? cleanUp(word) : word)
    }),
  )
}

/** The suffix is a space, but nothing in the last token: it waits for the next one. */
function bpe(suffix: string): Stage {
  return stage(
    () => ({ ...noToken(), waiting: undefined as string | undefined }),
    (next, state) => {
      const settle = (space: string) => {
        if (state.waiting !== undefined) emit(next, replaceSuffix(state.waiting, suffix, space))
        state.waiting = undefined
      }
      return wholeTokens(
        next,
        state,
        (token) => {
          settle(' ')
          const at = suffix === '' ? 0 : token.indexOf(suffix)
          next.text(at < 0 ? token : token.slice(0, at))
          state.waiting = at < 0 ? '' : token.slice(at)
        },
        () => {
          settle('')
          next.end()
        },
      )
    },
  )
}

function replaceSuffix(text: string, suffix: string, space: string): string {
  if (suffix !== '') return text.replaceAll(suffix, space)
  return space + Array.from(text, (character) => character + space).join('')
}

function ctc(pad: string, delimiter: string, cleanup: boolean): Stage {
  return stage(
    () => ({ ...noToken(), previous: undefined as string | undefined }),
    (next, state) =>
      wholeTokens(next, state, (token) => {
        if (token === state.previous) return
        state.previous = token
        let text = token.replaceAll(pad, '')
        if (cleanup) text = cleanUp(text).replaceAll(delimiter, ' ')
        if (text !== '') emit(next, text)
      }),
  )
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

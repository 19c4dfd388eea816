// What a tokenizer computes, synchronously: in the thread, or here for `encodeSync` and `chatSync`.

import { Chat, type ChatRequest } from '../chat/chat'
import type { ChatSources } from '../chat/sources'
import type { DeclaredToken } from '../chat/special-tokens'
import { HogwildError, type HogwildErrorCode } from '../errors'
import { parseJson } from '../sources/files'
import { checkObject } from '../validate'
import type { Range } from './added-tokens'
import { parseDecoder } from './decoders'
import { Encoder } from './encoder'
import { type GgufVocabulary, tokenizerOf } from './gguf'
import type { TokenizerKind } from './models/parse'
import { type PackedTokens, packTokens } from './token-table'

/** Plain data: what a tokenizer is made of. */
export interface EngineSource {
  /** Content of tokenizer.json, in UTF-8, or what a GGUF file has in its place. */
  vocabulary: { json: SharedArrayBuffer } | GgufVocabulary
  /** The file, for messages. */
  path: string
  chat: ChatSources
  /** Tokens that the files beside it declare. */
  declaredTokens: readonly DeclaredToken[]
}

/** What the files of a model say about its texts. */
export interface TokenizerSource {
  engine: EngineSource
  /** Tokens that end a text, as the files name them; nothing says that they are within the vocabulary. */
  eosTokenIds: number[]
}

/** What the thread that does not encode needs for decoding. */
export interface LoadedTokens {
  kind: TokenizerKind
  tokens: PackedTokens
  /** The field `decoder` of tokenizer.json, checked. */
  decoder: unknown
  /** Added tokens that have another id than the file says. */
  renumbered: readonly string[]
}

export class TextEngine {
  readonly #encoder: Encoder
  readonly #chat: Chat
  readonly #decoder: unknown

  /** Throws HOGWILD_INVALID_MODEL. */
  constructor({ vocabulary, path, chat, declaredTokens }: EngineSource) {
    const parsed = withCode('HOGWILD_INVALID_MODEL', path, () => {
      if (!('json' in vocabulary)) return tokenizerOf(vocabulary)
      const text = Buffer.from(vocabulary.json).toString('utf8')
      return checkObject(parseJson(text, path), path, 'HOGWILD_INVALID_MODEL')
    })
    this.#encoder = withCode(
      'HOGWILD_INVALID_MODEL',
      path,
      () => new Encoder(parsed, declaredTokens),
    )
    this.#decoder = parsed.decoder
    this.#chat = new Chat(chat)
  }

  /** What the other thread needs for decoding. Throws HOGWILD_INVALID_MODEL. */
  loaded(): LoadedTokens {
    const { kind, tokens, decodableTokens, addedTokens, renumbered } = this.#encoder
    const special = new Set(addedTokens.filter((token) => token.special).map(({ id }) => id))
    const { prepare } = parseDecoder(this.#decoder)
    const texts = decodableTokens.map((token) => (token === undefined ? undefined : prepare(token)))
    return {
      kind,
      tokens: packTokens(tokens, texts, (id) => special.has(id)),
      decoder: this.#decoder,
      renumbered,
    }
  }

  encode(text: string, addSpecialTokens: boolean, plainText: boolean): number[] {
    return withCode('HOGWILD_INVALID_ARGUMENT', 'the text cannot be encoded', () =>
      this.#encoder.encode({ text, addSpecialTokens, plainText: plainText ? true : [] }),
    )
  }

  chat(request: ChatRequest, answerPrefix: string): string {
    const segments = this.#chat.render(request)
    return segments.map(({ text }) => text).join('') + answerPrefix
  }

  /** The ids of the text that `chat` gives, but special tokens in what the caller supplied are plain text. */
  encodeChat(request: ChatRequest, answerPrefix: string): number[] {
    let text = ''
    const plainText: Range[] = []
    for (const segment of this.#chat.render(request)) {
      // Lone surrogates are replaced one by one, so that the ranges stay where they are.
      if (segment.content) plainText.push([text.length, text.length + segment.text.length])
      text += segment.text
    }
    return withCode('HOGWILD_INVALID_ARGUMENT', 'the chat cannot be encoded', () =>
      this.#encoder.encode({ text: text + answerPrefix, addSpecialTokens: false, plainText }),
    )
  }
}

/** Bytes of the texts that a tokenizer is made of. */
export function vocabularyBytes({ vocabulary }: EngineSource): number {
  if ('json' in vocabulary) return vocabulary.json.byteLength
  return vocabulary.tokens.byteLength + (vocabulary.merges?.byteLength ?? 0)
}

/** Runs something that may throw anything, the engine's own errors (stack, string length) included. */
function withCode<T>(code: HogwildErrorCode, what: string, run: () => T): T {
  try {
    return run()
  } catch (cause) {
    const { message } = cause as Error
    throw new HogwildError(message.startsWith(what) ? message : `${what}: ${message}`, code, {
      cause,
    })
  }
}

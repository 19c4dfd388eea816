// Tokenizers and chat templates of a model.

import { throwIfAborted } from '../abort-signal'
import type { ChatRequest } from '../chat/chat'
import { HogwildError } from '../errors'
import { checkDownload, findModel, type ModelDownloadOptions } from '../hub/find'
import { openSource } from '../sources/source'
import {
  checkBoolean,
  checkInteger,
  checkOneOf,
  checkOptions,
  checkSignal,
  checkString,
  invalid,
  optionKeys,
} from '../validate'
import { type WarningHandler, Warnings } from '../warnings'
import { cleanUp, parseDecoder } from './decoders'
import { endTokenIds } from './eos'
import type { TokenizerKind } from './models/parse'
import { type EngineSource, TextEngine } from './text-engine'
import { type DecodeSource, TextStream } from './text-stream'
import { type RequestOptions, TextThread } from './text-thread'
import { TokenTable } from './token-table'

/** Options of `loadTokenizer`. */
export interface LoadTokenizerOptions {
  /** Takes warnings; default: `process.emitWarning`. */
  onWarning?: WarningHandler | undefined
  /** How the files of a model of the hub are brought, if they have to be: `download` describes the options. */
  download?: ModelDownloadOptions | undefined
  /** Rejects with HOGWILD_ABORTED. */
  signal?: AbortSignal | undefined
}

/** How a text becomes ids. */
export interface EncodeOptions {
  /** What the model puts around a text, e.g. a token for its beginning; default true. */
  addSpecialTokens?: boolean | undefined
  /**
   * What special tokens are that are written out in the text, e.g. `<|im_end|>`: 'parse' takes them for these
   * tokens, as Hugging Face's libraries do; 'text' for the characters, which is right for the text of strangers.
   * Default 'parse'.
   */
  specialTokens?: 'parse' | 'text' | undefined
}

/** Of calls that run in a thread of their own. */
export interface ThreadOptions {
  /** Rejects with HOGWILD_TIMEOUT after so many milliseconds of work; default 10,000. */
  timeoutMs?: number | undefined
  /** Rejects with HOGWILD_ABORTED. */
  signal?: AbortSignal | undefined
}

/** How ids become a text. */
export interface DecodeOptions {
  /** Leaves special tokens out of the text; default false. */
  skipSpecialTokens?: boolean | undefined
  /** Takes out the spaces that tokenizers of English words put before punctuation ("no ." -> "no."); default false. */
  cleanUp?: boolean | undefined
}

/** Options of `Tokenizer.stream`. */
export interface StreamOptions {
  /** Leaves special tokens out of the text; default true. */
  skipSpecialTokens?: boolean | undefined
}

/** A message of a conversation. */
export interface ChatMessage {
  /** As the template knows them: 'system', 'user', 'assistant', … */
  role: string
  /** Text, or parts for templates that know them. A message with something else, e.g. tool calls, needs none. */
  content?: string | readonly object[] | null | undefined
  /** What else the template knows: tool_calls, name, … */
  [field: string]: unknown
}

/** What a chat template is given beside the messages. */
export interface ChatOptions {
  /** Ends the text with the opening of an assistant's message; default true. */
  addGenerationPrompt?: boolean | undefined
  /** The text that the assistant's answer begins with, at the end. Default: none. */
  answerPrefix?: string | undefined
  /** JSON schemas of functions, for templates that know tools. */
  tools?: readonly object[] | undefined
  /** Objects with a title and a text, for templates that know documents. */
  documents?: readonly object[] | undefined
  /** The name of a template; default: 'tool_use' if there are tools and such a template, else 'default'. */
  template?: string | undefined
  /** Further variables that the template knows, e.g. { enable_thinking: false }. */
  variables?: Record<string, unknown> | undefined
}

const LOAD_KEYS = optionKeys<LoadTokenizerOptions>()({
  onWarning: true,
  download: true,
  signal: true,
})
const ENCODE_KEYS = optionKeys<EncodeOptions>()({ addSpecialTokens: true, specialTokens: true })
const THREAD_KEYS = optionKeys<ThreadOptions>()({ timeoutMs: true, signal: true })
const DECODE_KEYS = optionKeys<DecodeOptions>()({ skipSpecialTokens: true, cleanUp: true })
const STREAM_KEYS = optionKeys<StreamOptions>()({ skipSpecialTokens: true })
const CHAT_KEYS = optionKeys<ChatOptions>()({
  addGenerationPrompt: true,
  answerPrefix: true,
  tools: true,
  documents: true,
  template: true,
  variables: true,
})

const DEFAULT_TIMEOUT_MS = 10_000
/** What `missingIds` takes. */
const MAX_VOCABULARY = 2 ** 24

/**
 * Reads a tokenizer and its chat templates. Of a Hugging Face folder: tokenizer.json and, where they are there,
 * tokenizer_config.json, special_tokens_map.json, chat_template.jinja, chat_template.json,
 * additional_chat_templates/, generation_config.json and config.json. Of a GGUF file (the first part of a split one):
 * its metadata, for byte-level BPE ('gpt2') and SentencePiece's BPE ('llama'). `model` is the path of either or, where
 * there is no such path, a name of the hub (org/name[@revision][:QUANTISATION]), whose files are brought first; see
 * `download`.
 *
 * Warns of end tokens that the vocabulary lacks (HOGWILD_UNKNOWN_EOS_TOKEN) and of added tokens whose id is not
 * the one in the file (HOGWILD_TOKEN_IDS). Throws HOGWILD_INVALID_MODEL, naming the file; HOGWILD_UNSUPPORTED for
 * another kind of tokenizer in a GGUF file, naming those that are supported; HOGWILD_ABORTED, HOGWILD_DOWNLOAD.
 */
export async function loadTokenizer(
  model: string,
  options: LoadTokenizerOptions = {},
): Promise<Tokenizer> {
  const { onWarning, download, ...rest } = checkOptions(options, 'options', LOAD_KEYS)
  const warnings = new Warnings(onWarning)
  const signal = checkSignal(rest.signal, 'options.signal')
  const path = await findModel(model, {
    ...checkDownload(download),
    files: 'tokenizer',
    signal,
    onWarning,
  })
  const source = await openSource(path)
  const { engine, eosTokenIds: namedEos } = await source.tokenizer({ signal })
  const thread = new TextThread(engine)
  try {
    const loaded = await thread.load(signal)
    if (loaded.renumbered.length > 0) {
      const names = loaded.renumbered.map((token) => JSON.stringify(token)).join(', ')
      warnings.warn(
        'HOGWILD_TOKEN_IDS',
        `${engine.path}: the ids of ${names} are not those of the file`,
      )
    }
    const tokens = new TokenTable(loaded.tokens)
    const eosToken = engine.chat.specialTokens.eos_token
    const ids = [eosToken === undefined ? undefined : tokens.id(eosToken), ...endTokenIds(tokens)]
    const eosTokenIds = knownEos(
      [...namedEos, ...ids.filter((id) => id !== undefined)],
      tokens,
      warnings,
    )
    return new Tokenizer(
      thread,
      engine,
      { tokens, decoder: parseDecoder(loaded.decoder) },
      eosTokenIds,
      loaded.kind,
    )
  } catch (error) {
    await thread.close()
    throw error
  }
}

function knownEos(ids: readonly number[], tokens: TokenTable, warnings: Warnings): number[] {
  const unknown = ids.filter((id) => !tokens.has(id))
  if (unknown.length > 0) {
    warnings.warn(
      'HOGWILD_UNKNOWN_EOS_TOKEN',
      `eos_token_id ${unknown.join(', ')} is left out: the vocabulary has no such token`,
    )
  }
  return [...new Set(ids.filter((id) => tokens.has(id)))]
}

// Threads of tokenizers that nobody can use any more end.
const abandoned = new FinalizationRegistry<TextThread>((thread) => void thread.close())

/**
 * Text to token ids and back. Made by `loadTokenizer`.
 *
 * Texts and templates are worked on in a thread, so that no text blocks the event loop and each call has a
 * deadline. The thread ends by `close()`, when the tokenizer is garbage-collected, and with the process, which it
 * does not keep alive.
 */
export class Tokenizer {
  /**
   * Tokens that end a text or a turn, maybe none: those that generation_config.json, config.json and the
   * tokenizer's files name, and special tokens that are known as such, e.g. `<|im_end|>`.
   */
  readonly eosTokenIds: readonly number[]
  /** How it makes tokens of text. */
  readonly kind: TokenizerKind
  readonly #thread: TextThread
  readonly #source: EngineSource
  readonly #decoding: DecodeSource
  #engine: TextEngine | undefined
  #closed = false

  /** @internal */
  constructor(
    thread: TextThread,
    source: EngineSource,
    decoding: DecodeSource,
    eosTokenIds: readonly number[],
    kind: TokenizerKind,
  ) {
    this.#thread = thread
    this.#source = source
    this.#decoding = decoding
    this.kind = kind
    this.eosTokenIds = Object.freeze([...eosTokenIds])
    abandoned.register(this, thread, this)
  }

  /** Whether `chat` and `encodeChat` have a template. */
  get hasChatTemplate(): boolean {
    return this.#source.chat.templates.size > 0
  }

  /** Ids are below it; some may have no token. */
  get size(): number {
    return this.#decoding.tokens.size
  }

  /**
   * Ids below `vocabSize` (at most 2^24) that have no token, ascending: a model's matrices may have more rows than its vocabulary has
   * tokens. `generate` and `runWorkers` never choose them where they know the tokenizer; samplers of your own have
   * `forbidden`.
   */
  missingIds(vocabSize: number): number[] {
    checkInteger(vocabSize, 'vocabSize', 0, MAX_VOCABULARY)
    const missing: number[] = []
    for (let id = 0; id < vocabSize; id++) if (!this.#decoding.tokens.has(id)) missing.push(id)
    return missing
  }

  /** Names of the chat templates; that of a model with one is 'default'. */
  get chatTemplates(): string[] {
    return [...this.#source.chat.templates.keys()]
  }

  /** @internal */
  static is(value: unknown): value is Tokenizer {
    return typeof value === 'object' && value !== null && #thread in value
  }

  /** The id of one token of the vocabulary, or undefined. */
  tokenId(token: string): number | undefined {
    return this.#decoding.tokens.id(checkString(token, 'token'))
  }

  /**
   * Characters that a vocabulary without an unknown token lacks are dropped, as in Hugging Face's library; lone
   * surrogates are U+FFFD.
   *
   * Throws HOGWILD_TIMEOUT, HOGWILD_ABORTED, HOGWILD_CLOSED, HOGWILD_OUT_OF_MEMORY.
   */
  async encode(text: string, options: EncodeOptions & ThreadOptions = {}): Promise<number[]> {
    checkString(text, 'text')
    checkOptions(options, 'options', [...ENCODE_KEYS, ...THREAD_KEYS])
    const request = { type: 'encode', ...checkEncodeOptions(options) } as const
    const ids = await this.#thread.ids(text, request, checkThreadOptions(options))
    return this.#alive(ids)
  }

  /** `encode` on this thread, for short text of a trusted tokenizer: it takes as long as it takes. */
  encodeSync(text: string, options: EncodeOptions = {}): number[] {
    checkString(text, 'text')
    checkOptions(options, 'options', ENCODE_KEYS)
    const { addSpecialTokens, plainText } = checkEncodeOptions(options)
    return this.#loadEngine().encode(text, addSpecialTokens, plainText)
  }

  /**
   * The text of a conversation, by the model's template. It holds the special tokens already, so encode it with
   * `addSpecialTokens: false`. Where messages come from strangers use `encodeChat`: it tells the template's
   * special tokens from those that are written in a message.
   *
   * Throws HOGWILD_UNSUPPORTED without a template, HOGWILD_INVALID_ARGUMENT where the template refuses the
   * messages, and as `encode`.
   */
  async chat(
    messages: readonly ChatMessage[],
    options: ChatOptions & ThreadOptions = {},
  ): Promise<string> {
    const chat = chatRequest(messages, options, [...CHAT_KEYS, ...THREAD_KEYS])
    const text = await this.#thread.text({ type: 'chat', ...chat }, checkThreadOptions(options))
    return this.#alive(text)
  }

  /** `chat` on this thread, for short messages and a trusted template. */
  chatSync(messages: readonly ChatMessage[], options: ChatOptions = {}): string {
    const { request, answerPrefix } = chatRequest(messages, options, CHAT_KEYS)
    return this.#loadEngine().chat(request, answerPrefix)
  }

  /**
   * The ids of a conversation: those of the text that `chat` gives, but special tokens that are written in the
   * messages, tools, documents and variables are plain text. Throws as `chat`.
   */
  async encodeChat(
    messages: readonly ChatMessage[],
    options: ChatOptions & ThreadOptions = {},
  ): Promise<number[]> {
    const chat = chatRequest(messages, options, [...CHAT_KEYS, ...THREAD_KEYS])
    const request = { type: 'encodeChat', ...chat } as const
    const ids = await this.#thread.ids('', request, checkThreadOptions(options))
    return this.#alive(ids)
  }

  /** Ids without a token give no text; bytes that are no UTF-8 give U+FFFD. */
  decode(ids: ArrayLike<number>, options: DecodeOptions = {}): string {
    checkOptions(options, 'options', DECODE_KEYS)
    const { skipSpecialTokens = false, cleanUp: cleansUp = false } = options
    checkBoolean(skipSpecialTokens, 'options.skipSpecialTokens')
    checkBoolean(cleansUp, 'options.cleanUp')
    const stream = new TextStream(this.#decoding, skipSpecialTokens)
    const list = checkIds(ids)
    let text = ''
    for (let i = 0; i < list.length; i++) text += stream.push(list[i] as number)
    text += stream.end()
    return cleansUp ? cleanUp(text) : text
  }

  /** A decoder of one token after the other. */
  stream(options: StreamOptions = {}): TextStream {
    checkOptions(options, 'options', STREAM_KEYS)
    const skip = checkBoolean(options.skipSpecialTokens ?? true, 'options.skipSpecialTokens')
    return new TextStream(this.#decoding, skip)
  }

  /**
   * @internal What each id adds to a text that it does not begin; nothing: it is special or has no token. undefined
   * where that depends on neighbours.
   */
  tokenBytes(): Uint8Array[] | undefined {
    const { tokens, decoder } = this.#decoding
    const { bytes } = decoder
    if (bytes === undefined) return undefined
    return Array.from({ length: tokens.size }, (_, id) =>
      tokens.has(id) && !tokens.isSpecial(id) ? bytes(tokens.text(id)) : new Uint8Array(0),
    )
  }

  /** Ends the thread. Only `decode`, `stream` and `tokenId` work on; calls under way throw HOGWILD_CLOSED. Idempotent. */
  async close(): Promise<void> {
    this.#closed = true
    this.#engine = undefined
    abandoned.unregister(this)
    await this.#thread.close()
  }

  /** As `close`. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  /** Keeps the tokenizer, and so its thread, from being collected before an answer is there. */
  #alive<T>(answer: T): T {
    return answer
  }

  #loadEngine(): TextEngine {
    if (this.#closed) throw new HogwildError('the tokenizer is closed', 'HOGWILD_CLOSED')
    this.#engine ??= new TextEngine(this.#source)
    return this.#engine
  }
}

function checkEncodeOptions(options: EncodeOptions) {
  const addSpecialTokens = checkBoolean(
    options.addSpecialTokens ?? true,
    'options.addSpecialTokens',
  )
  const specialTokens = options.specialTokens ?? 'parse'
  const plainText = checkOneOf(specialTokens, 'options.specialTokens', ['parse', 'text']) === 'text'
  return { addSpecialTokens, plainText }
}

function checkThreadOptions(options: ThreadOptions): RequestOptions {
  const timeoutMs = options.timeoutMs ?? DEFAULT_TIMEOUT_MS
  checkInteger(timeoutMs, 'options.timeoutMs', 1, 2 ** 31 - 1)
  const signal = checkSignal(options.signal, 'options.signal')
  throwIfAborted(signal)
  return { timeoutMs, signal }
}

/** Messages and what goes with them are checked where they are rendered. */
function chatRequest<T extends ChatOptions>(
  messages: readonly ChatMessage[],
  options: T,
  keys: readonly (keyof T & string)[],
): { request: ChatRequest; answerPrefix: string } {
  checkOptions(options, 'options', keys)
  const { addGenerationPrompt, tools, documents, template, variables } = options
  return {
    request: { messages, addGenerationPrompt, tools, documents, template, variables },
    answerPrefix: checkString(options.answerPrefix ?? '', 'options.answerPrefix'),
  }
}

function checkIds(ids: ArrayLike<number>): ArrayLike<number> {
  if (Array.isArray(ids) || (ArrayBuffer.isView(ids) && 'length' in ids)) return ids
  throw invalid('ids', 'an array or a typed array of token ids', ids)
}

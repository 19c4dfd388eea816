// The tokenizer and the chat templates of a GGUF file. Its arrays are only copied here: a thread makes texts of them.

import type { ChatSources } from '../chat/sources'
import { HogwildError } from '../errors'
import {
  beginsTexts,
  GGUF_TOKENIZER_MODELS,
  type GgufTokenizerModel,
  type GgufVocabulary,
  PRE_TOKENIZER_NAMES,
  type PreTokenizerName,
} from '../tokenizer/gguf'
import type { EngineSource, TokenizerSource } from '../tokenizer/text-engine'
import { describe } from '../validate'
import { unsupported } from './fields'
import { damaged, MAX_BYTES } from './files'
import {
  type Gguf,
  type LocatedValue,
  readGgufBytes,
  readGgufNumbers,
  readGgufText,
  textsIn,
} from './gguf'

interface Options {
  signal?: AbortSignal | undefined
}

const PREFIX = 'tokenizer.ggml.'
const TEMPLATE = 'tokenizer.chat_template'
const HUGGING_FACE = 'tokenizer.huggingface.json'

/** Most chat templates. */
const MAX_TEMPLATES = 64

/** Names of special tokens in chat templates, by their keys. */
const NAMED_TOKENS = {
  bos_token: 'bos_token_id',
  eos_token: 'eos_token_id',
  unk_token: 'unknown_token_id',
  // A misspelling that the format has kept.
  sep_token: 'seperator_token_id',
  pad_token: 'padding_token_id',
  mask_token: 'mask_token_id',
} as const

/** Ids of tokens that end a text or a turn. Throws HOGWILD_INVALID_MODEL. */
export function ggufEosTokenIds(gguf: Gguf): number[] {
  const metadata = new Metadata(gguf)
  const ids = ['eos', 'eot', 'eom'].map((name) => metadata.id(`${name}_token_id`))
  return [...new Set(ids.filter((id) => id !== undefined))]
}

/**
 * Throws HOGWILD_INVALID_MODEL, HOGWILD_UNSUPPORTED for a kind of tokenizer that is not known, naming those that are,
 * HOGWILD_ABORTED.
 */
export async function readGgufTokenizer(
  gguf: Gguf,
  options: Options = {},
): Promise<TokenizerSource> {
  const metadata = new Metadata(gguf)
  const tokens = await shared(metadata.array('tokens', 'strings'), options)
  const vocabulary = await readVocabulary(gguf, metadata, tokens, options)
  const chat: ChatSources = {
    templates: await readTemplates(gguf, options),
    specialTokens: namedTokens(metadata, tokens),
    origin: gguf.path,
  }
  return {
    engine: { vocabulary, path: gguf.path, chat, declaredTokens: [] },
    eosTokenIds: ggufEosTokenIds(gguf),
  }
}

async function readVocabulary(
  gguf: Gguf,
  metadata: Metadata,
  tokens: SharedArrayBuffer,
  options: Options,
): Promise<EngineSource['vocabulary']> {
  const original = gguf.metadata.get(HUGGING_FACE)
  if (original !== undefined) {
    if (!isText(original)) throw metadata.wrong(HUGGING_FACE, 'a text', original)
    const json = await readGgufText(original, MAX_BYTES.tokenizer, options)
    return { json: copyShared(Buffer.from(json)) }
  }
  const model = tokenizerModel(metadata)
  const pre = model === 'gpt2' ? preTokenizer(metadata) : undefined
  const count = metadata.array('tokens', 'strings').count
  const perToken = async (key: string) => {
    const value = metadata.optionalArray(key, 'numbers')
    if (value === undefined) return undefined
    if (value.count === count) return await readGgufNumbers(value, options)
    throw damaged(
      gguf.path,
      `has ${count} tokens, and ${value.count} elements in ${describe(PREFIX + key)}`,
    )
  }
  const merges = model === 'gpt2' ? metadata.array('merges', 'strings') : undefined
  const [scores, types] = [await perToken('scores'), await perToken('token_type')]
  const ends = (flag: string, id: string, otherwise: boolean): number[] => {
    if (!metadata.flag(flag, otherwise)) return []
    const token = metadata.id(id)
    if (token === undefined)
      throw damaged(gguf.path, `has no ${describe(PREFIX + id)}, which texts need`)
    return [token]
  }
  return {
    model,
    pre,
    tokens,
    merges: merges === undefined ? undefined : await shared(merges, options),
    scores: scores === undefined ? undefined : Float32Array.from(scores),
    types: types === undefined ? undefined : Uint8Array.from(types),
    before: ends('add_bos_token', 'bos_token_id', beginsTexts(model, pre)),
    behind: ends('add_eos_token', 'eos_token_id', false),
    unknownId: metadata.id('unknown_token_id'),
    spacePrefix: metadata.flag('add_space_prefix', model === 'llama'),
  } satisfies GgufVocabulary
}

function tokenizerModel(metadata: Metadata): GgufTokenizerModel {
  const model = metadata.get('model')
  const known = GGUF_TOKENIZER_MODELS.find((name) => name === model)
  if (known !== undefined) return known
  throw unsupported(
    `${describe(`${PREFIX}model`)} = ${describe(model)} of ${metadata.path}`,
    GGUF_TOKENIZER_MODELS.join(', '),
  )
}

function preTokenizer(metadata: Metadata): PreTokenizerName {
  const pre = metadata.get('pre')
  const known = PRE_TOKENIZER_NAMES.find((name) => name === pre)
  if (known !== undefined) return known
  throw unsupported(
    `${describe(`${PREFIX}pre`)} = ${describe(pre)} of ${metadata.path}`,
    PRE_TOKENIZER_NAMES.join(', '),
  )
}

function namedTokens(metadata: Metadata, tokens: SharedArrayBuffer): Record<string, string> {
  const wanted = new Map<number, string[]>()
  for (const [name, key] of Object.entries(NAMED_TOKENS)) {
    const id = metadata.id(key)
    if (id !== undefined) wanted.set(id, [...(wanted.get(id) ?? []), name])
  }
  const named: Record<string, string> = {}
  const bytes = Buffer.from(tokens)
  const last = Math.max(-1, ...wanted.keys())
  for (let id = 0, at = 0; id <= last && at < bytes.length; id++) {
    const end = at + 8 + Number(bytes.readBigUInt64LE(at))
    const [text] = wanted.has(id) ? textsIn(bytes.subarray(at, end), metadata.path) : []
    for (const name of wanted.get(id) ?? []) named[name] = text as string
    at = end
  }
  return named
}

async function readTemplates(gguf: Gguf, options: Options): Promise<Map<string, string>> {
  const templates = new Map<string, string>()
  for (const [key, value] of gguf.metadata) {
    const isNamed = key.startsWith(`${TEMPLATE}.`)
    if (key !== TEMPLATE && !isNamed) continue
    if (!isText(value)) throw damaged(gguf.path, `has a ${describe(key)} that is no text`)
    if (templates.size === MAX_TEMPLATES) {
      throw damaged(gguf.path, `has more than ${MAX_TEMPLATES} chat templates`)
    }
    const name = isNamed ? key.slice(TEMPLATE.length + 1) : 'default'
    templates.set(name, await readGgufText(value, MAX_BYTES.config, options))
  }
  return templates
}

function isText(value: unknown): value is LocatedValue | string {
  return typeof value === 'string' || (value as LocatedValue).type === 'string'
}

async function shared(value: LocatedValue, options: Options): Promise<SharedArrayBuffer> {
  return copyShared(await readGgufBytes(value, options))
}

function copyShared(bytes: Buffer): SharedArrayBuffer {
  const copy = new SharedArrayBuffer(bytes.length)
  new Uint8Array(copy).set(bytes)
  return copy
}

/** Values whose keys begin with `tokenizer.ggml.`. */
class Metadata {
  readonly #gguf: Gguf

  constructor(gguf: Gguf) {
    this.#gguf = gguf
  }

  get path(): string {
    return this.#gguf.path
  }

  get(key: string): unknown {
    return this.#gguf.metadata.get(PREFIX + key)
  }

  wrong(key: string, expected: string, value: unknown): HogwildError {
    return new HogwildError(
      `expected ${describe(key)} of ${this.path} to be ${expected}, received ${describe(value)}`,
      'HOGWILD_INVALID_MODEL',
    )
  }

  array(key: string, type: LocatedValue['type']): LocatedValue {
    const value = this.optionalArray(key, type)
    if (value === undefined) throw damaged(this.path, `has no ${describe(PREFIX + key)}`)
    return value
  }

  optionalArray(key: string, type: LocatedValue['type']): LocatedValue | undefined {
    const value = this.get(key)
    if (value === undefined || (value as LocatedValue).type === type) return value as LocatedValue
    throw this.wrong(
      PREFIX + key,
      type === 'strings' ? 'a list of texts' : 'a list of numbers',
      value,
    )
  }

  flag(key: string, otherwise: boolean): boolean {
    const value = this.get(key) ?? otherwise
    if (typeof value === 'boolean') return value
    throw this.wrong(PREFIX + key, 'true or false', value)
  }

  /** An id of the vocabulary. Files write what they do not have as 2^32 - 1 or -1. */
  id(key: string): number | undefined {
    const value = this.get(key)
    if (value === undefined || value === -1 || value === 2 ** 32 - 1) return undefined
    const { count } = this.array('tokens', 'strings')
    if (typeof value === 'number' && Number.isInteger(value) && value >= 0 && value < count)
      return value
    throw this.wrong(PREFIX + key, `a token below ${count}`, value)
  }
}

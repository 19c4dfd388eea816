// Tokenizers and chat templates of a Hugging Face folder, through @huggingface/tokenizers and
// @huggingface/jinja. These are loaded when they are first needed: whoever brings token ids does not pay for them.

import { join } from 'node:path'
import type { Template } from '@huggingface/jinja'
import { HogwildError } from '../errors'
import { readEosTokenIds } from '../sources/eos'
import { checkFolder, MAX_BYTES, optional, readJson, readText } from '../sources/files'
import { checkArray, checkObject, checkString } from '../validate'
import { TextStream } from './text-stream'

// Written down here because the package's types do not resolve under "module": "node20" (relative
// imports without file extensions).
interface HuggingFaceTokenizer {
  encode(text: string, options: { add_special_tokens: boolean }): { ids: number[] }
  decode(
    ids: number[],
    options: { skip_special_tokens: boolean; clean_up_tokenization_spaces: boolean },
  ): string
  token_to_id(token: string): number | undefined
  id_to_token(id: number): string | undefined
}

export interface ChatMessage {
  /** As the template knows them: 'system', 'user', 'assistant', … */
  role: string
  content: string
}

export interface ChatOptions {
  /** Ends the text with the opening of an assistant's message; default true. */
  addGenerationPrompt?: boolean | undefined
  /** Further variables that the template knows, e.g. { enable_thinking: false }. */
  variables?: Record<string, unknown> | undefined
}

/**
 * Reads tokenizer.json and, where they are there, tokenizer_config.json, chat_template.jinja,
 * generation_config.json and config.json of a folder.
 *
 * Throws HOGWILD_INVALID_MODEL, naming the file.
 */
export async function loadTokenizer(folder: string): Promise<Tokenizer> {
  checkFolder(folder, 'folder')
  const tokenizerJson = await readObject(folder, 'tokenizer.json')
  const config = await readObject(folder, 'tokenizer_config.json', { optional: true })
  let tokenizer: HuggingFaceTokenizer
  try {
    const huggingFace =
      require('@huggingface/tokenizers') as typeof import('@huggingface/tokenizers')
    tokenizer = new huggingFace.Tokenizer(tokenizerJson, config)
  } catch (cause) {
    const message = `${join(folder, 'tokenizer.json')}: ${(cause as Error).message}`
    throw new HogwildError(message, 'HOGWILD_INVALID_MODEL', { cause })
  }
  const template = await readChatTemplate(folder, config)
  return new Tokenizer(tokenizer, config, template, await readEosTokenIds(folder))
}

async function readObject(
  folder: string,
  file: string,
  options: { optional?: boolean } = {},
): Promise<Record<string, unknown>> {
  const path = join(folder, file)
  const limits = { maxBytes: MAX_BYTES.tokenizer }
  const json = options.optional
    ? ((await optional(readJson, path)) ?? {})
    : await readJson(path, limits)
  return checkObject(json, path, 'HOGWILD_INVALID_MODEL')
}

// A file of its own comes first; in tokenizer_config.json it is a string or a list of named ones.
async function readChatTemplate(
  folder: string,
  config: Record<string, unknown>,
): Promise<Template | undefined> {
  let source: unknown = await optional(readText, join(folder, 'chat_template.jinja'))
  source ??= config.chat_template
  if (Array.isArray(source)) source = source.find(({ name }) => name === 'default')?.template
  if (source === undefined || source === null) return undefined
  try {
    const { Template } = require('@huggingface/jinja') as typeof import('@huggingface/jinja')
    return new Template(checkString(source, 'chat_template', 'HOGWILD_INVALID_MODEL'))
  } catch (cause) {
    const message = `the chat template of ${folder}: ${(cause as Error).message}`
    throw new HogwildError(message, 'HOGWILD_INVALID_MODEL', { cause })
  }
}

/** Text to token ids and back. Made by `loadTokenizer`. */
export class Tokenizer {
  /** Tokens that end a text, from generation_config.json or else config.json; may be empty. */
  readonly eosTokenIds: readonly number[]
  readonly #tokenizer: HuggingFaceTokenizer
  readonly #config: Record<string, unknown>
  readonly #template: Template | undefined

  /** @internal */
  constructor(
    tokenizer: HuggingFaceTokenizer,
    config: Record<string, unknown>,
    template: Template | undefined,
    eosTokenIds: readonly number[],
  ) {
    this.#tokenizer = tokenizer
    this.#config = config
    this.#template = template
    this.eosTokenIds = eosTokenIds
  }

  /**
   * addSpecialTokens (default true): what the model puts around a text, e.g. a token for its beginning.
   * Characters that a vocabulary without an unknown token lacks are dropped, as in Hugging Face's library.
   */
  encode(text: string, options: { addSpecialTokens?: boolean | undefined } = {}): number[] {
    checkString(text, 'text')
    const add_special_tokens = options.addSpecialTokens ?? true
    return this.#tokenizer.encode(text, { add_special_tokens }).ids
  }

  /** skipSpecialTokens (default false) leaves them out of the text. Ids without a token give no text. */
  decode(
    ids: ArrayLike<number>,
    options: { skipSpecialTokens?: boolean | undefined } = {},
  ): string {
    const known = Array.from(ids).filter((id) => this.#tokenizer.id_to_token(id) !== undefined)
    if (known.length === 0) return ''
    return this.#tokenizer.decode(known, {
      skip_special_tokens: options.skipSpecialTokens ?? false,
      clean_up_tokenization_spaces: this.#config.clean_up_tokenization_spaces === true,
    })
  }

  /** @internal */
  static is(value: unknown): value is Tokenizer {
    return typeof value === 'object' && value !== null && #tokenizer in value
  }

  /** The id of one token of the vocabulary, or undefined. */
  tokenId(token: string): number | undefined {
    return this.#tokenizer.token_to_id(token)
  }

  /** A decoder of one token after the other. */
  stream(): TextStream {
    return new TextStream(this)
  }

  get hasChatTemplate(): boolean {
    return this.#template !== undefined
  }

  /**
   * The text of a conversation, by the model's template. Encode it with addSpecialTokens: false, as it
   * holds them already. Throws HOGWILD_UNSUPPORTED without a template, HOGWILD_INVALID_ARGUMENT where the
   * template refuses the messages.
   */
  chat(messages: readonly ChatMessage[], options: ChatOptions = {}): string {
    checkArray(messages, 'messages')
    if (this.#template === undefined) {
      throw new HogwildError('this model has no chat template', 'HOGWILD_UNSUPPORTED')
    }
    const specialTokens = Object.entries(this.#config).flatMap(([name, token]) => {
      const content = typeof token === 'string' ? token : (token as { content?: unknown })?.content
      return /^\w+_token$/.test(name) && typeof content === 'string' ? [[name, content]] : []
    })
    try {
      return this.#template.render({
        ...Object.fromEntries(specialTokens),
        ...options.variables,
        messages,
        add_generation_prompt: options.addGenerationPrompt ?? true,
      })
    } catch (cause) {
      const message = `the chat template refuses: ${(cause as Error).message}`
      throw new HogwildError(message, 'HOGWILD_INVALID_ARGUMENT', { cause })
    }
  }
}

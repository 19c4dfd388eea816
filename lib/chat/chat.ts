// Conversations to text, by a model's chat templates. Pure and synchronous: run it where it may take its time.

import { Template } from '@huggingface/jinja'
import { HogwildError } from '../errors'
import type { ChatSources } from './sources'

/** What one rendering takes. Everything is checked by `render`; nothing needs to be checked before. */
export interface ChatRequest {
  messages: unknown
  tools?: unknown
  documents?: unknown
  /** The name of a template. Default: 'tool_use' if there are tools and such a template, else 'default'. */
  template?: unknown
  /** Default true. */
  addGenerationPrompt?: unknown
  /** Further variables of the template. They may replace special tokens, e.g. { bos_token: '' }. */
  variables?: unknown
  /** What strftime_now tells; default: the present, in local time. */
  now?: Date
}

/**
 * A piece of the rendered text. `content` is true for what the caller supplied (messages, tools, documents,
 * variables) and false for what the template and its special tokens wrote. Joined, the pieces are the text.
 *
 * They are no units of tokenization: a token may reach from one into the next. A special token's literal counts
 * as that token only if it lies in pieces with `content: false` from its first to its last character.
 */
export interface ChatSegment {
  text: string
  content: boolean
}

/** The compiled templates of a model. */
export class Chat {
  readonly #sources: ChatSources
  readonly #templates = new Map<string, Template>()

  /** Throws HOGWILD_INVALID_MODEL for a template that is no Jinja. */
  constructor(sources: ChatSources) {
    this.#sources = sources
    for (const [name, source] of sources.templates) {
      this.#templates.set(name, new Template(source))
    }
  }

  /** Throws HOGWILD_INVALID_ARGUMENT, HOGWILD_UNSUPPORTED without a template. */
  render(request: ChatRequest): ChatSegment[] {
    const template = this.#templates.get('default')
    if (template === undefined) {
      throw new HogwildError('this model has no chat template', 'HOGWILD_UNSUPPORTED')
    }
    const text = template.render({
      ...this.#sources.specialTokens,
      ...(request.variables as object),
      messages: request.messages,
      add_generation_prompt: request.addGenerationPrompt ?? true,
    })
    return [{ text, content: false }]
  }
}

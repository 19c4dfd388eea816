// Conversations to text, by a model's chat templates. Pure and synchronous: run it where it may take its time.

import { HogwildError, type HogwildErrorCode } from '../errors'
import { checkArray, checkBoolean, checkObject, checkString, invalid } from '../validate'
import { JinjaTemplate, toValue } from './jinja/template'
import { TemplateError } from './jinja/text'
import type { Value } from './jinja/values'
import type { ChatSources } from './sources'

/** What one rendering takes. Everything is checked by `render`; nothing needs to be checked before. */
export interface ChatRequest {
  messages: unknown
  /** JSON schemas of functions, for templates that know tools. */
  tools?: unknown
  /** Objects with a title and a text, for templates that know them. */
  documents?: unknown
  /** The name of a template. Default: 'tool_use' if there are tools and such a template, else 'default'. */
  template?: unknown
  /** Ends the text with the opening of an assistant's message; default true. */
  addGenerationPrompt?: unknown
  /**
   * Further variables of the template. They may replace special tokens, e.g. { bos_token: '' }; tools and
   * documents may be among them.
   */
  variables?: unknown
  /** What strftime_now tells; default: the present, in local time. */
  now?: Date | undefined
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
  readonly #templates = new Map<string, JinjaTemplate>()
  readonly #specialTokens: Readonly<Record<string, string>>

  /** Throws HOGWILD_INVALID_MODEL for a template that is no Jinja or needs what is not supported. */
  constructor(sources: ChatSources) {
    this.#specialTokens = sources.specialTokens
    for (const [name, source] of sources.templates) {
      const which = name === 'default' ? 'the chat template' : `the chat template '${name}'`
      this.#templates.set(
        name,
        withCode(
          'HOGWILD_INVALID_MODEL',
          `${which} of ${sources.origin}`,
          () => new JinjaTemplate(source),
        ),
      )
    }
  }

  get templateNames(): string[] {
    return [...this.#templates.keys()]
  }

  /**
   * Renders as transformers' apply_chat_template does. Throws HOGWILD_UNSUPPORTED without a template,
   * HOGWILD_INVALID_ARGUMENT for messages that are none and where the template refuses them.
   */
  render(request: ChatRequest): ChatSegment[] {
    const variables = checkVariables(request)
    const tools = checkObjects(request.tools ?? variables.get('tools'), 'tools')
    const documents = checkObjects(request.documents ?? variables.get('documents'), 'documents')
    const messages = checkMessages(request.messages)
    const template = this.#choose(request.template, tools !== undefined)
    const addGenerationPrompt = checkBoolean(
      request.addGenerationPrompt ?? true,
      'addGenerationPrompt',
    )
    return withCode('HOGWILD_INVALID_ARGUMENT', 'the chat template refuses', () => {
      const values = new Map<string, Value>()
      for (const [name, token] of Object.entries(this.#specialTokens)) {
        values.set(name, toValue(token, false, name))
      }
      for (const [name, value] of variables) {
        // In place of a special token stands a special token.
        values.set(name, toValue(value, !(name in this.#specialTokens), `variables.${name}`))
      }
      values.set('messages', toValue(messages, true, 'messages'))
      values.set('tools', toValue(tools ?? null, true, 'tools'))
      values.set('documents', toValue(documents ?? null, true, 'documents'))
      values.set('add_generation_prompt', addGenerationPrompt)
      return template.render(values, () => request.now ?? new Date()).runs()
    })
  }

  #choose(name: unknown, hasTools: boolean): JinjaTemplate {
    if (this.#templates.size === 0) {
      throw new HogwildError('this model has no chat template', 'HOGWILD_UNSUPPORTED')
    }
    const automatic = hasTools && this.#templates.has('tool_use') ? 'tool_use' : 'default'
    const chosen = name === undefined ? automatic : checkString(name, 'template')
    const template = this.#templates.get(chosen)
    if (template !== undefined) return template
    const names = this.templateNames.map((one) => `'${one}'`).join(', ')
    throw invalid('template', `one of ${names}`, chosen)
  }
}

// Names that the rendering gives itself.
const RESERVED = ['messages', 'add_generation_prompt']

function checkVariables(request: ChatRequest): Map<string, unknown> {
  const variables = new Map(Object.entries(checkObject(request.variables ?? {}, 'variables')))
  for (const name of RESERVED) {
    if (variables.has(name)) throw invalid('variables', `without '${name}'`, variables.get(name))
  }
  for (const name of ['tools', 'documents'] as const) {
    if (request[name] !== undefined && variables.get(name) !== undefined) {
      throw invalid(`variables.${name}`, `left out, as ${name} is given`, variables.get(name))
    }
  }
  for (const [name, value] of variables) if (value === undefined) variables.delete(name)
  return variables
}

function checkObjects(list: unknown, name: string): unknown[] | undefined {
  if (list === undefined || list === null) return undefined
  return checkArray(list, name).map((one, i) => checkObject(one, `${name}[${i}]`))
}

function checkMessages(messages: unknown): unknown[] {
  const list = checkArray(messages, 'messages')
  if (list.length === 0) throw invalid('messages', 'at least one message', messages)
  list.forEach((message, i) => {
    checkMessage(checkObject(message, `messages[${i}]`), `messages[${i}]`)
  })
  return [...list]
}

// Content is text or a list of parts. A message that carries something else, such as tool calls, needs none.
function checkMessage(message: Record<string, unknown>, name: string): void {
  checkString(message.role, `${name}.role`)
  const { content } = message
  if (typeof content === 'string') return
  if (Array.isArray(content)) {
    content.forEach((part, i) => {
      checkObject(part, `${name}.content[${i}]`)
    })
    return
  }
  const carries = Object.entries(message).some(
    ([key, value]) =>
      !['role', 'content', 'name'].includes(key) && value !== undefined && value !== null,
  )
  if ((content === undefined || content === null) && carries) return
  throw invalid(`${name}.content`, 'a string or an array of parts', content)
}

function withCode<T>(code: HogwildErrorCode, what: string, run: () => T): T {
  try {
    return run()
  } catch (cause) {
    if (!(cause instanceof TemplateError)) throw cause
    throw new HogwildError(`${what}: ${cause.message}`, code, { cause })
  }
}

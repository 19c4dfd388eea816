// Prompts and parts of views as tokens, and words that callers replace.

import type { ChatMessage, ChatOptions, Tokenizer } from '../tokenizer/tokenizer'
import { checkOptions, checkString, invalid, optionKeys } from '../validate'

/** What a caller may say about the chat template. */
export type TemplateOptions = Pick<ChatOptions, 'template' | 'variables'>

const TEMPLATE_KEYS = optionKeys<TemplateOptions>()({ template: true, variables: true })

export interface PromptText {
  /** What the model is told before the problem; '' for nothing. */
  rules: string
  /** Between rules and problem where both are one message. */
  between: string
  problem: string
  /** Whether the rules are a message of their own. */
  rulesAs: 'system' | 'user'
  /** What the assistant's answer begins with; '' for nothing. */
  answerPrefix: string
}

/**
 * A prompt through the model's chat template or, where it has none, as one text. Special tokens that are written
 * out in the problem are text.
 */
export async function encodePrompt(
  tokenizer: Tokenizer,
  prompt: PromptText,
  chat: TemplateOptions,
  signal: AbortSignal | undefined,
): Promise<number[]> {
  const { rules, between, problem, rulesAs, answerPrefix } = prompt
  const whole = rules === '' ? problem : rules + between + problem
  if (!tokenizer.hasChatTemplate) {
    const text = `${whole}\n\n${answerPrefix}`
    return await tokenizer.encode(text, { specialTokens: 'text', signal })
  }
  const messages: ChatMessage[] =
    rulesAs === 'user' || rules === ''
      ? [{ role: 'user', content: whole }]
      : [
          { role: 'system', content: rules },
          { role: 'user', content: problem },
        ]
  return await tokenizer.encodeChat(messages, { ...chat, answerPrefix, signal })
}

/** The ids of a text of the program's own that is computed without what stands before it; special tokens are parsed. */
export function encodePart(tokenizer: Tokenizer, text: string): number[] {
  return tokenizer.encodeSync(text, { addSpecialTokens: false })
}

/** Whether special tokens are written out in a text. */
export function holdsSpecialTokens(tokenizer: Tokenizer, text: string): boolean {
  const [parsed, plain] = (['parse', 'text'] as const).map((specialTokens) =>
    tokenizer.encodeSync(text, { addSpecialTokens: false, specialTokens }).join(),
  )
  return parsed !== plain
}

/** Throws HOGWILD_INVALID_ARGUMENT. */
export function checkTemplateOptions(value: TemplateOptions = {}): TemplateOptions {
  return checkOptions(value, 'options.chat', TEMPLATE_KEYS)
}

/** `words` with `changes`, each of the type that it replaces. Throws HOGWILD_INVALID_ARGUMENT. */
export function checkWords<T extends object>(
  words: Readonly<T>,
  changes: Partial<T> | undefined,
): T {
  const keys = Object.keys(words) as (keyof T & string)[]
  const checked = checkOptions<Partial<T>>(changes ?? {}, 'options.texts', keys)
  for (const key of keys) {
    const type = typeof words[key]
    const change = checked[key]
    if (change === undefined || (typeof change === type && change !== null)) continue
    throw invalid(`options.texts.${key}`, type === 'object' ? 'an object' : `a ${type}`, change)
  }
  return { ...words, ...checked }
}

/** What a function among the words gave. Throws HOGWILD_INVALID_ARGUMENT. */
export function worded(text: unknown, name: string): string {
  return checkString(text, `the result of options.texts.${name}`)
}

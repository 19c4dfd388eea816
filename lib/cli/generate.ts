// `hogwild generate`: one worker goes on with a prompt.

import {
  type CacheDtype,
  type ChatMessage,
  type DeviceName,
  generate as generateText,
  type Tokenizer,
} from '../index'
import { printable } from '../printable'
import { findWithProgress, loadTokenizerOf, loadWithProgress, type ModelOptions } from './model'
import { type ShowProgress, withProgress } from './progress'
import { readPrompt } from './read-prompt'
import { type SamplingOptions, samplerOptions } from './sampling'
import { print, printJson, write } from './terminal'

export interface GenerateOptions extends ModelOptions, SamplingOptions {
  model: string
  device: DeviceName
  system?: string
  raw?: boolean
  maxTokens: number
  stop?: string[]
  cacheDtype?: CacheDtype
}

export async function generate(prompt: readonly string[], options: GenerateOptions): Promise<void> {
  const { device, maxTokens, cacheDtype, stop, json, quiet } = options
  const text = await readPrompt(prompt)
  const path = await findWithProgress(options.model, options)
  await using tokenizer = await loadTokenizerOf(path, options)
  const given = promptOf(tokenizer, text, options)
  await using model = await loadWithProgress(path, device, options)
  let showPrefill: ShowProgress = () => {}
  await using answer = generateText({
    model,
    tokenizer,
    ...given,
    sampler: samplerOptions(options, 0),
    maxTokens,
    stop,
    cacheDtype,
    onPrefill: (progress) => showPrefill(progress.tokens, progress.totalTokens),
  })
  const tokens = answer[Symbol.asyncIterator]()
  let next = await withProgress('reading the prompt', 'tokens', quiet || json, (show) => {
    showPrefill = show
    return tokens.next()
  })
  for (; !next.done; next = await tokens.next()) {
    if (json) printJson({ type: 'token', ...next.value })
    else write(printable(next.value.text))
  }
  if (json) printJson({ type: 'result', ...(await answer.result) })
  else print('')
}

function promptOf(
  tokenizer: Tokenizer,
  text: string,
  { raw, system }: GenerateOptions,
): { prompt: string } | { messages: ChatMessage[] } {
  if (!raw && tokenizer.hasChatTemplate) {
    const messages: ChatMessage[] = [{ role: 'user', content: text }]
    if (system !== undefined) messages.unshift({ role: 'system', content: system })
    return { messages }
  }
  return { prompt: system === undefined ? text : `${system}\n\n${text}` }
}

// `hogwild generate`: one worker goes on with a prompt.

import {
  type ChatMessage,
  type DeviceName,
  loadTokenizer,
  runWorkers,
  type Tokenizer,
} from '../index'
import { printable } from '../printable'
import { findWithProgress, loadWithProgress, type ModelOptions } from './model'
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
  capacity?: number
}

const NAME = 'answer'

export async function generate(prompt: string, options: GenerateOptions): Promise<void> {
  const { device, maxTokens, capacity, stop, json, quiet } = options
  const text = await readPrompt(prompt)
  const path = await findWithProgress(options.model, options)
  await using tokenizer = await loadTokenizer(path)
  const tokens = await encodePrompt(tokenizer, text, options)
  await using model = await loadWithProgress(path, device, options)
  let showPrefill: ShowProgress = () => {}
  await using session = runWorkers({
    model,
    tokenizer,
    layout: 'contiguous',
    // What is generated follows the worker's own first token.
    prompt: tokens.slice(0, -1),
    workers: [{ name: NAME, prompt: tokens.slice(-1), sampler: samplerOptions(options, 0) }],
    maxTokens,
    capacity,
    stop,
    onPrefill: (progress) => showPrefill(progress.tokens, progress.totalTokens),
  })
  const events = session[Symbol.asyncIterator]()
  let next = await withProgress('reading the prompt', 'tokens', quiet || json, (show) => {
    showPrefill = show
    return events.next()
  })
  for (; !next.done; next = await events.next()) {
    const event = next.value
    if (json) printJson(event)
    else if (event.type === 'token' && !event.forced) write(printable(event.text))
    else if (event.type === 'stop') {
      print(printable(event.text ?? ''))
      if (event.reason === 'out-of-pages') {
        process.stderr.write('hogwild: the cache is full, --capacity makes it larger\n')
      }
    }
  }
}

async function encodePrompt(
  tokenizer: Tokenizer,
  text: string,
  { raw, system }: GenerateOptions,
): Promise<number[]> {
  if (!raw && tokenizer.hasChatTemplate) {
    const messages: ChatMessage[] = [{ role: 'user', content: text }]
    if (system !== undefined) messages.unshift({ role: 'system', content: system })
    return await tokenizer.encodeChat(messages)
  }
  return await tokenizer.encode(system === undefined ? text : `${system}\n\n${text}`)
}

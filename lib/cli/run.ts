// `hogwild run`: workers solve a problem together on a model of the user's.

import {
  type DeviceName,
  type LayoutName,
  loadTokenizer,
  runWorkers,
  type Tokenizer,
} from '../index'
import { findWithProgress, loadWithProgress, type ModelOptions } from './model'
import { type ShowProgress, withProgress } from './progress'
import { readPrompt } from './read-prompt'
import { LinePrinter } from './run/line-printer'
import {
  collaborationPrompt,
  OTHERS_HEADING,
  OWN_HEADING,
  RECORD_HEADING,
  turnOpening,
  WORKER_NAMES,
} from './run/prompt'
import { type SamplingOptions, samplerOptions } from './sampling'
import { colors, print, printJson } from './terminal'

export interface RunCommandOptions extends ModelOptions, SamplingOptions {
  model: string
  workers: number
  layout: LayoutName
  share: boolean
  maxTokens: number
  device: DeviceName
  capacity?: number
  context?: number
  stop?: string[]
}

export async function run(problem: string, options: RunCommandOptions): Promise<void> {
  problem = await readPrompt(problem)
  const { device, layout, share, maxTokens, capacity, context } = options
  const names = WORKER_NAMES.slice(0, options.workers)
  const path = await findWithProgress(options.model, options)
  const tokenizer = await loadTokenizer(path)
  const encode = (text: string) => tokenizer.encodeSync(text, { addSpecialTokens: false })
  const model = await loadWithProgress(path, device, options)
  let showPrefill: ShowProgress = () => {}
  try {
    await using session = runWorkers({
      model,
      tokenizer,
      prompt: await encodePrompt(tokenizer, collaborationPrompt(problem, names, share)),
      workers: names.map((name, index) => ({
        name,
        prompt: encode(turnOpening(name, 1)),
        header: encode(OWN_HEADING),
        sampler: samplerOptions(options, index),
      })),
      layout,
      share,
      ...(layout === 'combined' && { sharedHeader: encode(OTHERS_HEADING) }),
      ...(layout !== 'contiguous' && {
        // A paragraph ends with a blank line, in one token or in two.
        turnEnds: (ids: readonly number[]) => /\n\s*\n$/.test(tokenizer.decode(ids.slice(-2))),
        turnHeader: (name: string, turn: number) => encode(turnOpening(name, turn + 1)),
      }),
      stop: options.stop,
      maxTokens,
      capacity,
      onPrefill: ({ tokens, totalTokens }) => showPrefill(tokens, totalTokens),
      context,
    })
    const printer = new LinePrinter(names)
    const events = session[Symbol.asyncIterator]()
    // The prompt is computed before the first event.
    let next = await withProgress(
      'reading the prompt',
      'tokens',
      options.quiet || options.json,
      (show) => {
        showPrefill = show
        return events.next()
      },
    )
    for (; !next.done; next = await events.next()) {
      const event = next.value
      if (options.json) printJson(event)
      else if (event.type === 'token') printer.write(event.worker, event.text)
      else if (event.type === 'stop') {
        printer.write(event.worker, event.text ?? '')
        printer.flush(event.worker)
        printer.remark(event.worker, `stopped: ${event.reason}`)
      } else if (event.type === 'end') {
        const { steps, tokens, milliseconds } = event
        print(
          colors.dim(`${tokens} tokens in ${steps} steps, ${(milliseconds / 1e3).toFixed(1)} s`),
        )
      }
    }
  } finally {
    await model.close()
  }
}

function encodePrompt(tokenizer: Tokenizer, text: string): Promise<number[]> {
  return tokenizer.hasChatTemplate
    ? tokenizer.encodeChat([{ role: 'user', content: text }], { answerPrefix: RECORD_HEADING })
    : tokenizer.encode(`${text}\n\n${RECORD_HEADING}`)
}

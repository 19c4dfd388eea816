// `hogwild run`: workers solve a problem together on a model of the user's.

import {
  type CacheDtype,
  collaborate,
  type DeviceName,
  type LayoutName,
  runWorkers,
} from '../index'
import { findWithProgress, loadTokenizerOf, loadWithProgress, type ModelOptions } from './model'
import { type ShowProgress, withProgress } from './progress'
import { readPrompt } from './read-prompt'
import { RunReport } from './run/report'
import { type SamplingOptions, samplerOptions } from './sampling'

export interface RunCommandOptions extends ModelOptions, SamplingOptions {
  model: string
  workers: number
  names?: string[]
  layout: LayoutName
  share: boolean
  checkEvery?: number
  budget?: number[]
  finish?: number
  maxTokens: number
  device: DeviceName
  capacity?: number
  context?: number
  cacheDtype?: CacheDtype
  stop?: string[]
}

/** Tokens of an early answer, of models that follow instructions. */
const FINISH_TOKENS = 32

export async function run(prompt: readonly string[], options: RunCommandOptions): Promise<void> {
  const problem = await readPrompt(prompt)
  const { device, layout, share, checkEvery, maxTokens, capacity, cacheDtype, context } = options
  const path = await findWithProgress(options.model, options)
  await using tokenizer = await loadTokenizerOf(path, options)
  const workers = options.names ?? options.workers
  const team = await collaborate({ tokenizer, problem, workers, layout, share, checkEvery })
  await using model = await loadWithProgress(path, device, options)
  let showPrefill: ShowProgress = () => {}
  await using session = runWorkers({
    model,
    ...team.run,
    workers: team.run.workers.map((worker, index) => ({
      ...worker,
      sampler: samplerOptions(options, index),
    })),
    stop: options.stop,
    maxTokens,
    capacity,
    cacheDtype,
    onPrefill: ({ tokens, totalTokens }) => showPrefill(tokens, totalTokens),
    context,
  })
  const report = new RunReport(model, team, session, {
    json: options.json ?? false,
    budgets: options.budget ?? [],
    finishTokens: options.finish ?? (tokenizer.hasChatTemplate ? FINISH_TOKENS : 0),
  })
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
  for (; !next.done; next = await events.next()) await report.take(next.value)
}

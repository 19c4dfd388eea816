// What a run and its workers are told, and the checks of it.

import { checkCapacity } from '../cache'
import { checkCacheDtype } from '../cache-dtype'
import type { CacheDtype } from '../formats'
import { type BeyondContext, checkBeyondContext, checkContext, Model } from '../model'
import type { PrefillProgress } from '../prefill'
import { Sampler, type SamplerOptions } from '../sampler'
import { checkPath } from '../sources/files'
import { Tokenizer } from '../tokenizer/tokenizer'
import {
  checkArray,
  checkBoolean,
  checkInstance,
  checkInteger,
  checkOneOf,
  checkOptionalFunction,
  checkOptions,
  checkSignal,
  checkString,
  checkTokens,
  invalid,
  optionKeys,
} from '../validate'
import { commitsTurns, LAYOUT_NAMES, type LayoutName } from './layout'

export interface WorkerSpec {
  /** Unique in the run. */
  name: string
  /** Tokens that its own block begins with, at least one: what it writes follows the last of them. */
  prompt: ArrayLike<number>
  /** A block before its own, computed on its own and seen by this worker only. Default: none. */
  header?: ArrayLike<number> | undefined
  /** Default: greedy. Each worker has a sampler of its own, so give each a seed of its own. */
  sampler?: SamplerOptions | undefined
  /** Tokens that it may write, forced ones not counted; default: the run's. */
  maxTokens?: number | undefined
  /** Its stop strings (see RunOptions); default: the run's. */
  stop?: readonly string[] | undefined
}

export interface RunOptions {
  model: Model
  /** The common block that every view begins with. May be empty. */
  prompt: ArrayLike<number>
  /** In worker order. May be empty if some join before the first event is asked for. */
  workers: readonly WorkerSpec[]
  /** Default 'combined'. */
  layout?: LayoutName | undefined
  /** false: no worker sees another one, for comparison. Default true. */
  share?: boolean | undefined
  /** Layout 'combined': a block between common and the others' text, computed on its own. */
  sharedHeader?: ArrayLike<number> | undefined
  /** A worker stops once it has written one; default: those of the model and of the tokenizer. */
  stopTokens?: ArrayLike<number> | undefined
  /**
   * A worker stops once the text of its sampled tokens holds one of these strings, which is looked for across
   * tokens. Events show the text before it and nothing of it; its tokens are in the block, where other workers
   * see them. Needs a tokenizer. Default: none.
   */
  stop?: readonly string[] | undefined
  /**
   * Whether a turn ends, asked after each sampled token; `ids`: the tokens sampled in this turn. Not with
   * layout 'contiguous', which has no turns. Default: never.
   */
  turnEnds?: ((ids: readonly number[]) => boolean) | undefined
  /** Tokens that a worker's next turn begins with, after the one sampled last; `turn`: turns ended so far. */
  turnHeader?: ((worker: string, turn: number) => ArrayLike<number>) | undefined
  /** Tokens that each worker may write; default: no bound but the capacity. */
  maxTokens?: number | undefined
  /** Of the run's cache, in tokens; default 8192. Workers that find it full stop: see StopEvent. */
  capacity?: number | undefined
  /** Tokens of the longest view, for models with longrope: see ModelCacheOptions. */
  context?: number | undefined
  /** Of the run's cache: in which keys and values are stored; default: as `model.createCache` has it. */
  cacheDtype?: CacheDtype | undefined
  /** What happens when a view is longer than the model's context; default: as the model was loaded with. */
  beyondContext?: BeyondContext | undefined
  /** Called while the prompt is computed, piece by piece, and at its end. What it throws ends the run. */
  onPrefill?: ((progress: PrefillProgress) => void) | undefined
  /**
   * Path of a file that gets a trace of the run, a line of JSON for each thing that happens: blocks, prefills, views, steps
   * with their tokens and times, and events (docs/replay.md, docs/trace.schema.json). `hogwild replay` computes the same again
   * from it. A file of this name is replaced. Where it cannot be written, the iterator throws HOGWILD_NOT_WRITTEN. Default: none.
   */
  trace?: string | undefined
  /** For the text of token events. */
  tokenizer?: Tokenizer | undefined
  /** Ends the run: the iterator throws HOGWILD_ABORTED with the signal's reason as `cause`. */
  signal?: AbortSignal | undefined
}

const RUN_KEYS = optionKeys<RunOptions>()({
  model: true,
  prompt: true,
  workers: true,
  layout: true,
  share: true,
  sharedHeader: true,
  stopTokens: true,
  stop: true,
  turnEnds: true,
  turnHeader: true,
  maxTokens: true,
  capacity: true,
  context: true,
  cacheDtype: true,
  beyondContext: true,
  onPrefill: true,
  trace: true,
  tokenizer: true,
  signal: true,
})

const WORKER_KEYS = optionKeys<WorkerSpec>()({
  name: true,
  prompt: true,
  header: true,
  sampler: true,
  maxTokens: true,
  stop: true,
})

/** RunOptions that were checked and copied, but for the workers' specs. */
export type RunSettings = Pick<
  RunOptions,
  | ('model' | 'capacity' | 'context' | 'cacheDtype' | 'turnEnds' | 'turnHeader' | 'onPrefill')
  | ('trace' | 'tokenizer' | 'signal' | 'beyondContext')
> & {
  layout: LayoutName
  share: boolean
  prompt: Int32Array
  sharedHeader: Int32Array
  /** undefined: those of model and tokenizer. */
  stopTokens: Int32Array | undefined
  stop: readonly string[]
  /** Infinity where there is no bound. */
  maxTokens: number
  workers: readonly unknown[]
}

/** A WorkerSpec that was checked and copied, with the run's defaults in it. */
export interface WorkerSettings {
  name: string
  prompt: Int32Array
  header: Int32Array
  sampler: Sampler | undefined
  maxTokens: number
  stop: readonly string[]
}

/** Throws HOGWILD_INVALID_ARGUMENT. */
export function checkRunOptions(options: RunOptions): RunSettings {
  options = checkOptions(options, 'options', RUN_KEYS)
  const { tokenizer, turnEnds, turnHeader, onPrefill } = options
  const { stopTokens, capacity, context, cacheDtype, beyondContext, trace } = options
  const model = checkInstance(options.model, 'options.model', Model)
  const { vocabSize } = model.config
  if (tokenizer !== undefined) checkInstance(tokenizer, 'options.tokenizer', Tokenizer)
  const layout = checkOneOf(options.layout ?? 'combined', 'options.layout', LAYOUT_NAMES)
  const sharedHeader = checkTokens(options.sharedHeader ?? [], 'options.sharedHeader', vocabSize)
  if (sharedHeader.length > 0 && layout !== 'combined') {
    throw invalid('options.sharedHeader', "absent but in layout 'combined'", sharedHeader)
  }
  checkOptionalFunction(turnEnds, 'options.turnEnds')
  checkOptionalFunction(turnHeader, 'options.turnHeader')
  if (turnEnds !== undefined && !commitsTurns(layout)) {
    throw invalid('options.turnEnds', `absent in layout '${layout}'`, turnEnds)
  }
  if (beyondContext !== undefined) checkBeyondContext(beyondContext)
  return {
    model,
    tokenizer,
    layout,
    sharedHeader,
    turnEnds,
    turnHeader,
    onPrefill: checkOptionalFunction(onPrefill, 'options.onPrefill'),
    beyondContext,
    trace: trace === undefined ? undefined : checkPath(trace, 'options.trace'),
    share: checkBoolean(options.share ?? true, 'options.share'),
    prompt: checkTokens(options.prompt, 'options.prompt', vocabSize),
    stopTokens:
      stopTokens === undefined
        ? undefined
        : checkTokens(stopTokens, 'options.stopTokens', vocabSize),
    stop: checkStop(options.stop ?? [], 'options.stop', tokenizer),
    maxTokens: checkMaxTokens(options.maxTokens, 'options.maxTokens'),
    capacity: capacity === undefined ? undefined : checkCapacity(capacity),
    context: context === undefined ? undefined : checkContext(context),
    cacheDtype:
      cacheDtype === undefined ? undefined : checkCacheDtype(cacheDtype, 'options.cacheDtype'),
    signal: checkSignal(options.signal, 'options.signal'),
    workers: checkArray(options.workers, 'options.workers'),
  }
}

/** `name` is what messages call the spec. Throws HOGWILD_INVALID_ARGUMENT. */
export function checkWorkerSpec(value: unknown, name: string, run: RunSettings): WorkerSettings {
  const spec = checkOptions(value as WorkerSpec, name, WORKER_KEYS)
  const { vocabSize } = run.model.config
  const { maxTokens, stop } = spec
  return {
    name: checkString(spec.name, `${name}.name`),
    prompt: checkTokens(spec.prompt, `${name}.prompt`, vocabSize, 1),
    header: checkTokens(spec.header ?? [], `${name}.header`, vocabSize),
    sampler: spec.sampler === undefined ? undefined : new Sampler(spec.sampler),
    maxTokens:
      maxTokens === undefined ? run.maxTokens : checkMaxTokens(maxTokens, `${name}.maxTokens`),
    stop: stop === undefined ? run.stop : checkStop(stop, `${name}.stop`, run.tokenizer),
  }
}

export function checkMaxTokens(value: number | undefined, name: string): number {
  return value === undefined ? Number.POSITIVE_INFINITY : checkInteger(value, name, 1)
}

export function checkStop(
  value: readonly string[],
  name: string,
  tokenizer: Tokenizer | undefined,
): string[] {
  const strings = checkArray(value, name).map((stop, i) => {
    if (checkString(stop, `${name}[${i}]`) === '') {
      throw invalid(`${name}[${i}]`, 'a string of at least one character', stop)
    }
    return stop as string
  })
  if (strings.length > 0 && tokenizer === undefined) {
    throw invalid(name, 'absent where there is no options.tokenizer', strings)
  }
  return strings
}

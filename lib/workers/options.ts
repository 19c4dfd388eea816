// What a run and its workers are told, and the checks of it.

import { Block } from '../block'
import { Cache, checkCapacity } from '../cache'
import { checkCacheDtype } from '../cache-dtype'
import type { CacheDtype } from '../formats'
import { type BeyondContext, checkBeyondContext, checkContext, Model } from '../model'
import type { PrefillProgress } from '../prefill'
import type { SamplerOptions } from '../sampler'
import { checkPath } from '../sources/files'
import { checkSpeculation, type SpeculateOptions, type Speculation } from '../speculation'
import { checkTokenOptions, type TokenOptions, type TokenSettings } from '../token-options'
import { Tokenizer } from '../tokenizer/tokenizer'
import {
  checkArray,
  checkBoolean,
  checkInstance,
  checkInteger,
  checkNumber,
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
import { Scheduler } from './scheduler'
import type { Trigger } from './triggers'

/** A worker of a run. */
export interface WorkerSpec extends TokenOptions {
  /** Unique in the run. */
  name: string
  /** Tokens that its own block begins with, at least one: what it writes follows the last of them. */
  prompt: ArrayLike<number>
  /** A block before its own, computed on its own and seen by this worker only. Default: none. */
  header?: ArrayLike<number> | undefined
  /** A block of `RunOptions.cache` that is its header, in place of `header`. */
  headerBlock?: Block | undefined
  /**
   * A worker of the run before it in worker order: its own block begins with a copy of that one's, as it is when this one
   * joins (a branch). Pages are shared, nothing is computed again. Default: none.
   */
  from?: string | undefined
  /** A block of `RunOptions.cache` that it goes on in, behind the tokens that are there. Default: a new one. */
  own?: Block | undefined
  /** Default: greedy. Each worker has a sampler of its own, so give each a seed of its own. */
  sampler?: SamplerOptions | undefined
  /** Tokens that it may write, forced ones not counted; default: the run's. */
  maxTokens?: number | undefined
  /** Its stop strings (see RunOptions); default: the run's. */
  stop?: readonly string[] | undefined
}

/** Options of `runWorkers`. */
export interface RunOptions {
  /** Whose steps the workers share. */
  model: Model
  /** Tokens of the common block that every view begins with. May be empty. */
  prompt: ArrayLike<number>
  /** A block of `cache` that is the common one: the prompt goes behind its tokens. Default: a new one. */
  common?: Block | undefined
  /** In worker order. May be empty if some join before the first event is asked for. */
  workers: readonly WorkerSpec[]
  /** Default 'combined'. */
  layout?: LayoutName | undefined
  /** false: no worker sees another one, for comparison. Default true. */
  share?: boolean | undefined
  /** Layout 'combined': a block between common and the others' text, computed on its own. */
  sharedHeader?: ArrayLike<number> | undefined
  /** A block of `cache` that is that one, in place of `sharedHeader`. */
  shared?: Block | undefined
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
  /** Calls that text sets off, e.g. a tag that starts a branch. Need a tokenizer. Default: none. */
  triggers?: readonly Trigger[] | undefined
  /**
   * Guesses the next tokens of all workers, so that one forward pass may bring several steps (docs/speculation.md). What is
   * written, and the events of it, stay the same; controls take effect behind all steps of a pass. `turnEnds` is asked
   * about guesses too, so it has to depend on the ids alone. Default: no guesses.
   */
  speculate?: SpeculateOptions | undefined
  /** Tokens that each worker may write; default: no bound but the capacity. */
  maxTokens?: number | undefined
  /**
   * The run's budget, in tokens, rounded up to pages: what its blocks may take at once. Workers that find it used up stop:
   * see StopEvent. Default 8192 or, where the scheduler's pool is smaller, all of it; in a cache of the user's: no bound
   * but the cache.
   */
  capacity?: number | undefined
  /**
   * A cache of the model's in which the run's blocks are made, beside those of others. Default: a pool of the scheduler's.
   * It stays open, and the blocks given here stay with their owner.
   */
  cache?: Cache | undefined
  /** With `cache`: at the end the run's own blocks stay too, and belong to whoever took them from `run.blocks`. Default false. */
  keepBlocks?: boolean | undefined
  /** Whose steps and pages the run shares; default: `schedulerOf(model)`. */
  scheduler?: Scheduler | undefined
  /** Those of a higher one begin first where groups wait, and have their prompts computed first. Default 0. */
  priority?: number | undefined
  /** Tokens of the longest view, for models with longrope: see ModelCacheOptions. */
  context?: number | undefined
  /** In which the run's keys and values are stored; default: as `model.createCache` has it. */
  cacheDtype?: CacheDtype | undefined
  /** What happens when a view is longer than the model's context; default: as the model was loaded with. */
  beyondContext?: BeyondContext | undefined
  /** Called while the prompt is computed, piece by piece, and at its end. What it throws ends the run. */
  onPrefill?: ((progress: PrefillProgress) => void) | undefined
  /**
   * Path of a file that gets a trace of the run, a line of JSON for each thing that happens: blocks, prefills, views, steps
   * with their tokens and times, and events (docs/replay.md, docs/trace.schema.json). `hogwild replay` computes the same again
   * from it. Not with `cache`; what is done to `run.blocks` is not in it. A file of this name is replaced. Where it cannot be written, the iterator throws HOGWILD_NOT_WRITTEN. Default: none.
   */
  trace?: string | undefined
  /** For the text of token events. Ids without a token are then never chosen, but for stop tokens. */
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
  triggers: true,
  speculate: true,
  maxTokens: true,
  capacity: true,
  context: true,
  cacheDtype: true,
  beyondContext: true,
  onPrefill: true,
  trace: true,
  tokenizer: true,
  signal: true,
  cache: true,
  common: true,
  shared: true,
  keepBlocks: true,
  scheduler: true,
  priority: true,
})

const TRIGGER_KEYS = optionKeys<Trigger>()({
  text: true,
  workers: true,
  limit: true,
  depth: true,
  action: true,
})

const WORKER_KEYS = optionKeys<WorkerSpec>()({
  name: true,
  prompt: true,
  header: true,
  headerBlock: true,
  own: true,
  from: true,
  sampler: true,
  logitBias: true,
  processLogits: true,
  grammar: true,
  logprobs: true,
  topLogprobs: true,
  maxTokens: true,
  stop: true,
})

/** RunOptions that were checked and copied, but for the workers' specs. */
export type RunSettings = Pick<
  RunOptions,
  | ('model' | 'capacity' | 'context' | 'cacheDtype' | 'turnEnds' | 'turnHeader' | 'onPrefill')
  | ('trace' | 'tokenizer' | 'signal' | 'beyondContext')
  | ('cache' | 'common' | 'scheduler')
> & {
  layout: LayoutName
  share: boolean
  prompt: Int32Array
  sharedHeader: Int32Array | Block
  keepBlocks: boolean
  priority: number
  /** undefined: those of model and tokenizer. */
  stopTokens: Int32Array | undefined
  stop: readonly string[]
  triggers: readonly Trigger[]
  speculate: Speculation | undefined
  /** Infinity where there is no bound. */
  maxTokens: number
  workers: readonly unknown[]
}

/** A WorkerSpec that was checked and copied, with the run's defaults in it. */
export interface WorkerSettings extends TokenSettings {
  name: string
  prompt: Int32Array
  header: Int32Array | Block
  own: Block | undefined
  from: string | undefined
  maxTokens: number
  stop: readonly string[]
}

/** Throws HOGWILD_INVALID_ARGUMENT. */
export function checkRunOptions(options: RunOptions): RunSettings {
  options = checkOptions(options, 'options', RUN_KEYS)
  const { tokenizer, turnEnds, turnHeader, onPrefill } = options
  const { stopTokens, beyondContext, trace } = options
  const model = checkInstance(options.model, 'options.model', Model)
  const { vocabSize } = model.config
  if (tokenizer !== undefined) checkInstance(tokenizer, 'options.tokenizer', Tokenizer)
  const layout = checkOneOf(options.layout ?? 'combined', 'options.layout', LAYOUT_NAMES)
  const place = checkPlace(options, model)
  const sharedHeader = checkHeader(
    options.sharedHeader,
    options.shared,
    ['options.sharedHeader', 'options.shared'],
    model,
    place.cache,
  )
  if ((Block.is(sharedHeader) || sharedHeader.length > 0) && layout !== 'combined') {
    throw invalid('options.sharedHeader', "absent but in layout 'combined'", sharedHeader)
  }
  checkOptionalFunction(turnEnds, 'options.turnEnds')
  checkOptionalFunction(turnHeader, 'options.turnHeader')
  if (turnEnds !== undefined && !commitsTurns(layout)) {
    throw invalid('options.turnEnds', `absent in layout '${layout}'`, turnEnds)
  }
  if (beyondContext !== undefined) checkBeyondContext(beyondContext)
  if (trace !== undefined && place.cache !== undefined) {
    throw invalid('options.trace', 'absent beside a cache, whose blocks it would not tell', trace)
  }
  return {
    ...place,
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
    triggers: checkTriggers(options.triggers ?? [], tokenizer),
    speculate: checkSpeculation(options.speculate, 'options.speculate'),
    maxTokens: checkMaxTokens(options.maxTokens, 'options.maxTokens'),
    signal: checkSignal(options.signal, 'options.signal'),
    workers: checkArray(options.workers, 'options.workers'),
  }
}

/** Where the run's blocks live, and with whom it shares steps and pages. */
function checkPlace(options: RunOptions, model: Model) {
  const { cache, common, capacity, context, cacheDtype, keepBlocks, scheduler } = options
  const { priority = 0 } = options
  checkScheduler(scheduler, model)
  if (cache === undefined) {
    if (common !== undefined) throw invalid('options.common', 'absent without a cache', common)
    if (keepBlocks) throw invalid('options.keepBlocks', 'absent without a cache', keepBlocks)
  } else {
    checkInstance(cache, 'options.cache', Cache)
    if (context !== undefined) throw invalid('options.context', 'absent beside a cache', context)
    if (cacheDtype !== undefined) {
      throw invalid('options.cacheDtype', 'absent beside a cache', cacheDtype)
    }
  }
  if (capacity !== undefined) checkCapacity(capacity)
  if (cache === undefined) scheduler?.pagesFor(capacity)
  return {
    cache,
    common: common === undefined ? undefined : checkBlock(common, 'options.common', cache),
    capacity,
    context: context === undefined ? undefined : checkContext(context),
    cacheDtype:
      cacheDtype === undefined ? undefined : checkCacheDtype(cacheDtype, 'options.cacheDtype'),
    keepBlocks: checkBoolean(keepBlocks ?? false, 'options.keepBlocks'),
    scheduler,
    priority: checkNumber(priority, 'options.priority', 'a finite number', (x) =>
      Number.isFinite(x),
    ),
  }
}

/** Throws HOGWILD_INVALID_ARGUMENT. */
export function checkScheduler(scheduler: Scheduler | undefined, model: Model): void {
  if (scheduler === undefined) return
  checkInstance(scheduler, 'options.scheduler', Scheduler)
  if (scheduler.model !== model) {
    throw invalid('options.scheduler', 'one of options.model', 'one of another model')
  }
}

function checkBlock(value: unknown, name: string, cache: Cache | undefined): Block {
  const block = checkInstance(value as Block, name, Block)
  if (block.cache !== cache) {
    throw invalid(name, 'a block of options.cache', 'one of another cache')
  }
  return block
}

/** `names`: of the two options, of which one at most is given. */
function checkHeader(
  tokens: ArrayLike<number> | undefined,
  block: Block | undefined,
  names: readonly [string, string],
  model: Model,
  cache: Cache | undefined,
): Int32Array | Block {
  if (block === undefined) return checkTokens(tokens ?? [], names[0], model.config.vocabSize)
  if (tokens !== undefined) throw invalid(names[0], `absent beside ${names[1]}`, tokens)
  return checkBlock(block, names[1], cache)
}

/** `name` is what messages call the spec. Throws HOGWILD_INVALID_ARGUMENT. */
export function checkWorkerSpec(value: unknown, name: string, run: RunSettings): WorkerSettings {
  if (typeof value === 'string') throw invalid(name, 'an object { name, prompt, … }', value)
  const spec = checkOptions(value as WorkerSpec, name, WORKER_KEYS)
  const { vocabSize } = run.model.config
  const { maxTokens, stop } = spec
  return {
    ...checkTokenOptions(spec, name, run.model, run.tokenizer, run.stopTokens),
    name: checkString(spec.name, `${name}.name`),
    prompt: checkTokens(spec.prompt, `${name}.prompt`, vocabSize, 1),
    header: checkHeader(
      spec.header,
      spec.headerBlock,
      [`${name}.header`, `${name}.headerBlock`],
      run.model,
      run.cache,
    ),
    from: spec.from === undefined ? undefined : checkString(spec.from, `${name}.from`),
    own: spec.own === undefined ? undefined : checkBlock(spec.own, `${name}.own`, run.cache),
    maxTokens:
      maxTokens === undefined ? run.maxTokens : checkMaxTokens(maxTokens, `${name}.maxTokens`),
    stop: stop === undefined ? run.stop : checkStop(stop, `${name}.stop`, run.tokenizer),
  }
}

/** Throws HOGWILD_INVALID_ARGUMENT. */
export function checkTriggers(value: unknown, tokenizer: Tokenizer | undefined): Trigger[] {
  return checkArray(value, 'options.triggers').map((given, i) => {
    const name = `options.triggers[${i}]`
    const trigger = checkOptions(given as Trigger, name, TRIGGER_KEYS)
    const { text, workers, limit, depth, action } = trigger
    checkStop([text], name, tokenizer)
    if (typeof action !== 'function') throw invalid(`${name}.action`, 'a function', action)
    const names = workers && checkArray(workers, `${name}.workers`)
    return {
      text,
      workers: names?.map((worker, at) => checkString(worker, `${name}.workers[${at}]`)),
      limit: limit === undefined ? undefined : checkInteger(limit, `${name}.limit`, 1),
      depth: depth === undefined ? undefined : checkInteger(depth, `${name}.depth`, 0),
      action,
    }
  })
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

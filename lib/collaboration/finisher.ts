// The finisher: an answer at once, from what is there so far. A suffix that opens an answer comes behind the reasoning and
// the model goes on greedily, in a block that is given back.

import { Block } from '../block'
import type { CacheDtype } from '../formats'
import { PAGE_TOKENS } from '../limits'
import { type BeyondContext, Model, type PrefillOptions } from '../model'
import { prefillInPieces } from '../prefill'
import { withinVocabulary } from '../sources/eos'
import { Tokenizer } from '../tokenizer/tokenizer'
import {
  checkArray,
  checkInstance,
  checkInteger,
  checkObject,
  checkOneOf,
  checkOptions,
  checkString,
  checkTokens,
  invalid,
  optionKeys,
} from '../validate'
import { type AnswerFormat, checkAnswerFormat, findAnswer } from './answer'
import type { Collaboration } from './collaboration'
import { encodePart } from './encode'
import { checkSnapshot, type Snapshot } from './transcript'

/** Options of `extractAnswer`. */
export interface ExtractOptions {
  /** Whose cache holds the blocks. */
  model: Model
  /** Of the model. */
  tokenizer: Tokenizer
  /** What the answer is taken from, in the order of a view: at least one block, all of one cache. Only read. */
  blocks: readonly Block[]
  /** Comes behind the blocks; where it ends with the opening of an answer, the model writes the answer itself. */
  suffix: string
  /** What stands around an answer. */
  answer: AnswerFormat
  /** Tokens that may be written behind the suffix, at least 1; default 32. */
  maxTokens?: number | undefined
  /** What happens when the view is longer than the model's context; default: as the model was loaded with. */
  beyondContext?: BeyondContext | undefined
  /** Rejects with HOGWILD_ABORTED. */
  signal?: AbortSignal | undefined
}

/** Options of `finish`. */
export interface FinishOptions
  extends Pick<ExtractOptions, 'model' | 'maxTokens' | 'beyondContext' | 'signal'> {
  /** What `collaborate` gave for the run. */
  collaboration: Collaboration
  /** Of a run of this collaboration. */
  snapshot: Snapshot
  /** The worker whose answer is asked for; only where workers do not see one another, and there by default the first. */
  worker?: string | undefined
  /** In which keys and values are stored; default: as `model.createCache` has it. */
  cacheDtype?: CacheDtype | undefined
}

/** What the finisher found. */
export interface EarlyAnswer {
  /** Undefined where none was complete within `maxTokens`. */
  answer: string | undefined
  /** What was written behind the suffix. */
  text: string
  /** The tokens of it, a stop token left out. */
  tokens: number[]
}

const EXTRACT_KEYS = optionKeys<ExtractOptions>()({
  model: true,
  tokenizer: true,
  blocks: true,
  suffix: true,
  answer: true,
  maxTokens: true,
  beyondContext: true,
  signal: true,
})
const FINISH_KEYS = optionKeys<FinishOptions>()({
  model: true,
  maxTokens: true,
  beyondContext: true,
  signal: true,
  collaboration: true,
  snapshot: true,
  worker: true,
  cacheDtype: true,
})

const DEFAULT_MAX_TOKENS = 32

/**
 * Writes `suffix` and then greedy tokens behind blocks that are only read, up to the end of an answer, a stop token or
 * `maxTokens`. They go into a block of their own, whose pages are given back: the blocks, samplers and whoever writes
 * on in them are as before, to the bit.
 *
 * Throws as `Model.step`: HOGWILD_OUT_OF_PAGES where the cache has no room for suffix and answer, HOGWILD_BUSY while a
 * step uses it.
 */
export async function extractAnswer(options: ExtractOptions): Promise<EarlyAnswer> {
  const { model, tokenizer, blocks, suffix, format, maxTokens, ...step } = checkExtract(options)
  const stopTokens = new Set(
    withinVocabulary(
      [...model.config.eosTokenIds, ...tokenizer.eosTokenIds],
      model.config.vocabSize,
    ),
  )
  const own = (blocks[0] as Block).cache.createBlock()
  const view = { blocks: [...blocks, own] }
  const stream = tokenizer.stream()
  const written: number[] = []
  let text = ''
  let tokens = encodePart(tokenizer, suffix)
  try {
    while (written.length < maxTokens) {
      const [output] = await model.step([{ view, tokens }], step)
      const token = output?.token as number
      if (stopTokens.has(token)) break
      written.push(token)
      text += stream.push(token)
      const answer = findAnswer(suffix + text, format)
      if (answer !== undefined) return { answer, text, tokens: written }
      tokens = [token]
    }
    text += stream.end()
    return { answer: findAnswer(suffix + text, format), text, tokens: written }
  } finally {
    own.close()
  }
}

/**
 * The answer at the time of a snapshot: the one that a worker had given or, where none had, what the finisher extracts.
 * For that the reasoning is computed once more, in a cache of its own: finished paragraphs, then the unfinished ones of all
 * workers, as one text. The run goes on as if nothing had been asked.
 *
 * Throws HOGWILD_INVALID_ARGUMENT, HOGWILD_OUT_OF_MEMORY, HOGWILD_ABORTED.
 */
export async function finish(options: FinishOptions): Promise<EarlyAnswer> {
  const { model, given, tokens, maxTokens, cacheDtype, extract, step } = checkFinish(options)
  if (given !== undefined) return { answer: given, text: '', tokens: [] }
  const suffix = encodePart(extract.tokenizer, extract.suffix)
  const behind = suffix.length + maxTokens
  const capacity = inPages(tokens.length) + inPages(behind)
  const context = tokens.length + behind
  const cache = model.createCache({ capacity, context, dtype: cacheDtype })
  try {
    const block = cache.createBlock()
    const prefill = (piece: Int32Array, how: PrefillOptions) => model.prefill(block, piece, how)
    await prefillInPieces(prefill, tokens, 0, { ...step, sampler: null })
    return await extractAnswer({ model, blocks: [block], maxTokens, ...extract, ...step })
  } finally {
    await cache.close()
  }
}

/** Tokens of the pages that a block of so many tokens takes. */
function inPages(tokens: number): number {
  return Math.ceil(tokens / PAGE_TOKENS) * PAGE_TOKENS
}

function checkExtract(options: ExtractOptions) {
  options = checkOptions(options, 'options', EXTRACT_KEYS)
  const blocks = checkArray(options.blocks, 'options.blocks').map((block, i) =>
    checkInstance(block, `options.blocks[${i}]`, Block),
  )
  if (blocks.length === 0) throw invalid('options.blocks', 'at least one block', blocks)
  const suffix = checkString(options.suffix, 'options.suffix')
  if (suffix === '') throw invalid('options.suffix', 'a text that is not empty', suffix)
  return {
    model: checkInstance(options.model, 'options.model', Model),
    tokenizer: checkInstance(options.tokenizer, 'options.tokenizer', Tokenizer),
    blocks,
    suffix,
    format: checkAnswerFormat(options.answer, 'options.answer'),
    maxTokens: checkMaxTokens(options.maxTokens),
    signal: options.signal,
    beyondContext: options.beyondContext,
  }
}

function checkFinish(options: FinishOptions) {
  options = checkOptions(options, 'options', FINISH_KEYS)
  const model = checkInstance(options.model, 'options.model', Model)
  const { collaboration, cacheDtype } = options
  const { run, texts } = checkObject(
    collaboration,
    'options.collaboration',
  ) as object as Collaboration
  const tokenizer = checkInstance(run?.tokenizer, 'options.collaboration.run.tokenizer', Tokenizer)
  const { given, record, parts } = seenBy(options)
  const mark = collaboration.share ? encodePart(tokenizer, texts.unfinished) : []
  const ids = [
    ...Array.from(run.prompt),
    ...record,
    ...Array.from(run.sharedHeader ?? []),
    ...parts.flatMap(({ tokens }) => [...tokens, ...mark]),
  ]
  return {
    model,
    given,
    tokens: checkTokens(ids, 'the ids of options.snapshot', model.config.vocabSize, 1),
    maxTokens: checkMaxTokens(options.maxTokens),
    cacheDtype,
    extract: { tokenizer, suffix: texts.finisher, answer: texts.answer },
    step: { signal: options.signal, beyondContext: options.beyondContext },
  }
}

/** Whose text the answer is taken from, and the answer that they have given. */
function seenBy({ collaboration, snapshot, worker }: FinishOptions) {
  const { record, workers, answer } = checkSnapshot(snapshot, 'options.snapshot')
  if (collaboration.share) {
    if (worker !== undefined) {
      throw invalid('options.worker', 'absent where workers see one another', worker)
    }
    return { given: answer?.answer, record, parts: workers }
  }
  const all = workers.map(({ name }) => name)
  const name = checkOneOf(worker ?? all[0], 'options.worker', all)
  const parts = workers.filter((one) => one.name === name)
  return { given: parts[0]?.answer, record, parts }
}

function checkMaxTokens(value: number | undefined): number {
  return checkInteger(value ?? DEFAULT_MAX_TOKENS, 'options.maxTokens', 1)
}

// `hogwild doctor --reuse`: how far logits are from those of the same view computed afresh, where its blocks are used again
// (docs/semantics.md, "What is the same when blocks are used again"): on a model, in each cache dtype of its device.

import { type Block, type Cache, type KvDtype, loadTokenizer, type Model } from '../../index'
import { pageSizeOf } from '../page-size'
import { TEXTS } from './texts'

/** How the logits of a view's question are from those that they are compared with. */
export interface Divergence {
  /** The largest |difference| of a logit. */
  difference: number
  /** The same in standard deviations of the logits. */
  deviations: number
  /** The largest Kullback-Leibler divergence of a distribution over next tokens, in nats. */
  kl: number
  /** Tokens of the question with the same likeliest next token, of `tokens`. */
  sameArgmax: number
  tokens: number
}

export interface ReuseCase extends Divergence {
  cache: KvDtype
  case: 'reuse' | 'fork' | 'moved' | 'interleaved'
  /**
   * What the view is compared with. `afresh`: all of its tokens computed in their place. `turned`: its keys and values as they
   * are, each key turned to where it stands and rounded.
   */
  against: 'afresh' | 'turned'
  /** The most `deviations`; 0: no bit differs; null: the two are not the same, and it is no error. */
  allowed: number | null
}

export interface ReuseReport {
  /** Whether the texts are English, or token ids at random: the model has no tokenizer. */
  texts: 'english' | 'random'
  cases: ReuseCase[]
}

/**
 * In standard deviations of the logits: what may come of rounding a key once more to the cache's dtype. Keys in int8 are not
 * turned (`compact` leaves them).
 */
const ROUNDED = { f32: 1e-3, f16: 0.02, bf16: 0.15, int8: 1e-3 } as const

const QUESTION = 16

/** `path`: of the model. Rejects as its steps do. */
export async function compareReuse(model: Model, path: string): Promise<ReuseReport> {
  const page = await pageSizeOf(model)
  // Whole pages and a part of one.
  const length = 2 * page + Math.floor(page / 3)
  const english = await encodeTexts(model, path, length)
  const texts = english ?? TEXTS.map((_, i) => randomIds(i, length, model.config.vocabSize))
  const isCpu = model.device.info.type === 'cpu'
  const cases: ReuseCase[] = []
  for (const dtype of isCpu
    ? (['f32', 'f16', 'bf16', 'int8'] as const)
    : (['bf16', 'f16'] as const)) {
    await using cache = model.createCache({ dtype })
    cases.push(...(await new Comparison(model, cache, dtype, texts, page).cases()))
  }
  return { texts: english === undefined ? 'random' : 'english', cases }
}

export function isWrong({ deviations, allowed }: ReuseCase): boolean {
  return allowed !== null && !(deviations <= allowed) // NaN is wrong too
}

/** Where activations are rounded on their way, a difference in the last place of f32 may grow to a place of theirs. */
function roundsActivations({ device: { info }, weights }: Model): boolean {
  if (info.type === 'cuda') return true
  return Object.keys(weights).some((format) =>
    format === 'bf16' ? info.simd === 'avx512bf16' : format !== 'f32' && format !== 'f16',
  )
}

/** Cuts each text to `length` tokens; undefined where there are not so many, or no tokenizer. */
async function encodeTexts(model: Model, path: string, length: number) {
  try {
    await using tokenizer = await loadTokenizer(path, { onWarning: () => {} })
    const texts = await Promise.all(TEXTS.map((text) => tokenizer.encode(text)))
    const { vocabSize } = model.config
    if (texts.some((ids) => ids.length < length || ids.some((id) => id >= vocabSize)))
      return undefined
    return texts.map((ids) => Int32Array.from(ids.slice(0, length)))
  } catch {
    return undefined
  }
}

/** A linear congruential generator (Knuth, MMIX), so that every machine has the same ids. */
function randomIds(seed: number, length: number, vocabSize: number): Int32Array {
  let state = BigInt(seed)
  return Int32Array.from({ length }, () => {
    state = BigInt.asUintN(64, state * 6364136223846793005n + 1442695040888963407n)
    return Number((state >> 33n) % BigInt(vocabSize))
  })
}

/** The cases of one cache. Each leaves its blocks: there is room for all. */
class Comparison {
  readonly #model: Model
  readonly #cache: Cache
  readonly #dtype: keyof typeof ROUNDED
  readonly #a: Int32Array
  readonly #b: Int32Array
  readonly #c: Int32Array
  readonly #page: number

  constructor(
    model: Model,
    cache: Cache,
    dtype: keyof typeof ROUNDED,
    texts: readonly Int32Array[],
    page: number,
  ) {
    this.#model = model
    this.#cache = cache
    this.#dtype = dtype
    ;[this.#a, this.#b, this.#c] = texts as [Int32Array, Int32Array, Int32Array]
    this.#page = page
  }

  async cases(): Promise<ReuseCase[]> {
    return [
      await this.#reuse(),
      await this.#fork(),
      ...(await this.#moved()),
      ...(await this.#interleaved()),
    ]
  }

  get #rounded(): number {
    return roundsActivations(this.#model) ? ROUNDED.bf16 : ROUNDED[this.#dtype]
  }

  /** What a GPU computes depends on how tokens are cut into steps, as far as its dtype rounds. */
  get #exact(): number {
    return this.#model.device.info.type === 'cpu' ? 0 : this.#rounded
  }

  /** Another text begins alike: it takes the whole pages that are the same, and the rest is computed behind them. */
  async #reuse(): Promise<ReuseCase> {
    const other = joined(this.#a, this.#b)
    const known = await this.#filled(this.#a)
    const block = known.fork()
    block.truncate(block.length - (block.length % this.#page))
    await this.#write([{ view: [block], tokens: other.subarray(block.length) }])
    const afresh = await this.#filled(other)
    return await this.#compare('reuse', 'afresh', [block], [afresh], this.#exact)
  }

  /** A fork of a text whose own block has gone on. */
  async #fork(): Promise<ReuseCase> {
    const original = await this.#filled(this.#a)
    const fork = original.fork()
    await this.#write([{ view: [original], tokens: this.#b }])
    const afresh = await this.#filled(this.#a)
    return await this.#compare('fork', 'afresh', [fork], [afresh], this.#exact)
  }

  /** A block that was written behind one text, now seen behind another one. */
  async #moved(): Promise<ReuseCase[]> {
    const [before, now] = [
      await this.#filled(this.#a),
      await this.#filled(joined(this.#c, this.#a)),
    ]
    const block = this.#cache.createBlock()
    await this.#write([{ view: [before, block], tokens: this.#b }])
    const afresh = this.#cache.createBlock()
    await this.#write([{ view: [now, afresh], tokens: this.#b }])
    return [
      await this.#compareTurned('moved', [now, block]),
      await this.#compare('moved', 'afresh', [now, block], [now, afresh], null),
    ]
  }

  /** Two turns, written at once by workers that did not see each other, one behind the other in the common block. */
  async #interleaved(): Promise<ReuseCase[]> {
    const common = await this.#filled(this.#a)
    const [alice, bob] = [this.#cache.createBlock(), this.#cache.createBlock()]
    await this.#write([
      { view: [common, alice], tokens: this.#b },
      { view: [common, bob], tokens: this.#c },
    ])
    common.appendFrom(alice)
    common.appendFrom(bob)
    const afresh = await this.#filled(joined(this.#a, this.#b, this.#c))
    return [
      await this.#compareTurned('interleaved', [common]),
      await this.#compare('interleaved', 'afresh', [common], [afresh], null),
    ]
  }

  /** Keys stay as they were rotated, and queries are turned to meet them: the same as if the keys had been turned. */
  async #compareTurned(name: ReuseCase['case'], view: readonly Block[]): Promise<ReuseCase> {
    const turned = this.#cache.createBlock()
    for (const block of view) turned.appendFrom(block)
    await turned.compact()
    return await this.#compare(name, 'turned', view, [turned], this.#rounded)
  }

  async #compare(
    name: ReuseCase['case'],
    against: ReuseCase['against'],
    view: readonly Block[],
    other: readonly Block[],
    allowed: number | null,
  ): Promise<ReuseCase> {
    const [expected, actual] = [await this.#ask(other), await this.#ask(view)]
    const divergence = diverge(actual, expected, this.#model.config.vocabSize)
    return { cache: this.#dtype, case: name, against, ...divergence, allowed }
  }

  /** Logits [QUESTION, V] behind a view, of a question that begins as the last of the texts. */
  async #ask(view: readonly Block[]): Promise<Float32Array> {
    using own = this.#cache.createBlock()
    const tokens = this.#c.subarray(0, QUESTION)
    const blocks = [...view, own]
    const [output] = await this.#model.step([
      { view: { blocks }, tokens, sampler: null, logits: 'all' },
    ])
    return output?.logits as Float32Array
  }

  async #filled(tokens: Int32Array): Promise<Block> {
    const block = this.#cache.createBlock()
    await this.#write([{ view: [block], tokens }])
    return block
  }

  /** In one step. */
  async #write(parts: readonly { view: Block[]; tokens: Int32Array }[]): Promise<void> {
    await this.#model.step(
      parts.map(({ view: blocks, tokens }) => ({ view: { blocks }, tokens, sampler: null })),
    )
  }
}

/** Of logits [tokens, V]. NaN where one of them is. */
export function diverge(
  actual: Float32Array,
  expected: Float32Array,
  vocabSize: number,
): Divergence {
  const tokens = expected.length / vocabSize
  const differences = expected.map((logit, i) => Math.abs(logit - (actual[i] as number)))
  const difference = differences.reduce((a, b) => (b > a || Number.isNaN(b) ? b : a), 0)
  let kl = 0
  let sameArgmax = 0
  for (let token = 0; token < tokens; token++) {
    const row = (logits: Float32Array) =>
      logits.subarray(token * vocabSize, (token + 1) * vocabSize)
    const [of, from] = [row(expected), row(actual)]
    kl = Math.max(kl, divergenceOf(of, from))
    if (argmax(of) === argmax(from)) sameArgmax++
  }
  return { difference, deviations: difference / deviation(expected), kl, sameArgmax, tokens }
}

/** Sum of p log(p / q), p and q the softmax of the logits. */
function divergenceOf(logits: Float32Array, others: Float32Array): number {
  const [p, q] = [logSoftmax(logits), logSoftmax(others)]
  const sum = p.reduce((all, log, i) => all + Math.exp(log) * (log - (q[i] as number)), 0)
  return Math.max(0, sum) // equal ones may round below
}

function logSoftmax(logits: Float32Array): Float64Array {
  const most = logits.reduce((a, b) => Math.max(a, b))
  const sum = logits.reduce((all, logit) => all + Math.exp(logit - most), 0)
  return Float64Array.from(logits, (logit) => logit - most - Math.log(sum))
}

function argmax(logits: Float32Array): number {
  return logits.reduce((best, logit, i) => (logit > (logits[best] as number) ? i : best), 0)
}

function deviation(logits: Float32Array): number {
  const mean = logits.reduce((a, b) => a + b, 0) / logits.length
  return Math.sqrt(logits.reduce((sum, x) => sum + (x - mean) ** 2, 0) / logits.length)
}

function joined(...texts: readonly Int32Array[]): Int32Array {
  return Int32Array.from(texts.flatMap((ids) => [...ids]))
}

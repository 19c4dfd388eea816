// The loop of Hogwild! Inference (arXiv 2504.06261): workers that write in lock step into one cache,
// each seeing the others' tokens through its own view.

import type { Block, Cache } from './cache'
import { HogwildError } from './errors'
import type { StopEvent, WorkerEvent } from './events'
import { commitsTurns, LAYOUT_NAMES, type LayoutName, viewOf } from './layout'
import { Model } from './model'
import { Sampler, type SamplerOptions } from './sampler'
import { throwIfAborted } from './tasks'
import type { TextStream } from './tokenizer/text-stream'
import { Tokenizer } from './tokenizer/tokenizer'
import {
  checkArray,
  checkBoolean,
  checkInstance,
  checkInteger,
  checkObject,
  checkOneOf,
  checkSignal,
  checkString,
  checkTokens,
  invalid,
} from './validate'

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
  /** A worker stops once it has written one; default: those of the tokenizer, or else of the model. */
  stopTokens?: ArrayLike<number> | undefined
  /**
   * Whether a turn ends, asked after each sampled token; `ids`: the tokens sampled in this turn. Not with
   * layout 'contiguous', which has no turns. Default: never.
   */
  turnEnds?: ((ids: readonly number[]) => boolean) | undefined
  /** Tokens that a worker's next turn begins with, after the one sampled last; `turn`: turns ended so far. */
  turnHeader?: ((worker: string, turn: number) => ArrayLike<number>) | undefined
  /** Tokens that each worker may write; default: no bound but the capacity. */
  maxTokens?: number | undefined
  /** Of the run's cache, in tokens; default 8192. */
  capacity?: number | undefined
  /** For the text of token events. */
  tokenizer?: Tokenizer | undefined
  /** Ends the run: the iterator throws HOGWILD_ABORTED with the signal's reason as `cause`. */
  signal?: AbortSignal | undefined
}

/** A worker as seen from outside. */
export interface WorkerStatus {
  name: string
  state: 'active' | 'paused' | 'stopped'
  /** All that it has written, forced tokens and ended turns included. */
  tokens: readonly number[]
}

/**
 * Starts a run. Nothing is computed before the first event is asked for.
 *
 *     await using run = runWorkers({ model, prompt, workers: [alice, bob], tokenizer })
 *     for await (const event of run) {
 *       if (event.type === 'token') show(event.worker, event.text)
 *     }
 *
 * Throws HOGWILD_INVALID_ARGUMENT.
 */
export function runWorkers(options: RunOptions): WorkerRun {
  return new WorkerRun(options)
}

/** A token that enters a worker's block in its next step. */
interface Pending {
  token: number
  forced: boolean
}

/** A worker's part of the cache. */
interface Blocks {
  common: Block
  header: Block | undefined
  own: Block
}

class Worker {
  readonly name: string
  readonly header: Int32Array
  readonly maxTokens: number
  readonly sampler: Sampler | undefined
  readonly text: TextStream | undefined
  state: WorkerStatus['state'] = 'active'
  blocks: Blocks | undefined // from the step boundary at which it joins
  pending: Pending[]
  /** Why it stops once its pending tokens are in its block. */
  ending: StopEvent['reason'] | undefined
  readonly tokens: number[] = []
  written = 0
  turn = 0
  turnIds: number[] = []

  constructor(spec: WorkerSpec, name: string, options: RunOptions) {
    checkObject(spec, name)
    const { vocabSize } = options.model.config
    this.name = checkString(spec.name, `${name}.name`)
    this.header = checkTokens(spec.header ?? [], `${name}.header`, vocabSize)
    this.pending = forced(checkTokens(spec.prompt, `${name}.prompt`, vocabSize, 1))
    this.maxTokens = checkMaxTokens(spec.maxTokens ?? options.maxTokens, `${name}.maxTokens`)
    this.sampler = spec.sampler === undefined ? undefined : new Sampler(spec.sampler)
    this.text = options.tokenizer?.stream()
  }
}

type Joined = Worker & { blocks: Blocks }

function hasBlocks(worker: Worker): worker is Joined {
  return worker.blocks !== undefined
}

function forced(tokens: Int32Array): Pending[] {
  return Array.from(tokens, (token) => ({ token, forced: true }))
}

function checkMaxTokens(value: number | undefined, name: string): number {
  return value === undefined ? Number.POSITIVE_INFINITY : checkInteger(value, name, 1)
}

/**
 * A run of workers: an async iterable of events, for one consumer. It is pull-driven: a step runs when
 * the consumer asks for an event and none is left of the step before, so a slow consumer paces the run.
 *
 * `join`, `stop`, `pause`, `resume` and `inject` take effect at the next step boundary; on a worker that
 * has stopped they have no effect. After the run has ended they throw HOGWILD_CLOSED.
 *
 * The run owns its cache and frees it when it ends: after the last event, when the consumer leaves its
 * loop, on an error (thrown from the iterator, e.g. HOGWILD_OUT_OF_PAGES) and by `close()`.
 */
export class WorkerRun implements AsyncIterable<WorkerEvent> {
  readonly #options: RunOptions
  readonly #layout: LayoutName
  readonly #share: boolean
  readonly #prompt: Int32Array
  readonly #sharedHeader: Int32Array
  readonly #stopTokens: ReadonlySet<number>
  readonly #workers: Worker[] = []
  readonly #events: AsyncGenerator<WorkerEvent, void, void>
  readonly #abort = new AbortController()
  #controls: (() => WorkerEvent[])[] = []
  #wake: () => void = () => {}
  #state: 'open' | 'closing' | 'ended' = 'open'
  #steps = 0
  #tokens = 0
  #milliseconds = 0

  /** @internal */
  constructor(options: RunOptions) {
    checkObject(options, 'options')
    const { model, tokenizer, turnEnds } = options
    const { vocabSize, eosTokenIds } = checkInstance(model, 'options.model', Model).config
    if (tokenizer !== undefined) checkInstance(tokenizer, 'options.tokenizer', Tokenizer)
    this.#options = options
    this.#layout = checkOneOf(options.layout ?? 'combined', 'options.layout', LAYOUT_NAMES)
    this.#share = checkBoolean(options.share ?? true, 'options.share')
    this.#prompt = checkTokens(options.prompt, 'options.prompt', vocabSize)
    this.#sharedHeader = checkTokens(options.sharedHeader ?? [], 'options.sharedHeader', vocabSize)
    if (this.#sharedHeader.length > 0 && this.#layout !== 'combined') {
      throw invalid('options.sharedHeader', "absent but in layout 'combined'", options.sharedHeader)
    }
    if (turnEnds !== undefined && !commitsTurns(this.#layout)) {
      throw invalid('options.turnEnds', `absent in layout '${this.#layout}'`, turnEnds)
    }
    checkMaxTokens(options.maxTokens, 'options.maxTokens')
    checkSignal(options.signal, 'options.signal')
    this.#stopTokens = new Set(
      checkTokens(
        options.stopTokens ?? tokenizer?.eosTokenIds ?? eosTokenIds,
        'options.stopTokens',
        vocabSize,
      ),
    )
    checkArray(options.workers, 'options.workers').forEach((spec, i) => {
      this.#add(spec as WorkerSpec, `options.workers[${i}]`)
    })
    this.#abort.signal.addEventListener('abort', () => this.#wake())
    this.#events = this.#run()
  }

  /** Name, state and tokens of all workers, in worker order. */
  get workers(): readonly WorkerStatus[] {
    return this.#workers.map(({ name, state, tokens }) => ({ name, state, tokens: [...tokens] }))
  }

  /** Adds a worker, last in worker order. */
  join(spec: WorkerSpec): void {
    this.#open()
    this.#add(spec, 'worker')
    this.#wake()
  }

  /**
   * Stops a worker. `append`: tokens that take the place of its pending ones, e.g. a mark that tells the
   * others; it stops once they are in its block. A worker that has not written yet gets none.
   */
  stop(name: string, options: { append?: ArrayLike<number> | undefined } = {}): void {
    const mark = forced(this.#checkTokens(options.append ?? [], 'options.append'))
    this.#control(name, (worker) => {
      if (mark.length === 0 || worker.tokens.length === 0) return [this.#stop(worker, 'stopped')]
      worker.pending = mark
      worker.ending = 'stopped'
      worker.state = 'active'
      return []
    })
  }

  /** The worker sits out until `resume`; its pending tokens wait. */
  pause(name: string): void {
    this.#control(name, (worker) => this.#switch(worker, 'active', 'paused', 'pause'))
  }

  resume(name: string): void {
    this.#control(name, (worker) => this.#switch(worker, 'paused', 'active', 'resume'))
  }

  /** Tokens that enter the worker's block before its pending ones, in the same step. */
  inject(name: string, tokens: ArrayLike<number>): void {
    const injected = forced(this.#checkTokens(tokens, 'tokens'))
    this.#control(name, (worker) => {
      worker.pending = [...injected, ...worker.pending]
      return []
    })
  }

  [Symbol.asyncIterator](): AsyncIterator<WorkerEvent, void, void> {
    return this.#events
  }

  /** Aborts the step under way, ends the iteration, frees the cache, and waits for all that. Idempotent. */
  async close(): Promise<void> {
    if (this.#state === 'open') {
      this.#state = 'closing'
      this.#abort.abort()
    }
    await this.#events.return()
    this.#state = 'ended'
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  async *#run(): AsyncGenerator<WorkerEvent, void, void> {
    const { model, capacity, signal } = this.#options
    const abort = () => this.#abort.abort(signal?.reason)
    if (signal?.aborted) abort()
    signal?.addEventListener('abort', abort)
    let cache: Cache | undefined
    try {
      throwIfAborted(this.#abort.signal)
      cache = model.createCache({ capacity })
      const common = await this.#prefilled(cache, this.#prompt)
      const shared = await this.#headerBlock(cache, this.#sharedHeader)
      for (;;) {
        yield* await this.#boundary(cache, common)
        const active = this.#workers.filter(({ state }) => state === 'active')
        if (active.length > 0) {
          yield* await this.#step(active, shared)
        } else if (this.#workers.some(({ state }) => state === 'paused')) {
          await this.#changed()
        } else {
          break
        }
      }
      const [steps, tokens, milliseconds] = [this.#steps, this.#tokens, this.#milliseconds]
      yield { type: 'end', steps, tokens, milliseconds }
    } catch (error) {
      const closing = this.#state === 'closing' && this.#abort.signal.aborted
      if (!closing || (error as { code?: unknown }).code !== 'HOGWILD_ABORTED') throw error
    } finally {
      this.#state = 'ended'
      signal?.removeEventListener('abort', abort)
      await cache?.close()
    }
  }

  /** What was asked for since the last step: newcomers get their blocks, controls take effect. */
  async #boundary(cache: Cache, common: Block): Promise<WorkerEvent[]> {
    const events: WorkerEvent[] = []
    for (const worker of this.#workers.filter(({ blocks }) => blocks === undefined)) {
      const header = await this.#headerBlock(cache, worker.header)
      // Without sharing a turn that ends must stay out of the others' sight, so each has its own common.
      const ownCommon = this.#share ? common : common.fork()
      worker.blocks = { common: ownCommon, header, own: cache.createBlock() }
      events.push({ type: 'join', worker: worker.name, step: this.#steps })
    }
    const controls = this.#controls
    this.#controls = []
    return events.concat(controls.flatMap((apply) => apply()))
  }

  /** Waits for a control, a newcomer or an abort. */
  async #changed(): Promise<void> {
    await new Promise<void>((resolve) => {
      this.#wake = resolve
      if (this.#abort.signal.aborted || this.#controls.length > 0) resolve()
    })
    throwIfAborted(this.#abort.signal)
  }

  /** One lock step of the active workers. */
  async #step(active: readonly Worker[], shared: Block | undefined): Promise<WorkerEvent[]> {
    const begin = performance.now()
    const outputs = await this.#options.model.step(
      active.map((worker) => ({
        view: { blocks: this.#view(worker, shared) },
        tokens: worker.pending.map(({ token }) => token),
        sampler: worker.ending === undefined ? worker.sampler : null,
      })),
      { signal: this.#abort.signal },
    )
    const milliseconds = performance.now() - begin
    const events: WorkerEvent[] = []
    let tokens = 0
    active.forEach((worker, i) => {
      tokens += worker.pending.length
      events.push(...this.#written(worker), ...this.#proceed(worker, outputs[i]?.token))
    })
    events.push({ type: 'step', step: this.#steps, workers: active.length, tokens, milliseconds })
    this.#steps++
    this.#tokens += tokens
    this.#milliseconds += milliseconds
    return events
  }

  #view(worker: Worker, shared: Block | undefined): Block[] {
    const joined = this.#workers.filter(hasBlocks)
    const { common } = (worker as Joined).blocks
    const blocks = { common, shared, workers: joined.map((other) => other.blocks) }
    return viewOf(this.#layout, blocks, joined.indexOf(worker as Joined), { share: this.#share })
  }

  /** The pending tokens are in the worker's block. */
  #written(worker: Worker): WorkerEvent[] {
    const events = worker.pending.map(({ token, forced }): WorkerEvent => {
      worker.tokens.push(token)
      if (!forced) worker.written++
      const text = worker.text?.push(token) ?? ''
      return { type: 'token', worker: worker.name, step: this.#steps, token, text, forced }
    })
    worker.pending = []
    return events
  }

  /** What follows from the token sampled last: undefined for a worker that has just written its last one. */
  #proceed(worker: Worker, sampled: number | undefined): WorkerEvent[] {
    if (sampled === undefined) return [this.#stop(worker, worker.ending as StopEvent['reason'])]
    worker.pending = [{ token: sampled, forced: false }]
    worker.turnIds.push(sampled)
    if (this.#stopTokens.has(sampled)) {
      worker.ending = 'stop-token'
    } else if (worker.written + 1 >= worker.maxTokens) {
      worker.ending = 'max-tokens'
    } else if (this.#options.turnEnds?.(worker.turnIds)) {
      return [this.#endTurn(worker as Joined)]
    }
    return []
  }

  // The sampled token was not processed yet, so in the cache it opens the next turn (SEMANTICS, "Layouts").
  #endTurn(worker: Joined): WorkerEvent {
    const { turnHeader } = this.#options
    worker.turn++
    worker.turnIds = []
    const header = turnHeader?.(worker.name, worker.turn) ?? []
    worker.pending.push(...forced(this.#checkTokens(header, 'the result of turnHeader')))
    worker.blocks.common.appendFrom(worker.blocks.own, { clearSource: true })
    return { type: 'turn', worker: worker.name, step: this.#steps, turn: worker.turn }
  }

  async #headerBlock(cache: Cache, tokens: Int32Array): Promise<Block | undefined> {
    return tokens.length === 0 ? undefined : this.#prefilled(cache, tokens)
  }

  /** A block with these tokens, computed on their own. */
  async #prefilled(cache: Cache, tokens: Int32Array): Promise<Block> {
    const block = cache.createBlock()
    if (tokens.length > 0) {
      const signal = this.#abort.signal
      await this.#options.model.prefill(block, tokens, { sampler: null, signal })
    }
    return block
  }

  #open(): void {
    if (this.#state !== 'open') throw new HogwildError('the run has ended', 'HOGWILD_CLOSED')
  }

  #checkTokens(tokens: ArrayLike<number>, name: string): Int32Array {
    return checkTokens(tokens, name, this.#options.model.config.vocabSize)
  }

  #add(spec: WorkerSpec, name: string): void {
    const worker = new Worker(spec, name, this.#options)
    if (this.#workers.some((other) => other.name === worker.name)) {
      throw invalid(`${name}.name`, 'a name that no other worker has', worker.name)
    }
    this.#workers.push(worker)
  }

  #control(name: string, apply: (worker: Worker) => WorkerEvent[]): void {
    this.#open()
    const worker = this.#workers.find((other) => other.name === name)
    if (worker === undefined) {
      const names = this.#workers.map((other) => `'${other.name}'`).join(', ')
      throw invalid('name', `one of ${names}`, name)
    }
    this.#controls.push(() => (worker.state === 'stopped' ? [] : apply(worker)))
    this.#wake()
  }

  #switch(
    worker: Worker,
    from: WorkerStatus['state'],
    to: WorkerStatus['state'],
    type: 'pause' | 'resume',
  ): WorkerEvent[] {
    if (worker.state !== from) return []
    worker.state = to
    return [{ type, worker: worker.name, step: this.#steps }]
  }

  #stop(worker: Worker, reason: StopEvent['reason']): WorkerEvent {
    worker.state = 'stopped'
    worker.pending = []
    return { type: 'stop', worker: worker.name, step: this.#steps, reason }
  }
}

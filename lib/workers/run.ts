// The loop of Hogwild! Inference (arXiv 2504.06261): workers that write in lock step into one cache,
// each seeing the others' tokens through its own view.

import type { Block } from '../block'
import type { Cache } from '../cache'
import { HogwildError, type HogwildErrorCode } from '../errors'
import type { StepOutput, StepWorker } from '../model'
import { prefillInPieces } from '../prefill'
import { withinVocabulary } from '../sources/eos'
import { onAbort, throwIfAborted } from '../tasks'
import { checkBoolean, checkOptions, checkTokens, invalid, optionKeys } from '../validate'
import { type Warning, Warnings } from '../warnings'
import type { StopReason, WarningEvent, WorkerEvent } from './events'
import { orderBlocks } from './layout'
import {
  checkRunOptions,
  checkWorkerSpec,
  type RunOptions,
  type RunSettings,
  type WorkerSpec,
} from './options'
import { forced, type StepState, Worker, type WorkerBlocks, type WorkerStatus } from './worker'

/** How a worker is stopped. */
export interface StopOptions {
  /**
   * Tokens that take the place of its pending ones, e.g. a mark that tells the others; it stops once they
   * are in its block. A worker that has not written yet gets none. Default: none.
   */
  append?: ArrayLike<number> | undefined
}

const STOP_KEYS = optionKeys<StopOptions>()({ append: true })

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

/** The blocks that all workers of a run share. */
interface SharedBlocks {
  cache: Cache
  common: Block
  shared: Block | undefined
}

/** A worker that takes part in a step, in the state in which it does so. */
interface Participant {
  worker: Worker
  state: StepState
}

/**
 * A run of workers: an async iterable of events, for one consumer. It is pull-driven: a step runs when
 * the consumer asks for an event and none is left of the step before, so a slow consumer paces the run.
 *
 * `join`, `stop`, `pause`, `resume` and `inject` may be called at any time, also while an event is handled or
 * from a callback. They take effect at the next step boundary; on a worker that has stopped they have no
 * effect. After the last event they throw HOGWILD_CLOSED; `join` does so once all workers have stopped and the
 * last event is out.
 *
 * A full cache stops workers and not the run: where the tokens of all active workers find no room, each of
 * them, in worker order, for whom there is room beside those before it goes on, and the others stop for
 * `out-of-pages`. Only a prompt or shared header that finds no room is an error.
 *
 * The run owns its cache and frees it when it ends: after the last event, when the consumer leaves its
 * loop, on an error (thrown from the iterator) and by `close()`.
 */
export class WorkerRun implements AsyncIterable<WorkerEvent> {
  readonly #settings: RunSettings
  readonly #workers: Worker[] = []
  readonly #events: AsyncGenerator<WorkerEvent, void, void>
  readonly #abort = new AbortController()
  readonly #warnings: Warnings
  /** Warnings that the consumer has not seen yet. */
  #warned: WarningEvent[] = []
  #stopTokens: ReadonlySet<number> = new Set()
  #controls: (() => WorkerEvent[])[] = []
  #wake: () => void = () => {}
  #state: 'open' | 'closing' | 'ended' = 'open'
  #allStopped = false
  #steps = 0
  #tokens = 0
  #milliseconds = 0

  /** @internal */
  constructor(options: RunOptions) {
    this.#settings = checkRunOptions(options)
    this.#settings.workers.forEach((spec, i) => {
      this.#add(spec, `options.workers[${i}]`)
    })
    this.#warnings = new Warnings((warning) => {
      this.#warned.push({ type: 'warning', step: this.#steps, ...warning })
      this.#settings.model.warnings.warn(warning.code, warning.message)
    })
    this.#abort.signal.addEventListener('abort', () => this.#wake())
    this.#events = this.#run()
  }

  /** Name, state and tokens of all workers, in worker order; also after the run. */
  get workers(): readonly WorkerStatus[] {
    return this.#workers.map(({ status }) => status)
  }

  /** Adds a worker, last in worker order. Throws HOGWILD_INVALID_ARGUMENT, HOGWILD_CLOSED. */
  join(spec: WorkerSpec): void {
    this.#open()
    if (this.#allStopped) throw new HogwildError('all workers have stopped', 'HOGWILD_CLOSED')
    this.#add(spec, 'worker')
    this.#wake()
  }

  /** Stops a worker. Throws HOGWILD_INVALID_ARGUMENT, HOGWILD_CLOSED. */
  stop(name: string, options: StopOptions = {}): void {
    const { append = [] } = checkOptions(options, 'options', STOP_KEYS)
    const mark = forced(this.#checkTokens(append, 'options.append'))
    this.#control(name, (worker, blocks) => {
      if (mark.length === 0 || worker.tokens.length === 0) return [this.#stop(worker, 'stopped')]
      const events = worker.state.name === 'paused' ? [this.#resumed(worker)] : []
      worker.pending = mark
      worker.state = { name: 'stopping', blocks, reason: 'stopped' }
      return events
    })
  }

  /** The worker sits out until `resume`; its pending tokens wait. Throws as `stop` does. */
  pause(name: string): void {
    this.#control(name, (worker, blocks) => {
      const { state } = worker
      if (state.name === 'paused') return []
      const ending = state.name === 'stopping' ? state.reason : undefined
      worker.state = { name: 'paused', blocks, ending }
      return [{ type: 'pause', worker: worker.name, step: this.#steps }]
    })
  }

  /** A paused worker takes part again. Throws as `stop` does. */
  resume(name: string): void {
    this.#control(name, (worker, blocks) => {
      const { state } = worker
      if (state.name !== 'paused') return []
      worker.state =
        state.ending === undefined
          ? { name: 'active', blocks }
          : { name: 'stopping', blocks, reason: state.ending }
      return [this.#resumed(worker)]
    })
  }

  /** Tokens that enter the worker's block before its pending ones, in the same step. Throws as `stop` does. */
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
    this.#end()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  async *#run(): AsyncGenerator<WorkerEvent, void, void> {
    const { model, capacity, context, cacheDtype: dtype, signal, prompt } = this.#settings
    const { sharedHeader, onPrefill } = this.#settings
    let cache: Cache | undefined
    let forget = () => {}
    try {
      throwIfAborted(signal)
      throwIfAborted(this.#abort.signal)
      forget = onAbort(signal, () => this.#abort.abort())
      this.#stopTokens = this.#findStopTokens()
      cache = model.createCache({ capacity, context, dtype, onWarning: this.#onWarning })
      const common = await this.#prefilled(cache, prompt, onPrefill)
      const shared = await this.#headerBlock(cache, sharedHeader)
      const blocks = { cache, common, shared }
      while (this.#workers.some(({ state }) => state.name !== 'stopped')) {
        const events = await this.#boundary(blocks)
        yield* this.#withWarnings(events)
        const participants = this.#workers.flatMap((worker) => participant(worker))
        if (participants.length > 0) {
          const written = await this.#step(participants, blocks)
          yield* this.#withWarnings(written)
        } else if (this.#workers.some(({ state }) => state.name === 'paused')) {
          await this.#changed()
        }
      }
      yield* this.#withWarnings([])
      this.#allStopped = true
      const [steps, tokens, milliseconds] = [this.#steps, this.#tokens, this.#milliseconds]
      yield { type: 'end', steps, tokens, milliseconds }
    } catch (error) {
      const { code } = error as { code?: HogwildErrorCode }
      const ofClosing = code === 'HOGWILD_ABORTED' || code === 'HOGWILD_CLOSED'
      if (this.#state === 'closing' && ofClosing) return
      if (code === 'HOGWILD_ABORTED') throwIfAborted(signal) // with its reason
      throw error
    } finally {
      this.#end()
      forget()
      await cache?.close()
    }
  }

  /** No control has an effect any more, and no worker refers to the cache. */
  #end(): void {
    this.#state = 'ended'
    for (const worker of this.#workers) worker.state = { name: 'stopped', blocks: undefined }
  }

  readonly #onWarning = ({ code, message }: Warning): void => this.#warnings.warn(code, message)

  /** The events behind the warnings that came up meanwhile. */
  #withWarnings(events: readonly WorkerEvent[]): WorkerEvent[] {
    const warned = this.#warned
    this.#warned = []
    return [...warned, ...events]
  }

  #findStopTokens(): ReadonlySet<number> {
    const { model, tokenizer, stopTokens } = this.#settings
    const { eosTokenIds, vocabSize } = model.config
    if (stopTokens !== undefined) return new Set(stopTokens)
    const known = new Set([...eosTokenIds, ...(tokenizer?.eosTokenIds ?? [])])
    return new Set(withinVocabulary([...known], vocabSize, this.#warnings))
  }

  /** What was asked for since the last step: newcomers get their blocks, controls take effect. */
  async #boundary({ cache, common }: SharedBlocks): Promise<WorkerEvent[]> {
    const events: WorkerEvent[] = []
    // Others may join while the header of one is computed.
    for (let worker = this.#joining(); worker !== undefined; worker = this.#joining()) {
      events.push({ type: 'join', worker: worker.name, step: this.#steps })
      try {
        const header = await this.#headerBlock(cache, worker.header)
        // Without sharing a turn that ends must stay out of the others' sight, so each has its own common.
        const ownCommon = this.#settings.share ? common : common.fork()
        const blocks = { common: ownCommon, header, own: cache.createBlock() }
        worker.state = { name: 'active', blocks }
      } catch (error) {
        if (!isOutOfPages(error)) throw error
        events.push(this.#stop(worker, 'out-of-pages'))
      }
    }
    const controls = this.#controls
    this.#controls = []
    for (const apply of controls) events.push(...apply())
    return events
  }

  #joining(): Worker | undefined {
    return this.#workers.find(({ state }) => state.name === 'joining')
  }

  /** Waits for a control, a newcomer or an abort. */
  async #changed(): Promise<void> {
    await new Promise<void>((resolve) => {
      this.#wake = resolve
      const changed = this.#controls.length > 0 || this.#joining() !== undefined
      if (changed || this.#abort.signal.aborted) resolve()
    })
    throwIfAborted(this.#abort.signal)
  }

  /** One lock step of the workers that take part. */
  async #step(participants: readonly Participant[], blocks: SharedBlocks): Promise<WorkerEvent[]> {
    const { model, beyondContext } = this.#settings
    const parts = participants.map((one) => this.#stepWorker(one, blocks))
    let outputs: StepOutput[]
    let seconds: number
    try {
      ;({ outputs, seconds } = await model.timedStep(parts, {
        signal: this.#abort.signal,
        beyondContext,
        onWarning: this.#onWarning,
      }))
    } catch (error) {
      const withoutRoom = isOutOfPages(error) ? this.#withoutRoom(participants, parts, blocks) : []
      if (withoutRoom.length === 0) throw error
      return withoutRoom.map((worker) => this.#stop(worker, 'out-of-pages'))
    }
    const events: WorkerEvent[] = []
    const milliseconds = seconds * 1e3
    let tokens = 0
    participants.forEach(({ worker, state }, i) => {
      tokens += worker.pending.length
      for (const written of worker.write()) {
        events.push({ type: 'token', worker: worker.name, step: this.#steps, ...written })
      }
      events.push(...this.#proceed(worker, state, outputs[i]?.token))
    })
    const workers = participants.length
    events.push({ type: 'step', step: this.#steps, workers, tokens, milliseconds })
    this.#steps++
    this.#tokens += tokens
    this.#milliseconds += milliseconds
    return events
  }

  #stepWorker({ worker, state }: Participant, { shared }: SharedBlocks): StepWorker {
    const present = this.#workers.flatMap((other) => other.blocks ?? [])
    const blocks = orderBlocks(
      this.#settings.layout,
      { common: state.blocks.common, shared, workers: present },
      present.indexOf(state.blocks),
      this.#settings.share,
    )
    return {
      view: { blocks },
      tokens: worker.pending.map(({ token }) => token),
      sampler: state.name === 'active' ? worker.sampler : null,
    }
  }

  /** The workers whose tokens find no room beside those of the workers before them that do. */
  #withoutRoom(
    participants: readonly Participant[],
    parts: readonly StepWorker[],
    { cache }: SharedBlocks,
  ): Worker[] {
    const fitting: { view: StepWorker['view']; tokens: number }[] = []
    return participants.flatMap(({ worker }, i) => {
      const { view, tokens } = parts[i] as StepWorker
      const part = { view, tokens: tokens.length }
      try {
        cache.beginPass([...fitting, part]).abort()
        fitting.push(part)
        return []
      } catch (error) {
        if (!isOutOfPages(error)) throw error
        return [worker]
      }
    })
  }

  /** What follows from the token sampled last; a stopping worker has sampled none. */
  #proceed(worker: Worker, state: StepState, sampled: number | undefined): WorkerEvent[] {
    if (worker.cameToStop) return [this.#stop(worker, 'stop-string')]
    if (state.name === 'stopping') return [this.#stop(worker, state.reason)]
    const token = sampled as number
    const { blocks } = state
    worker.pending = [{ token, forced: false }]
    worker.turnIds.push(token)
    if (this.#stopTokens.has(token)) {
      worker.state = { name: 'stopping', blocks, reason: 'stop-token' }
    } else if (worker.written + 1 >= worker.maxTokens) {
      worker.state = { name: 'stopping', blocks, reason: 'max-tokens' }
    } else if (this.#turnEnds(worker)) {
      return [this.#endTurn(worker, blocks)]
    }
    return []
  }

  #turnEnds({ turnIds }: Worker): boolean {
    const { turnEnds } = this.#settings
    if (turnEnds === undefined) return false
    return checkBoolean(turnEnds(turnIds), 'the result of turnEnds')
  }

  // The sampled token was not processed yet, so in the cache it opens the next turn.
  #endTurn(worker: Worker, { common, own }: WorkerBlocks): WorkerEvent {
    worker.turn++
    worker.turnIds = []
    const header = this.#settings.turnHeader?.(worker.name, worker.turn) ?? []
    worker.pending.push(...forced(this.#checkTokens(header, 'the result of turnHeader')))
    common.appendFrom(own, { clearSource: true })
    return { type: 'turn', worker: worker.name, step: this.#steps, turn: worker.turn }
  }

  async #headerBlock(cache: Cache, tokens: Int32Array): Promise<Block | undefined> {
    return tokens.length === 0 ? undefined : await this.#prefilled(cache, tokens)
  }

  /** A block with these tokens, computed on their own. */
  async #prefilled(
    cache: Cache,
    tokens: Int32Array,
    onProgress?: RunOptions['onPrefill'],
  ): Promise<Block> {
    const { model, beyondContext } = this.#settings
    const block = cache.createBlock()
    if (tokens.length === 0) return block
    const options = {
      sampler: null,
      signal: this.#abort.signal,
      beyondContext,
      onWarning: this.#onWarning,
    }
    await prefillInPieces(model, block, tokens, options, onProgress)
    return block
  }

  #open(): void {
    if (this.#state !== 'open') throw new HogwildError('the run has ended', 'HOGWILD_CLOSED')
  }

  #checkTokens(tokens: ArrayLike<number>, name: string): Int32Array {
    return checkTokens(tokens, name, this.#settings.model.config.vocabSize)
  }

  #add(spec: unknown, name: string): void {
    const settings = checkWorkerSpec(spec, name, this.#settings)
    if (this.#workers.some((other) => other.name === settings.name)) {
      throw invalid(`${name}.name`, 'a name that no other worker has', settings.name)
    }
    this.#workers.push(new Worker(settings, this.#settings.tokenizer))
  }

  /** At the next boundary `apply` changes a worker that has blocks and has not stopped. */
  #control(name: string, apply: (worker: Worker, blocks: WorkerBlocks) => WorkerEvent[]): void {
    this.#open()
    const worker = this.#workers.find((other) => other.name === name)
    if (worker === undefined) {
      const names = this.#workers.map((other) => `'${other.name}'`).join(', ')
      throw invalid('name', `one of ${names}`, name)
    }
    this.#controls.push(() => {
      const { blocks } = worker
      return blocks === undefined || worker.state.name === 'stopped' ? [] : apply(worker, blocks)
    })
    this.#wake()
  }

  #resumed(worker: Worker): WorkerEvent {
    return { type: 'resume', worker: worker.name, step: this.#steps }
  }

  #stop(worker: Worker, reason: StopReason): WorkerEvent {
    const text = worker.stop()
    const event = { type: 'stop', worker: worker.name, step: this.#steps, reason } as const
    return text === '' ? event : { ...event, text }
  }
}

function participant(worker: Worker): Participant[] {
  const { state } = worker
  return state.name === 'active' || state.name === 'stopping' ? [{ worker, state }] : []
}

function isOutOfPages(error: unknown): boolean {
  return (error as { code?: unknown }).code === 'HOGWILD_OUT_OF_PAGES'
}

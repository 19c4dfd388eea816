// A run: one group of workers as an async iterable of events, and the controls of it.

import type { Cache } from '../cache'
import { HogwildError, type HogwildErrorCode } from '../errors'
import { onAbort, throwIfAborted } from '../tasks'
import { checkOptions, checkTokens, invalid, optionKeys } from '../validate'
import { type Warning, Warnings } from '../warnings'
import type { Control } from './controls'
import type { WarningEvent, WorkerEvent } from './events'
import { Group } from './group'
import { checkRunOptions, checkWorkerSpec, type RunOptions, type WorkerSpec } from './options'
import { Scheduler } from './scheduler'
import { TraceFile } from './trace'
import { forced, type Pending, Worker, type WorkerStatus } from './worker'

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
  readonly #group: Group
  readonly #events: AsyncGenerator<WorkerEvent, void, void>
  readonly #abort = new AbortController()
  /** Warnings that the consumer has not seen yet. */
  #warned: WarningEvent[] = []
  #wake: () => void = () => {}
  #state: 'open' | 'closing' | 'ended' = 'open'

  /** @internal */
  constructor(options: RunOptions) {
    const settings = checkRunOptions(options)
    const warnings = new Warnings((warning) => {
      this.#warned.push({ type: 'warning', step: this.#group.state.steps, ...warning })
      settings.model.warnings.warn(warning.code, warning.message)
    })
    this.#group = new Group(settings, warnings)
    settings.workers.forEach((spec, i) => {
      this.#add(spec, `options.workers[${i}]`)
    })
    this.#abort.signal.addEventListener('abort', () => this.#wake())
    this.#events = this.#run()
  }

  /** Name, state and tokens of all workers, in worker order; also after the run. */
  get workers(): readonly WorkerStatus[] {
    return this.#group.workers.map(({ status }) => status)
  }

  /** Adds a worker, last in worker order. Throws HOGWILD_INVALID_ARGUMENT, HOGWILD_CLOSED. */
  join(spec: WorkerSpec): void {
    this.#open()
    if (this.#group.state.hasEnded)
      throw new HogwildError('all workers have stopped', 'HOGWILD_CLOSED')
    this.#add(spec, 'worker')
    this.#wake()
  }

  /** Stops a worker. Throws HOGWILD_INVALID_ARGUMENT, HOGWILD_CLOSED. */
  stop(name: string, options: StopOptions = {}): void {
    const { append = [] } = checkOptions(options, 'options', STOP_KEYS)
    const mark = this.#forced(append, 'options.append')
    this.#control({ type: 'stop', worker: name, mark })
  }

  /** The worker sits out until `resume`; its pending tokens wait. Throws as `stop` does. */
  pause(name: string): void {
    this.#control({ type: 'pause', worker: name })
  }

  /** A paused worker takes part again. Throws as `stop` does. */
  resume(name: string): void {
    this.#control({ type: 'resume', worker: name })
  }

  /** Tokens that enter the worker's block before its pending ones, in the same step. Throws as `stop` does. */
  inject(name: string, tokens: ArrayLike<number>): void {
    this.#control({ type: 'inject', worker: name, tokens: this.#forced(tokens, 'tokens') })
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
    const { warnings, settings } = this.#group
    const { model, capacity, context, cacheDtype: dtype, signal } = settings
    let cache: Cache | undefined
    let trace: TraceFile | undefined
    let forget = () => {}
    try {
      throwIfAborted(signal)
      throwIfAborted(this.#abort.signal)
      forget = onAbort(signal, () => this.#abort.abort())
      const onWarning = ({ code, message }: Warning) => warnings.warn(code, message)
      cache = model.createCache({ capacity, context, dtype, onWarning })
      const scheduler = new Scheduler(model)
      this.#group.store = cache
      trace = await this.#openTrace()
      while (!this.#group.state.hasEnded) {
        const events = await scheduler.advance(this.#group, this.#abort.signal)
        if (events === undefined) {
          await this.#changed()
          continue
        }
        const told = this.#withWarnings(events)
        await trace?.record(told)
        yield* told
      }
    } catch (error) {
      const { code } = error as { code?: HogwildErrorCode }
      const ofClosing = code === 'HOGWILD_ABORTED' || code === 'HOGWILD_CLOSED'
      if (this.#state === 'closing' && ofClosing) return
      if (code === 'HOGWILD_ABORTED') throwIfAborted(signal) // with its reason
      throw error
    } finally {
      this.#end()
      forget()
      await trace?.close()
      await cache?.close()
    }
  }

  async #openTrace(): Promise<TraceFile | undefined> {
    const { settings, workers } = this.#group
    const { trace, model, layout, share, prompt, sharedHeader } = settings
    if (trace === undefined) return undefined
    return await TraceFile.open(trace, {
      ...{ layout, share, prompt, sharedHeader, model: await model.fingerprint() },
      headerOf: (name) => (workers.find((worker) => worker.name === name) as Worker).header,
    })
  }

  /** No control has an effect any more, and no worker refers to the cache. */
  #end(): void {
    this.#state = 'ended'
    this.#group.close()
  }

  /** The events behind the warnings that came up meanwhile. */
  #withWarnings(events: readonly WorkerEvent[]): WorkerEvent[] {
    const warned = this.#warned
    this.#warned = []
    return [...warned, ...events]
  }

  /** Waits for a control, a newcomer or an abort. */
  async #changed(): Promise<void> {
    await new Promise<void>((resolve) => {
      this.#wake = resolve
      if (this.#group.hasChanges || this.#abort.signal.aborted) resolve()
    })
    throwIfAborted(this.#abort.signal)
  }

  #open(): void {
    if (this.#state !== 'open') throw new HogwildError('the run has ended', 'HOGWILD_CLOSED')
  }

  #forced(tokens: ArrayLike<number>, name: string): Pending[] {
    return forced(checkTokens(tokens, name, this.#group.settings.model.config.vocabSize))
  }

  #add(spec: unknown, name: string): void {
    const { settings, workers } = this.#group
    const checked = checkWorkerSpec(spec, name, settings)
    if (workers.some((other) => other.name === checked.name)) {
      throw invalid(`${name}.name`, 'a name that no other worker has', checked.name)
    }
    workers.push(new Worker(checked, settings.tokenizer))
  }

  #control(control: Control): void {
    this.#open()
    const { workers } = this.#group
    if (!workers.some(({ name }) => name === control.worker)) {
      const names = workers.map(({ name }) => `'${name}'`).join(', ')
      throw invalid('name', `one of ${names}`, control.worker)
    }
    this.#group.control(control)
    this.#wake()
  }
}

// A run: one group of workers as an async iterable of events, and the controls of it.

import type { Block } from '../block'
import { errorCode, HogwildError } from '../errors'
import { onAbort, throwIfAborted } from '../tasks'
import {
  checkArray,
  checkInteger,
  checkOptions,
  checkTokens,
  invalid,
  optionKeys,
} from '../validate'
import { Warnings } from '../warnings'
import type { Control } from './controls'
import type { WarningEvent, WorkerEvent } from './events'
import { Group, type GroupBlocks } from './group'
import { checkRunOptions, checkWorkerSpec, type RunOptions, type WorkerSpec } from './options'
import { doWork, type ParkWork } from './park'
import { type ProbeResult, ProbeStep } from './probe'
import { schedulerOf } from './scheduler'
import type { Seat } from './seat'
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

/** How a worker waits for work. */
export interface ParkOptions {
  /** Default: for ever. */
  timeoutMs?: number | undefined
}

export interface ProbeOptions {
  /** Token ids of each answer, at least one. Default: none. */
  answers?: readonly ArrayLike<number>[] | undefined
}

const STOP_KEYS = optionKeys<StopOptions>()({ append: true })
const PARK_KEYS = optionKeys<ParkOptions>()({ timeoutMs: true })
const PROBE_KEYS = optionKeys<ProbeOptions>()({ answers: true })

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
 * Runs share steps and pages (docs/groups.md): each step takes what is ready of all runs of a scheduler, without changing
 * what any of them writes. A run that is not asked for events is in no step.
 *
 * The run gives its pages back when it ends: after the last event, when the consumer leaves its loop, on an error (thrown
 * from the iterator) and by `close()`.
 */
export class WorkerRun implements AsyncIterable<WorkerEvent> {
  readonly #group: Group
  readonly #events: AsyncGenerator<WorkerEvent, void, void>
  readonly #abort = new AbortController()
  /** Warnings that the consumer has not seen yet. */
  #warned: WarningEvent[] = []
  #wake: () => void = () => {}
  /** Its place in a cache, from the first event on. */
  #seat: Seat | undefined
  /** What ended the run from outside the loop. */
  #failure: { error: unknown } | undefined
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

  /**
   * Its blocks, as the views of its workers have them. Those that the run has made are closed at its end unless
   * `keepBlocks` says otherwise; a fork of one stays. Between two steps of the cache they may be read, forked and, with
   * care, changed: HOGWILD_BUSY while one is under way.
   */
  get blocks(): GroupBlocks {
    return this.#group.blocks
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

  /**
   * Tokens that come into the common block, behind what is there, before the run's next step: its workers wait until they
   * are computed, in chunks beside the steps of other runs. Where there is no room for them the run ends with
   * HOGWILD_OUT_OF_PAGES. Throws HOGWILD_INVALID_ARGUMENT, HOGWILD_CLOSED.
   */
  append(tokens: ArrayLike<number>): void {
    this.#open()
    const { vocabSize } = this.#group.settings.model.config
    this.#group.control({ type: 'append', tokens: checkTokens(tokens, 'tokens', vocabSize, 1) })
    this.#wake()
  }

  /**
   * The worker sits out while `work` runs, and goes on with the tokens that it gives, which enter its block before its
   * pending ones; the others write meanwhile. What `work` throws, and HOGWILD_TIMEOUT after `timeoutMs`, ends the run.
   * Throws as `stop` does.
   */
  park(name: string, work: ParkWork, options: ParkOptions = {}): void {
    const { timeoutMs } = checkOptions(options, 'options', PARK_KEYS)
    if (timeoutMs !== undefined) checkInteger(timeoutMs, 'options.timeoutMs', 1, 2 ** 31 - 1)
    if (typeof work !== 'function') throw invalid('work', 'a function', work)
    this.pause(name)
    doWork(work, this.#abort.signal, timeoutMs)
      .then((tokens) => {
        if (this.#state !== 'open') return
        this.inject(name, tokens)
        this.resume(name)
      })
      .catch((error: unknown) => {
        this.#failure ??= { error }
        this.#abort.abort()
      })
  }

  /**
   * Resolves once all of these workers have stopped: how branches are joined, by a worker that is parked until then. What
   * it sets off without delay takes effect before the next step. Whoever consumes the run's events must not wait for it
   * between two of them: no step runs meanwhile.
   *
   *     run.park('root', async () => {
   *       await run.stopped(['branch 1', 'branch 2'])
   *       return tokenizer.encode('</Parallel>')
   *     })
   *
   * Rejects with HOGWILD_INVALID_ARGUMENT, and with HOGWILD_CLOSED where the run ends before.
   */
  async stopped(names: readonly string[]): Promise<void> {
    this.#open()
    const workers = checkArray(names, 'names').map((name) => this.#known(name as string))
    let forget = () => {}
    try {
      await new Promise<void>((resolve, reject) => {
        const tell = () => {
          if (workers.every(({ state }) => state.name === 'stopped')) resolve()
        }
        for (const { onStop } of workers) onStop.push(tell)
        forget = onAbort(this.#abort.signal, () => reject(hasEnded()))
        tell()
      })
    } finally {
      forget()
    }
  }

  /**
   * Asks the model something behind a view, or behind that of a worker, as it is between two steps of the run; the tokens
   * leave no trace. `answers`: how likely is each of them behind the question. Runs beside other runs, whether or not an
   * event of this one is asked for.
   *
   * Rejects with HOGWILD_INVALID_ARGUMENT, HOGWILD_OUT_OF_PAGES, HOGWILD_CLOSED, HOGWILD_ABORTED.
   */
  async probe(
    view: string | readonly Block[],
    tokens: ArrayLike<number>,
    options: ProbeOptions = {},
  ): Promise<ProbeResult> {
    const { answers = [] } = checkOptions(options, 'options', PROBE_KEYS)
    const { vocabSize } = this.#group.settings.model.config
    const question = checkTokens(tokens, 'tokens', vocabSize, 1)
    const continuations = checkArray(answers, 'options.answers').map((answer, i) =>
      checkTokens(answer as ArrayLike<number>, `options.answers[${i}]`, vocabSize, 1),
    )
    if (typeof view === 'string') this.#known(view)
    const seat = this.#seated()
    const probe = new ProbeStep(question, continuations)
    const parts = () =>
      probe.parts(typeof view === 'string' ? this.#group.viewOf(view) : view, seat)
    try {
      const outputs = await seat.batcher.probe(this.#group, this.#abort.signal, parts)
      return probe.result(outputs, vocabSize)
    } finally {
      probe.close()
    }
  }

  /**
   * Calls `change` while no step is under way on the run's cache: where blocks may be forked, read or changed although
   * other runs use it. Rejects with what it throws, and with HOGWILD_CLOSED.
   */
  async betweenSteps<T>(change: (blocks: GroupBlocks) => T): Promise<T> {
    return await this.#seated().batcher.between(() => change(this.blocks))
  }

  /** Leaves the step under way, ends the iteration, gives the pages back, and waits for all that. Idempotent. */
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
    const { model, signal, keepBlocks } = this.#group.settings
    const scheduler = this.#group.settings.scheduler ?? schedulerOf(model)
    let trace: TraceFile | undefined
    let forget = () => {}
    try {
      throwIfAborted(signal)
      throwIfAborted(this.#abort.signal)
      forget = onAbort(signal, () => this.#abort.abort())
      this.#seat = await scheduler.enter(this.#group, this.#abort.signal)
      this.#group.store = this.#seat
      trace = await this.#openTrace()
      while (!this.#group.state.hasEnded) {
        const events = await this.#seat.batcher.advance(this.#group, this.#abort.signal)
        if (events === undefined) {
          await this.#changed()
          continue
        }
        const told = this.#withWarnings(events)
        await trace?.record(told)
        yield* told
      }
    } catch (thrown) {
      const { error } = this.#failure ?? { error: thrown }
      const code = errorCode(error)
      const ofClosing = code === 'HOGWILD_ABORTED' || code === 'HOGWILD_CLOSED'
      if (this.#state === 'closing' && ofClosing) return
      if (code === 'HOGWILD_ABORTED') throwIfAborted(signal) // with its reason
      throw error
    } finally {
      this.#end()
      forget()
      await trace?.close()
      if (this.#seat !== undefined) await scheduler.leave(this.#seat, keepBlocks)
    }
  }

  async #openTrace(): Promise<TraceFile | undefined> {
    const { settings, workers } = this.#group
    const { trace, model, layout, share, prompt, sharedHeader } = settings
    if (trace === undefined) return undefined
    return await TraceFile.open(trace, {
      ...{ layout, share, prompt, model: await model.fingerprint() },
      // Without a cache of the user's, headers are tokens.
      sharedHeader: sharedHeader as Int32Array,
      headerOf: (name) =>
        (workers.find((worker) => worker.name === name) as Worker).header as Int32Array,
    })
  }

  /** No control has an effect any more. */
  #end(): void {
    this.#state = 'ended'
    this.#abort.abort() // of probes and of work that a worker waits for
    this.#group.close(this.#group.settings.keepBlocks)
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

  #seated(): Seat {
    this.#open()
    if (this.#seat !== undefined) return this.#seat
    throw new HogwildError(
      'the run has no blocks before its first event',
      'HOGWILD_INVALID_ARGUMENT',
    )
  }

  #open(): void {
    if (this.#state !== 'open') throw hasEnded()
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
    const { from } = checked
    if (from !== undefined && !workers.some((other) => other.name === from)) {
      throw invalid(`${name}.from`, 'a worker before it', from)
    }
    if (from !== undefined && checked.own !== undefined) {
      throw invalid(`${name}.from`, 'absent beside own', from)
    }
    workers.push(new Worker(checked, settings.tokenizer))
  }

  #control(control: Control): void {
    this.#open()
    this.#known(control.worker)
    this.#group.control(control)
    this.#wake()
  }

  #known(name: string): Worker {
    const { workers } = this.#group
    const known = workers.find((worker) => worker.name === name)
    if (known !== undefined) return known
    const names = workers.map((worker) => `'${worker.name}'`).join(', ')
    throw invalid('name', `one of ${names}`, name)
  }
}

function hasEnded(): HogwildError {
  return new HogwildError('the run has ended', 'HOGWILD_CLOSED')
}

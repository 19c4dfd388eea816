// A run: one group of workers as an async iterable of events, and the controls of it.

import { onAbort, throwIfAborted } from '../abort-signal'
import type { Block } from '../block'
import { errorCode, HogwildError } from '../errors'
import {
  checkArray,
  checkInteger,
  checkJson,
  checkOptions,
  checkTokens,
  invalid,
  optionKeys,
} from '../validate'
import { Warnings } from '../warnings'
import type { Control } from './controls'
import type { WorkerEvent } from './events'
import { Group, type GroupBlocks } from './group'
import {
  checkRunOptions,
  checkWorkerSpec,
  type RunOptions,
  type RunSettings,
  type WorkerSpec,
} from './options'
import { doWork, type Parked, type ParkWork } from './park'
import { type ProbeResult, ProbeStep } from './probe'
import { checkSave, type SaveOptions, saveGroup } from './save'
import { type Scheduler, schedulerOf } from './scheduler'
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
  /** What JSON can hold: `save` keeps it, `restoreRun` is asked for the work with it. Default: null. */
  data?: unknown
}

/** Options of `WorkerRun.probe`. */
export interface ProbeOptions {
  /** Token ids of each answer, at least one. Default: none. */
  answers?: readonly ArrayLike<number>[] | undefined
}

/** @internal What a restored run goes on with. */
export interface Continuation {
  /** Codes of warnings that were told. */
  warned: readonly string[]
  /** All but their blocks and states. */
  workers: readonly Worker[]
  /** That the blocks take. */
  pages: number
  /** Brings the blocks, and the group's state. */
  fill: (group: Group, seat: Seat) => Promise<void>
  parked: readonly { parked: Parked; work: ParkWork }[]
}

const STOP_KEYS = optionKeys<StopOptions>()({ append: true })
const PARK_KEYS = optionKeys<ParkOptions>()({ timeoutMs: true, data: true })
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
  return new WorkerRun(checkRunOptions(options))
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
  /** Work that workers wait for. */
  readonly #parked = new Set<Parked>()
  readonly #saves = new Set<Promise<unknown>>()
  #wake: () => void = () => {}
  /** Its place in a cache, from the first event on. */
  #seat: Seat | undefined
  /** Takes the listener of the user's signal away. */
  #forget: () => void = () => {}
  /** Tokens of `append`, until the trace has them. */
  readonly #appended: Int32Array[] = []
  /** What ended the run from outside the loop. */
  #failure: { error: unknown } | undefined
  #state: 'open' | 'closing' | 'ended' = 'open'

  /** @internal */
  constructor(settings: RunSettings) {
    const warnings = new Warnings((warning) => {
      const { outbox, steps } = this.#group.state
      outbox.push({ type: 'warning', step: steps, ...warning })
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

  /** The events, for one consumer. One that leaves its loop ends the run. */
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
    const { model, trace } = this.#group.settings
    const checked = checkTokens(tokens, 'tokens', model.config.vocabSize, 1)
    this.#group.control({ type: 'append', tokens: checked })
    if (trace !== undefined) this.#appended.push(checked)
    this.#wake()
  }

  /**
   * The worker sits out while `work` runs, and goes on with the tokens that it gives, which enter its block before its
   * pending ones; the others write meanwhile. What `work` throws, and HOGWILD_TIMEOUT after `timeoutMs`, ends the run.
   * Throws as `stop` does.
   */
  park(name: string, work: ParkWork, options: ParkOptions = {}): void {
    const { timeoutMs, data = null } = checkOptions(options, 'options', PARK_KEYS)
    if (timeoutMs !== undefined) checkInteger(timeoutMs, 'options.timeoutMs', 1, 2 ** 31 - 1)
    if (typeof work !== 'function') throw invalid('work', 'a function', work)
    const parked = { worker: name, timeoutMs, data: checkJson(data, 'options.data') }
    this.#control({ type: 'pause', worker: name, parked: { data: parked.data } })
    this.#waitFor(parked, work)
  }

  /** Begins the work that a worker waits for, which is paused. */
  #waitFor(parked: Parked, work: ParkWork): void {
    this.#parked.add(parked)
    doWork(work, this.#abort.signal, parked.timeoutMs)
      .then((tokens) => {
        if (this.#state !== 'open') return
        this.inject(parked.worker, tokens)
        this.resume(parked.worker)
        this.#parked.delete(parked)
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

  /**
   * Writes the run to a file, as it is at the next step boundary, for `restoreRun` in this process or another
   * (docs/sessions.md): blocks, workers, samplers, what controls have asked for, and events that the consumer has not taken.
   * The run goes on; the steps of its cache wait meanwhile. The file appears, or takes the place of one of this name, once
   * it is complete and on the disk. Returns its length in bytes. Functions and grammars are not in it, nor are the
   * caller's tokenizer, scheduler and trace: `restoreRun` is given them again. A run that ends meanwhile gives its
   * pages back once the file is written.
   *
   * Rejects, and leaves what was there: HOGWILD_INVALID_ARGUMENT (before the first event; `data` that JSON cannot hold),
   * HOGWILD_NOT_WRITTEN, HOGWILD_BUSY (somebody else uses the run's cache), HOGWILD_CLOSED, HOGWILD_ABORTED.
   */
  async save(path: string, options: SaveOptions = {}): Promise<number> {
    const checked = checkSave(path, options)
    const saving = this.#seated().batcher.hold(this.#group, checked.signal, 0, () => {
      this.#open()
      return saveGroup(this.#group, this.#seated(), [...this.#parked], checked)
    })
    this.#saves.add(saving)
    try {
      return await saving
    } finally {
      this.#saves.delete(saving)
    }
  }

  /** @internal Enters at once, and goes on from there. After an error it has ended. */
  async restore({ warned, workers, pages, fill, parked }: Continuation): Promise<void> {
    this.#group.warnings.skip(warned)
    this.#group.workers.push(...workers)
    try {
      const seat = await this.#enter()
      await seat.batcher.hold(this.#group, this.#abort.signal, pages, () => fill(this.#group, seat))
      for (const one of parked) this.#waitFor(one.parked, one.work)
    } catch (error) {
      await this.#leave()
      throw this.#reason(error)
    }
  }

  /** Leaves the step under way, ends the iteration, gives the pages back, and waits for all that. Idempotent. */
  async close(): Promise<void> {
    if (this.#state === 'open') {
      this.#state = 'closing'
      this.#abort.abort()
    }
    await this.#events.return()
    await this.#leave()
  }

  /** As `close`. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  async *#run(): AsyncGenerator<WorkerEvent, void, void> {
    const { state } = this.#group
    let trace: TraceFile | undefined
    try {
      const { batcher } = await this.#enter()
      trace = await this.#openTrace()
      for (;;) {
        const known = state.outbox.length
        if (known > 0) await trace?.record(state.outbox.slice(0, known))
        for (let i = 0; i < known; i++) yield state.outbox.shift() as WorkerEvent
        if (state.outbox.length > 0) continue
        if (state.hasEnded) return
        if (!(await batcher.advance(this.#group, this.#abort.signal))) await this.#changed()
      }
    } catch (thrown) {
      const error = this.#reason(thrown)
      const code = errorCode(error)
      const ofClosing = code === 'HOGWILD_ABORTED' || code === 'HOGWILD_CLOSED'
      if (this.#state === 'closing' && ofClosing) return
      throw error
    } finally {
      await this.#leave()
      await trace?.close()
    }
  }

  /** Its place in a cache. The user's signal ends the run from here on. */
  async #enter(): Promise<Seat> {
    if (this.#seat !== undefined) return this.#seat
    const { signal } = this.#group.settings
    throwIfAborted(signal)
    throwIfAborted(this.#abort.signal)
    this.#forget = onAbort(signal, () => this.#abort.abort())
    this.#seat = await this.#scheduler.enter(this.#group, this.#abort.signal)
    this.#group.store = this.#seat
    await this.#seat.load(this.#group.texts, this.#abort.signal)
    return this.#seat
  }

  /** Gives its place back, once it is saved where that is under way. Idempotent. */
  async #leave(): Promise<void> {
    this.#end()
    this.#forget()
    await Promise.allSettled(this.#saves)
    const seat = this.#seat
    this.#seat = undefined
    if (seat !== undefined) await this.#scheduler.leave(seat, this.#group.settings.keepBlocks)
  }

  get #scheduler(): Scheduler {
    const { model, scheduler } = this.#group.settings
    return scheduler ?? schedulerOf(model)
  }

  /** What ended the run, where `thrown` says that it has. */
  #reason(thrown: unknown): unknown {
    const { error } = this.#failure ?? { error: thrown }
    if (errorCode(error) !== 'HOGWILD_ABORTED') return error
    try {
      throwIfAborted(this.#group.settings.signal) // with its reason
      return error
    } catch (ofSignal) {
      return ofSignal
    }
  }

  async #openTrace(): Promise<TraceFile | undefined> {
    const { settings, workers } = this.#group
    const { trace, model, tokenizer, layout, share, prompt, sharedHeader } = settings
    if (trace === undefined) return undefined
    const workerOf = (name: string) => workers.find((worker) => worker.name === name) as Worker
    return await TraceFile.open(trace, {
      ...{ layout, share, prompt, model: await model.fingerprint() },
      architecture: model.config.architecture,
      // Without a cache of the user's, headers are tokens.
      sharedHeader: sharedHeader as Int32Array,
      headerOf: (name) => workerOf(name).header as Int32Array,
      parentOf: (name) => workerOf(name).from,
      nextAppended: () => this.#appended.shift() as Int32Array,
      textOf: tokenizer && ((tokens) => tokenizer.decode(tokens)),
    })
  }

  /** No control has an effect any more. */
  #end(): void {
    this.#state = 'ended'
    this.#abort.abort() // of probes and of work that a worker waits for
    this.#group.close(this.#group.settings.keepBlocks)
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

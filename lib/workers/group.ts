// A group: workers that write in lock step and see each other (Hogwild! Inference, arXiv 2504.06261). Its state as
// plain data and blocks: what its next step needs, and what the results of a step change. It computes nothing and
// waits for nothing; whoever runs its steps calls it between two of them, while nobody uses the cache.

import { Block } from '../block'
import { errorCode } from '../errors'
import type { StepOutput, StepWorker } from '../model'
import type { PrefillProgress } from '../prefill'
import { withinVocabulary } from '../sources/eos'
import { checkBoolean, checkTokens, invalid } from '../validate'
import type { Warnings } from '../warnings'
import { type Append, applyControl, type Control } from './controls'
import type { StopEvent, WorkerEvent } from './events'
import { orderBlocks } from './layout'
import type { RunSettings } from './options'
import { Triggers } from './triggers'
import { forced, type StepState, type Worker, type WorkerBlocks } from './worker'

/** Where a group's blocks are made. */
export interface BlockStore {
  createBlock(): Block
  /** Throws HOGWILD_OUT_OF_PAGES where so many tokens more can find no room behind the block's. */
  requireRoom(block: Block, tokens: number): void
  /** Most pages that they had at once; undefined: nobody counts them. */
  readonly peakPages: number | undefined
}

/** The blocks of a group, as its views have them. */
export interface GroupBlocks {
  /** undefined before the first event. */
  readonly common: Block | undefined
  readonly shared: Block | undefined
  /** By name; those that have blocks. */
  readonly workers: Readonly<Record<string, WorkerBlocks>>
}

/** Tokens that are computed on their own, with nothing before them in view but their block. May be cut. */
export interface Prefill {
  block: Block
  tokens: Int32Array
  /** How many of them are in the block. */
  done: number
  /** Whose header it is; undefined: the common or the shared block. */
  newcomer: { worker: Worker; blocks: WorkerBlocks } | undefined
  onProgress: ((progress: PrefillProgress) => void) | undefined
}

/**
 * What comes next in a group:
 *
 * - `events`: to be told before anything is computed
 * - `prefill`: the remaining tokens of a block
 * - `step`: a lock step, which is computed as a whole
 * - `idle`: nothing before a control or a newcomer: all workers are paused
 */
export type Next =
  | { type: 'events'; events: WorkerEvent[] }
  | { type: 'prefill'; prefill: Prefill }
  | { type: 'step'; parts: StepWorker[] }
  | { type: 'idle' }

/** A worker that takes part in a step, in the state in which it does so. */
interface Participant {
  worker: Worker
  state: StepState
}

/** What a group is, beside its settings and workers: plain data, and blocks. */
export interface GroupState {
  /** Lock steps so far; their tokens and times. */
  steps: number
  tokens: number
  milliseconds: number
  /** Tokens that were given: of the prompt, of headers, and forced ones. */
  promptTokens: number
  /** undefined before the first step. */
  common: Block | undefined
  shared: Block | undefined
  /** Blocks to be filled before the next step, one after the other. */
  prefills: Prefill[]
  /** For the next boundary. */
  controls: (Control | Append)[]
  /** Of this boundary, not told yet. */
  events: WorkerEvent[]
  /** Whether newcomers and controls are still to be looked at before the next step. */
  atBoundary: boolean
  /** All workers have stopped, and the last event is out. */
  hasEnded: boolean
}

export class Group {
  readonly settings: RunSettings
  readonly warnings: Warnings
  readonly workers: Worker[] = []
  readonly state: GroupState = {
    steps: 0,
    tokens: 0,
    milliseconds: 0,
    promptTokens: 0,
    common: undefined,
    shared: undefined,
    prefills: [],
    controls: [],
    events: [],
    atBoundary: true,
    hasEnded: false,
  }
  /** Set before `next` is called. */
  store!: BlockStore
  readonly #triggers: Triggers
  #stopTokens: ReadonlySet<number> = new Set()

  constructor(settings: RunSettings, warnings: Warnings) {
    this.settings = settings
    this.warnings = warnings
    this.#triggers = new Triggers(settings.triggers, (name) => this.#depthOf(name))
  }

  control(control: Control | Append): void {
    this.state.controls.push(control)
  }

  get blocks(): GroupBlocks {
    const workers = this.workers.flatMap(({ name, blocks }) => (blocks ? [[name, blocks]] : []))
    const entries = Object.fromEntries(workers) as Record<string, WorkerBlocks>
    return { common: this.state.common, shared: this.state.shared, workers: entries }
  }

  /** What a worker sees. Throws HOGWILD_INVALID_ARGUMENT where it has no blocks. */
  viewOf(name: string): Block[] {
    const blocks = this.workers.find((worker) => worker.name === name)?.blocks
    if (blocks === undefined) throw invalid('name', 'a worker that has joined', name)
    return this.#view(blocks)
  }

  /** Whether a control or a newcomer waits for the next boundary. */
  get hasChanges(): boolean {
    return (
      this.state.controls.length > 0 || this.workers.some(({ state }) => state.name === 'joining')
    )
  }

  /** Asked again before the work is done, it gives the same. */
  next(): Next {
    if (this.state.common === undefined) this.#start()
    for (;;) {
      const prefill = this.state.prefills[0]
      if (prefill !== undefined) return { type: 'prefill', prefill }
      if (this.state.atBoundary) {
        if (this.state.events.length === 0 && this.#allHaveStopped()) return this.#end()
        const newcomer = this.workers.find(({ state }) => state.name === 'joining')
        if (newcomer !== undefined) {
          this.#enter(newcomer)
          continue
        }
        this.#applyControls()
        this.state.atBoundary = false
        continue
      }
      if (this.state.events.length > 0)
        return { type: 'events', events: this.state.events.splice(0) }
      const participants = this.#participants()
      if (participants.length > 0) return { type: 'step', parts: this.#parts(participants) }
      this.state.atBoundary = true
      if (this.workers.some(({ state }) => state.name === 'paused')) return { type: 'idle' }
    }
  }

  /** The next `count` tokens of the first prefill are in its block. */
  prefilled(count: number): void {
    const prefill = this.state.prefills[0] as Prefill
    prefill.done += count
    this.state.promptTokens += count
    const totalTokens = prefill.tokens.length
    prefill.onProgress?.({ tokens: prefill.done, totalTokens })
    if (prefill.done < totalTokens) return
    this.state.prefills.shift()
    if (prefill.newcomer !== undefined) activate(prefill.newcomer)
  }

  /** The lock step is done. */
  stepped(outputs: readonly StepOutput[], seconds: number): WorkerEvent[] {
    const participants = this.#participants()
    const events: WorkerEvent[] = []
    const milliseconds = seconds * 1e3
    let tokens = 0
    participants.forEach(({ worker, state }, i) => {
      tokens += worker.pending.length
      for (const written of worker.write()) {
        if (written.forced) this.state.promptTokens++
        this.#triggers.look(worker.name, written.text, written.forced)
        events.push({ type: 'token', worker: worker.name, step: this.state.steps, ...written })
      }
      events.push(...this.#proceed(worker, state, outputs[i] as StepOutput))
    })
    events.push({
      type: 'step',
      step: this.state.steps,
      workers: participants.length,
      tokens,
      milliseconds,
    })
    this.state.steps++
    this.state.tokens += tokens
    this.state.milliseconds += milliseconds
    this.state.atBoundary = true
    return events
  }

  /**
   * The cache has no room for what came next. A newcomer stops whose header finds none; of a lock step's workers those
   * stop whose tokens find none beside those of the workers before them. Throws `error` where nobody can stop.
   */
  withoutRoom(error: unknown): WorkerEvent[] {
    const prefill = this.state.prefills[0]
    if (prefill !== undefined) {
      this.#refuse(prefill, error)
      return []
    }
    const stopped = this.#workersWithoutRoom()
    if (stopped.length === 0) throw error
    this.state.atBoundary = true
    return stopped.map((worker) => this.#stop(worker, 'out-of-pages'))
  }

  /** Nobody takes part any more. `keep`: the blocks stay where they are; else nothing refers to them. */
  close(keep: boolean): void {
    for (const worker of this.workers) {
      worker.state = { name: 'stopped', blocks: keep ? worker.blocks : undefined }
    }
    if (!keep) {
      this.state.common = undefined
      this.state.shared = undefined
    }
    this.state.hasEnded = true
  }

  /** The common block and the shared header come first. */
  #start(): void {
    const { prompt, sharedHeader, onPrefill } = this.settings
    this.#stopTokens = findStopTokens(this.settings, this.warnings)
    this.state.common = this.settings.common ?? this.store.createBlock()
    this.#fill(this.state.common, prompt, { onProgress: onPrefill })
    const { block, tokens } = headerBlock(sharedHeader, this.store)
    this.state.shared = block
    if (block !== undefined) this.#fill(block, tokens)
  }

  #depthOf(name: string): number {
    const from = this.workers.find((worker) => worker.name === name)?.from
    return from === undefined ? 0 : this.#depthOf(from) + 1
  }

  #allHaveStopped(): boolean {
    return this.workers.every(({ state }) => state.name === 'stopped')
  }

  #end(): Next {
    this.state.hasEnded = true
    const { steps, tokens, milliseconds, promptTokens } = this.state
    const completionTokens = this.workers.reduce((sum, { written }) => sum + written, 0)
    const usage = { promptTokens, completionTokens, peakPages: this.store.peakPages }
    return { type: 'events', events: [{ type: 'end', steps, tokens, milliseconds, usage }] }
  }

  #enter(worker: Worker): void {
    const { store } = this
    const common = this.state.common as Block
    this.state.events.push({ type: 'join', worker: worker.name, step: this.state.steps })
    // Without sharing a turn that ends must stay out of the others' sight, so each has its own common.
    const ownCommon = this.settings.share ? common : copyOf(common, store)
    const { block: header, tokens } = headerBlock(worker.header, store)
    const own = worker.own ?? store.createBlock()
    const parent = this.workers.find(({ name }) => name === worker.from)?.blocks
    if (parent !== undefined) own.appendFrom(parent.own)
    const newcomer = { worker, blocks: { common: ownCommon, header, own } }
    if (header === undefined || tokens.length === 0) activate(newcomer)
    else this.#fill(header, tokens, { newcomer })
  }

  /** Where there is no room for all tokens, none is computed. */
  #fill(
    block: Block,
    tokens: Int32Array,
    { newcomer, onProgress }: Partial<Pick<Prefill, 'newcomer' | 'onProgress'>> = {},
  ): void {
    if (tokens.length === 0) return
    const prefill = { block, tokens, done: 0, newcomer, onProgress }
    this.state.prefills.push(prefill)
    try {
      this.store.requireRoom(block, tokens.length)
    } catch (error) {
      if (!isOutOfPages(error)) throw error
      this.#refuse(prefill, error)
    }
  }

  /** A header without room stops its worker; without prompt or shared header there is no run. */
  #refuse(prefill: Prefill, error: unknown): void {
    const { newcomer } = prefill
    if (newcomer === undefined) throw error
    this.state.prefills = this.state.prefills.filter((other) => other !== prefill)
    this.state.events.push(this.#stop(newcomer.worker, 'out-of-pages'))
  }

  #applyControls(): void {
    for (const control of this.state.controls.splice(0)) {
      if (control.type === 'append') {
        this.#append(control.tokens)
        continue
      }
      const worker = this.workers.find(({ name }) => name === control.worker) as Worker
      this.state.events.push(...applyControl(worker, control, this.state.steps))
    }
  }

  /** Where each worker has a common block of its own, all of them get the tokens. */
  #append(tokens: Int32Array): void {
    const ofWorkers = this.workers.flatMap(({ blocks }) => blocks?.common ?? [])
    const blocks = new Set([this.state.common as Block, ...ofWorkers])
    for (const block of blocks) this.#fill(block, tokens)
    const { steps: step } = this.state
    this.state.events.push({ type: 'append', step, tokens: tokens.length })
  }

  #participants(): Participant[] {
    return this.workers.flatMap((worker) => {
      const { state } = worker
      return state.name === 'active' || state.name === 'stopping' ? [{ worker, state }] : []
    })
  }

  #parts(participants: readonly Participant[]): StepWorker[] {
    return participants.map(({ worker, state }) => ({
      view: { blocks: this.#view(state.blocks) },
      tokens: worker.pending.map(({ token }) => token),
      ...(state.name === 'active'
        ? worker.choice(this.workers.indexOf(worker))
        : { sampler: null }),
    }))
  }

  #view(own: WorkerBlocks): Block[] {
    const { layout, share } = this.settings
    const workers = this.workers.flatMap(({ blocks }) => blocks ?? [])
    const blocks = { common: own.common, shared: this.state.shared, workers }
    return orderBlocks(layout, blocks, workers.indexOf(own), share)
  }

  /** The workers whose tokens find no room beside those of the workers before them that do. */
  #workersWithoutRoom(): Worker[] {
    const participants = this.#participants()
    const parts = this.#parts(participants)
    const fitting: { view: StepWorker['view']; tokens: number }[] = []
    return participants.flatMap(({ worker, state }, i) => {
      const { view, tokens } = parts[i] as StepWorker
      const part = { view, tokens: tokens.length }
      try {
        state.blocks.own.cache.beginPass([...fitting, part]).abort()
        fitting.push(part)
        return []
      } catch (error) {
        if (!isOutOfPages(error)) throw error
        return [worker]
      }
    })
  }

  /** What follows from the token sampled last; a stopping worker has sampled none. */
  #proceed(worker: Worker, state: StepState, output: StepOutput): WorkerEvent[] {
    if (worker.cameToStop) return [this.#stop(worker, 'stop-string')]
    if (state.name === 'stopping') return [this.#stop(worker, state.reason)]
    const token = worker.sampled(output)
    const { blocks } = state
    if (this.#stopTokens.has(token) || worker.hasEndedGrammar) {
      worker.state = { name: 'stopping', blocks, reason: 'stop-token' }
    } else if (worker.written + 1 >= worker.maxTokens) {
      worker.state = { name: 'stopping', blocks, reason: 'max-tokens' }
    } else if (this.#turnEnds(worker)) {
      return [this.#endTurn(worker, blocks)]
    }
    return []
  }

  #turnEnds({ turnIds }: Worker): boolean {
    const { turnEnds } = this.settings
    if (turnEnds === undefined) return false
    return checkBoolean(turnEnds(turnIds), 'the result of turnEnds')
  }

  // The sampled token was not processed yet, so in the cache it opens the next turn.
  #endTurn(worker: Worker, { common, own }: WorkerBlocks): WorkerEvent {
    const { turnHeader, model } = this.settings
    worker.turn++
    worker.turnIds = []
    const header = turnHeader?.(worker.name, worker.turn) ?? []
    const ids = checkTokens(header, 'the result of turnHeader', model.config.vocabSize)
    worker.pending.push(...forced(ids))
    common.appendFrom(own, { clearSource: true })
    return { type: 'turn', worker: worker.name, step: this.state.steps, turn: worker.turn }
  }

  #stop(worker: Worker, reason: StopEvent['reason']): StopEvent {
    return worker.stop(reason, this.state.steps)
  }
}

/** The block of a header, and what is to be put into it. A header that is a block has its tokens. */
function headerBlock(
  header: Int32Array | Block,
  store: BlockStore,
): { block: Block | undefined; tokens: Int32Array } {
  if (Block.is(header)) return { block: header, tokens: new Int32Array(0) }
  return { block: header.length > 0 ? store.createBlock() : undefined, tokens: header }
}

function copyOf(block: Block, store: BlockStore): Block {
  const copy = store.createBlock()
  copy.appendFrom(block)
  return copy
}

function activate({ worker, blocks }: { worker: Worker; blocks: WorkerBlocks }): void {
  worker.state = { name: 'active', blocks }
}

function findStopTokens(settings: RunSettings, warnings: Warnings): ReadonlySet<number> {
  const { model, tokenizer, stopTokens } = settings
  const { eosTokenIds, vocabSize } = model.config
  if (stopTokens !== undefined) return new Set(stopTokens)
  const known = new Set([...eosTokenIds, ...(tokenizer?.eosTokenIds ?? [])])
  return new Set(withinVocabulary([...known], vocabSize, warnings))
}

export function isOutOfPages(error: unknown): boolean {
  return errorCode(error) === 'HOGWILD_OUT_OF_PAGES'
}

// A group: workers that write in lock step and see each other (Hogwild! Inference, arXiv 2504.06261). Its state as
// plain data and blocks: what its next step needs, and what the results of a step change. It computes nothing and
// waits for nothing; whoever runs its steps calls it between two of them, while nobody uses the cache.

import { Block } from '../block'
import { errorCode } from '../errors'
import type { StepOutput, StepWorker } from '../model'
import type { PrefillProgress } from '../prefill'
import { withinVocabulary } from '../sources/eos'
import { stagesOf, tokensOf } from '../speculation'
import { checkBoolean, checkTokens, invalid } from '../validate'
import type { Warnings } from '../warnings'
import { type Append, applyControl, type Control } from './controls'
import type { StopEvent, WorkerEvent } from './events'
import { orderBlocks } from './layout'
import { Lookahead } from './lookahead'
import type { RunSettings } from './options'
import { Triggers } from './triggers'
import { forced, type StepState, type Worker, type WorkerBlocks } from './worker'

/** Where a group's blocks are made. */
export interface BlockStore {
  createBlock(): Block
  /** Throws HOGWILD_OUT_OF_PAGES where so many tokens more can find no room behind the block's. */
  requireRoom(block: Block, tokens: number): void
  /**
   * Puts stored pages of a text behind what the block has of it, which saves computing them. Returns how many tokens; may
   * be called again and again, only where nothing else is to be filled into the block before.
   */
  reuse(prefill: Prefill): number
  /** For others to reuse, once they are free. */
  offer(prefill: Prefill): void
  /** Most pages that they had at once; undefined: nobody counts them. */
  readonly peakPages: number | undefined
}

/** The blocks of a group, as its views have them. */
export interface GroupBlocks {
  /** undefined before the first event. */
  readonly common: Block | undefined
  /** Layout 'combined': the block between common and the others' text; undefined where there is none. */
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
  /** Of them, those that were stored, so that they were not computed. */
  reusedTokens: number
  /** undefined before the first step. */
  common: Block | undefined
  shared: Block | undefined
  /** Blocks to be filled before the next step, one after the other. */
  prefills: Prefill[]
  /** For the next boundary. */
  controls: (Control | Append)[]
  /** Of this boundary, to be told before anything is computed. */
  events: WorkerEvent[]
  /** What the consumer has not taken yet, the oldest first. */
  outbox: WorkerEvent[]
  /** Whether newcomers and controls are still to be looked at before the next step. */
  atBoundary: boolean
  /** All workers have stopped, and the last event is in the outbox. */
  hasEnded: boolean
  /** Which of the sampled tokens stop a worker. */
  stopTokens: ReadonlySet<number>
  /** Most pages at once before it was restored. */
  peakPages: number
}

/** Who may live in a pool and take turns with others on its cache: a group, or a text of `generate`. */
export interface Tenant {
  readonly settings: Pick<
    RunSettings,
    'model' | 'prompt' | 'maxTokens' | 'priority' | 'cache' | 'capacity' | 'context' | 'cacheDtype'
  >
  /** How many write. */
  readonly workers: { readonly length: number }
  readonly warnings: Pick<Warnings, 'warn'>
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
    reusedTokens: 0,
    common: undefined,
    shared: undefined,
    prefills: [],
    controls: [],
    events: [],
    outbox: [],
    atBoundary: true,
    hasEnded: false,
    stopTokens: new Set(),
    peakPages: 0,
  }
  /** Set before `next` is called. */
  store!: BlockStore
  readonly triggers: Triggers
  readonly #lookahead: Lookahead | undefined

  constructor(settings: RunSettings, warnings: Warnings) {
    this.settings = settings
    this.warnings = warnings
    this.triggers = new Triggers(settings.triggers, (name) => this.#depthOf(name))
    const { speculate, model } = settings
    this.#lookahead =
      speculate &&
      new Lookahead(speculate, model.config.vocabSize, {
        tokensOf: (worker) => {
          const pending = worker.pending.map(({ token }) => token)
          return tokensOf(this.#view(worker.blocks as WorkerBlocks), pending)
        },
        quietDrafts: (worker, drafts) => this.#quietDrafts(worker, drafts),
      })
  }

  /** Most pages that its blocks had at once; undefined: nobody counts them. */
  get peakPages(): number | undefined {
    const { peakPages } = this.store
    return peakPages === undefined ? undefined : Math.max(peakPages, this.state.peakPages)
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

  /** What it will fill before its first step. */
  get texts(): Int32Array[] {
    const { prompt, sharedHeader } = this.settings
    const texts = [prompt, sharedHeader, ...this.workers.map(({ header }) => header)]
    return texts.filter((text): text is Int32Array => !Block.is(text))
  }

  /** Whether a control or a newcomer waits for the next boundary. */
  get hasChanges(): boolean {
    return (
      this.state.controls.length > 0 || this.workers.some(({ state }) => state.name === 'joining')
    )
  }

  /** Asked again before the work is done, it gives the same, but for what others have computed meanwhile. */
  next(): Next {
    if (this.state.common === undefined) this.#start()
    for (;;) {
      const prefill = this.state.prefills[0]
      if (prefill !== undefined) {
        if (this.#reuse(prefill)) continue
        return { type: 'prefill', prefill }
      }
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
    this.#advance(prefill, count)
    this.store.offer(prefill)
  }

  /** The lock step is done, and with it those for which drafts stood that were right. */
  stepped(outputs: readonly StepOutput[], seconds: number): WorkerEvent[] {
    const participants = this.#participants()
    this.#lookahead?.stepped(
      participants.map(({ worker }) => worker),
      outputs,
    )
    const ofWorkers = outputs.map(stagesOf)
    const last = (ofWorkers[0]?.length ?? 1) - 1
    return Array.from({ length: last + 1 }, (_, stage) => {
      const ofStage = ofWorkers.map((stages) => stages[stage] as StepOutput)
      return this.#stepped(participants, ofStage, stage === 0 ? seconds : 0, stage === last)
    }).flat()
  }

  /** `isLast`: nothing is known yet of the lock step behind this one. */
  #stepped(
    participants: readonly Participant[],
    outputs: readonly StepOutput[],
    seconds: number,
    isLast: boolean,
  ): WorkerEvent[] {
    const events: WorkerEvent[] = []
    const milliseconds = seconds * 1e3
    let tokens = 0
    participants.forEach(({ worker, state }, i) => {
      const output = outputs[i] as StepOutput
      const { attentionMass } = output
      let left = worker.pending.length
      tokens += left
      for (const event of worker.write(this.state.steps)) {
        if (event.forced) this.state.promptTokens++
        this.triggers.look(worker.name, event.text, event.forced)
        left--
        if (left === 0 && attentionMass !== undefined) {
          event.attentionMass = Array.from(attentionMass)
        }
        events.push(event)
      }
      if (isLast) events.push(...this.#proceed(worker, state, output))
      else worker.sampled(output)
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
    if (this.#lookahead?.drop()) return []
    const stopped = this.#workersWithoutRoom()
    this.#lookahead?.forget()
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
    this.state.stopTokens = findStopTokens(this.settings, this.warnings)
    this.state.common = this.settings.common ?? this.store.createBlock()
    this.#fill(this.state.common, prompt, { onProgress: onPrefill })
    const { block, tokens } = headerBlock(sharedHeader, this.store)
    this.state.shared = block
    if (block !== undefined) this.#fill(block, tokens)
  }

  /** Whether that was all. */
  #reuse(prefill: Prefill): boolean {
    const count = this.store.reuse(prefill)
    if (count === 0) return false
    this.state.reusedTokens += count
    this.#advance(prefill, count)
    return prefill.done === prefill.tokens.length
  }

  #advance(prefill: Prefill, count: number): void {
    prefill.done += count
    this.state.promptTokens += count
    const totalTokens = prefill.tokens.length
    prefill.onProgress?.({ tokens: prefill.done, totalTokens })
    if (prefill.done < totalTokens) return
    this.state.prefills = this.state.prefills.filter((other) => other !== prefill)
    if (prefill.newcomer !== undefined) activate(prefill.newcomer)
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
    const { steps, tokens, milliseconds, promptTokens, reusedTokens } = this.state
    const completionTokens = this.workers.reduce((sum, { written }) => sum + written, 0)
    const speculation = this.#lookahead && { ...this.#lookahead.usage }
    const usage = {
      ...{ promptTokens, reusedTokens, completionTokens },
      ...{ peakPages: this.peakPages, speculation },
    }
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
    const isFirst = this.state.prefills.every((other) => other.block !== block)
    this.state.prefills.push(prefill)
    try {
      if (isFirst && this.#reuse(prefill)) return
      this.store.requireRoom(block, tokens.length - prefill.done)
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
    const drafts = this.#lookahead?.plan(participants.map(({ worker }) => worker))
    return participants.map(({ worker, state }, i) => ({
      view: { blocks: this.#view(state.blocks) },
      tokens: worker.pending.map(({ token }) => token),
      drafts: drafts?.[i],
      attentionMass: worker.settings.attentionMass,
      ...(state.name === 'active'
        ? worker.choice(this.workers.indexOf(worker))
        : { sampler: null }),
    }))
  }

  /** See Foresight. The i-th draft is chosen in the i-th step, behind what is written there, and written in the next one. */
  #quietDrafts(worker: Worker, drafts: Int32Array): number {
    const chosen = worker.pending.filter(({ forced }) => !forced).length
    const endsText = (token: number) =>
      this.state.stopTokens.has(token) || worker.endsGrammar(token)
    const end = drafts.findIndex(
      (token, i) => endsText(token) || this.#turnEnds(worker, drafts.subarray(0, i + 1)),
    )
    let quiet = Math.min(
      end < 0 ? drafts.length : end,
      Math.max(0, worker.maxTokens - worker.written - chosen - 1),
    )
    if (this.settings.triggers.length > 0 || worker.hasStopStrings) {
      const steps = worker.foresee(drafts)
      const called = this.triggers.firstMatch(worker.name, steps)
      quiet = Math.min(quiet, steps.length - 1, called)
    }
    return quiet
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
    if (this.state.stopTokens.has(token) || worker.hasEndedGrammar) {
      worker.state = { name: 'stopping', blocks, reason: 'stop-token' }
    } else if (worker.written + 1 >= worker.maxTokens) {
      worker.state = { name: 'stopping', blocks, reason: 'max-tokens' }
    } else if (this.#turnEnds(worker, [])) {
      return [this.#endTurn(worker, blocks)]
    }
    return []
  }

  /** Whether the worker's turn ends with what it has chosen, or would end with these tokens more. */
  #turnEnds({ turnIds }: Worker, drafts: ArrayLike<number>): boolean {
    const { turnEnds } = this.settings
    if (turnEnds === undefined) return false
    const ids = drafts.length === 0 ? turnIds : [...turnIds, ...Array.from(drafts)]
    return checkBoolean(turnEnds(ids), 'the result of turnEnds')
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

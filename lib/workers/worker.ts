// One worker of a run: its state, its part of the cache, and what it has written.

import type { Block } from '../block'
import type { GrammarMatcher } from '../grammar/grammar'
import type { StepOutput, StepWorker, TokenLogprob } from '../model'
import { onceForToken } from '../step-hooks'
import type { TokenSettings } from '../token-options'
import { StopMatcher } from '../tokenizer/stop-strings'
import type { TextStream } from '../tokenizer/text-stream'
import type { Tokenizer } from '../tokenizer/tokenizer'
import type { StopEvent, StopReason } from './events'
import type { WorkerSettings } from './options'

/** A worker's part of the cache. */
export interface WorkerBlocks {
  common: Block
  header: Block | undefined
  own: Block
}

/**
 * - `joining`: it gets its blocks at the next step boundary
 * - `active`: it takes part in steps
 * - `paused`: it sits out; `ending`: it was stopping before
 * - `stopping`: it writes its pending tokens in one more step, without sampling, and stops for `reason`
 * - `stopped`: it takes no further part; it has blocks if it ever had some and the run goes on
 */
export type WorkerState =
  | { name: 'joining' }
  | { name: 'active'; blocks: WorkerBlocks }
  | { name: 'paused'; blocks: WorkerBlocks; ending: StopReason | undefined }
  | { name: 'stopping'; blocks: WorkerBlocks; reason: StopReason }
  | { name: 'stopped'; blocks: WorkerBlocks | undefined }

/** The states in which a worker takes part in a step. */
export type StepState = Extract<WorkerState, { name: 'active' | 'stopping' }>

/** A worker as seen from outside. */
export interface WorkerStatus {
  name: string
  /** See the events: `joining` is before its `join`, `stopping` until its last tokens are written. */
  state: WorkerState['name']
  /** All that it has written, forced tokens and ended turns included. */
  tokens: readonly number[]
}

/** A token that enters a worker's block in its next step. */
export interface Pending {
  token: number
  forced: boolean
  /** Of a sampled one, where they are asked for. */
  logprob?: number | undefined
  topLogprobs?: TokenLogprob[] | undefined
}

export function forced(tokens: Int32Array): Pending[] {
  return Array.from(tokens, (token) => ({ token, forced: true }))
}

/** What a step of a worker that samples is told beside view and tokens. */
type Choice = Omit<StepWorker, 'view' | 'tokens'>

export class Worker {
  readonly name: string
  readonly header: Int32Array | Block
  /** The block that it goes on in; undefined: a new one. */
  readonly own: Block | undefined
  /** The worker with a copy of whose block its own begins. */
  readonly from: string | undefined
  readonly maxTokens: number
  readonly tokens: number[] = []
  /** Called once it has stopped. */
  readonly onStop: (() => void)[] = []
  state: WorkerState = { name: 'joining' }
  pending: Pending[]
  /** Sampled tokens in its blocks. */
  written = 0
  /** Turns that have ended. */
  turn = 0
  /** Tokens sampled in the present turn. */
  turnIds: number[] = []
  readonly #choice: TokenSettings
  readonly #matcher: GrammarMatcher | undefined
  readonly #text: WorkerText | undefined

  constructor(settings: WorkerSettings, tokenizer: Tokenizer | undefined) {
    this.name = settings.name
    this.header = settings.header
    this.own = settings.own
    this.from = settings.from
    this.maxTokens = settings.maxTokens
    this.#choice = settings
    this.#matcher = settings.grammar?.newMatcher()
    this.pending = forced(settings.prompt)
    this.#text = tokenizer && new WorkerText(tokenizer.stream(), settings.stop)
  }

  get blocks(): WorkerBlocks | undefined {
    return this.state.name === 'joining' ? undefined : this.state.blocks
  }

  /** Whether its text has come to a stop string. */
  get cameToStop(): boolean {
    return this.#text?.cameToStop ?? false
  }

  /** Whether the token sampled last has ended the text of its grammar. */
  get hasEndedGrammar(): boolean {
    return this.#matcher?.hasEnded ?? false
  }

  get status(): WorkerStatus {
    return { name: this.name, state: this.state.name, tokens: [...this.tokens] }
  }

  /** How a step chooses its next token. `place`: its own in worker order. */
  choice(place: number): Choice {
    const { sampler, logitBias, processLogits, logprob, topLogprobs } = this.#choice
    return {
      sampler,
      logitBias,
      processLogits:
        processLogits && onceForToken(processLogits, place, `processLogits of '${this.name}'`),
      grammar: this.#matcher,
      logprob,
      topLogprobs,
    }
  }

  /** A step has chosen its next token. */
  sampled({ token, logprob, topLogprobs }: StepOutput): number {
    const id = token as number
    this.pending = [{ token: id, forced: false, logprob, topLogprobs }]
    this.turnIds.push(id)
    return id
  }

  /** The pending tokens are in its block; yields each with the text that it brings. */
  *write(): Generator<Pending & { text: string }> {
    const pending = this.pending
    this.pending = []
    for (const entry of pending) {
      const { token, forced } = entry
      this.tokens.push(token)
      if (!forced) this.written++
      yield { ...entry, text: this.#text?.push(token, forced) ?? '' }
    }
  }

  /** Takes no further part. */
  stop(reason: StopReason, step: number): StopEvent {
    this.state = { name: 'stopped', blocks: this.blocks }
    this.pending = []
    for (const tell of this.onStop.splice(0)) tell()
    const text = this.#text?.end() ?? ''
    const event = { type: 'stop', worker: this.name, step, reason } as const
    return text === '' ? event : { ...event, text }
  }
}

/** The text of a worker's tokens, up to a stop string among the sampled ones. */
class WorkerText {
  readonly #stream: TextStream
  readonly #matcher: StopMatcher

  constructor(stream: TextStream, stops: readonly string[]) {
    this.#stream = stream
    this.#matcher = new StopMatcher(stops)
  }

  get cameToStop(): boolean {
    return this.#matcher.found
  }

  push(token: number, forced: boolean): string {
    const text = this.#stream.push(token)
    if (this.cameToStop) return ''
    return forced ? this.#matcher.end() + text : this.#matcher.push(text)
  }

  end(): string {
    return this.#matcher.push(this.#stream.end()) + this.#matcher.end()
  }
}

// One worker of a run: its state, its part of the cache, and what it has written.

import type { Block } from '../block'
import type { GrammarMatcher } from '../grammar/grammar'
import type { StepOutput, StepWorker, TokenLogprob } from '../model'
import { onceForToken } from '../step-hooks'
import { StopMatcher } from '../tokenizer/stop-strings'
import type { TextStream } from '../tokenizer/text-stream'
import type { Tokenizer } from '../tokenizer/tokenizer'
import type { StopEvent, StopReason, TokenEvent } from './events'
import type { WorkerSettings } from './options'
import type { Piece } from './triggers'

/** A worker's part of the cache. */
export interface WorkerBlocks {
  /** The prompt and the turns that have ended; its own copy where workers do not see one another. */
  common: Block
  /** Before its own text; only it sees it. */
  header: Block | undefined
  /** What it writes. */
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
  /** Unique in the run. */
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
  readonly settings: WorkerSettings
  readonly name: string
  header: Int32Array | Block
  /** The block that it goes on in; undefined: a new one. */
  own: Block | undefined
  /** The worker with a copy of whose block its own begins. */
  readonly from: string | undefined
  readonly maxTokens: number
  readonly hasStopStrings: boolean
  readonly tokens: number[] = []
  /** Which of its tokens were given and not sampled. */
  readonly forced: boolean[] = []
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
  /** How far its text is in its grammar. */
  readonly matcher: GrammarMatcher | undefined
  readonly #text: WorkerText | undefined

  /** `matcher`: of a worker that has written before. */
  constructor(
    settings: WorkerSettings,
    tokenizer: Tokenizer | undefined,
    matcher?: GrammarMatcher,
  ) {
    this.settings = settings
    this.name = settings.name
    this.header = settings.header
    this.own = settings.own
    this.from = settings.from
    this.maxTokens = settings.maxTokens
    this.hasStopStrings = settings.stop.length > 0
    this.matcher = matcher ?? settings.grammar?.newMatcher()
    this.pending = forced(settings.prompt)
    this.#text = tokenizer && new WorkerText(tokenizer.stream(), new StopMatcher(settings.stop))
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
    return this.matcher?.hasEnded ?? false
  }

  /** Whether the token ends the text of its grammar. */
  endsGrammar(token: number): boolean {
    return this.matcher?.grammar.isStop(token) ?? false
  }

  /**
   * The text that its pending tokens and then these would bring, step by step, as `write` would give it, up to a step that
   * comes to a stop string.
   */
  foresee(tokens: Int32Array): Piece[][] {
    const text = this.#text?.fork()
    const steps: Piece[][] = []
    const sampled = Array.from(tokens, (token) => [{ token, forced: false }])
    for (const entries of [this.pending, ...sampled]) {
      if (text?.cameToStop) break
      steps.push(
        entries.map(({ token, forced }) => ({
          text: text?.push(token, forced) ?? '',
          isGiven: forced,
        })),
      )
    }
    return steps
  }

  get status(): WorkerStatus {
    return { name: this.name, state: this.state.name, tokens: [...this.tokens] }
  }

  /** How a step chooses its next token. `place`: its own in worker order. */
  choice(place: number): Choice {
    const { sampler, logitBias, processLogits, logprob, topLogprobs } = this.settings
    return {
      sampler,
      logitBias,
      processLogits:
        processLogits && onceForToken(processLogits, place, `processLogits of '${this.name}'`),
      grammar: this.matcher,
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

  /** The pending tokens are in its block; yields each in turn, once its text was taken. */
  *write(step: number): Generator<TokenEvent> {
    const { pending, name: worker } = this
    this.pending = []
    for (const { token, forced, logprob, topLogprobs } of pending) {
      if (!forced) this.written++
      const text = this.take(token, forced)
      const event: TokenEvent = { type: 'token', worker, step, token, text, forced }
      if (!forced) {
        event.logprob = logprob
        event.topLogprobs = topLogprobs
      }
      yield event
    }
  }

  /** One token more of its text. Returns what it adds to what is shown of it. */
  take(token: number, forced: boolean): string {
    this.tokens.push(token)
    this.forced.push(forced)
    return this.#text?.push(token, forced) ?? ''
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

  constructor(stream: TextStream, matcher: StopMatcher) {
    this.#stream = stream
    this.#matcher = matcher
  }

  fork(): WorkerText {
    return new WorkerText(this.#stream.fork(), this.#matcher.fork())
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

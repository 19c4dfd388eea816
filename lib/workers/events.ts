// Events of a run, in emission order. `step` counts lock steps from 0; events between two steps carry the
// number of the step to come.

import type { TokenLogprob } from '../model'
import type { SpeculationUsage } from '../speculation'
import type { Warning } from '../warnings'

/** Something that works, but maybe not as its user thinks; each code comes once per run. */
export interface WarningEvent extends Warning {
  type: 'warning'
  step: number
}

/** A worker takes part from this step on. */
export interface JoinEvent {
  type: 'join'
  worker: string
  step: number
}

/** A worker sits out from this step on; its block stays visible. */
export interface PauseEvent {
  type: 'pause'
  worker: string
  step: number
}

/** A paused worker takes part again from this step on. */
export interface ResumeEvent {
  type: 'resume'
  worker: string
  step: number
}

/** A token entered the worker's block in this step: from here on everybody sees it. */
export interface TokenEvent {
  type: 'token'
  worker: string
  step: number
  token: number
  /**
   * What it adds to the worker's text: '' without a tokenizer, until a character is complete, and while the
   * text may be the beginning of a stop string.
   */
  text: string
  /** It was given (prompt, header of a turn, injected, mark of a stop) and not sampled. */
  forced: boolean
  /** Of a sampled token, where `WorkerSpec.logprobs` asks for it: natural log of its probability by the raw logits. */
  logprob?: number | undefined
  /** Of a sampled token, where `topLogprobs` asks for them: the most likely tokens at its place, the most likely first. */
  topLogprobs?: TokenLogprob[] | undefined
}

/** Tokens have come into the common block (`WorkerRun.append`): workers see them from this step on. */
export interface AppendEvent {
  type: 'append'
  step: number
  tokens: number
}

/** A turn ended: its text moved to the end of the common block. */
export interface TurnEvent {
  type: 'turn'
  worker: string
  step: number
  /** Turns that the worker has ended so far, this one included. */
  turn: number
}

/**
 * Why a worker stops.
 *
 * - `stop-token`: it wrote one of the stop tokens, or the one that ends its grammar's text
 * - `stop-string`: its text came to one of the stop strings
 * - `max-tokens`: it wrote as many tokens as it may
 * - `out-of-pages`: the cache has no room for its next tokens
 * - `stopped`: by `stop()`
 */
export type StopReason = 'stop-token' | 'stop-string' | 'max-tokens' | 'out-of-pages' | 'stopped'

/** A worker takes no further part; its block stays visible. */
export interface StopEvent {
  type: 'stop'
  worker: string
  step: number
  reason: StopReason
  /** The end of the worker's text, where some was held back: characters that were never complete included. */
  text?: string | undefined
}

/** A step has ended; its tokens, stops and turns came before this. */
export interface StepEvent {
  type: 'step'
  step: number
  /** Workers that took part. */
  workers: number
  /** New tokens of all of them. */
  tokens: number
  /**
   * What the forward pass took, that of all groups which share it; the wait for other steps of the device is left out. With
   * `speculate` one pass may bring several steps, of which the first has its time and the others 0.
   */
  milliseconds: number
}

/** What a run has used. */
export interface RunUsage {
  /** Tokens that were given: prompt, headers, forced tokens. */
  promptTokens: number
  /** Tokens that were sampled and written. */
  completionTokens: number
  /** Most pages that its blocks had at once; undefined in a cache of the user's, without a budget (`capacity`). */
  peakPages: number | undefined
  /** Of a run with `speculate`. It took `passes` where it would have taken as many as the run has steps. */
  speculation?: SpeculationUsage | undefined
}

/** All workers have stopped: the last event. Sums over all steps. */
export interface EndEvent {
  type: 'end'
  steps: number
  tokens: number
  milliseconds: number
  usage: RunUsage
}

export type WorkerEvent =
  | WarningEvent
  | JoinEvent
  | PauseEvent
  | ResumeEvent
  | TokenEvent
  | AppendEvent
  | TurnEvent
  | StopEvent
  | StepEvent
  | EndEvent

// Events of a run, in emission order.

import type { TokenLogprob } from '../model'
import type { SpeculationUsage } from '../speculation'
import type { Warning } from '../warnings'

/** What all events have. */
export interface RunEvent {
  /** Number of the lock step, from 0; of an event between two steps, that of the one to come. */
  step: number
}

/** An event of one worker. */
export interface OfWorker extends RunEvent {
  /** Its name. */
  worker: string
}

/** Something that works, but maybe not as its user thinks; each code comes once per run. */
export interface WarningEvent extends Warning, RunEvent {
  /** Tells events apart. */
  type: 'warning'
}

/** A worker takes part from this step on. */
export interface JoinEvent extends OfWorker {
  /** Tells events apart. */
  type: 'join'
}

/** A worker sits out from this step on; its block stays visible. */
export interface PauseEvent extends OfWorker {
  /** Tells events apart. */
  type: 'pause'
  /** Of a worker that waits for work (`WorkerRun.park`); undefined: it was paused. */
  parked?:
    | {
        /** As ParkOptions has it. */
        data: unknown
      }
    | undefined
}

/** A paused worker takes part again from this step on. */
export interface ResumeEvent extends OfWorker {
  /** Tells events apart. */
  type: 'resume'
}

/** A token entered the worker's block in this step: from here on everybody sees it. */
export interface TokenEvent extends OfWorker {
  /** Tells events apart. */
  type: 'token'
  /** Its id. */
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
  /**
   * Of the last token that the worker brings to a step, where `WorkerSpec.attentionMass` asks for it: which share of its
   * attention each block of the view gets, in the view's order (docs/hooks.md).
   */
  attentionMass?: readonly number[] | undefined
}

/** Tokens have come into the common block (`WorkerRun.append`): workers see them from this step on. */
export interface AppendEvent extends RunEvent {
  /** Tells events apart. */
  type: 'append'
  /** How many. */
  tokens: number
}

/** A turn ended: its text moved to the end of the common block. */
export interface TurnEvent extends OfWorker {
  /** Tells events apart. */
  type: 'turn'
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
export interface StopEvent extends OfWorker {
  /** Tells events apart. */
  type: 'stop'
  /** Why. */
  reason: StopReason
  /** The end of the worker's text, where some was held back: characters that were never complete included. */
  text?: string | undefined
}

/** A step has ended; its tokens, stops and turns came before this. */
export interface StepEvent extends RunEvent {
  /** Tells events apart. */
  type: 'step'
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
  /** Of these, those that the scheduler had in store, so that they were not computed (`SchedulerOptions.prefixes`). */
  reusedTokens: number
  /** Tokens that were sampled and written. */
  completionTokens: number
  /** Most pages that its blocks had at once; undefined in a cache of the user's, without a budget (`capacity`). */
  peakPages: number | undefined
  /** Of a run with `speculate`. It took `passes` where it would have taken as many as the run has steps. */
  speculation?: SpeculationUsage | undefined
}

/** All workers have stopped: the last event. Sums over all steps. */
export interface EndEvent {
  /** Tells events apart. */
  type: 'end'
  /** Lock steps. */
  steps: number
  /** Tokens that lock steps brought, forced ones included. */
  tokens: number
  /** Time of their forward passes. */
  milliseconds: number
  /** What the run has used. */
  usage: RunUsage
}

/** What a run tells, in order. `type` tells events apart; the set is closed. */
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

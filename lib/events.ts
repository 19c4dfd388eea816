// What a run of workers tells, in order. `step` counts lock steps from 0; events between two steps carry
// the number of the step to come.

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
  /** What it adds to the worker's text: '' without a tokenizer, and until a character is complete. */
  text: string
  /** It was given (prompt, header of a turn, injected, mark of a stop) and not sampled. */
  forced: boolean
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
 * A worker takes no further part; its block stays visible.
 *
 * - `stop-token`: it wrote one of the stop tokens
 * - `max-tokens`: it wrote as many tokens as it may
 * - `stopped`: by `stop()`
 */
export interface StopEvent {
  type: 'stop'
  worker: string
  step: number
  reason: 'stop-token' | 'max-tokens' | 'stopped'
}

/** A step has ended; its tokens, stops and turns came before this. */
export interface StepEvent {
  type: 'step'
  step: number
  /** Workers that took part. */
  workers: number
  /** New tokens of all of them. */
  tokens: number
  /** Wall time of the forward pass. */
  milliseconds: number
}

/** All workers have stopped: the last event. Sums over all steps. */
export interface EndEvent {
  type: 'end'
  steps: number
  tokens: number
  milliseconds: number
}

export type WorkerEvent =
  | JoinEvent
  | PauseEvent
  | ResumeEvent
  | TokenEvent
  | TurnEvent
  | StopEvent
  | StepEvent
  | EndEvent

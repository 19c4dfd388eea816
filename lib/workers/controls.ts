// What is asked of a worker between two steps, as plain data, and what it changes.

import type { WorkerEvent } from './events'
import type { Pending, Worker, WorkerBlocks } from './worker'

/**
 * - `stop`: `mark` takes the place of what is pending, and the worker stops once that is written. It stops at once
 *   where there is no mark, or where it has written nothing yet.
 * - `pause`, `resume`: it sits out, with its pending tokens, for the work that it is parked for, if any; it takes part again
 * - `inject`: `tokens` enter its block before what is pending
 */
export type Control =
  | { type: 'stop'; worker: string; mark: readonly Pending[] }
  | { type: 'pause'; worker: string; parked?: { data: unknown } | undefined }
  | { type: 'resume'; worker: string }
  | { type: 'inject'; worker: string; tokens: readonly Pending[] }

/** Of the whole group: tokens behind those of the common block, before the next step. */
export interface Append {
  type: 'append'
  tokens: Int32Array
}

/** On a worker that has no blocks yet, or that has stopped, a control has no effect. */
export function applyControl(worker: Worker, control: Control, step: number): WorkerEvent[] {
  const { blocks } = worker
  if (blocks === undefined || worker.state.name === 'stopped') return []
  switch (control.type) {
    case 'stop':
      return stop(worker, blocks, control.mark, step)
    case 'pause':
      return pause(worker, blocks, step, control.parked)
    case 'resume':
      return resume(worker, step)
    case 'inject':
      worker.pending = [...control.tokens, ...worker.pending]
      return []
  }
}

function stop(
  worker: Worker,
  blocks: WorkerBlocks,
  mark: readonly Pending[],
  step: number,
): WorkerEvent[] {
  if (mark.length === 0 || worker.tokens.length === 0) return [worker.stop('stopped', step)]
  const events = resume(worker, step)
  worker.pending = [...mark]
  worker.state = { name: 'stopping', blocks, reason: 'stopped' }
  return events
}

function pause(
  worker: Worker,
  blocks: WorkerBlocks,
  step: number,
  parked: { data: unknown } | undefined,
): WorkerEvent[] {
  const { state } = worker
  if (state.name === 'paused') return []
  const ending = state.name === 'stopping' ? state.reason : undefined
  worker.state = { name: 'paused', blocks, ending }
  const event = { type: 'pause', worker: worker.name, step } as const
  return [parked === undefined ? event : { ...event, parked }]
}

function resume(worker: Worker, step: number): WorkerEvent[] {
  const { state } = worker
  if (state.name !== 'paused') return []
  const { blocks, ending } = state
  worker.state =
    ending === undefined ? { name: 'active', blocks } : { name: 'stopping', blocks, reason: ending }
  return [{ type: 'resume', worker: worker.name, step }]
}

// What may change a worker's logits on their way to its token.

import type { Block } from './block'
import { HogwildError } from './errors'
import type { GrammarMatcher } from './grammar/grammar'
import { type CancelHandle, type NativeStepResults, type NativeStepWorker, native } from './native'
import { checkNumbersByToken, checkSynchronous } from './validate'

/** Numbers by token id. */
export type LogitBias = ReadonlyMap<number, number> | Readonly<Record<number, number>>

/** Whose logits they are. */
export interface LogitsInfo {
  /** The worker's index in the step; of a run's workers: its place in worker order. */
  worker: number
  /** That it writes to, as it was before the step. */
  block: Block
  /** Those that it brought to the step; -1 each for embeddings. */
  tokens: Int32Array
}

/** Changes logits [V] in place. */
export type ProcessLogits = (logits: Float32Array, info: LogitsInfo) => void

/** What one worker's token waits for. */
export interface StepHooks {
  processLogits: ProcessLogits | undefined
  grammar: GrammarMatcher | undefined
  info: LogitsInfo
}

/** Throws HOGWILD_INVALID_ARGUMENT. */
export function checkLogitBias(
  value: LogitBias,
  name: string,
  vocabSize: number,
): { ids: Int32Array; values: Float32Array } {
  const expected = 'a finite number (in float32) or -Infinity'
  const accept = (bias: number) => bias === -Infinity || Number.isFinite(Math.fround(bias))
  return checkNumbersByToken(value, name, vocabSize, expected, accept)
}

/** A copy that nobody changes meanwhile. Throws HOGWILD_INVALID_ARGUMENT. */
export function copyLogitBias(value: LogitBias, name: string, vocabSize: number): LogitBias {
  const { ids, values } = checkLogitBias(value, name, vocabSize)
  return new Map(Array.from(ids, (id, i) => [id, values[i] as number]))
}

/** How a worker's token waits. */
export function heldFor({ processLogits, grammar }: StepHooks): NativeStepWorker['held'] {
  if (processLogits !== undefined) return 'with-logits'
  return grammar === undefined ? 'no' : 'yes'
}

/**
 * A step some of whose workers are held: it computes, the hooks work on the logits, it goes on. `hold` begins it. What a
 * hook throws is thrown, and the cache is as it was before.
 */
export async function stepWithHooks(
  hooks: readonly StepHooks[],
  hold: () => ReturnType<typeof native.holdStep>,
  cancel: CancelHandle,
): Promise<NativeStepResults> {
  const computing = hold()
  // Grammars are asked while the model computes.
  const masks = Promise.all(hooks.map(({ grammar }) => grammar?.allowed()))
  masks.catch(() => {})
  const { step, logits } = await computing
  try {
    const allowed = await masks
    const edits = hooks.map((hook, i) => ({
      logits: hook.processLogits === undefined ? null : processed(hook, logits[i] as Float32Array),
      allowed: allowed[i] ?? null,
    }))
    return await native.finishStep(step, edits, cancel)
  } catch (error) {
    await native.abortStep(step).catch(() => {}) // it has ended already
    throw error
  }
}

function processed({ processLogits, info }: StepHooks, logits: Float32Array): Float32Array {
  const name = `workers[${info.worker}].processLogits`
  callProcessor(processLogits as ProcessLogits, logits, info, name)
  return logits
}

/** Throws what it throws, and HOGWILD_INVALID_ARGUMENT where it is not done when it returns. `name`: of messages. */
export function callProcessor(
  processLogits: ProcessLogits,
  logits: Float32Array,
  info: LogitsInfo,
  name: string,
): void {
  const { length } = logits
  const returned: unknown = processLogits(logits, info)
  checkSynchronous(returned, name)
  if (logits.length !== length) {
    throw new HogwildError(
      `${name} gave the memory of the logits away: they are changed in place`,
      'HOGWILD_INVALID_ARGUMENT',
    )
  }
}

/**
 * The processor for one token: where the step is tried again, it does the same without being called again. `worker` and
 * `name` are what it and messages are told.
 */
export function onceForToken(
  processLogits: ProcessLogits,
  worker: number,
  name: string,
): ProcessLogits {
  let done: { logits: Float32Array } | { error: unknown } | undefined
  return (logits, info) => {
    if (done === undefined) {
      try {
        callProcessor(processLogits, logits, { ...info, worker }, name)
        done = { logits: logits.slice() }
      } catch (error) {
        done = { error }
      }
    } else if ('logits' in done) logits.set(done.logits)
    if ('error' in done) throw done.error
  }
}

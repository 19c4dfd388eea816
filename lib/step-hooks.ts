// What may change a worker's logits on their way to its token.

import type { Block } from './block'
import { HogwildError } from './errors'
import type { GrammarMatcher } from './grammar/grammar'
import {
  type CancelHandle,
  type EditsHandle,
  type NativeHeldStep,
  type NativeLogitsEdit,
  type NativeStepResults,
  type NativeStepWorker,
  native,
} from './native'
import { checkNumbersByToken, checkSynchronous } from './validate'

/** Numbers by token id. */
export type LogitBias = ReadonlyMap<number, number> | Readonly<Record<number, number>>

/** Whose logits they are. */
export interface LogitsInfo {
  /** The worker's index in the step; of a run's workers: its place in worker order. */
  worker: number
  /** That it writes to, as it was before the step. */
  block: Block
  /** Those that it brought to the step, and its drafts up to this place; -1 each for embeddings. */
  tokens: Int32Array
}

/** Changes logits [V] in place. */
export type ProcessLogits = (logits: Float32Array, info: LogitsInfo) => void

/** What one worker's token waits for. */
export interface StepHooks {
  processLogits: ProcessLogits | undefined
  grammar: GrammarMatcher | undefined
  /** `tokens`: without drafts. */
  info: LogitsInfo
  drafts: Int32Array
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
 * A step some of whose workers are held: it computes, the hooks work on the logits, it goes on, stage by stage where
 * drafts are right. `hold` begins it. What a hook throws is thrown, and the cache is as it was before.
 */
export async function stepWithHooks(
  hooks: readonly StepHooks[],
  hold: (edits: EditsHandle) => ReturnType<typeof native.holdStep>,
  cancel: CancelHandle,
): Promise<NativeStepResults> {
  const early = native.createEdits()
  const computing = hold(early)
  // Grammars are asked while the model computes. Where nobody wants to see logits the step need not wait.
  const masks = Promise.all(hooks.map(({ grammar, drafts }) => grammar?.allowed(drafts)))
  const bringing = masks.then((allowed) => {
    if (hooks.some(({ processLogits }) => processLogits !== undefined)) return
    native.bringEdits(
      early,
      hooks.map((_, i) => ({ logits: null, allowed: allowed[i]?.[0] ?? null })),
    )
  })
  bringing.catch(() => {}) // the step waits then
  let state = await computing
  const logits = 'logits' in state ? state.logits : []
  while ('step' in state) {
    const { step, stage, waiting }: NativeHeldStep = state
    try {
      const allowed = await masks
      const edits = hooks.map((hook, i): NativeLogitsEdit => {
        if (!waiting[i]) return { logits: null, allowed: null }
        return {
          logits: processed(hook, logits[i] as Float32Array, stage),
          allowed: allowed[i]?.[stage] ?? null,
        }
      })
      state = await native.finishStep(step, edits, cancel)
    } catch (error) {
      await native.abortStep(step).catch(() => {}) // it has ended already
      throw error
    }
  }
  return state
}

/** `logits` [stages, V] are the worker's; null: it has no processor. */
function processed(
  { processLogits, info, drafts }: StepHooks,
  logits: Float32Array,
  stage: number,
): Float32Array | null {
  if (processLogits === undefined) return null
  const name = `workers[${info.worker}].processLogits`
  const size = logits.length / (drafts.length + 1)
  const own = drafts.length === 0 ? logits : logits.slice(stage * size, (stage + 1) * size)
  const tokens = Int32Array.from([...info.tokens, ...drafts.subarray(0, stage)])
  callProcessor(processLogits, own, { ...info, tokens }, name)
  return own
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
 * The processor for the tokens of one step: where the step is tried again, it does the same without being called again.
 * `worker` and `name` are what it and messages are told.
 */
export function onceForToken(
  processLogits: ProcessLogits,
  worker: number,
  name: string,
): ProcessLogits {
  /** By the number of tokens that it was told. */
  const known = new Map<number, { logits: Float32Array } | { error: unknown }>()
  return (logits, info) => {
    const done = known.get(info.tokens.length)
    if (done === undefined) {
      try {
        callProcessor(processLogits, logits, { ...info, worker }, name)
        known.set(info.tokens.length, { logits: logits.slice() })
      } catch (error) {
        known.set(info.tokens.length, { error })
        throw error
      }
    } else if ('logits' in done) logits.set(done.logits)
    else throw done.error
  }
}

// Where `generate` writes: in a cache of its own, or in a scheduler's pool, beside the groups there.

import type { Block } from './block'
import type { CacheDtype } from './formats'
import { PAGE_TOKENS, pagesFor } from './limits'
import type { Model, PrefillOptions, StepOutput } from './model'
import type { Tenant } from './workers/group'
import type { Scheduler } from './workers/scheduler'

/** What decides a text's place. */
export interface PlaceSettings {
  model: Model
  scheduler: Scheduler | undefined
  cacheDtype: CacheDtype | undefined
  maxTokens: number
}

/** A block of its own, and the pages that a text may take. */
export interface Place {
  readonly block: Block
  /** Of the prompt's tokens, those that are in the block, since they were stored: not all. */
  readonly reusedTokens: number
  /** As `Model.prefill`, behind the block: first the prompt's other tokens, then those that are chosen. */
  readonly prefill: (tokens: ArrayLike<number>, options: PrefillOptions) => Promise<StepOutput>
  /** Gives the pages back. */
  close(): Promise<void>
}

/** Rejects as `Model.createCache`, with HOGWILD_ABORTED, and as a scheduler where one is given. */
export async function openPlace(
  settings: PlaceSettings,
  prompt: Int32Array,
  signal: AbortSignal,
): Promise<Place> {
  const { model, scheduler, cacheDtype: dtype } = settings
  if (scheduler !== undefined) return await takeSeat(scheduler, settings, prompt, signal)
  const context = prompt.length + settings.maxTokens
  const cache = model.createCache({ capacity: pagesFor(context) * PAGE_TOKENS, context, dtype })
  const block = cache.createBlock()
  return {
    block,
    reusedTokens: 0,
    prefill: (tokens, options) => model.prefill(block, tokens, options),
    close: () => cache.close(),
  }
}

/** Its steps come between those of the groups in the pool. */
async function takeSeat(
  scheduler: Scheduler,
  { model, cacheDtype, maxTokens }: PlaceSettings,
  prompt: Int32Array,
  signal: AbortSignal,
): Promise<Place> {
  const context = prompt.length + maxTokens
  scheduler.pagesFor(context, 'the tokens of the prompt and options.maxTokens')
  const options = { capacity: context, context, cache: undefined, cacheDtype, priority: 0 }
  const tenant: Tenant = {
    settings: { model, prompt, maxTokens, ...options },
    workers: { length: 1 },
    warnings: model.warnings,
  }
  const seat = await scheduler.enter(tenant, signal)
  const close = () => scheduler.leave(seat, false)
  try {
    await seat.load([prompt], signal)
    const { block, reusedTokens } = await seat.batcher.hold(tenant, signal, 0, () => {
      const block = seat.createBlock()
      // The first token is chosen behind the last one of the prompt, so that one is computed.
      const reusedTokens = seat.reuse({ block, tokens: prompt.subarray(0, -1), done: 0 })
      return Promise.resolve({ block, reusedTokens })
    })
    let done = reusedTokens
    const prefill = async (tokens: ArrayLike<number>, options: PrefillOptions) => {
      const pages = pagesFor(tokens.length + (options.drafts?.length ?? 0))
      return await seat.batcher.hold(tenant, options.signal, pages, async () => {
        const output = await model.prefill(block, tokens, options)
        if (done < prompt.length) {
          done += tokens.length
          seat.offer({ block, tokens: prompt, done })
        }
        return output
      })
    }
    return { block, reusedTokens, prefill, close }
  } catch (error) {
    await close()
    throw error
  }
}

// Runs a script of block operations and steps on a model, op by op.

import { HogwildError } from '../../errors'
import type { Block, Cache, CacheDtype, Model, View } from '../../index'
import { type Demand, rehearse } from '../../replay/rehearsal'
import { type ReplayOp, refusal } from '../../replay/script'
import { pageSizeOf } from '../page-size'

export interface ReplayResult {
  /** Index of the op in the script. */
  op: number
  kind: 'prefill' | 'step'
  /** After the last new token of each worker, [workers][V]. */
  logits: Float32Array[]
}

/**
 * Yields the logits of each prefill and step. Throws before the first op where the script is wrong; an
 * error names the op, and keeps its code.
 *
 * @param capacity tokens of the cache; by default what the script can need at most.
 * @param dtype of the cache; default: as `model.createCache` has it.
 */
export function replay(
  model: Model,
  ops: readonly ReplayOp[],
  capacity?: number,
  dtype?: CacheDtype,
): AsyncGenerator<ReplayResult> {
  return perform(model, ops, rehearse(ops, model.config.vocabSize), capacity, dtype)
}

async function* perform(
  model: Model,
  ops: readonly ReplayOp[],
  demand: Demand,
  capacity: number | undefined,
  dtype: CacheDtype | undefined,
): AsyncGenerator<ReplayResult> {
  const needed = demand.tokens + demand.partPages * (await pageSizeOf(model))
  const cache = model.createCache({ capacity: capacity ?? Math.max(1, needed), dtype })
  try {
    const stage = new Stage(model, cache)
    for (const [index, op] of ops.entries()) {
      const logits = await stage.run(op).catch((error: unknown) => {
        throw error instanceof HogwildError ? refusal(index, op.op, error) : error
      })
      if (logits) yield { op: index, kind: op.op === 'prefill' ? 'prefill' : 'step', logits }
    }
  } finally {
    await cache.close()
  }
}

/** The blocks and workers of a script that was rehearsed: every name is there. */
class Stage {
  private readonly blocks = new Map<string, Block>()
  private readonly views = new Map<string, View>()

  constructor(
    private readonly model: Model,
    private readonly cache: Cache,
  ) {}

  /** Resolves to the logits of a prefill or a step. */
  async run(op: ReplayOp): Promise<Float32Array[] | undefined> {
    switch (op.op) {
      case 'block':
        this.blocks.set(op.name, this.cache.createBlock())
        return undefined
      case 'worker': {
        const view = {
          blocks: op.view.map((entry) =>
            typeof entry === 'string'
              ? this.block(entry)
              : { ...entry, block: this.block(entry.block) },
          ),
        }
        const target = op.write_to === undefined ? {} : { writeTo: this.block(op.write_to) }
        this.views.set(op.name, { ...view, ...target })
        return undefined
      }
      case 'prefill':
        return this.step([{ view: { blocks: [this.block(op.block)] }, tokens: op.tokens }])
      case 'step':
        return this.step(
          op.workers.map((name, worker) => ({
            view: this.views.get(name) as View,
            tokens: op.inputs[worker] as number[],
          })),
        )
      case 'append_from':
        this.block(op.target).appendFrom(this.block(op.source), {
          clearSource: op.clear_source ?? false,
        })
        return undefined
      case 'clear':
        this.block(op.block).clear()
        return undefined
      case 'truncate':
        this.block(op.block).truncate(op.length)
        return undefined
      case 'fork':
        this.blocks.set(op.name, this.block(op.block).fork())
        return undefined
      case 'insert':
        this.block(op.target).insert(op.at, this.block(op.source))
        return undefined
      case 'forget':
        this.block(op.block).forget(op.begin, op.end)
        return undefined
      case 'compact':
        await this.block(op.block).compact()
        return undefined
    }
  }

  private async step(workers: { view: View; tokens: number[] }[]): Promise<Float32Array[]> {
    const inputs = workers.map((worker) => ({ ...worker, sampler: null, logits: 'last' as const }))
    const outputs = await this.model.step(inputs)
    return outputs.map(({ logits }) => logits as Float32Array)
  }

  private block(name: string): Block {
    return this.blocks.get(name) as Block
  }
}

// Runs a script of block operations and steps on a model, op by op.

import { HogwildError } from '../../errors'
import type { Block, Cache, Model, View } from '../../index'
import type { ReplayOp } from './script'

export interface ReplayResult {
  /** Index of the op in the script. */
  op: number
  kind: 'prefill' | 'step'
  /** After the last new token of each worker, [workers][V]. */
  logits: Float32Array[]
}

/**
 * Yields the logits of each prefill and step. An error names the op, and keeps its code.
 *
 * @param capacity tokens of the cache; by default what the script can need at most.
 */
export async function* replay(
  model: Model,
  ops: readonly ReplayOp[],
  capacity?: number,
): AsyncGenerator<ReplayResult> {
  const cache = model.createCache({ capacity: capacity ?? tokensNeeded(ops) })
  try {
    const stage = new Stage(model, cache)
    for (const [index, op] of ops.entries()) {
      const logits = await stage.run(op).catch((error: unknown) => {
        if (!(error instanceof HogwildError)) throw error
        throw new HogwildError(`op ${index} (${op.op}): ${error.message}`, error.code, {
          cause: error,
        })
      })
      if (logits) yield { op: index, kind: op.op === 'prefill' ? 'prefill' : 'step', logits }
    }
  } finally {
    await cache.close()
  }
}

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
        this.add(op.name, () => this.cache.createBlock())
        return undefined
      case 'worker': {
        const view = { blocks: op.view.map((name) => this.block(name)) }
        const target = op.write_to === undefined ? {} : { writeTo: this.block(op.write_to) }
        this.views.set(op.name, { ...view, ...target })
        return undefined
      }
      case 'prefill':
        return this.step([{ view: { blocks: [this.block(op.block)] }, tokens: op.tokens }])
      case 'step':
        return this.step(
          op.workers.map((name, worker) => ({
            view: this.view(name),
            tokens: op.inputs[worker] ?? [],
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
        this.add(op.name, () => this.block(op.block).fork())
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

  private add(name: string, create: () => Block): void {
    if (this.blocks.has(name)) throw invalid(`there is a block "${name}" already`)
    this.blocks.set(name, create())
  }

  private block(name: string): Block {
    const block = this.blocks.get(name)
    if (!block)
      throw invalid(`unknown block "${name}"; defined: ${[...this.blocks.keys()].join(', ')}`)
    return block
  }

  private view(name: string): View {
    const view = this.views.get(name)
    if (!view)
      throw invalid(`unknown worker "${name}"; defined: ${[...this.views.keys()].join(', ')}`)
    return view
  }
}

const PAGE_TOKENS = 64

/**
 * An upper bound. Every block may leave its last page part empty, and so may both sides of an
 * operation that cuts blocks or shares pages; a compaction writes a block again.
 */
function tokensNeeded(ops: readonly ReplayOp[]): number {
  let written = 0
  let partPages = 0
  let copies = 1
  for (const op of ops) {
    if (op.op === 'prefill') written += op.tokens.length
    else if (op.op === 'step') written += op.inputs.flat().length
    else if (op.op === 'compact') copies += 1
    else if (op.op !== 'worker') partPages += 2
  }
  return written * copies + partPages * PAGE_TOKENS
}

function invalid(message: string): HogwildError {
  return new HogwildError(message, 'HOGWILD_INVALID_ARGUMENT')
}

// `hogwild replay`: runs the script of an experiment (docs/replay.md) and prints the logits' largest.

import type { CacheDtype, DeviceName } from '../index'
import { readReplayText, scriptIn } from '../replay/read'
import { rehearse } from '../replay/rehearsal'
import { parseScript, type ReplayOp } from '../replay/script'
import { findWithProgress, loadWithProgress, type ModelOptions } from './model'
import { checkOutput } from './replay/output'
import { type ReplayResult, replay } from './replay/replay'
import { type TensorShape, writeSafetensors } from './replay/write-safetensors'
import { printJson } from './terminal'

export interface ReplayOptions extends ModelOptions {
  model: string
  device: DeviceName
  capacity?: number
  cacheDtype?: CacheDtype
  out?: string
}

const TOP = 8

export async function replayScript(path: string, options: ReplayOptions): Promise<void> {
  const ops = parseScript(scriptIn(await readReplayText(path), path))
  // Once more, with the vocabulary, when the model is there: most mistakes need not wait for it.
  rehearse(ops)
  const { device } = options
  const folder = await findWithProgress(options.model, options)
  const out =
    options.out === undefined
      ? undefined
      : await checkOutput(options.out, { script: path, model: folder })
  const model = await loadWithProgress(folder, device, options)
  try {
    const logits = printed(replay(model, ops, options.capacity, options.cacheDtype))
    if (out === undefined) for await (const _ of logits);
    else await writeSafetensors(out, tensorShapes(ops, model.config.vocabSize), logits)
  } finally {
    await model.close()
  }
}

/** Prints a line per result and passes the logits of each worker on. */
async function* printed(results: AsyncIterable<ReplayResult>): AsyncGenerator<Float32Array> {
  for await (const { op, kind, logits } of results) {
    const top = logits.map((row) => largest(row, TOP))
    const line = {
      op,
      kind,
      argmax: top.map((ids) => ids[0]),
      top8_ids: top,
      // Nine digits give back the same float32.
      top8_values: top.map((ids, worker) =>
        ids.map((id) => Number(logits[worker]?.[id]?.toPrecision(9))),
      ),
    }
    printJson(line)
    yield* logits
  }
}

/** Indices of the `count` largest values, largest first, the smaller index first among equals. */
export function largest(values: Float32Array, count: number): number[] {
  const best: number[] = []
  values.forEach((value, index) => {
    if (best.length === count && value <= (values[best[count - 1] as number] as number)) return
    let place = best.length
    while (place > 0 && value > (values[best[place - 1] as number] as number)) place -= 1
    best.splice(place, 0, index)
    if (best.length > count) best.pop()
  })
  return best
}

/** A tensor per prefill and step, named by the op's index, [workers, V]. */
export function tensorShapes(ops: readonly ReplayOp[], vocabSize: number): TensorShape[] {
  return ops.flatMap((op, index) => {
    if (op.op !== 'prefill' && op.op !== 'step') return []
    const workers = op.op === 'step' ? op.workers.length : 1
    return [{ name: String(index).padStart(3, '0'), shape: [workers, vocabSize] }]
  })
}

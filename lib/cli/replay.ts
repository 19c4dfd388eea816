// `hogwild replay`: runs the script of an experiment (docs/replay.md) and prints the logits' largest.

import { readFile } from 'node:fs/promises'
import { HogwildError } from '../errors'
import { type DeviceName, type Dtype, loadModel } from '../index'
import { type ReplayResult, replay } from './replay/replay'
import { parseScript, type ReplayOp } from './replay/script'
import { type TensorShape, writeSafetensors } from './replay/write-safetensors'
import { printJson } from './terminal'

export interface ReplayOptions {
  model: string
  device: DeviceName
  dtype: 'auto' | Dtype
  threads?: number
  capacity?: number
  out?: string
}

const TOP = 8

export async function replayScript(path: string, options: ReplayOptions): Promise<void> {
  const ops = parseScript(await readJson(path))
  const { device, dtype, threads, capacity } = options
  const model = await loadModel(options.model, { device, dtype, ...(threads && { threads }) })
  try {
    const results = replay(model, ops, capacity)
    const logits = printed(results)
    if (options.out) {
      await writeSafetensors(options.out, tensorShapes(ops, model.config.vocabSize), logits)
    } else {
      for await (const _ of logits);
    }
  } finally {
    await model.close()
  }
}

async function readJson(path: string): Promise<unknown> {
  try {
    return JSON.parse(await readFile(path, 'utf8'))
  } catch (cause) {
    const message = `expected a JSON file, received "${path}": ${(cause as Error).message}`
    throw new HogwildError(message, 'HOGWILD_INVALID_ARGUMENT', { cause })
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

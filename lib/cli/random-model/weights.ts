// Model folders of random weights: config.json as given, and the tensors that it asks for.

import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { folderTensors } from '../../sources/huggingface'
import { parseConfig } from '../../sources/huggingface-config'
import { type TensorShape, tensorBytes, writeSafetensors } from '../replay/write-safetensors'

/** Random numbers of a model, which are taken over and over; a prime, so that no two rows of a matrix are the same. */
const NUMBERS = 1_048_573
const BF16_BYTES = 2
/** Of the output matrix: so strongly a random model prefers one token to others. */
const OUTPUT_GAIN = 4

export interface RandomWeights {
  /** The same one gives the same weights. */
  seed: number
  /** So many of the first tokens are never the likeliest: their rows of the output matrix are 0. Default 0. */
  silentTokens?: number
}

export interface RandomModel {
  parameters: number
  bytes: number
}

/** Writes config.json and model.safetensors, in bf16, into a folder that is there. Throws as `parseConfig` does. */
export async function writeRandomModel(
  folder: string,
  config: Record<string, unknown>,
  { seed, silentTokens = 0 }: RandomWeights,
): Promise<RandomModel> {
  const checked = parseConfig(config)
  const { hiddenSize, normOffset, embeddingScale } = checked
  const tensors = folderTensors(checked).map(({ name, shape, role }): RandomTensor => {
    const tensor = { name, shape: [...shape], dtype: 'BF16' as const, zeros: 0 }
    if (/(^|_)norm$/.test(role.name)) return { ...tensor, mean: 1 - normOffset, deviation: 0.1 }
    if (role.isVector) return { ...tensor, mean: 0, deviation: 0.1 }
    if (role.name === 'embed') return { ...tensor, mean: 0, deviation: 1 / embeddingScale }
    const deviation = 1 / Math.sqrt(role.cols)
    if (role.name !== 'lm_head') return { ...tensor, mean: 0, deviation }
    return {
      ...tensor,
      mean: 0,
      deviation: OUTPUT_GAIN * deviation,
      zeros: silentTokens * hiddenSize * BF16_BYTES,
    }
  })
  await writeFile(join(folder, 'config.json'), `${JSON.stringify(config, null, 2)}\n`)
  await writeSafetensors(join(folder, 'model.safetensors'), tensors, dataOf(tensors, seed))
  const bytes = tensors.reduce((sum, tensor) => sum + tensorBytes(tensor), 0)
  return { parameters: bytes / BF16_BYTES, bytes }
}

interface RandomTensor extends TensorShape {
  mean: number
  /** Its numbers are uniform, with this standard deviation. */
  deviation: number
  /** Bytes of 0 that it begins with. */
  zeros: number
}

function* dataOf(tensors: readonly RandomTensor[], seed: number): Generator<Uint8Array> {
  const numbers = randomNumbers(seed)
  /** In bf16, by mean and deviation. */
  const scaled = new Map<string, Uint8Array>()
  let at = 0
  for (const tensor of tensors) {
    const { mean, deviation, zeros } = tensor
    const key = `${mean} ${deviation}`
    const weights = scaled.get(key) ?? inBf16(numbers, mean, deviation)
    scaled.set(key, weights)
    if (zeros > 0) yield new Uint8Array(zeros)
    let left = tensorBytes(tensor) - zeros
    while (left > 0) {
      const part = weights.subarray(at, at + left)
      yield part
      left -= part.length
      at = (at + part.length) % weights.length
    }
  }
}

/** Uniform, with mean 0 and standard deviation 1. */
function randomNumbers(seed: number): Float32Array {
  const width = 2 * Math.sqrt(3)
  const values = new Float32Array(NUMBERS)
  let state = seed >>> 0
  for (let index = 0; index < NUMBERS; index++) {
    // Linear congruential generator of Numerical Recipes: quality does not matter here.
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    values[index] = (state / 2 ** 32 - 0.5) * width
  }
  return values
}

/** mean + deviation * x of each x, in bf16: the upper half of a float32. */
function inBf16(numbers: Float32Array, mean: number, deviation: number): Uint8Array {
  const scaled = numbers.map((x) => mean + deviation * x)
  const halves = new Uint16Array(scaled.buffer)
  const bits = new Uint16Array(numbers.length)
  for (let index = 0; index < bits.length; index++) bits[index] = halves[2 * index + 1] as number
  return new Uint8Array(bits.buffer)
}

// Does a device compute what it should? Two workers on the demo's model, against logits of a float64 program.

import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { createDevice, type DeviceOptions, loadModel, type Probe } from '../../index'

/** models/demo/check.json, written by test/doctor.test.ts. */
interface Expected {
  /** Token ids. */
  prompt: number[]
  /** One step after the prompt: the new tokens of each worker, and the logits after each, [tokens][V]. */
  workers: { tokens: number[]; logits: number[][] }[]
}

export interface Check {
  device: string
  /** Largest difference from the expected logits; null where nothing was computed. */
  error: number | null
  /** Empty where the device computes what it should. */
  problem: string
}

// The logits are up to 35. f32: what rounding leaves of them. bf16: of activations, keys and values.
const TOLERANCE = { f32: 1e-3, bf16: 0.5 }

/** The CPU at every SIMD level that it has, and every card that can be used. */
export function devices({ simd, cuda }: Pick<Probe, 'simd' | 'cuda'>): DeviceOptions[] {
  return [
    ...simd.map((level): DeviceOptions => ({ type: 'cpu', simd: level })),
    ...cuda.cards.flatMap(({ reason }, index): DeviceOptions[] =>
      reason === '' ? [{ type: 'cuda', index }] : [],
    ),
  ]
}

/** folder: of a model with a check.json. */
export async function check(options: DeviceOptions, folder: string): Promise<Check> {
  const name =
    options.type === 'cpu' ? `cpu ${options.simd ?? ''}` : `${options.type}:${options.index}`
  try {
    const error = await largestError(options, folder)
    const rounds =
      options.type === 'cuda' || options.simd === 'avx512bf16' || options.simd === 'amx'
    const allowed = TOLERANCE[rounds ? 'bf16' : 'f32']
    // Not error > allowed: NaN is wrong too.
    const problem = error <= allowed ? '' : `off by ${error.toPrecision(3)}, allowed ${allowed}`
    return { device: name, error, problem }
  } catch (error) {
    return { device: name, error: null, problem: (error as Error).message }
  }
}

async function largestError(options: DeviceOptions, folder: string): Promise<number> {
  const expected: Expected = JSON.parse(readFileSync(join(folder, 'check.json'), 'utf8'))
  using device = createDevice(options)
  await using model = await loadModel(folder, { device })
  const dtype = options.type === 'cpu' ? 'f32' : 'bf16'
  await using cache = model.createCache({ capacity: 256, dtype })
  const prompt = cache.createBlock()
  await model.prefill(prompt, expected.prompt, { sampler: null })
  const workers = expected.workers.map((worker) => ({ ...worker, block: cache.createBlock() }))
  const outputs = await model.step(
    workers.map(({ tokens, block }) => {
      const others = workers.map((other) => other.block).filter((other) => other !== block)
      return { view: { blocks: [prompt, ...others, block] }, tokens, logits: 'all', sampler: null }
    }),
  )
  const wanted = workers.flatMap(({ logits }) => logits.flat())
  const actual = outputs.flatMap(({ logits = [] }) => [...logits])
  if (actual.length !== wanted.length) return Number.NaN
  return wanted.reduce((most, value, i) => {
    const error = Math.abs(value - (actual[i] ?? Number.NaN))
    return Number.isNaN(error) ? error : Math.max(most, error)
  }, 0)
}

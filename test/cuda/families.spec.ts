// Every family on the CUDA device: the tiny models of fixtures/families and fixtures/quantised beside what transformers
// computes in float64, and their greedy tokens beside the CPU device's. Then every format of GGUF files.

import { copyFileSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import { BENCH_FORMATS, writeRandomGguf } from '../../bench/peers/random-gguf'
import { createDevice, type Device, loadModel, type Model } from '../../lib'
import { largest } from '../../lib/cli/replay'
import {
  difference,
  Random,
  readSafetensors,
  type Tensor,
  temporaryFolder,
  writeSafetensors,
} from '../fixtures'

const fixtures = join(__dirname, '..', 'fixtures')

const folders = [
  ...readdirSync(join(fixtures, 'families')).map((name) => join(fixtures, 'families', name)),
  ...readdirSync(join(fixtures, 'quantised')).map((name) => join(fixtures, 'quantised', name)),
].map((folder): [string, string] => [basename(folder), folder])

/**
 * Mean square error of logits over their mean square. Weights in f32 are rounded to bf16, and so are activations, keys
 * and values.
 */
const NMSE = 2.2e-3
/** Margins between the two largest logits above which both devices choose alike, if they exceed twice the error. */
const MARGIN = 0.1
/** Tokens at the end that come one by one. */
const STEPS = 5

let cuda: Device
let cpu: Device

beforeAll(() => {
  cuda = createDevice({ type: 'cuda' })
  cpu = createDevice({ type: 'cpu', threads: 1 })
})

afterAll(() => {
  cuda.close()
  cpu.close()
})

interface Expected {
  tokens: number[]
  logits: number[][]
}

/** Logits of all tokens, of which the last come one by one. */
async function logitsOf(model: Model, tokens: number[]): Promise<Float32Array[]> {
  const { length } = tokens
  await using cache = model.createCache({ dtype: 'bf16', capacity: length, context: length })
  const block = cache.createBlock()
  const { vocabSize } = model.config
  const begun = await model.prefill(block, tokens.slice(0, length - STEPS), { logits: 'all' })
  const rows = Array.from({ length: length - STEPS }, (_, i) =>
    (begun.logits as Float32Array).subarray(i * vocabSize, (i + 1) * vocabSize),
  )
  for (const token of tokens.slice(length - STEPS)) {
    const { logits } = await model.prefill(block, [token], { logits: 'last' })
    rows.push(logits as Float32Array)
  }
  return rows
}

/** Both devices on one model: greedy tokens, and logits beside those expected of every tenth token, else the CPU's. */
async function compare(path: string, tokens: number[], expected?: number[][]) {
  await using onCpu = await loadModel(path, { device: cpu })
  await using onCuda = await loadModel(path, { device: cuda })
  expect(onCuda.weights).toEqual(onCpu.weights)
  const there = await logitsOf(onCpu, tokens)
  const here = await logitsOf(onCuda, tokens)
  let closeCalls = 0
  there.forEach((row, i) => {
    const [first, second] = largest(row, 2)
    const margin = row[first!]! - row[second!]!
    if (margin <= Math.max(MARGIN, 2 * difference(here[i]!, row).max)) closeCalls += 1
    else expect([i, ...largest(here[i]!, 1)]).toEqual([i, first])
  })
  const exact = expected ?? there.map((row) => [...row])
  const found = exact.map((_, i) => [...here[expected === undefined ? i : 10 * i]!])
  const { nmse, max } = difference(found.flat(), exact.flat())
  process.stdout.write(
    `${basename(path)}: NMSE ${nmse.toExponential(1)}, largest error ${max.toFixed(3)}; ${closeCalls} of ` +
      `${there.length} margins are within ${MARGIN} or twice the error\n`,
  )
  expect(nmse).toBeLessThan(NMSE)
}

const expectedOf = (folder: string): Expected =>
  JSON.parse(readFileSync(join(folder, 'expected.json'), 'utf8'))

test.each(folders)('%s', async (_, folder) => {
  const { tokens, logits } = expectedOf(folder)
  await compare(folder, tokens, logits)
})

// Experts of a layer that differ in their dtypes, and in those of their three matrices.
test.each(['mixtral_odd', 'qwen3_moe_odd_v4'])('%s, its experts in three dtypes', async (name) => {
  const from = join(fixtures, 'families', name)
  const dtypes = ['f32', 'f16', 'bf16'] as const
  const shards = dtypes.map(() => new Map<string, Tensor>())
  const weightMap: Record<string, string> = {}
  let ofExperts = 0
  for (const [tensor, values] of readSafetensors(join(from, 'model.safetensors'))) {
    const at = tensor.includes('.experts.') ? (ofExperts + Math.floor(ofExperts++ / 3)) % 3 : 0
    shards[at]!.set(tensor, values)
    weightMap[tensor] = `${dtypes[at]}.safetensors`
  }
  const folder = temporaryFolder()
  copyFileSync(join(from, 'config.json'), join(folder, 'config.json'))
  shards.forEach((shard, at) => {
    writeSafetensors(join(folder, `${dtypes[at]}.safetensors`), shard, dtypes[at]!)
  })
  const index = { metadata: {}, weight_map: weightMap }
  writeFileSync(join(folder, 'model.safetensors.index.json'), JSON.stringify(index))
  const { tokens, logits } = expectedOf(from)
  await compare(folder, tokens, logits)
})

/** Matrices of 256 columns make whole blocks of every format. */
const SHAPE = {
  name: 'a small Llama',
  layers: 2,
  hiddenSize: 256,
  intermediateSize: 256,
  queryHeads: 4,
  kvHeads: 2,
  headDim: 64,
  vocabSize: 300,
}

test.each(BENCH_FORMATS)('all matrices in %s, in GGUF', async (format) => {
  const path = join(temporaryFolder(), 'model.gguf')
  await writeRandomGguf(path, SHAPE, format, { repeated: false })
  await compare(path, new Random(4).tokens(20, SHAPE.vocabSize))
})

// Every family on the CUDA device: the tiny models of fixtures/families and fixtures/quantised beside what transformers
// computes in float64, and their greedy tokens beside the CPU device's. Then every format of GGUF files.

import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { BENCH_FORMATS, writeRandomGguf } from '../../bench/peers/random-gguf'
import { createDevice, type Device, loadModel, type Model } from '../../lib'
import { largest } from '../../lib/cli/replay'
import { codeOf, difference, Random, temporaryFolder } from '../fixtures'

const fixtures = join(__dirname, '..', 'fixtures')
const families = readdirSync(join(fixtures, 'families'))
const quantised = readdirSync(join(fixtures, 'quantised'))

/** Families whose layers have windows, soft caps or sinks, which the attention kernels lack. */
const REFUSED = [
  ...['gemma2', 'gemma2_bias_untied', 'gemma2_caps', 'gemma2_defaults', 'gemma2_uncapped_v4'],
  ...['gemma3_text', 'gemma3_text_capped', 'gemma3_text_linear', 'gemma3_text_v4'],
  ...['gpt_oss', 'gpt_oss_layer_types_v4', 'gpt_oss_long', 'gpt_oss_mxfp4', 'gpt_oss_odd'],
  ...['mistral_window', 'mixtral_window', 'phi3_longrope', 'phi3_window', 'qwen2_window'],
  ...['qwen3_window', 'smollm3_window'],
]

/**
 * Mean square error of logits over their mean square. Weights in f32 are rounded to bf16, and so are activations, keys
 * and values.
 */
const NMSE = 2.2e-3
/** Margins between the two largest logits above which both devices choose alike. */
const MARGIN = 0.1
const GREEDY_TOKENS = 6

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

/** Logits of all tokens, then of greedy ones: `chosen`, or what this model chooses. */
async function logitsOf(model: Model, tokens: number[], chosen?: number[]) {
  await using cache = model.createCache({ dtype: 'bf16', capacity: 512, context: 400 })
  const block = cache.createBlock()
  const { logits } = await model.prefill(block, tokens, { logits: 'all' })
  const all = logits as Float32Array
  const steps = [all.subarray(-model.config.vocabSize)]
  const greedy: number[] = []
  for (let i = 0; i < GREEDY_TOKENS; i++) {
    const [first] = largest(steps.at(-1)!, 1)
    greedy.push(chosen?.[i] ?? first!)
    const next = await model.prefill(block, greedy.slice(-1), { logits: 'last' })
    steps.push(next.logits as Float32Array)
  }
  return { all, steps, greedy }
}

/** Both devices on one model. How far the logits of every tenth token are from `expected`, else from the CPU's. */
async function compare(path: string, tokens: number[], expected?: number[][]) {
  await using onCpu = await loadModel(path, { device: cpu })
  await using onCuda = await loadModel(path, { device: cuda })
  expect(onCuda.weights).toEqual(onCpu.weights)
  const there = await logitsOf(onCpu, tokens)
  const here = await logitsOf(onCuda, tokens, there.greedy)
  there.steps.forEach((row, i) => {
    const [first, second] = largest(row, 2)
    if (row[first!]! - row[second!]! <= MARGIN) return
    expect([i, ...largest(here.steps[i]!, 1)]).toEqual([i, first])
  })
  if (expected === undefined) return difference(here.all, there.all).nmse
  const { vocabSize } = onCuda.config
  const rows = expected.flatMap((_, i) => [
    ...here.all.subarray(10 * i * vocabSize, (10 * i + 1) * vocabSize),
  ])
  return difference(rows, expected.flat()).nmse
}

test.each(families.filter((name) => !REFUSED.includes(name)))('%s', async (name) => {
  const folder = join(fixtures, 'families', name)
  const { tokens, logits } = readExpected(folder)
  expect(await compare(folder, tokens, logits)).toBeLessThan(NMSE)
})

test.each(REFUSED)('%s is refused by name', async (name) => {
  const load = () => loadModel(join(fixtures, 'families', name), { device: cuda })
  await expect(load()).rejects.toThrow(/attention with .*the CPU device/)
  expect(await codeOf(load)).toBe('HOGWILD_UNSUPPORTED')
})

test.each(quantised)('%s', async (name) => {
  const folder = join(fixtures, 'quantised', name)
  const { tokens, logits } = readExpected(folder)
  expect(await compare(folder, tokens.slice(0, 31), logits.slice(0, 4))).toBeLessThan(NMSE)
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
  expect(await compare(path, new Random(4).tokens(20, SHAPE.vocabSize))).toBeLessThan(NMSE)
})

function readExpected(folder: string): Expected {
  return JSON.parse(readFileSync(join(folder, 'expected.json'), 'utf8')) as Expected
}

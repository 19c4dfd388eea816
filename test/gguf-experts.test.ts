// Mixtures of experts in GGUF files whose experts are quantised, stacked as llama.cpp stores them, against the same
// files with the dequantised weights. That those are right is shown by quant.test.ts.

import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { createDevice, loadModel, probe } from '../lib'
import { FORMATS, type Format } from '../lib/formats'
import { native } from '../lib/native'
import {
  difference,
  encode,
  expectSameBits,
  Random,
  type Tensor,
  temporaryFolder,
  writeSafetensors,
} from './fixtures'
import { writeGgufModel } from './gguf-models'
import type { GgufWriterTensor } from './gguf-writer'

const TOKENS = 40

/** ggml's numbers; how a block begins that gives weights of a usual size. */
const TYPES: Partial<Record<Format, { type: number; head: (random: Random) => Uint8Array }>> = {
  q8_0: { type: 8, head: (random) => encode([0.002 * (0.5 + random.next())], 'f16') },
  q4_0: { type: 2, head: (random) => encode([0.03 * (0.5 + random.next())], 'f16') },
  q4_1: { type: 3, head: (random) => encode([0.03, -0.2 - 0.1 * random.next()], 'f16') },
  q4_k: { type: 12, head: () => encode([0.0008, 0.006], 'f16') },
  mxfp4: { type: 39, head: (random) => Uint8Array.of(random.int(121, 124)) },
}

const HIDDEN = 256

/** A random model of the family, in float32, with sizes that blocks of all formats divide. */
function writeFolder(family: 'mixtral' | 'qwen3_moe' | 'gpt_oss', random: Random): string {
  const folder = temporaryFolder()
  const config = JSON.parse(
    readFileSync(join(__dirname, 'fixtures', 'families', family, 'config.json'), 'utf8'),
  )
  const experts = (config.num_local_experts ?? config.num_experts) as number
  const size = 256
  Object.assign(config, { hidden_size: HIDDEN, intermediate_size: size, num_hidden_layers: 1 })
  Object.assign(config, { num_attention_heads: 4, num_key_value_heads: 2, head_dim: 16 })
  if (family === 'qwen3_moe') config.moe_intermediate_size = size
  if (config.layer_types) config.layer_types = config.layer_types.slice(0, 1)
  writeFileSync(join(folder, 'config.json'), JSON.stringify(config))

  const tensors = new Map<string, Tensor>()
  const put = (name: string, shape: number[], deviation: number, mean = 0) => {
    const count = shape.reduce((product, n) => product * n, 1)
    tensors.set(name, { shape, data: random.normals(count, deviation).map((x) => mean + x) })
  }
  const matrix = (name: string, rows: number, cols: number) =>
    put(`${name}.weight`, [rows, cols], 1.5 / Math.sqrt(cols))
  put('model.embed_tokens.weight', [config.vocab_size, HIDDEN], 1)
  put('model.norm.weight', [HIDDEN], 0.2, 1)
  matrix('lm_head', config.vocab_size, HIDDEN)
  const layer = 'model.layers.0'
  for (const norm of ['input', 'post_attention']) {
    put(`${layer}.${norm}_layernorm.weight`, [HIDDEN], 0.2, 1)
  }
  for (const [name, rows, cols] of [
    ['q', 64, HIDDEN],
    ['k', 32, HIDDEN],
    ['v', 32, HIDDEN],
    ['o', HIDDEN, 64],
  ] as const) {
    matrix(`${layer}.self_attn.${name}_proj`, rows, cols)
    if (family === 'gpt_oss') put(`${layer}.self_attn.${name}_proj.bias`, [rows], 0.2)
  }
  if (family === 'qwen3_moe') {
    for (const name of ['q', 'k']) put(`${layer}.self_attn.${name}_norm.weight`, [16], 0.2, 1)
  }
  if (family === 'gpt_oss') {
    put(`${layer}.self_attn.sinks`, [4], 0.2)
    matrix(`${layer}.mlp.router`, experts, HIDDEN)
    put(`${layer}.mlp.router.bias`, [experts], 0.2)
    put(`${layer}.mlp.experts.gate_up_proj`, [experts, HIDDEN, 2 * size], 0.1)
    put(`${layer}.mlp.experts.gate_up_proj_bias`, [experts, 2 * size], 0.2)
    put(`${layer}.mlp.experts.down_proj`, [experts, size, HIDDEN], 0.1)
    put(`${layer}.mlp.experts.down_proj_bias`, [experts, HIDDEN], 0.2)
  } else {
    const isMixtral = family === 'mixtral'
    const mlp = `${layer}.${isMixtral ? 'block_sparse_moe' : 'mlp'}`
    matrix(`${mlp}.gate`, experts, HIDDEN)
    const names = isMixtral ? ['w1', 'w3', 'w2'] : ['gate_proj', 'up_proj', 'down_proj']
    for (let e = 0; e < experts; e++) {
      for (const name of names) matrix(`${mlp}.experts.${e}.${name}`, size, HIDDEN)
    }
  }
  writeSafetensors(join(folder, 'model.safetensors'), tensors, 'f32')
  return folder
}

/** Random blocks in the place of a stack of experts, and what they stand for. */
function quantised(tensor: GgufWriterTensor, format: Format, random: Random) {
  const { type, head } = TYPES[format] as NonNullable<(typeof TYPES)[Format]>
  const { elements, bytes } = FORMATS[format]
  const cols = tensor.shape.at(-1) as number
  const rows = tensor.shape.reduce((product, n) => product * n, 1) / cols
  const count = (rows * cols) / elements
  const blocks = Uint8Array.from(random.tokens(count * bytes, 256))
  for (let block = 0; block < count; block++) blocks.set(head(random), block * bytes)
  const all = Int32Array.from({ length: rows }, (_, row) => row)
  const reader = native.createDevice({
    type: 'cpu',
    index: 0,
    threads: 1,
    simd: '',
    profile: false,
  })
  const values = native.ops.embedding(reader, all, blocks, format, cols, 1)
  native.deviceClose(reader)
  const exact = new Uint8Array(values.buffer)
  return {
    stored: { ...tensor, type, bytes: blocks.length, read: () => blocks },
    exact: { ...tensor, type: 0, bytes: exact.length, read: () => exact },
  }
}

test.each([
  ['mixtral', ['q4_0', 'q8_0']],
  ['mixtral', ['q4_k']],
  ['qwen3_moe', ['q4_1', 'q4_k', 'q8_0']],
  ['gpt_oss', ['mxfp4']],
] as const)('%s with experts in %j', async (family, formats) => {
  const random = new Random(7)
  const folder = writeFolder(family, random)
  const [path, twin] = [join(folder, 'quantised.gguf'), join(folder, 'exact.gguf')]
  const twins: GgufWriterTensor[] = []
  await writeGgufModel(folder, path, {
    tensors: (tensors) =>
      tensors.map((tensor) => {
        const format = formats[twins.length % formats.length] as Format
        const isExperts = tensor.name.endsWith('_exps.weight')
        const { stored, exact } = isExperts
          ? quantised(tensor, format, random)
          : { stored: tensor, exact: tensor }
        twins.push(exact)
        return stored
      }),
  })
  await writeGgufModel(folder, twin, { tensors: () => twins })

  const logitsOf = async (file: string, options: { dtype?: 'f32'; simd?: string } = {}) => {
    const { dtype = 'auto', simd } = options
    using device = createDevice({ type: 'cpu', threads: 2, ...(simd && { simd: simd as 'avx2' }) })
    await using model = await loadModel(file, { device, dtype, onWarning: () => {} })
    await using cache = model.createCache({ dtype: 'f32', capacity: 64 })
    const tokens = new Random(8).tokens(TOKENS, model.config.vocabSize)
    const { logits } = await model.prefill(cache.createBlock(), tokens, { logits: 'all' })
    return { logits: logits as Float32Array, weights: Object.keys(model.weights) }
  }
  const exact = await logitsOf(twin)
  expect(exact.weights).toEqual(['f32'])
  const dequantised = await logitsOf(path, { dtype: 'f32' })
  expectSameBits(dequantised.logits, exact.logits, 'the weights as float32')
  for (const simd of probe().simd) {
    const found = await logitsOf(path, { simd })
    expect(found.weights).toEqual(expect.arrayContaining(['f32', ...formats]))
    expect(difference(found.logits, exact.logits).nmse).toBeLessThan(1e-7)
  }
})

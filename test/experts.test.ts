import { join } from 'node:path'
import { randomBytes, randomWeights, TYPES } from '../bench/peers/random-gguf'
import { createDevice, loadModel, probe } from '../lib'
import { FORMATS, type Format, isQuantised, storedBytes } from '../lib/formats'
import {
  difference,
  expectSameBits,
  expectTwinStep,
  loadReference,
  Random,
  type Tensor,
  type Twin,
  temporaryFolder,
  twin,
  writeModelFolder,
} from './fixtures'
import { writeGgufModel } from './gguf-models'
import type { GgufWriterTensor } from './gguf-writer'

// Mixtures of experts when several workers see each other, against the definition in float64. That plain sequences
// are as transformers computes them is shown by families.test.ts.
const root = join(__dirname, 'fixtures', 'families')

test.each(['mixtral_odd', 'qwen3_moe_odd_v4', 'qwen3_moe_dense_layers'])(
  '%s: three workers in a combined layout',
  async (name) => {
    const folder = join(root, name)
    const reference = loadReference(folder)
    for (const simd of probe().simd) {
      const random = new Random(12)
      using device = createDevice({ type: 'cpu', simd, threads: 2 })
      await using model = await loadModel(folder, { device })
      await using cache = model.createCache({ dtype: 'f32', capacity: 512 })
      const prompt = twin(cache)
      const own = [twin(cache), twin(cache), twin(cache)]
      const tokens = (length: number) => random.tokens(length, reference.vocabSize)
      const check = (workers: Parameters<typeof expectTwinStep>[2]) =>
        expectTwinStep(model, reference, workers, 2e-4, `${name}, ${simd}`)
      const views = own.map((mine): Twin[] => [prompt, ...own.filter((it) => it !== mine), mine])

      await check([{ view: [prompt], tokens: tokens(23) }])
      for (const lengths of [[3, 1, 5], ...Array<number[]>(6).fill([1, 1, 1]), [2, 4, 1]]) {
        await check(views.map((view, i) => ({ view, tokens: tokens(lengths[i] as number) })))
      }
    }
  },
)

// Experts of GGUF files in each format, whose width makes whole blocks of all of them: the model, and the one of its
// dequantised weights.
const [HIDDEN, WIDTH, EXPERTS] = [256, 256, 4]

/** A random model whose experts are one by one (Mixtral, Qwen3-MoE) or stacked and transposed (gpt-oss). */
function writeExperts(family: 'mixtral' | 'qwen3_moe' | 'gpt_oss'): string {
  const random = new Random(21)
  const tensors = new Map<string, Tensor>()
  const add = (name: string, ...shape: number[]) => {
    const size = shape.reduce((product, one) => product * one, 1)
    const isNorm = name.endsWith('norm.weight')
    const deviation = shape.length === 1 ? 0.2 : 1.5 / Math.sqrt(shape.at(-1) as number)
    const data = random.normals(size, deviation).map((x) => (isNorm ? 1 + x : x))
    tensors.set(name, { shape, data })
  }
  const bias = family === 'gpt_oss'
  const linear = (name: string, rows: number, cols: number, hasBias = bias) => {
    add(`${name}.weight`, rows, cols)
    if (hasBias) add(`${name}.bias`, rows)
  }
  add('model.embed_tokens.weight', 60, HIDDEN)
  for (const layer of [0, 1].map((i) => `model.layers.${i}`)) {
    add(`${layer}.input_layernorm.weight`, HIDDEN)
    for (const part of ['q', 'k', 'v']) linear(`${layer}.self_attn.${part}_proj`, 64, HIDDEN)
    linear(`${layer}.self_attn.o_proj`, HIDDEN, 64)
    add(`${layer}.post_attention_layernorm.weight`, HIDDEN)
    if (family === 'qwen3_moe')
      for (const part of ['q', 'k']) add(`${layer}.self_attn.${part}_norm.weight`, 32)
    if (family === 'gpt_oss') {
      add(`${layer}.self_attn.sinks`, 2)
      linear(`${layer}.mlp.router`, EXPERTS, HIDDEN)
      add(`${layer}.mlp.experts.gate_up_proj`, EXPERTS, HIDDEN, 2 * WIDTH)
      add(`${layer}.mlp.experts.gate_up_proj_bias`, EXPERTS, 2 * WIDTH)
      add(`${layer}.mlp.experts.down_proj`, EXPERTS, WIDTH, HIDDEN)
      add(`${layer}.mlp.experts.down_proj_bias`, EXPERTS, HIDDEN)
      continue
    }
    const [mlp, gate, up, down] =
      family === 'mixtral'
        ? ['block_sparse_moe', 'w1', 'w3', 'w2']
        : ['mlp', 'gate_proj', 'up_proj', 'down_proj']
    linear(`${layer}.${mlp}.gate`, EXPERTS, HIDDEN)
    for (let e = 0; e < EXPERTS; e++) {
      for (const part of [gate, up]) linear(`${layer}.${mlp}.experts.${e}.${part}`, WIDTH, HIDDEN)
      linear(`${layer}.${mlp}.experts.${e}.${down}`, HIDDEN, WIDTH)
    }
  }
  add('model.norm.weight', HIDDEN)
  add('lm_head.weight', 60, HIDDEN)
  const architecture = { mixtral: 'Mixtral', qwen3_moe: 'Qwen3Moe', gpt_oss: 'GptOss' }[family]
  const config = {
    architectures: [`${architecture}ForCausalLM`],
    model_type: family,
    vocab_size: 60,
    hidden_size: HIDDEN,
    intermediate_size: WIDTH,
    moe_intermediate_size: WIDTH,
    num_hidden_layers: 2,
    num_attention_heads: 2,
    num_key_value_heads: 2,
    head_dim: 32,
    num_local_experts: EXPERTS,
    num_experts_per_tok: 2,
    norm_topk_prob: true,
    sliding_window: 8,
    max_position_embeddings: 512,
    rms_norm_eps: 1e-5,
    rope_theta: 10000,
    hidden_act: 'silu',
    attention_bias: bias,
  }
  return writeModelFolder(config, tensors, 'f32')
}

/** The experts' matrices in other numbers, of that format. */
function inFormat(format: Format, tensors: readonly GgufWriterTensor[]): GgufWriterTensor[] {
  const numbers = randomBytes()
  return tensors.map((tensor) => {
    if (!/_exps\.weight$/.test(tensor.name)) return tensor
    const elements = tensor.shape.reduce((product, size) => product * size, 1)
    const bytes = storedBytes(format, 1, elements)
    const read = () => randomWeights(format, bytes, numbers)
    return { ...tensor, type: TYPES[format], bytes, read }
  })
}

const quantised = (Object.keys(FORMATS) as Format[]).filter(isQuantised)

describe.each([
  ['mixtral', quantised],
  ['qwen3_moe', ['q8_0', 'q4_k']],
  ['gpt_oss', ['mxfp4', 'q5_1']],
] as const)('experts of %s, in GGUF', (family, formats) => {
  const folder = writeExperts(family)

  test.each(formats)('%s: the model of the dequantised weights', async (format) => {
    const path = join(temporaryFolder(), 'model.gguf')
    await writeGgufModel(folder, path, { tensors: (all) => inFormat(format, all) })
    const tokens = new Random(4).tokens(40, 60)
    using device = createDevice({ type: 'cpu', threads: 2 })
    const logits = async (options: { dtype?: 'f32'; repack?: boolean }) => {
      await using model = await loadModel(path, { device, ...options })
      await using cache = model.createCache({ dtype: 'f32', capacity: 64 })
      const output = await model.prefill(cache.createBlock(), tokens, { logits: 'all' })
      return { weights: model.weights, logits: output.logits as Float32Array }
    }
    const own = await logits({})
    expect(own.weights[format]).toBe(2 * 3 * EXPERTS * storedBytes(format, WIDTH, HIDDEN))
    expectSameBits((await logits({ repack: false })).logits, own.logits, 'as the file has them')
    const exact = await logits({ dtype: 'f32' })
    expect(exact.weights[format]).toBeUndefined()
    const { nmse } = difference(own.logits, exact.logits)
    expect(nmse).toBeLessThan(1e-7)
    expect(nmse).toBeGreaterThan(0)
  })
})

import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { LayerSpec, ModelConfig } from '../lib/families'
import { ropeFrequencies } from '../lib/rope'
import { parseConfig, readConfig } from '../lib/sources/huggingface-config'
import { codeOf, oracleFolder, oracleModels, temporaryFolder } from './fixtures'
import rope from './fixtures/rope.json'

const base = {
  architectures: ['LlamaForCausalLM'],
  model_type: 'llama',
  vocab_size: 100,
  hidden_size: 64,
  intermediate_size: 160,
  num_hidden_layers: 3,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  hidden_act: 'silu',
  rms_norm_eps: 1e-5,
  rope_theta: 10000,
  max_position_embeddings: 1024,
  sliding_window: null,
}
/** Names a family in both ways. */
const architecture = (name: string) => ({
  architectures: [name],
  model_type: name.replace('ForCausalLM', '').toLowerCase(),
})
const without = (...fields: string[]) => Object.fromEntries(fields.map((f) => [f, undefined]))
/** The three layers of `base`, in part. */
const everyLayer = (layer: Partial<LayerSpec>) => ({ layers: [layer, layer, layer] })
const windows = (...sizes: number[]) => ({ layers: sizes.map((window) => ({ window })) })
const gemma3 = {
  architectures: ['Gemma3ForCausalLM'],
  model_type: 'gemma3_text',
  hidden_act: undefined,
  rope_theta: 1e6,
  rope_local_base_freq: 1e4,
  sliding_window: 512,
}
/** As it would be written: fields that are undefined are not there. */
const parse = (patch: object): ModelConfig =>
  parseConfig(JSON.parse(JSON.stringify({ ...base, ...patch })))

describe('config.json', () => {
  test.each(oracleModels)('%s: the forms of transformers 4 and 5 say the same', (model) => {
    const [v4, v5] = ['config.json', 'config.v5.json'].map((file) =>
      parseConfig(JSON.parse(readFileSync(join(oracleFolder(model), file), 'utf8'))),
    )
    expect(v5).toEqual(v4)
    expect(v4!.ropes[0]!.type).toBe(model === 'llama_yarn' ? 'yarn' : 'default')
  })

  test('fields of a Llama', () => {
    const layer: LayerSpec = {
      norms: { input: true, attentionOutput: false, mlp: true, mlpOutput: false },
      qkNorm: 'none',
      biases: { qkv: false, o: false, mlp: false },
      rope: 0,
      window: 0,
      softcap: 0,
      sinks: false,
      mlp: { type: 'dense', intermediateSize: 160 },
    }
    expect(parse({ eos_token_id: [7, 8] })).toEqual({
      architecture: 'LlamaForCausalLM',
      vocabSize: 100,
      hiddenSize: 64,
      queryHeads: 4,
      kvHeads: 2,
      headDim: 16,
      rmsNormEps: 1e-5,
      normOffset: 0,
      activation: 'silu',
      embeddingScale: 1,
      attentionScale: 0.25,
      residualScale: 1,
      logitScale: 1,
      logitSoftcap: 0,
      tiedEmbeddings: false,
      ropes: [{ type: 'default', rotaryDim: 16, theta: 10000 }],
      layers: [layer, layer, layer],
      maxPositions: 1024,
      eosTokenIds: [7, 8],
    })
  })

  test.each<[string, object, object]>([
    ['no key/value heads: as many as query heads', { num_key_value_heads: null }, { kvHeads: 4 }],
    ['own head_dim', { head_dim: 40 }, { headDim: 40 }],
    ['tied', { tie_word_embeddings: true }, { tiedEmbeddings: true }],
    [
      'biases of attention',
      { attention_bias: true },
      everyLayer({ biases: { qkv: true, o: true, mlp: false } }),
    ],
    [
      'biases of the MLP',
      { mlp_bias: true },
      everyLayer({ biases: { qkv: false, o: false, mlp: true } }),
    ],
    [
      'Qwen2',
      { ...architecture('Qwen2ForCausalLM'), sliding_window: 4096, use_sliding_window: false },
      everyLayer({ biases: { qkv: true, o: false, mlp: false }, qkNorm: 'none' }),
    ],
    [
      'Qwen3',
      architecture('Qwen3ForCausalLM'),
      { headDim: 128, ...everyLayer({ qkNorm: 'head' }) },
    ],
    ['Mistral', architecture('MistralForCausalLM'), { architecture: 'MistralForCausalLM' }],
    [
      'Gemma',
      { ...architecture('GemmaForCausalLM'), hidden_act: 'gelu_pytorch_tanh' },
      {
        normOffset: 1,
        embeddingScale: 8,
        activation: 'gelu_tanh',
        headDim: 256,
        tiedEmbeddings: true,
      },
    ],
    [
      'Phi-3',
      { ...architecture('Phi3ForCausalLM'), partial_rotary_factor: 0.5 },
      { ropes: [{ type: 'default', rotaryDim: 8, theta: 10000 }] },
    ],
    [
      'model_type alone',
      { ...without('architectures'), model_type: 'qwen3' },
      { architecture: 'Qwen3ForCausalLM' },
    ],
    [
      'no rope_theta: 10000',
      without('rope_theta'),
      { ropes: [{ type: 'default', rotaryDim: 16, theta: 10000 }] },
    ],
    [
      'Mistral: a window of 4096 that is not written',
      { ...architecture('MistralForCausalLM'), ...without('sliding_window') },
      windows(4096, 4096, 4096),
    ],
    ['Mistral without a window', architecture('MistralForCausalLM'), windows(0, 0, 0)],
    [
      'Qwen2: windows from a layer on',
      {
        ...architecture('Qwen2ForCausalLM'),
        use_sliding_window: true,
        sliding_window: 64,
        max_window_layers: 2,
      },
      windows(0, 0, 64),
    ],
    [
      'Qwen3: windows by layer',
      {
        ...architecture('Qwen3ForCausalLM'),
        use_sliding_window: true,
        ...without('sliding_window'),
        layer_types: ['sliding_attention', 'full_attention', 'sliding_attention'],
      },
      windows(4096, 0, 4096),
    ],
    [
      'Phi-3 with a window',
      { ...architecture('Phi3ForCausalLM'), sliding_window: 9 },
      windows(9, 9, 9),
    ],
    [
      'Gemma 2',
      { ...architecture('Gemma2ForCausalLM'), ...without('hidden_act', 'sliding_window') },
      {
        normOffset: 1,
        activation: 'gelu_tanh',
        attentionScale: 1 / 16,
        logitSoftcap: 30,
        ropes: [{ type: 'default', rotaryDim: 256, theta: 10000 }],
        layers: [
          { window: 4096, softcap: 50, rope: 0 },
          { window: 0, softcap: 50, rope: 0 },
          { window: 4096, softcap: 50, rope: 0 },
        ],
      },
    ],
    [
      'Gemma 3',
      { ...gemma3, rope_scaling: { factor: 8, rope_type: 'linear' }, sliding_window_pattern: 3 },
      {
        logitSoftcap: 0,
        ropes: [
          { type: 'linear', factor: 8, rotaryDim: 256, theta: 1e6 },
          { type: 'default', rotaryDim: 256, theta: 1e4 },
        ],
        layers: [
          { window: 512, softcap: 0, rope: 1, qkNorm: 'head' },
          { window: 512, softcap: 0, rope: 1, qkNorm: 'head' },
          { window: 0, softcap: 0, rope: 0, qkNorm: 'head' },
        ],
      },
    ],
    [
      'SmolLM3',
      {
        ...architecture('SmolLM3ForCausalLM'),
        ...without('rope_theta'),
        no_rope_layer_interval: 3,
      },
      {
        tiedEmbeddings: true,
        ropes: [{ type: 'default', rotaryDim: 16, theta: 2e6 }],
        layers: [{ rope: 0 }, { rope: 0 }, { rope: -1 }],
      },
    ],
    [
      'OLMo 2',
      architecture('Olmo2ForCausalLM'),
      everyLayer({
        norms: { input: false, attentionOutput: true, mlp: false, mlpOutput: true },
        qkNorm: 'row',
      }),
    ],
    [
      'Granite',
      {
        ...architecture('GraniteForCausalLM'),
        embedding_multiplier: 12,
        attention_multiplier: 0.015625,
        residual_multiplier: 0.22,
        logits_scaling: 8,
      },
      { embeddingScale: 12, attentionScale: 0.015625, residualScale: 0.22, logitScale: 0.125 },
    ],
    [
      'GLM-4',
      architecture('Glm4ForCausalLM'),
      {
        ropes: [{ type: 'default', rotaryDim: 64, theta: 10000 }],
        ...everyLayer({
          norms: { input: true, attentionOutput: true, mlp: true, mlpOutput: true },
          biases: { qkv: true, o: false, mlp: false },
        }),
      },
    ],
    ['no position bound', without('max_position_embeddings'), { maxPositions: undefined }],
  ])('%s', (_, patch, expected) => {
    expect(parse(patch)).toMatchObject(expected)
  })

  test.each<[string, object, RegExp]>([
    ['unknown architecture', architecture('MambaForCausalLM'), /Mamba.*LlamaForCausalLM/],
    ['unknown model_type', { ...without('architectures'), model_type: 'bert' }, /bert.*llama/],
    ['several architectures', { architectures: ['LlamaForCausalLM', 'X'] }, /architectures/],
    ['activation', { hidden_act: 'relu' }, /hidden_act.*relu.*silu, gelu_pytorch_tanh/],
    ['activation by the name of a method', { hidden_act: 'toString' }, /hidden_act.*toString/],
    ['quantisation', { quantization_config: { bits: 4 } }, /quantization_config/],
    ['experts', { num_local_experts: 8 }, /num_local_experts/],
    ['soft cap', { attn_logit_softcapping: 50 }, /attn_logit_softcapping/],
    ['interleaved RoPE', { rope_interleaved: true }, /rope_interleaved/],
    ['head_dim 12', { head_dim: 12 }, /head_dim.*12.*multiples of 8/],
    ['head_dim 264', { head_dim: 264 }, /head_dim.*264/],
    ['heads', { num_key_value_heads: 3 }, /num_attention_heads.*multiple/],
    ['dynamic RoPE', { rope_scaling: { type: 'dynamic', factor: 2 } }, /dynamic.*yarn/],
    ['longrope elsewhere', { rope_scaling: { rope_type: 'longrope' } }, /longrope.*yarn$/],
    [
      'llama3 of a Phi-3',
      { ...architecture('Phi3ForCausalLM'), rope_scaling: { rope_type: 'llama3' } },
      /llama3.*default, longrope/,
    ],
    [
      'RoPE by layer type',
      { rope_parameters: { full_attention: { rope_theta: 1e6 } } },
      /by layer type/,
    ],
    [
      'an odd number of rotated dimensions',
      { ...architecture('Phi3ForCausalLM'), partial_rotary_factor: 0.2 },
      /partial_rotary/,
    ],
    ['sliding window of a Llama', { sliding_window: 4096 }, /sliding_window.*4096/],
    [
      'sliding layers of a Llama',
      { layer_types: ['full_attention', 'sliding_attention', 'full_attention'] },
      /layer_types.*sliding_attention.*without a window/,
    ],
    [
      'full layers of a Mistral with a window',
      {
        ...architecture('MistralForCausalLM'),
        sliding_window: 64,
        layer_types: ['sliding_attention', 'full_attention', 'sliding_attention'],
      },
      /layer_types.*full_attention.*with a window of 64/,
    ],
    [
      'sliding layers of a Qwen that uses none',
      {
        ...architecture('Qwen2ForCausalLM'),
        sliding_window: 64,
        layer_types: ['full_attention', 'full_attention', 'sliding_attention'],
      },
      /layer_types.*sliding_attention.*without a window/,
    ],
    [
      'layers of another kind',
      { layer_types: ['full_attention', 'linear_attention', 'full_attention'] },
      /linear_attention/,
    ],
    [
      'a soft cap that transformers passes over',
      { ...gemma3, attn_logit_softcapping: 50 },
      /attn_logit_softcapping.*50/,
    ],
    [
      'biases in a family without',
      { ...architecture('MistralForCausalLM'), attention_bias: true },
      /attention_bias.*mistral/,
    ],
  ])('refused as unsupported: %s', async (_, patch, message) => {
    expect(() => parse(patch)).toThrow(message)
    expect(await codeOf(() => parse(patch))).toBe('HOGWILD_UNSUPPORTED')
  })

  test.each<[string, object, RegExp]>([
    ...['vocab_size', 'hidden_size', 'intermediate_size', 'num_hidden_layers', 'hidden_act'].map(
      (field): [string, object, RegExp] => [
        `${field} is missing`,
        without(field),
        new RegExp(`"${field}" of config.json`),
      ],
    ),
    ['a count that is a string', { vocab_size: '100' }, /"vocab_size".*"100"/],
    ['a count of 2^60', { vocab_size: 2 ** 60 }, /vocab_size/],
    ['2^31 - 1 layers', { num_hidden_layers: 2 ** 31 - 1 }, /num_hidden_layers.*4096/],
    ['a negative epsilon', { rms_norm_eps: -1 }, /rms_norm_eps.*-1/],
    ['heads that do not divide', { num_attention_heads: 5, num_key_value_heads: 5 }, /head_dim/],
    ['architectures is no list', { architectures: 'LlamaForCausalLM' }, /architectures/],
    ['rope_scaling is no object', { rope_scaling: 'yarn' }, /rope_scaling/],
    ['a factor without a type', { rope_scaling: { factor: 2 } }, /rope_type/],
    ['linear without factor', { rope_scaling: { type: 'linear' } }, /factor/],
    ['theta 1', { rope_theta: 1 }, /rope_theta/],
    [
      'llama3 with crossed bounds',
      {
        rope_scaling: { rope_type: 'llama3', factor: 8, low_freq_factor: 4, high_freq_factor: 4 },
      },
      /high_freq_factor.*> 4/,
    ],
    [
      'more than all dimensions',
      { ...architecture('Phi3ForCausalLM'), partial_rotary_factor: 1.5 },
      /partial_rotary/,
    ],
    ['eos that is no id', { eos_token_id: '</s>' }, /eos_token_id/],
    ['eos that is no integer', { eos_token_id: [2.5] }, /eos_token_id/],
  ])('refused as invalid: %s', async (_, patch, message) => {
    expect(() => parse(patch)).toThrow(message)
    expect(await codeOf(() => parse(patch))).toBe('HOGWILD_INVALID_MODEL')
  })

  test.each([['null'], ['[]'], ['"x"'], ['{'], ['']])('a file that holds %p', async (text) => {
    const folder = temporaryFolder()
    writeFileSync(join(folder, 'config.json'), text)
    await expect(readConfig(folder)).rejects.toThrow(/config\.json/)
    expect(await codeOf(() => readConfig(folder))).toBe('HOGWILD_INVALID_MODEL')
  })

  test('no file', async () => {
    const folder = temporaryFolder()
    expect(await codeOf(() => readConfig(folder))).toBe('HOGWILD_INVALID_MODEL')
  })

  test('the ends of a text come from generation_config.json and config.json', async () => {
    const folder = temporaryFolder()
    writeFileSync(join(folder, 'config.json'), JSON.stringify({ ...base, eos_token_id: 1 }))
    expect((await readConfig(folder)).config.eosTokenIds).toEqual([1])
    writeFileSync(join(folder, 'generation_config.json'), '{"eos_token_id": [2, 3]}')
    expect((await readConfig(folder)).config.eosTokenIds).toEqual([2, 3, 1])
  })
})

describe('RoPE frequencies', () => {
  test.each(rope.cases)('$name', ({ config, inverseFrequencies, attentionFactor }) => {
    const { rope_scaling: scaling, ...rest } = { rope_scaling: undefined, ...config }
    const family = 'partial_rotary_factor' in config ? architecture('Phi3ForCausalLM') : {}
    const forms = [
      { ...base, ...family, ...config },
      {
        ...{ ...base, ...family, ...rest },
        rope_theta: undefined,
        rope_parameters: ropeParameters(rest, scaling),
      },
    ]
    for (const form of forms) {
      const found = ropeFrequencies(parse(form).ropes[0]!)
      expect(found.attentionFactor).toBeCloseTo(attentionFactor, 12)
      expect(found.inverseFrequencies).toHaveLength(inverseFrequencies.length)
      // transformers computes in float32: a few roundings of 6e-8.
      inverseFrequencies.forEach((expected, i) => {
        expect(Math.abs(found.inverseFrequencies[i]! / expected - 1)).toBeLessThan(5e-7)
      })
    }
  })

  /** rope_parameters of transformers 5 from the fields of transformers 4. */
  function ropeParameters(fields: object, scaling: object | undefined): object {
    const { rope_theta, partial_rotary_factor } = fields as Record<string, unknown>
    return { rope_theta, partial_rotary_factor, ...scaling }
  }

  test('yarn without a factor: the ratio of the contexts', () => {
    const scaling = { rope_type: 'yarn', original_max_position_embeddings: 256 }
    const explicit = parse({ rope_scaling: { ...scaling, factor: 4 } })
    expect(parse({ rope_scaling: scaling }).ropes).toEqual(explicit.ropes)
  })

  test('are computed in double precision', () => {
    const { inverseFrequencies } = ropeFrequencies({ type: 'default', rotaryDim: 16, theta: 1e4 })
    expect(inverseFrequencies[1]).toBeCloseTo(0.31622776601683794, 15)
    expect(inverseFrequencies[2]).toBeCloseTo(0.1, 15)
  })
})

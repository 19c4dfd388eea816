import { cpSync, existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { loadModel } from '../lib'
import { FAMILIES } from '../lib/families'
import { parseConfig } from '../lib/sources/huggingface-config'
import { readHeader } from '../lib/sources/safetensors'
import type { Warning } from '../lib/warnings'
import { codeOf, temporaryFolder } from './fixtures'

// What a folder says and the family does not know is refused by its name, not passed over.

type Json = Record<string, unknown>

const families = Object.values(FAMILIES).map(({ modelType }) => modelType)
const fixture = (name: string) => join(__dirname, 'fixtures', 'families', name)

function readJson(path: string): Json {
  return JSON.parse(readFileSync(path, 'utf8')) as Json
}

/** A copy of a tiny model, with other fields in config.json. */
function copyOf(name: string, fields: Json = {}, text = (json: Json) => JSON.stringify(json)) {
  const folder = temporaryFolder()
  cpSync(fixture(name), folder, { recursive: true })
  const path = join(folder, 'config.json')
  writeFileSync(path, text({ ...readJson(path), ...fields }))
  return folder
}

async function loads(folder: string, options = {}): Promise<boolean> {
  await using model = await loadModel(folder, { device: 'cpu', threads: 1, ...options })
  return !model.closed
}

/** Adds an empty tensor to the last file of a folder. */
async function addTensor(folder: string, name: string): Promise<void> {
  const index = join(folder, 'model.safetensors.index.json')
  const map = existsSync(index) ? (readJson(index).weight_map as Record<string, string>) : undefined
  const path = join(folder, Object.values(map ?? {}).at(-1) ?? 'model.safetensors')
  if (map !== undefined) {
    writeFileSync(index, JSON.stringify({ weight_map: { ...map, [name]: path.split('/').at(-1) } }))
  }
  const file = readFileSync(path)
  const begin = 8 + Number(file.readBigUInt64LE())
  const end = file.length - begin
  const header = JSON.parse(file.toString('utf8', 8, begin)) as Json
  header[name] = { dtype: 'F32', shape: [0], data_offsets: [end, end] }
  const json = Buffer.from(JSON.stringify(header))
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(BigInt(json.length))
  writeFileSync(path, Buffer.concat([length, json, file.subarray(begin)]))
  expect([...(await readHeader(path)).keys()]).toContain(name)
}

describe.each(families)('%s', (family) => {
  test.each([0.5, true, null, 'none', 0])('an unknown field, %p', async (value) => {
    const folder = copyOf(family, { residual_factor: value })
    await expect(loads(folder)).rejects.toThrow(
      /"residual_factor" of .*config\.json is not known.*ignoreFields: \["residual_factor"\]/,
    )
    expect(await codeOf(() => loads(folder))).toBe('HOGWILD_UNSUPPORTED')
    expect(await loads(folder, { ignoreFields: ['residual_factor'] })).toBe(true)
    expect(await codeOf(() => loads(folder, { ignoreFields: ['residual'] }))).toBe(
      'HOGWILD_UNSUPPORTED',
    )
  })

  test('an unknown field of RoPE', async () => {
    const rope = readJson(join(fixture(family), 'config.json')).rope_parameters as Json
    const folder = copyOf(family, { rope_parameters: { ...rope, mrope_section: [1, 2] } })
    await expect(loads(folder)).rejects.toThrow(/"mrope_section" of "rope_parameters"/)
    expect(await codeOf(() => loads(folder))).toBe('HOGWILD_UNSUPPORTED')
    expect(await loads(folder, { ignoreFields: ['rope_parameters.mrope_section'] })).toBe(true)
    expect(await codeOf(() => loads(folder, { ignoreFields: ['mrope_section'] }))).toBe(
      'HOGWILD_UNSUPPORTED',
    )
  })

  test.each([
    'model.extra',
    'lm_head.bias',
    'model.layers.0.self_attn.gate_proj.weight',
    'model.layers.7.mlp.down_proj.weight',
    'model.layers.0.feedforward_layernorm.weight',
  ])('an unknown tensor %s', async (name) => {
    const folder = copyOf(family)
    await addTensor(folder, name)
    await expect(loads(folder)).rejects.toThrow(`"${name}" has no place`)
    expect(await codeOf(() => loads(folder))).toBe('HOGWILD_INVALID_MODEL')
  })

  test('a tensor that is known to play no part', async () => {
    const folder = copyOf(family)
    await addTensor(folder, 'model.layers.1.self_attn.rotary_emb.inv_freq')
    expect(await loads(folder)).toBe(true)
  })

  test.each(['quantization_config', 'is_encoder_decoder', 'use_bidirectional_attention'])(
    '%s is known while it is off',
    async (field) => {
      expect(await loads(copyOf(family, { [field]: null }))).toBe(true)
      const folder = copyOf(family, { [field]: 4 })
      await expect(loads(folder)).rejects.toThrow(new RegExp(`"${field}" of .* = 4`))
      expect(await codeOf(() => loads(folder))).toBe('HOGWILD_UNSUPPORTED')
    },
  )

  test.each([false, null, 0])('is_causal %p, which turns the mask off', async (value) => {
    expect(await loads(copyOf(family, { is_causal: true }))).toBe(true)
    const folder = copyOf(family, { is_causal: value })
    await expect(loads(folder)).rejects.toThrow(/is_causal/)
    expect(await codeOf(() => loads(folder))).toBe('HOGWILD_UNSUPPORTED')
  })

  test('another family in model_type', async () => {
    const other = families.find((name) => name !== family)
    const folder = copyOf(family, { model_type: other })
    await expect(loads(folder)).rejects.toThrow(/"architectures" .* contradicts "model_type"/)
    expect(await codeOf(() => loads(folder))).toBe('HOGWILD_INVALID_MODEL')
  })

  test('what transformers writes for generation and training is harmless', async () => {
    const harmless = { temperature: 0.5, max_length: 20, torchscript: false, pad_token_id: -1 }
    expect(await loads(copyOf(family, { ...harmless, id2label: { 0: 'a' } }))).toBe(true)
  })
})

describe('ignoreFields', () => {
  const options = (ignoreFields: unknown) => ({ ignoreFields })

  test('does not take a field that the model is computed from', async () => {
    for (const field of ['hidden_size', 'rope_parameters', 'rope_parameters.rope_theta']) {
      const call = () => loads(fixture('llama'), options([field]))
      await expect(call()).rejects.toThrow(/ignoreFields names/)
      expect(await codeOf(call)).toBe('HOGWILD_INVALID_ARGUMENT')
    }
  })

  test('takes what is known and not computed', async () => {
    const window = copyOf('llama', { sliding_window: 4096 })
    await expect(loads(window)).rejects.toThrow(/ignoreFields: \["sliding_window"\]/)
    expect(await loads(window, options(['sliding_window']))).toBe(true)
    expect(await loads(copyOf('llama', { is_causal: false }), options(['is_causal']))).toBe(true)
  })

  test.each([['x'], [{}], [[1]], [null]])('refuses %p', async (value) => {
    const call = () => loads(fixture('llama'), options(value))
    expect(await codeOf(call)).toBe('HOGWILD_INVALID_ARGUMENT')
  })

  test('loadModel refuses an option that it does not know', async () => {
    await expect(loads(fixture('llama'), { ignoreField: ['x'] })).rejects.toThrow(/"ignoreField"/)
    expect(await codeOf(() => loads(fixture('llama'), { dtpye: 'f32' }))).toBe(
      'HOGWILD_INVALID_ARGUMENT',
    )
  })
})

describe('numbers that no model has', () => {
  const raw = (field: string, text: string) =>
    copyOf('llama', { [field]: 'RAW' }, (json) => JSON.stringify(json).replace('"RAW"', text))

  test.each([
    ['rms_norm_eps', 'NaN'],
    ['rms_norm_eps', 'Infinity'],
    ['rms_norm_eps', '1e30'],
    ['rope_theta', '-Infinity'],
    ['hidden_size', 'NaN'],
    ['num_hidden_layers', '1e999'],
  ])('%s = %s', async (field, text) => {
    await expect(loads(raw(field, text))).rejects.toThrow(`"${field}"`)
    expect(await codeOf(() => loads(raw(field, text)))).toBe('HOGWILD_INVALID_MODEL')
  })

  test('are harmless in harmless fields', async () => {
    expect(await loads(raw('initializer_range', 'NaN'))).toBe(true)
  })

  const config = readJson(join(fixture('llama'), 'config.json'))
  test.each([
    { rope_type: 'default', rope_theta: 1e30 },
    { rope_type: 'linear', factor: 1e-30 },
    { rope_type: 'linear', factor: 1e30 },
    { rope_type: 'yarn', factor: 4, attention_factor: 1e30 },
    { rope_type: 'yarn', factor: 4, attention_factor: 0 },
    { rope_type: 'yarn', factor: 4, mscale: 1e30, mscale_all_dim: 1 },
    { rope_type: 'yarn', factor: 4, beta_fast: 1e300 },
    { rope_type: 'llama3', factor: 8, low_freq_factor: 0, high_freq_factor: 4 },
  ])('%j', async (rope) => {
    const call = () => parseConfig({ ...config, rope_parameters: rope })
    expect(await codeOf(call)).toBe('HOGWILD_INVALID_MODEL')
  })
})

describe('RoPE in two places', () => {
  const config = readJson(join(fixture('llama'), 'config.json'))
  const rope = (fields: Json) =>
    parseConfig({ ...config, rope_parameters: undefined, ...fields }).ropes[0]!
  const yarn = { rope_type: 'yarn', factor: 4, original_max_position_embeddings: 64 }
  const theta = { rope_theta: 5e6 }

  test.each<[Json]>([
    [{ rope_scaling: {}, rope_parameters: { ...yarn, ...theta } }],
    [{ rope_scaling: null, rope_parameters: { ...yarn, ...theta } }],
    [{ rope_scaling: yarn, rope_parameters: {}, ...theta }],
    [{ rope_scaling: yarn, rope_parameters: { ...yarn, ...theta }, ...theta }],
    [{ rope_scaling: { ...yarn, type: 'yarn' }, ...theta, rope_theta: 5e6 }],
  ])('%j is one RoPE', (fields) => {
    expect(rope(fields)).toMatchObject({ type: 'yarn', factor: 4, theta: 5e6 })
  })

  test.each<[Json]>([
    [{ rope_scaling: yarn, rope_parameters: { ...yarn, ...theta } }],
    [{ rope_scaling: { ...yarn, factor: 2 }, rope_parameters: yarn }],
    [{ rope_scaling: { rope_type: 'default' }, rope_parameters: { ...theta } }],
    [{ rope_parameters: theta, rope_theta: 1e4 }],
    [{ rope_parameters: { ...yarn, type: 'linear' } }],
    [{ rope_parameters: yarn, original_max_position_embeddings: 32 }],
  ])('%j is a contradiction', async (fields) => {
    expect(() => rope(fields)).toThrow(/contradict/)
    expect(await codeOf(() => rope(fields))).toBe('HOGWILD_INVALID_MODEL')
  })

  test('a factor of 1 is the default type, any other a contradiction', async () => {
    expect(rope({ rope_scaling: { rope_type: 'default', factor: 1 } }).type).toBe('default')
    expect(await codeOf(() => rope({ rope_scaling: { rope_type: 'default', factor: 2 } }))).toBe(
      'HOGWILD_INVALID_MODEL',
    )
  })
})

describe('partial_rotary_factor', () => {
  const parse = (family: string, fields: Json) =>
    parseConfig({ ...readJson(join(fixture(family), 'config.json')), ...fields })

  // With its YaRN, gpt-oss would count in what transformers ignores with the default type.
  const partial = ['phi3', 'glm', 'glm4', 'gpt_oss']
  test.each(families.filter((family) => !partial.includes(family)))(
    '%s ignores it',
    async (family) => {
      const { headDim, ropes } = parse(family, { partial_rotary_factor: 0.5 })
      expect(ropes[0]!.rotaryDim).toBe(headDim)
      const scaling = { rope_type: 'linear', factor: 2, partial_rotary_factor: 0.5 }
      expect(await codeOf(() => parse(family, { rope_parameters: scaling }))).toBe(
        'HOGWILD_UNSUPPORTED',
      )
    },
  )

  test('phi3 counts in it', () => {
    const fields = { rope_parameters: { partial_rotary_factor: 0.75 }, head_dim: 32 }
    expect(parse('phi3', fields).ropes[0]!.rotaryDim).toBe(24)
  })
})

describe('ends of text', () => {
  test('beyond the vocabulary are left out, with a warning', async () => {
    const folder = copyOf('llama', { eos_token_id: [2, -1] })
    writeFileSync(join(folder, 'generation_config.json'), '{"eos_token_id": [3, 151643]}')
    const warnings: Warning[] = []
    const onWarning = (warning: Warning) => warnings.push(warning)
    await using model = await loadModel(folder, { device: 'cpu', threads: 1, onWarning })
    expect(model.config.eosTokenIds).toEqual([3, 2])
    expect(warnings).toEqual([
      { code: 'HOGWILD_UNKNOWN_EOS_TOKEN', message: expect.stringMatching(/151643, -1 .* 40 /) },
    ])
  })
})

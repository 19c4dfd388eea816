// Hugging Face folders of 4-bit integers: AWQ, GPTQ and compressed-tensors. Tiny models of each
// (fixtures/quantised.py) against transformers on their dequantised weights, and what is refused.

import { cpSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { createDevice, inspectModel, loadModel, type Model, probe } from '../lib'
import { parseConfig } from '../lib/sources/huggingface-config'
import { codeOf, difference, expectSameBits, roundsActivations, temporaryFolder } from './fixtures'

type Json = Record<string, unknown>
interface Entry {
  dtype: string
  shape: number[]
  data_offsets: [number, number]
}

const root = join(__dirname, 'fixtures', 'quantised')
const names = readdirSync(root)
const folderOf = (name: string) => join(root, name)
/** Of the matrices that are quantised. */
const formatOf = (name: string) => `int4_g${/_g(\d+)/.exec(name)?.[1]}`

interface Expected {
  tokens: number[]
  logits: number[][]
}
const expectedOf = (name: string): Expected =>
  JSON.parse(readFileSync(join(folderOf(name), 'expected.json'), 'utf8'))

/** Logits of all tokens, given at once or `steps` at a time. */
async function logitsOf(model: Model, tokens: number[], steps = tokens.length) {
  await using cache = model.createCache({ dtype: 'f32', capacity: 64 })
  const block = cache.createBlock()
  const { vocabSize } = model.config
  const all = new Float32Array(tokens.length * vocabSize)
  for (let i = 0; i < tokens.length; i += steps) {
    const output = await model.prefill(block, tokens.slice(i, i + steps), { logits: 'all' })
    all.set(output.logits as Float32Array, i * vocabSize)
  }
  return all
}

/** How far they are from what is expected of every tenth token. */
function distance(name: string, found: Float32Array, vocabSize: number) {
  const { logits } = expectedOf(name)
  const rows = logits.flatMap((_, i) => [
    ...found.subarray(10 * i * vocabSize, (10 * i + 1) * vocabSize),
  ])
  return difference(rows, logits.flat())
}

test('each method has its models', () => {
  for (const method of ['awq', 'gptq', 'compressed']) {
    for (const group of [32, 64, 128]) {
      expect(names.filter((name) => name.startsWith(`${method}_g${group}`))).not.toEqual([])
    }
  }
})

describe.each(names)('%s', (name) => {
  const { tokens } = expectedOf(name)

  test('its dequantised weights are those of the definition', async () => {
    await using model = await loadModel(folderOf(name), { device: 'cpu', threads: 1, dtype: 'f32' })
    const { max } = distance(name, await logitsOf(model, tokens), model.config.vocabSize)
    expect(max).toBeLessThan(2e-4)
  })

  test.each(probe().simd)('its products at %s', async (simd) => {
    using device = createDevice({ type: 'cpu', simd, threads: 1 })
    await using model = await loadModel(folderOf(name), { device })
    expect(Object.keys(model.weights)).toContain(formatOf(name))
    const found = await logitsOf(model, tokens)
    const { nmse } = distance(name, found, model.config.vocabSize)
    // Some levels also round what the output matrix, in bf16, is multiplied with.
    expect(nmse).toBeLessThan(roundsActivations(simd) ? 1e-4 : 1e-7)
    expectSameBits(await logitsOf(model, tokens, 7), found, 'seven tokens at a time')
  })

  test('repacked or not, mapped or not: the same bits', async () => {
    const load = async (options: object) => {
      await using model = await loadModel(folderOf(name), { device: 'cpu', threads: 2, ...options })
      return await logitsOf(model, tokens.slice(0, 20))
    }
    const found = await load({})
    for (const options of [
      { repack: false },
      { mapped: false },
      { repack: false, mapped: false },
    ]) {
      expectSameBits(await load(options), found, JSON.stringify(options))
    }
  })

  test('inspect tells the same', async () => {
    const { model, refusals } = await inspectModel(folderOf(name))
    expect(refusals).toMatchObject([{ part: 'tokenizer' }])
    const format = formatOf(name)
    const role = model?.roles.find((one) => one.role.endsWith('down_proj'))
    expect(role).toMatchObject({ format })
    expect(model?.roles.find((one) => one.role === 'embed')?.format).not.toBe(format)
    expect(model?.memory.weights.mapped).toBeLessThan(model?.storedBytes as number)
  })
})

// ---- what is refused --------------------------------------------------------------------------------

/** A copy of a fixture whose config.json and tensors are changed; `tensors` may give data that comes behind the others'. */
function changed(
  name: string,
  config: (config: Json) => void,
  tensors: (header: Record<string, Entry>, data: Buffer) => Buffer | undefined = () => undefined,
): string {
  const folder = temporaryFolder()
  cpSync(folderOf(name), folder, { recursive: true })
  const path = join(folder, 'config.json')
  const json = JSON.parse(readFileSync(path, 'utf8'))
  config(json.quantization_config)
  writeFileSync(path, JSON.stringify(json))
  const weights = join(folder, 'model.safetensors')
  const file = readFileSync(weights)
  const begin = 8 + Number(file.readBigUInt64LE())
  const header = JSON.parse(file.toString('utf8', 8, begin))
  const data = file.subarray(begin)
  const more = tensors(header, data) ?? Buffer.alloc(0)
  const text = Buffer.from(JSON.stringify(header))
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(BigInt(text.length))
  writeFileSync(weights, Buffer.concat([length, text, data, more]))
  return folder
}

async function expectRefused(folder: string, code: string, message: RegExp) {
  await expect(loadModel(folder)).rejects.toThrow(message)
  expect(await codeOf(() => loadModel(folder))).toBe(code)
}

const scheme = (config: Json) =>
  (config.config_groups as Json).group_0 as { weights: Json; input_activations: unknown }

test.each<[string, string, (config: Json) => void, RegExp]>([
  ['8 bits', 'gptq_g128', (c) => (c.bits = 8), /"bits" of "quantization_config".* = 8 .*: 4/],
  ['3 bits', 'gptq_g128', (c) => (c.bits = 3), /"bits".* = 3 /],
  ['one group', 'gptq_g128', (c) => (c.group_size = -1), /"group_size".* = -1 .*32, 64, 128/],
  ['groups of 16', 'awq_g32_experts', (c) => (c.group_size = 16), /"group_size".* = 16 /],
  ['Marlin', 'gptq_g128', (c) => (c.checkpoint_format = 'marlin'), /"marlin".*gptq, gptq_v2/],
  ['Marlin, as it was', 'gptq_g128', (c) => (c.is_marlin_format = true), /is_marlin_format/],
  ['bits of its own', 'gptq_g128', (c) => (c.dynamic = { '+:.*': { bits: 8 } }), /"dynamic"/],
  ['gemv', 'awq_g128', (c) => (c.version = 'gemv'), /"version".* = "gemv" .*gemm/],
  ['no zero points', 'awq_g128', (c) => (c.zero_point = false), /"zero_point".* = false .*true/],
  ['llm-awq', 'awq_g128', (c) => (c.backend = 'llm-awq'), /"backend".*llm-awq/],
  ['FP8', 'awq_g128', (c) => (c.quant_method = 'fp8'), /"fp8".*awq, gptq, compressed-tensors/],
  ['what nobody knows', 'awq_g128', (c) => (c.twist = 1), /"twist".*awq/],
  [
    'compressed integers of 8 bits',
    'compressed_g128',
    (c) => (scheme(c).weights.num_bits = 8),
    /"num_bits".* = 8 /,
  ],
  [
    'compressed floats',
    'compressed_g128',
    (c) => (scheme(c).weights.type = 'float'),
    /"type".*"float".*int/,
  ],
  [
    'a scale for each output',
    'compressed_g128',
    (c) => (scheme(c).weights.strategy = 'channel'),
    /"strategy".*"channel".*group/,
  ],
  [
    'quantised activations',
    'compressed_g128',
    (c) => (scheme(c).input_activations = { num_bits: 8 }),
    /input_activations.*as they are/,
  ],
  [
    'another format',
    'compressed_g128',
    (c) => (c.format = 'marlin-24'),
    /"format".*"marlin-24".*pack-quantized/,
  ],
  [
    'a quantised cache',
    'compressed_g128',
    (c) => (c.kv_cache_scheme = { num_bits: 8 }),
    /kv_cache/,
  ],
  ['a rotation', 'compressed_g128', (c) => (c.transform_config = { R1: {} }), /transform_config/],
  ['sparse weights', 'compressed_g128', (c) => (c.sparsity_config = { format: '2:4' }), /"2:4"/],
  ['no groups', 'compressed_g128', (c) => (c.config_groups = {}), /config_groups.* without groups/],
  [
    'groups of several sizes',
    'compressed_g128',
    (c) => {
      const groups = c.config_groups as Json
      const { weights, ...rest } = scheme(c)
      groups.group_1 = { ...rest, weights: { ...weights, group_size: 64 } }
    },
    /128 and 64 columns/,
  ],
])('%s', async (_, name, change, message) => {
  const folder = changed(name, change)
  await expectRefused(folder, 'HOGWILD_UNSUPPORTED', message)
  const { model, refusals } = await inspectModel(folder)
  expect(model).toBeUndefined()
  expect(refusals[0]).toMatchObject({ part: 'model', code: 'HOGWILD_UNSUPPORTED' })
  expect(refusals[0]?.message).toMatch(message)
})

const down = 'model.layers.0.mlp.down_proj'

describe('tensors that do not fit', () => {
  test('groups that do not divide the columns', async () => {
    const folder = changed('compressed_g64_sorted', (config) => {
      scheme(config).weights.group_size = 128
    })
    await expectRefused(folder, 'HOGWILD_UNSUPPORTED', /\[64,64\] in groups of 128 columns/)
  })

  test.each([
    ['awq_g64_bias', 'qweight'],
    ['awq_g64_bias', 'qzeros'],
    ['awq_g64_bias', 'scales'],
    ['gptq_g64_v2', 'qweight'],
    ['gptq_g64_v2', 'qzeros'],
    ['gptq_g64_v2', 'scales'],
    ['gptq_g64_v2', 'g_idx'],
    ['compressed_g64_sorted', 'weight_packed'],
    ['compressed_g64_sorted', 'weight_scale'],
    ['compressed_g64_sorted', 'weight_zero_point'],
    ['compressed_g64_sorted', 'weight_g_idx'],
    ['compressed_g64_sorted', 'weight_shape'],
  ])('%s: %s of another shape or type', async (name, part) => {
    const tensor = `${down}.${part}`
    const reshaped = changed(
      name,
      () => {},
      (header) => {
        const entry = header[tensor] as Entry
        entry.shape = [1, ...entry.shape]
      },
    )
    await expectRefused(reshaped, 'HOGWILD_INVALID_MODEL', new RegExp(`"${tensor}" is \\[1,`))
    const retyped = changed(
      name,
      () => {},
      (header) => {
        const entry = header[tensor] as Entry
        entry.dtype = { I32: 'U32', I64: 'U64', F16: 'I16', BF16: 'I16' }[entry.dtype] as string
      },
    )
    await expectRefused(retyped, 'HOGWILD_UNSUPPORTED', new RegExp(`"${tensor}" is "[UI]\\d+"`))
  })

  test.each(['qzeros', 'scales'])('%s missing', async (part) => {
    const folder = changed(
      'gptq_g64_v2',
      () => {},
      (header) => {
        header.spare = header[`${down}.${part}`] as Entry
        delete header[`${down}.${part}`]
      },
    )
    await expectRefused(folder, 'HOGWILD_INVALID_MODEL', new RegExp(`"${down}.${part}" is missing`))
  })

  test('zeros where there should be none, and a matrix twice', async () => {
    const zeros = changed('compressed_g64_sorted', (config) => {
      scheme(config).weights.symmetric = true
    })
    await expectRefused(zeros, 'HOGWILD_INVALID_MODEL', /weight_zero_point" .* no place/)
    const twice = changed(
      'awq_g64_bias',
      () => {},
      (header, data) => {
        const { length } = data
        header[`${down}.weight`] = { dtype: 'F16', shape: [1], data_offsets: [length, length + 2] }
        return Buffer.alloc(2)
      },
    )
    await expectRefused(twice, 'HOGWILD_INVALID_MODEL', /down_proj.weight" has no place/)
  })

  test.each<[string, (groups: DataView) => void]>([
    ['a group that is not there', (groups) => groups.setInt32(4, 2, true)],
    ['a negative one', (groups) => groups.setInt32(0, -1, true)],
    ['one of more columns than another', (groups) => groups.setInt32(0, 1, true)],
    ['a far one', (groups) => groups.setInt32(8, 2 ** 31 - 1, true)],
  ])('the order of columns: %s', async (_, change) => {
    const folder = changed(
      'gptq_g64_v2',
      () => {},
      (header, data) => {
        const [begin, end] = (header[`${down}.g_idx`] as Entry).data_offsets
        change(new DataView(data.buffer, data.byteOffset + begin, end - begin))
      },
    )
    await expectRefused(folder, 'HOGWILD_INVALID_MODEL', /down_proj.*not in 2 groups of 64/)
  })
})

test('an order of columns that says nothing', async () => {
  const { tokens } = expectedOf('compressed_g64_sorted')
  const folder = changed(
    'gptq_g64_v2',
    () => {},
    (header, data) => {
      for (const [name, { data_offsets }] of Object.entries(header)) {
        if (name.endsWith('.g_idx')) data.fill(0xff, ...data_offsets)
      }
    },
  )
  await using plain = await loadModel(folderOf('gptq_g64_v2'), { device: 'cpu', threads: 1 })
  await using other = await loadModel(folder, { device: 'cpu', threads: 1 })
  expectSameBits(await logitsOf(other, tokens), await logitsOf(plain, tokens), 'g_idx of -1')
})

test('integers without a word of them in config.json', async () => {
  const folder = changed('awq_g128', () => {})
  const options = { ignoreFields: ['quantization_config'] }
  await expect(loadModel(folder, options)).rejects.toThrow(/_proj.weight" is missing/)
})

// As they stand on the hub.
test.each<[string, Json]>([
  [
    'AutoAWQ',
    { bits: 4, group_size: 128, modules_to_not_convert: null, version: 'gemm', zero_point: true },
  ],
  [
    'AutoAWQ, later',
    {
      ...{ backend: 'autoawq', bits: 4, do_fuse: false, exllama_config: null, version: 'gemm' },
      ...{ fuse_max_seq_len: null, group_size: 128, modules_to_fuse: null, zero_point: true },
      modules_to_not_convert: null,
    },
  ],
  [
    'optimum',
    {
      ...{ batch_size: 1, bits: 4, block_name_to_quantize: null, cache_block_outputs: true },
      ...{ damp_percent: 0.01, dataset: null, desc_act: false, exllama_config: { version: 1 } },
      ...{ group_size: 128, max_input_length: null, model_seqlen: null, sym: true },
      ...{ module_name_preceding_first_block: null, modules_in_block_to_quantize: null },
      ...{ pad_token_id: null, tokenizer: null, true_sequential: true, use_cuda_fp16: false },
      use_exllama: true,
    },
  ],
  [
    'AutoGPTQ',
    {
      ...{ bits: 4, damp_percent: 0.1, desc_act: true, group_size: 128, sym: true },
      ...{ model_file_base_name: 'model', model_name_or_path: null, true_sequential: true },
    },
  ],
  [
    'GPTQModel',
    {
      ...{ bits: 4, checkpoint_format: 'gptq', desc_act: true, dynamic: { '-:.*gate': {} } },
      ...{ group_size: 128, lm_head: false, pack_dtype: 'int32', static_groups: false },
      ...{ sym: true, true_sequential: true, meta: { quantizer: ['gptqmodel:2.2.0'] } },
    },
  ],
  [
    'LLM Compressor',
    {
      config_groups: {
        group_0: {
          input_activations: null,
          output_activations: null,
          targets: ['Linear'],
          weights: {
            ...{ actorder: 'weight', block_structure: null, dynamic: false, group_size: 128 },
            ...{ num_bits: 4, observer: 'minmax', observer_kwargs: {}, strategy: 'group' },
            ...{ symmetric: true, type: 'int' },
          },
        },
      },
      ...{ format: 'pack-quantized', global_compression_ratio: 1.5, ignore: ['lm_head'] },
      ...{ kv_cache_scheme: null, quantization_status: 'compressed' },
      sparsity_config: { format: 'dense', global_sparsity: 0.1, ignore: [], targets: [] },
    },
  ],
])('config.json of %s', (writer, config) => {
  const method = { AWQ: 'awq', Compressor: 'compressed-tensors' }
  const quant_method = Object.entries(method).find(([part]) => writer.includes(part))?.[1] ?? 'gptq'
  const model = JSON.parse(readFileSync(join(folderOf('gptq_g128'), 'config.json'), 'utf8'))
  parseConfig({ ...model, quantization_config: { quant_method, ...config } })
})

import { copyFileSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { modelTensors } from '../lib/sources/huggingface'
import { parseConfig, readConfig } from '../lib/sources/huggingface-config'
import { readHeader, readTensors } from '../lib/sources/safetensors'
import {
  codeOf,
  oracleFolder,
  type TinyModelOptions,
  temporaryFolder,
  writeModel,
} from './fixtures'

/** A file of a header, as text or bytes, and `size` zero bytes; `length` is what its first 8 bytes claim. */
function write(header: string | Uint8Array, size: number, length?: bigint): string {
  const json = Buffer.from(header)
  const prefix = Buffer.alloc(8)
  prefix.writeBigUInt64LE(length ?? BigInt(json.length))
  const path = join(temporaryFolder(), 'model.safetensors')
  writeFileSync(path, Buffer.concat([prefix, json, Buffer.alloc(size)]))
  return path
}

const tensor = (begin: number, end: number, patch: object = {}) => ({
  dtype: 'F32',
  shape: [(end - begin) / 4],
  data_offsets: [begin, end],
  ...patch,
})

describe('the header of a file', () => {
  test('says where each tensor lies', async () => {
    const header = JSON.stringify({
      __metadata__: { format: 'pt', note: '"a": {' },
      a: tensor(0, 8),
      'b"\\': { dtype: 'BF16', shape: [2, 3], data_offsets: [12, 24] },
      scalar: { dtype: 'F32', shape: [], data_offsets: [8, 12] },
      empty: { dtype: 'F32', shape: [0, 5], data_offsets: [12, 12] },
      packed: { dtype: 'F4', shape: [3], data_offsets: [24, 26] },
    })
    const path = write(header, 26)
    const start = 8 + header.length
    expect([...(await readHeader(path)).values()]).toEqual([
      { name: 'a', path, offset: start, dtype: 'F32', shape: [2] },
      { name: 'b"\\', path, offset: start + 12, dtype: 'BF16', shape: [2, 3] },
      { name: 'scalar', path, offset: start + 8, dtype: 'F32', shape: [] },
      { name: 'empty', path, offset: start + 12, dtype: 'F32', shape: [0, 5] },
      { name: 'packed', path, offset: start + 24, dtype: 'F4', shape: [3] },
    ])
  })

  const entries = (value: object) => JSON.stringify(value)
  test.each<[string, () => string, RegExp]>([
    ['an empty file', () => truncated(0), /ends at byte 0/],
    ['half a length', () => truncated(5), /ends at byte 5/],
    ['a header cut short', () => truncated(40), /header of \d+ bytes in a file of 40/],
    ['a length of 2^60', () => write('{}', 0, 2n ** 60n), /header of 1152921504606846976 bytes/],
    [
      'a length of 2^64 - 1',
      () => write('{}', 0, 2n ** 64n - 1n),
      /header of 18446744073709551615/,
    ],
    ['a length beyond the file', () => write('{}', 0, 3n), /header of 3 bytes in a file of 10/],
    ['no JSON', () => write('{"a":', 8), /not JSON/],
    ['bytes that are no UTF-8', () => write(Uint8Array.of(0x22, 0xff, 0x22), 0), /not UTF-8/],
    ['a list', () => write('[]', 0), /header of .* object/],
    ['metadata that is no map of strings', () => write('{"__metadata__":{"a":{}}}', 0), /metadata/],
    ['a name twice', () => write(twice('a', 'a'), 8), /"a" occurs twice/],
    ['a name twice, once escaped', () => write(twice('a', '\\u0061'), 8), /"a" occurs twice/],
    ['null for a tensor', () => write(entries({ a: null }), 8), /tensor "a"/],
    ['no dtype', () => write(entries({ a: tensor(0, 8, { dtype: 3 }) }), 8), /"a".*dtype/],
    ['no shape', () => write(entries({ a: tensor(0, 8, { shape: 2 }) }), 8), /"a".*shape/],
    [
      'a negative size',
      () => write(entries({ a: tensor(0, 8, { shape: [-2] }) }), 8),
      /"a".*shape/,
    ],
    [
      'a size of 2^60',
      () => write(entries({ a: tensor(0, 8, { shape: [2 ** 60] }) }), 8),
      /"a".*shape/,
    ],
    [
      'sizes whose product is 2^64 + 2',
      () => write(entries({ a: tensor(0, 8, { shape: [2 ** 33 + 2, 2 ** 31] }) }), 8),
      /"a".*does not fill 8 bytes/,
    ],
    [
      'three offsets',
      () => write(entries({ a: tensor(0, 8, { data_offsets: [0, 8, 8] }) }), 8),
      /"a".*data_offsets/,
    ],
    [
      'offsets in fractions',
      () => write(entries({ a: tensor(0, 8, { data_offsets: [0.5, 8.5] }) }), 9),
      /"a".*data_offsets/,
    ],
    [
      'offsets backwards',
      () => write(entries({ a: tensor(8, 0, { shape: [2] }) }), 8),
      /"a".*8 to 0/,
    ],
    ['an end beyond the file', () => write(entries({ a: tensor(0, 12) }), 8), /"a".*12.*8 bytes/],
    [
      'offsets of 2^53 - 1',
      () => write(entries({ a: tensor(2 ** 53 - 9, 2 ** 53 - 1) }), 8),
      /"a".*not within/,
    ],
    [
      'a size that is not that of the shape',
      () => write(entries({ a: tensor(0, 8, { shape: [3] }) }), 8),
      /"a".*"F32" \[3\].*8 bytes/,
    ],
    [
      'tensors that overlap',
      () => write(entries({ a: tensor(8, 16), b: tensor(0, 12) }), 16),
      /"b" and "a" overlap/,
    ],
    [
      'a tensor within another one',
      () => write(entries({ a: tensor(0, 16), b: tensor(4, 8) }), 16),
      /"a" and "b" overlap/,
    ],
  ])('is refused: %s', async (_, make, message) => {
    const path = make()
    await expect(readHeader(path)).rejects.toThrow(message)
    await expect(readHeader(path)).rejects.toThrow(path)
    expect(await codeOf(() => readHeader(path))).toBe('HOGWILD_INVALID_MODEL')
  })

  function truncated(bytes: number): string {
    const path = join(temporaryFolder(), 'model.safetensors')
    const whole = readFileSync(join(oracleFolder('llama'), 'model.safetensors'))
    writeFileSync(path, whole.subarray(0, bytes))
    return path
  }

  function twice(first: string, second: string): string {
    const [a, b] = [tensor(0, 4), tensor(4, 8)].map((entry) => JSON.stringify(entry))
    return `{"${first}":${a},"${second}" : ${b}}`
  }
})

describe('the files of a folder', () => {
  test('several files hold what one file holds', async () => {
    const options: TinyModelOptions = { seed: 3, shards: 1 }
    const one = await readTensors(writeModel(options))
    const several = await readTensors(writeModel({ ...options, shards: 3 }))
    const shapes = (all: typeof one) =>
      Object.fromEntries([...all].map(([name, { shape }]) => [name, shape]))
    expect(shapes(several)).toEqual(shapes(one))
    expect(new Set([...several.values()].map(({ path }) => path)).size).toBe(3)
  })

  const index = (weightMap: unknown) => {
    const folder = writeModel({ shards: 2 })
    const path = join(folder, 'model.safetensors.index.json')
    const good = JSON.parse(readFileSync(path, 'utf8')).weight_map
    const changed = typeof weightMap === 'function' ? weightMap(good) : weightMap
    writeFileSync(path, JSON.stringify({ weight_map: changed }))
    return folder
  }
  const elsewhere = (file: unknown) => () =>
    index((good: object) => ({ ...good, 'model.norm.weight': file }))

  test.each<[string, () => string, RegExp]>([
    ['nothing', temporaryFolder, /neither model\.safetensors nor/],
    ['an index without a map', () => index(undefined), /"weight_map"/],
    ['a file that is missing', elsewhere('model-9.safetensors'), /model-9\.safetensors.*missing/],
    ['a path out of the folder', elsewhere('../model.safetensors'), /no file name/],
    ['an absolute path', elsewhere('/etc/model.safetensors'), /no file name/],
    ['a path with backslashes', elsewhere('..\\model.safetensors'), /no file name/],
    ['another kind of file', elsewhere('config.json'), /no file name/],
    ['a number', elsewhere(3), /no file name/],
    [
      'a tensor that is not in its file',
      () => index((good: object) => ({ ...good, nothing: Object.values(good)[0] })),
      /"nothing" into .*lacks it/,
    ],
  ])('are refused: %s', async (_, make, message) => {
    const folder = make()
    await expect(readTensors(folder)).rejects.toThrow(message)
    expect(await codeOf(() => readTensors(folder))).toBe('HOGWILD_INVALID_MODEL')
  })

  test('a file that is no safetensors at all', async () => {
    const folder = temporaryFolder()
    const from = join(oracleFolder('llama'), 'config.json')
    copyFileSync(from, join(folder, 'model.safetensors'))
    expect(await codeOf(() => readTensors(folder))).toBe('HOGWILD_INVALID_MODEL')
  })
})

describe('the tensors of a model', () => {
  const read = async (options: TinyModelOptions) => {
    const folder = writeModel(options)
    const { config } = await readConfig(folder)
    return { config, tensors: await readTensors(folder) }
  }

  test.each(['llama', 'qwen2', 'qwen3'] as const)(
    '%s: every role, with its shape',
    async (family) => {
      const { config, tensors } = await read({ family, layers: 1, tied: family !== 'llama' })
      const found = modelTensors(config, tensors)
      const shapes = Object.fromEntries(found.map(({ name, rows, cols }) => [name, [rows, cols]]))
      expect(shapes).toEqual({
        embed: [53, 24],
        'layers.0.input_norm': [1, 24],
        'layers.0.mlp_norm': [1, 24],
        'layers.0.q_proj': [32, 24],
        'layers.0.k_proj': [16, 24],
        'layers.0.v_proj': [16, 24],
        'layers.0.o_proj': [24, 32],
        'layers.0.gate_proj': [40, 24],
        'layers.0.up_proj': [40, 24],
        'layers.0.down_proj': [24, 40],
        norm: [1, 24],
        ...(family === 'llama' ? { lm_head: [53, 24] } : {}),
        ...(family === 'qwen2'
          ? { 'layers.0.q_bias': [1, 32], 'layers.0.k_bias': [1, 16], 'layers.0.v_bias': [1, 16] }
          : {}),
        ...(family === 'qwen3' ? { 'layers.0.q_norm': [1, 8], 'layers.0.k_norm': [1, 8] } : {}),
      })
    },
  )

  test('fused matrices are slices of rows', () => {
    const config = parseConfig({
      architectures: ['Phi3ForCausalLM'],
      vocab_size: 10,
      hidden_size: 16,
      intermediate_size: 24,
      num_hidden_layers: 1,
      num_attention_heads: 2,
      num_key_value_heads: 1,
      hidden_act: 'silu',
      rms_norm_eps: 1e-5,
    })
    const layer = 'model.layers.0'
    const tensors = entries('BF16', {
      'model.embed_tokens.weight': [10, 16],
      [`${layer}.input_layernorm.weight`]: [16],
      [`${layer}.post_attention_layernorm.weight`]: [16],
      [`${layer}.self_attn.qkv_proj.weight`]: [32, 16],
      [`${layer}.self_attn.o_proj.weight`]: [16, 16],
      [`${layer}.mlp.gate_up_proj.weight`]: [48, 16],
      [`${layer}.mlp.down_proj.weight`]: [16, 24],
      'model.norm.weight': [16],
      'lm_head.weight': [10, 16],
    })
    const found = new Map(modelTensors(config, tensors).map((entry) => [entry.name, entry]))
    const qkv = tensors.get(`${layer}.self_attn.qkv_proj.weight`)!.offset
    const gateUp = tensors.get(`${layer}.mlp.gate_up_proj.weight`)!.offset
    const row = 16 * 2
    for (const [name, rows, offset] of [
      ['q_proj', 16, qkv],
      ['k_proj', 8, qkv + 16 * row],
      ['v_proj', 8, qkv + 24 * row],
      ['gate_proj', 24, gateUp],
      ['up_proj', 24, gateUp + 24 * row],
    ] as const) {
      expect(found.get(`layers.0.${name}`)).toMatchObject({
        rows,
        cols: 16,
        offset,
        format: 'bf16',
      })
    }
  })

  function entries(dtype: string, shapes: Record<string, number[]>) {
    let offset = 1000
    return new Map(
      Object.entries(shapes).map(([name, shape]) => {
        const entry = { name, path: 'model.safetensors', offset, dtype, shape }
        offset += 2 * shape.reduce((product, size) => product * size, 1)
        return [name, entry]
      }),
    )
  }

  test('what plays no part is left out', async () => {
    const { config, tensors } = await read({ family: 'qwen2' })
    const before = modelTensors(config, tensors)
    const spare = { ...tensors.get('model.norm.weight')!, dtype: 'I64' }
    for (const name of [
      'model.rotary_emb.inv_freq',
      'model.layers.0.self_attn.rotary_emb.inv_freq',
      'model.layers.1.self_attn.rotary_emb.cos_cached',
      'model.layers.1.self_attn.masked_bias',
    ]) {
      tensors.set(name, { ...spare, name })
    }
    expect(modelTensors(config, tensors)).toEqual(before)
  })

  test('an output matrix that is stored counts, even where it is tied', async () => {
    const { config, tensors } = await read({ family: 'llama', tied: true })
    const roles = () => modelTensors(config, tensors).map(({ name }) => name)
    expect(roles()).not.toContain('lm_head')
    const name = 'lm_head.weight'
    tensors.set(name, { ...tensors.get('model.embed_tokens.weight')!, name })
    expect(roles()).toContain('lm_head')
  })

  test('more layers than the files have are refused at the first that is missing', async () => {
    const { config, tensors } = await read({ family: 'llama', layers: 2 })
    const layers = [...config.layers, ...config.layers]
    expect(() => modelTensors({ ...config, layers }, tensors)).toThrow(/layers\.2\./)
  })

  const norm = 'model.layers.1.input_layernorm.weight'
  const patch = (name: string, change: object) => async () => {
    const { config, tensors } = await read({ family: 'llama', dtype: 'bf16' })
    const like = tensors.get(name) ?? tensors.get(norm)!
    tensors.set(name, { ...like, name, ...change })
    return modelTensors(config, tensors)
  }
  const drop = (name: string) => async () => {
    const { config, tensors } = await read({ family: 'llama' })
    tensors.delete(name)
    return modelTensors(config, tensors)
  }
  test.each<[string, () => Promise<unknown>, RegExp, string?]>([
    [
      'a missing matrix',
      drop('model.layers.1.mlp.up_proj.weight'),
      /layers\.1\.mlp\.up_proj.*missing/,
    ],
    ['a missing output matrix', drop('lm_head.weight'), /lm_head\.weight.*missing/],
    ['a wrong shape', patch(norm, { shape: [23] }), /layers\.1\.input_layernorm.*\[23\].*\[24\]/],
    ['a transposed matrix', patch('lm_head.weight', { shape: [24, 53] }), /lm_head.*\[24,53\]/],
    ['a vector as a matrix', patch(norm, { shape: [1, 24] }), /\[1,24\].*\[24\]/],
    [
      'integers',
      patch(norm, { dtype: 'I16' }),
      /input_layernorm.*I16.*F32, F16, BF16/,
      'HOGWILD_UNSUPPORTED',
    ],
    [
      'a dtype by the name of a method',
      patch(norm, { dtype: 'toString' }),
      /toString/,
      'HOGWILD_UNSUPPORTED',
    ],
    [
      'a bias that the configuration does not know',
      patch('model.layers.0.self_attn.q_proj.bias', {}),
      /q_proj\.bias.*no place/,
    ],
    [
      'a norm that the architecture does not know',
      patch('model.layers.0.self_attn.q_norm.weight', {}),
      /q_norm.*no place/,
    ],
    ['a layer too many', patch('model.layers.9.mlp.up_proj.weight', {}), /layers\.9.*no place/],
    ['a name that nothing has', patch('extra', {}), /"extra".*no place/],
    [
      'a buffer elsewhere than in attention',
      patch('model.layers.0.mlp.rotary_emb.inv_freq', {}),
      /inv_freq.*no place/,
    ],
  ])('are refused: %s', async (_, make, message, code = 'HOGWILD_INVALID_MODEL') => {
    await expect(make()).rejects.toThrow(message)
    expect(await codeOf(make)).toBe(code)
  })
})

import { copyFileSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { createDevice, inspectModel, loadModel, loadTokenizer } from '../lib'
import { FAMILIES } from '../lib/families'
import { ropeFrequencies } from '../lib/rope'
import { readGguf } from '../lib/sources/gguf'
import { readGgufModel } from '../lib/sources/gguf-model'
import { readConfig } from '../lib/sources/huggingface-config'
import { difference, expectSameBits, temporaryFolder } from './fixtures'
import { CONVERTED_FAMILIES, f32Tensor, type GgufModelOptions, writeGgufModel } from './gguf-models'
import { array, float32, type GgufWriterTensor, string, uint32, type Value } from './gguf-writer'

// The tiny models of every family (fixtures/families.py) as GGUF files: the same logits to the last bit.
const root = join(__dirname, 'fixtures', 'families')
/**
 * What GGUF cannot say: other activations than the family's, details of YaRN, windows of families that do not use them,
 * Gemma 2 without caps, other layers with a window than the family's, SmolLM3's other layers without RoPE, layers without experts. Folders with stacked
 * experts are like the others; those with experts in MXFP4 are in experts.test.ts.
 */
const UNSAID =
  /_(mscale|untruncated|silu|gelu)$|^qwen\d_window$|^smollm3_(window|bias_v4)$|uncapped|bias_untied|text_linear|_stacked$|_mxfp4$|dense_layers|^gpt_oss_layer/
/** Numbers that are float32 there. */
const ROUNDED = /llama3|llama_long|yarn_attention$|^granite|longrope|_su_/
const names = readdirSync(root).filter((name) => !UNSAID.test(name))

async function ggufOf(name: string, options?: GgufModelOptions): Promise<string> {
  const path = join(temporaryFolder(), `${name}.gguf`)
  await writeGgufModel(join(root, name), path, options)
  return path
}

async function logitsOf(path: string, dtype: 'auto' | 'f32', tokens: readonly number[]) {
  using device = createDevice({ type: 'cpu', threads: 1 })
  await using model = await loadModel(path, { device, dtype, onWarning: () => {} })
  await using cache = model.createCache({
    dtype: 'f32',
    capacity: 256,
    context: tokens.length,
  })
  const { logits } = await model.prefill(cache.createBlock(), tokens, {
    logits: 'all',
    sampler: null,
  })
  return logits as Float32Array
}

function tokensOf(name: string): number[] {
  return JSON.parse(readFileSync(join(root, name, 'expected.json'), 'utf8')).tokens
}

/** A folder whose config.json says what GGUF implies of Gemma: scores are divided by the root of the head size. */
function folderOf(name: string): string {
  const config = JSON.parse(readFileSync(join(root, name, 'config.json'), 'utf8'))
  if (!/^gemma[23]/.test(name)) return join(root, name)
  const folder = temporaryFolder()
  for (const file of readdirSync(join(root, name))) {
    copyFileSync(join(root, name, file), join(folder, file))
  }
  const query_pre_attn_scalar = config.head_dim ?? 256
  writeFileSync(join(folder, 'config.json'), JSON.stringify({ ...config, query_pre_attn_scalar }))
  return folder
}

test('every family has a converter', () => {
  const families = Object.values(FAMILIES).map(({ modelType }) => modelType)
  expect(CONVERTED_FAMILIES.toSorted()).toEqual(families.toSorted())
})

test.each(names.filter((name) => !ROUNDED.test(name)))('%s', async (name) => {
  const tokens = tokensOf(name)
  for (const [type, dtype] of [
    ['stored', 'auto'],
    ['F32', 'f32'],
  ] as const) {
    const expected = await logitsOf(folderOf(name), dtype, tokens)
    const found = await logitsOf(await ggufOf(name, { type }), dtype, tokens)
    expectSameBits(found, expected, `${name} as ${type}`)
  }
})

test.each(names.filter((name) => ROUNDED.test(name)))('%s, rounded', async (name) => {
  const tokens = tokensOf(name)
  const path = await ggufOf(name, { type: 'F32' })
  const expected = await logitsOf(folderOf(name), 'f32', tokens)
  expect(difference(await logitsOf(path, 'f32', tokens), expected).max).toBeLessThan(1e-4)
})

test('the factors of a Llama 3 are those of its formula', async () => {
  const [rope] = (await readConfig(join(root, 'llama_llama3'))).config.ropes
  const { config } = await readGgufModel(await readGguf(await ggufOf('llama_llama3')))
  const expected = ropeFrequencies(rope!).inverseFrequencies
  const found = ropeFrequencies(config.ropes[0]!).inverseFrequencies
  expect(new Set(Array.from(expected, (f, u) => f === 10000 ** (-u / 16))).size).toBe(2)
  expected.forEach((f, u) => {
    expect(Math.abs(found[u]! / f - 1)).toBeLessThan(1e-7)
  })
})

test('a split file is as good as a whole one', async () => {
  const [name, folder] = ['llama_odd_f32', temporaryFolder()]
  const paths = [1, 2, 3].map((no) => join(folder, `m-0000${no}-of-00003.gguf`))
  const count = (await readGguf(await ggufOf(name))).tensors.size
  for (const [no, path] of paths.entries()) {
    await writeGgufModel(join(root, name), path, {
      metadata: [
        ['split.no', { type: 'uint16', value: no }],
        ['split.count', { type: 'uint16', value: 3 }],
        ['split.tensors.count', { type: 'int32', value: count }],
      ],
      tensors: (tensors) => tensors.filter((_, i) => i % 3 === no),
    })
  }
  const tokens = tokensOf(name)
  const expected = await logitsOf(join(root, name), 'auto', tokens)
  expectSameBits(await logitsOf(paths[0]!, 'auto', tokens), expected, 'split')
  await expect(loadModel(paths[1]!)).rejects.toThrow(
    /is not the first part; that is m-00001-of-00003/,
  )
})

test.each(['glm', 'glm_no_bias_v4'])('%s with q, k and v in one, as of ChatGLM', async (name) => {
  const tensors = (all: GgufWriterTensor[]) => {
    const ofQ = all.filter((one) => /attn_q\./.test(one.name))
    const fused = ofQ.map((q): GgufWriterTensor => {
      const parts = ['q', 'k', 'v'].map((part) => {
        const name = q.name.replace('attn_q', `attn_${part}`)
        return all.find((one) => one.name === name) as GgufWriterTensor
      })
      const sum = (of: (part: GgufWriterTensor) => number) =>
        parts.reduce((total, part) => total + of(part), 0)
      return {
        ...{
          name: q.name.replace('attn_q', 'attn_qkv'),
          type: q.type,
          bytes: sum((one) => one.bytes),
        },
        shape: [sum(({ shape }) => shape[0]!), ...q.shape.slice(1)],
        read: async () => Buffer.concat(await Promise.all(parts.map((part) => part.read()))),
      }
    })
    expect(fused).toHaveLength(name === 'glm' ? 4 : 2)
    return [...all.filter((one) => !/attn_[qkv]\./.test(one.name)), ...fused]
  }
  const tokens = tokensOf(name)
  const expected = await logitsOf(join(root, name), 'auto', tokens)
  expectSameBits(await logitsOf(await ggufOf(name, { tensors }), 'auto', tokens), expected, name)
})

test('tokens that end a text', async () => {
  const metadata: [string, Value][] = [
    [
      'tokenizer.ggml.tokens',
      array(
        'string',
        Array.from({ length: 40 }, (_, i) => `t${i}`),
      ),
    ],
    ['tokenizer.ggml.eos_token_id', uint32(3)],
    ['tokenizer.ggml.eot_token_id', uint32(4)],
    ['tokenizer.ggml.eom_token_id', uint32(3)],
  ]
  const { config } = await readGgufModel(await readGguf(await ggufOf('llama', { metadata })))
  expect(config.eosTokenIds).toEqual([3, 4])
})

test('the embedding may have more rows than there are tokens', async () => {
  const metadata: [string, Value][] = [['tokenizer.ggml.tokens', array('string', ['a', 'b'])]]
  const { config } = await readGgufModel(await readGguf(await ggufOf('llama', { metadata })))
  expect(config.vocabSize).toBe(40)
})

const only = (tensors: (all: GgufWriterTensor[]) => GgufWriterTensor[]): GgufModelOptions => ({
  tensors,
})
const key = (name: string, value: Value): GgufModelOptions => ({ metadata: [[name, value]] })
const renamed = (name: string, other: string) =>
  only((all) => all.map((one) => (one.name === name ? { ...one, name: other } : one)))
const typed = (type: number, elements: number, bytes: number) =>
  only((all) =>
    all.map((one) => {
      if (one.name !== 'blk.0.ffn_down.weight') return one
      const [rows, columns] = [16, elements]
      const size = rows * bytes
      return { ...one, shape: [rows, columns], type, bytes: size, read: () => new Uint8Array(size) }
    }),
  )

describe('refused', () => {
  test.each<[string, GgufModelOptions, RegExp, string]>([
    [
      'another architecture',
      key('general.architecture', string('mamba')),
      /"general.architecture" = "mamba" of .*; supported: llama, qwen2, qwen3/,
      'HOGWILD_UNSUPPORTED',
    ],
    [
      'no model',
      key('general.type', string('adapter')),
      /"general.type" = "adapter"/,
      'HOGWILD_UNSUPPORTED',
    ],
    [
      'a key that is not known',
      key('llama.attention.sigmoid', float32(2)),
      /"attention.sigmoid" of .* is not known for the architecture llama.*ignoreFields: \["llama.attention.sigmoid"\]/,
      'HOGWILD_UNSUPPORTED',
    ],
    [
      'a soft cap',
      key('llama.final_logit_softcapping', float32(30)),
      /"final_logit_softcapping" of .* = 30 is not supported/,
      'HOGWILD_UNSUPPORTED',
    ],
    [
      'keys and values of two sizes',
      key('llama.attention.value_length', uint32(16)),
      /value_length" of .* = 16 with keys of 8 is not supported/,
      'HOGWILD_UNSUPPORTED',
    ],
    [
      'a scaling of positions that is not known',
      key('llama.rope.scaling.type', string('su')),
      /scaling.type" of .* = "su" is not supported; supported: none, linear, yarn, longrope/,
      'HOGWILD_UNSUPPORTED',
    ],
    [
      'a size as text',
      key('llama.block_count', string('2')),
      /block_count" of .* "2"/,
      'HOGWILD_INVALID_MODEL',
    ],
    [
      'a size for each layer',
      key('llama.feed_forward_length', array('int32', [24, 24])),
      /intermediate_size/,
      'HOGWILD_INVALID_MODEL',
    ],
    [
      'another vocabulary than the embedding',
      key('llama.vocab_size', uint32(41)),
      /vocabulary of 41, and "token_embd.weight" is \[40,16\]/,
      'HOGWILD_INVALID_MODEL',
    ],
    [
      'a tensor that is missing',
      only((all) => all.filter(({ name }) => name !== 'blk.1.attn_k.weight')),
      /tensor "blk.1.attn_k.weight" is missing/,
      'HOGWILD_INVALID_MODEL',
    ],
    [
      'no embedding',
      renamed('token_embd.weight', 'token_embed.weight'),
      /tensor "token_embd.weight" is missing/,
      'HOGWILD_INVALID_MODEL',
    ],
    [
      'a tensor without a place',
      only((all) => [...all, f32Tensor('blk.0.attn_q.scale', [1], [1])]),
      /"blk.0.attn_q.scale" has no place in a LlamaForCausalLM as its metadata describes it/,
      'HOGWILD_INVALID_MODEL',
    ],
    [
      'layers beyond their number',
      key('llama.block_count', uint32(1)),
      /"blk.1.attn_norm.weight".* have no place/,
      'HOGWILD_INVALID_MODEL',
    ],
    [
      'another shape',
      only((all) =>
        all.map((one) =>
          one.name === 'output_norm.weight' ? f32Tensor(one.name, [8], new Float32Array(8)) : one,
        ),
      ),
      /"output_norm.weight" is \[8\], and \[16\] by its metadata/,
      'HOGWILD_INVALID_MODEL',
    ],
    [
      'factors beside a scaling',
      {
        metadata: [
          ['llama.rope.scaling.type', string('linear')],
          ['llama.rope.scaling.factor', float32(2)],
        ],
        tensors: (all) => [...all, f32Tensor('rope_freqs.weight', [4], [1, 1, 1, 1])],
      },
      /has both "rope_freqs.weight" and "rope.scaling.type" = "linear"/,
      'HOGWILD_INVALID_MODEL',
    ],
    [
      'factors of another head size',
      only((all) => [...all, f32Tensor('rope_freqs.weight', [3], [1, 1, 1])]),
      /"rope_freqs.weight" has 3 factors; expected 4/,
      'HOGWILD_INVALID_MODEL',
    ],
    [
      'a factor of 0',
      only((all) => [...all, f32Tensor('rope_freqs.weight', [4], [1, 0, 1, 1])]),
      /expected 4, each from 1 to/,
      'HOGWILD_INVALID_MODEL',
    ],
    ...(
      [
        ['IQ2_XS', 17, 256, 74],
        ['IQ1_S', 19, 256, 50],
        ['IQ3_S', 21, 256, 110],
        ['TQ1_0', 34, 256, 54],
        ['NVFP4', 40, 64, 36],
        ['F64', 28, 24, 192],
      ] as const
    ).map(([name, type, elements, bytes]): [string, GgufModelOptions, RegExp, string] => [
      name,
      typed(type, elements, bytes),
      new RegExp(`"blk.0.ffn_down.weight" is "${name}"; supported: F32, F16, BF16, Q8_0, Q4_0`),
      'HOGWILD_UNSUPPORTED',
    ]),
  ])('%s', async (_, options, message, code) => {
    const error = await loadModel(await ggufOf('llama', options)).catch((thrown) => thrown)
    expect(error.message).toMatch(message)
    expect(error).toMatchObject({ code })
  })
})

test('keys may be ignored', async () => {
  const path = await ggufOf('llama', key('llama.attention.sigmoid', float32(2)))
  await using model = await loadModel(path, { ignoreFields: ['llama.attention.sigmoid'] })
  expect(model.config.layers).toHaveLength(2)
  await expect(loadModel(path, { ignoreFields: ['llama.block_count'] })).rejects.toThrow(
    /"block_count" of .*, which the model is computed from/,
  )
})

test('a folder of GGUF files is no model, and the message names one of them', async () => {
  const folder = temporaryFolder()
  const code = 'HOGWILD_INVALID_MODEL'
  const refusal = (message: RegExp) => ({ code, message: expect.stringMatching(message) })
  await expect(loadModel(folder)).rejects.toMatchObject(
    refusal(/no config.json and no tokenizer.json in this/),
  )
  for (const name of ['two.gguf', 'one.GGUF']) writeFileSync(join(folder, name), '')
  for (const open of [loadModel, loadTokenizer, inspectModel]) {
    await expect(open(folder)).rejects.toMatchObject(refusal(/, but "one.GGUF" and 1 more: give/))
  }
})

test('a file that is not named .gguf is no model', async () => {
  const path = join(temporaryFolder(), 'model.bin')
  writeFileSync(path, await readFile(await ggufOf('llama')))
  await expect(loadModel(path)).rejects.toMatchObject({
    code: 'HOGWILD_INVALID_MODEL',
    message: expect.stringMatching(/expected a Hugging Face folder or a .gguf file/),
  })
})

// What the benchmarks rest on: the same weights for both engines, and a README that says what was measured.

import { execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { barChart } from '../bench/peers/chart'
import { writeGguf } from '../bench/peers/gguf'
import { createCache, createDevice, loadModel, ropeFrequencies, type View } from '../lib'
import { median } from '../lib/cli/median'
import { readTensors } from '../lib/sources/safetensors'
import { writeModel } from './fixtures'

const root = join(__dirname, '..')

/** Reads GGUF version 3 as far as the writer goes: see https://github.com/ggml-org/ggml/blob/master/docs/gguf.md */
function parseGguf(file: Buffer) {
  let at = 0
  const take = (bytes: number) => {
    at += bytes
    return file.subarray(at - bytes, at)
  }
  const uint32 = () => take(4).readUInt32LE()
  const uint64 = () => Number(take(8).readBigUInt64LE())
  const text = () => take(uint64()).toString('utf8')
  const value = (type: number): unknown => {
    if (type === 4) return uint32()
    if (type === 5) return take(4).readInt32LE()
    if (type === 6) return take(4).readFloatLE()
    if (type === 8) return text()
    if (type !== 9) throw new Error(`type ${type}`)
    const of = uint32()
    return Array.from({ length: uint64() }, () => value(of))
  }
  const magic = take(4).toString('latin1')
  const version = uint32()
  const [tensorCount, valueCount] = [uint64(), uint64()]
  const metadata = new Map<string, unknown>()
  for (let i = 0; i < valueCount; i++) metadata.set(text(), value(uint32()))
  const infos = Array.from({ length: tensorCount }, () => ({
    name: text(),
    shape: Array.from({ length: uint32() }, uint64),
    type: uint32(),
    offset: uint64(),
  }))
  const data = file.subarray(Math.ceil(at / 32) * 32)
  const tensors = new Map(
    infos.map(({ name, shape, type, offset }) => {
      const bytes = shape.reduce((product, size) => product * size, type === 0 ? 4 : 2)
      return [name, { shape, type, offset, data: data.subarray(offset, offset + bytes) }]
    }),
  )
  return { magic, version, metadata, tensors, end: data.length }
}

describe('the GGUF writer', () => {
  const folder = writeModel({ dtype: 'bf16', vocabSize: 300, headDim: 16 })
  const config = JSON.parse(readFileSync(join(folder, 'config.json'), 'utf8'))
  let gguf: ReturnType<typeof parseGguf>
  let source: Map<string, { shape: readonly number[]; data: Buffer }>

  beforeAll(async () => {
    await writeGguf(folder, join(folder, 'model.gguf'))
    gguf = parseGguf(readFileSync(join(folder, 'model.gguf')))
    source = new Map(
      [...(await readTensors(folder)).values()].map(({ name, path, offset, shape }) => {
        const bytes = shape.reduce((product, size) => product * size, 2)
        return [name, { shape, data: readFileSync(path).subarray(offset, offset + bytes) }]
      }),
    )
  })

  test('states the shape of the model and a vocabulary without doubles', () => {
    expect([gguf.magic, gguf.version]).toEqual(['GGUF', 3])
    const { metadata } = gguf
    expect(metadata.get('llama.block_count')).toBe(config.num_hidden_layers)
    expect(metadata.get('llama.attention.head_count')).toBe(config.num_attention_heads)
    expect(metadata.get('llama.attention.head_count_kv')).toBe(config.num_key_value_heads)
    expect(metadata.get('llama.rope.freq_base')).toBe(config.rope_theta)
    expect(metadata.get('llama.attention.layer_norm_rms_epsilon')).toBeCloseTo(config.rms_norm_eps)
    for (const name of ['tokens', 'scores', 'token_type']) {
      expect(metadata.get(`tokenizer.ggml.${name}`)).toHaveLength(config.vocab_size)
    }
    const tokens = metadata.get('tokenizer.ggml.tokens') as string[]
    expect(new Set(tokens).size).toBe(tokens.length)
    expect(tokens[3 + 10]).toBe('<0x0A>')
  })

  test('takes every tensor, aligned, with the fastest index first', () => {
    expect(gguf.tensors.size).toBe(source.size)
    for (const { offset } of gguf.tensors.values()) expect(offset % 32).toBe(0)
    const embedding = gguf.tensors.get('token_embd.weight')!
    expect(embedding.shape).toEqual([config.hidden_size, config.vocab_size])
    expect(embedding.data.equals(source.get('model.embed_tokens.weight')!.data)).toBe(true)
    const down = gguf.tensors.get('blk.1.ffn_down.weight')!
    expect(down.data.equals(source.get('model.layers.1.mlp.down_proj.weight')!.data)).toBe(true)
    const last = [...gguf.tensors.values()].at(-1)!
    expect(last.offset + last.data.length).toBeLessThanOrEqual(gguf.end)
  })

  test('widens norms to float32', () => {
    const norm = gguf.tensors.get('blk.0.attn_norm.weight')!
    const { data } = source.get('model.layers.0.input_layernorm.weight')!
    expect(norm.type).toBe(0)
    for (let i = 0; i < data.length / 2; i++) {
      expect(norm.data.readUInt32LE(4 * i)).toBe(data.readUInt16LE(2 * i) * 65536)
    }
  })

  test.each(['q', 'k'])('puts the pairs of the rotation of %s side by side', (name) => {
    const { shape, data } = source.get(`model.layers.1.self_attn.${name}_proj.weight`)!
    const [rows, cols] = shape as [number, number]
    const D = config.head_dim
    const permuted = gguf.tensors.get(`blk.1.attn_${name}.weight`)!.data
    const row = (from: Buffer, i: number) => from.subarray(2 * cols * i, 2 * cols * (i + 1))
    for (let head = 0; head < rows / D; head++) {
      for (let pair = 0; pair < D / 2; pair++) {
        const [first, second] = [head * D + pair, head * D + pair + D / 2]
        expect(row(permuted, head * D + 2 * pair).equals(row(data, first))).toBe(true)
        expect(row(permuted, head * D + 2 * pair + 1).equals(row(data, second))).toBe(true)
      }
    }
  })
})

test('a profile counts calls, and bytes of weights, keys and values once for all workers', async () => {
  using device = createDevice({ type: 'cpu', threads: 2, profile: true })
  const [hidden, inner, kv, layers, vocabSize] = [24, 40, 2 * 8, 3, 53]
  const folder = writeModel({ layers, hiddenSize: hidden, intermediateSize: inner, vocabSize })
  await using model = await loadModel(folder, { device })
  await using cache = model.createCache({ capacity: 256 })
  const [prompt, a, b] = [cache.createBlock(), cache.createBlock(), cache.createBlock()]
  await model.prefill(prompt, [1, 2, 3, 4, 5])
  device.takeProfile()
  await model.step([
    { view: { blocks: [prompt, b, a] }, tokens: [6, 7] },
    { view: { blocks: [prompt, a, b] }, tokens: [8] },
  ])
  const profile = new Map(device.takeProfile().map(({ op, ...rest }) => [op, rest]))
  const total = [...profile.values()].reduce((sum, { seconds }) => sum + seconds, 0)
  expect(total).toBeGreaterThan(0)
  const counted = [...profile].map(([op, { calls, bytes }]) => [op, calls, bytes])
  const matmul = (k: number, outputs: number) => [
    `matmul ${k} x ${outputs}`,
    layers,
    4 * k * outputs * layers,
  ]
  expect(counted).toEqual(
    expect.arrayContaining([
      matmul(hidden, 32 + 2 * kv), // q, k, v
      matmul(32, hidden), // o
      matmul(hidden, 2 * inner), // gate, up
      matmul(inner, hidden), // down
      [`matmul ${hidden} x ${vocabSize}`, 1, 4 * hidden * vocabSize],
      ['attention', layers, layers * (5 + 2 + 1) * 2 * kv * 4],
      ['kv_append', layers, layers * 3 * 2 * kv * 4],
      ['sample', 1, 2 * vocabSize * 4],
    ]),
  )
  expect(device.takeProfile()).toEqual([])
  using other = createDevice({ type: 'cpu', threads: 1 })
  expect(() => other.takeProfile()).toThrow('expected a device created with profile: true')
})

test('a profile counts keys and values that somebody sees through a window, once', async () => {
  using device = createDevice({ type: 'cpu', threads: 2, profile: true })
  const rope = ropeFrequencies({ type: 'default', theta: 1e4, rotaryDim: 8 })
  const shape = { layers: 1, kvHeads: 2, headDim: 8, rope }
  await using cache = createCache({ device, ...shape, capacity: 4096 })
  const append = async (workers: { view: View; tokens: number }[]) => {
    const pass = cache.beginPass(workers)
    const rows = new Float32Array(pass.tokens * 16)
    await pass.append(0, rows, rows)
    return { pass, rows }
  }
  const [prompt, a, b] = [cache.createBlock(), cache.createBlock(), cache.createBlock()]
  const filled = await append([{ view: { blocks: [prompt] }, tokens: 3000 }])
  filled.pass.commit()
  const { pass, rows } = await append([
    { view: { blocks: [prompt, b, a] }, tokens: 50 },
    { view: { blocks: [prompt, a, b] }, tokens: 2 },
  ])
  const seen = async (window?: number) => {
    device.takeProfile()
    await pass.attend(0, rows, { window })
    const attention = device.takeProfile().find(({ op }) => op === 'attention')!
    return attention.bytes / (2 * 16 * 4) // a token's key and value
  }
  expect(await seen()).toBe(3000 + 50 + 2)
  expect(await seen(1)).toBe(50 + 2)
  // The first token of `a` has the 2 of `b` and 17 of the prompt before it; those of `b` have 50 of `a`.
  expect(await seen(20)).toBe(17 + 2 + 50)
  expect(await seen(4000)).toBe(3000 + 50 + 2)
})

test('the chart draws a bar, its spread and its figure for each value, and escapes text', () => {
  const spread = (median: number) => ({ median, min: median - 1, max: median + 1 })
  const svg = barChart({
    title: 'a < b',
    subtitle: 'c & d',
    groups: ['one', 'two'],
    series: [
      { name: 'x', color: '#123456', values: [spread(10), spread(20)] },
      { name: 'y', color: '#654321', values: [spread(5), spread(40)] },
    ],
  })
  expect(svg).toContain('a &lt; b')
  expect(svg).toContain('c &amp; d')
  const height = (figure: number) => {
    // The first two are the legend's.
    const bars = [...svg.matchAll(/<rect x=.*? height="([^"]*)"/g)].slice(2)
    const figures = [...svg.matchAll(/text-anchor="middle">(\d+)</g)].map((match) =>
      Number(match[1]),
    )
    return Number(bars[figures.indexOf(figure)]?.[1])
  }
  expect(height(40) / height(10)).toBeCloseTo(4, 1)
  expect(height(20) / height(5)).toBeCloseTo(4, 1)
})

describe('the committed results', () => {
  const read = (name: string) =>
    JSON.parse(readFileSync(join(root, `bench/results/${name}.json`), 'utf8'))

  test('of bench:peers are what its samples say', () => {
    const report = read('peers-cpu')
    const counts = Object.keys(report.decode_ratio).map(Number)
    expect(counts).toEqual([1, 2, 4, 8])
    const rate = (engine: string, workers: number) =>
      median(
        report.samples
          .filter(
            (s: { engine: string; workers: number }) =>
              s.engine === engine && s.workers === workers,
          )
          .map((s: { decodeSeconds: number }) => (workers * report.generate) / s.decodeSeconds),
      )
    const peers = report.runs.map((run: { engine: string }) => run.engine)
    for (const workers of counts) {
      const best = Math.max(
        ...peers
          .filter((engine: string) => engine !== 'hogwild')
          .map((engine: string) => rate(engine, workers)),
      )
      expect(report.decode_ratio[workers]).toBeCloseTo(rate('hogwild', workers) / best, 1)
    }
    expect(report.logits_nmse).toBeLessThan(1e-3)
    for (const key of ['prefill_ratio', 'read_share', 'step_4_over_1', 'memory_overhead_mb']) {
      expect(report[key]).toBeGreaterThan(0)
    }
  })

  test('of bench:attention name shape, tokens and workers of each run', () => {
    for (const run of read('attention-cpu').runs) {
      expect(run).toEqual({
        shape: expect.any(String),
        cached_tokens: expect.any(Number),
        workers: expect.any(Number),
        ms: { median: expect.any(Number), min: expect.any(Number), max: expect.any(Number) },
        gb_per_s: expect.any(Number),
        read_share: expect.any(Number),
        over_one: expect.any(Number),
      })
    }
  })

  test('are the figures of the README', () => {
    execFileSync('node', ['scripts/readme-figures.cjs', '--check'], { cwd: root })
  })
})

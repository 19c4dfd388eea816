// What the benchmarks rest on: the same weights for both engines, and a README that says what was measured.

import { execFileSync } from 'node:child_process'
import { existsSync, mkdtempSync, readdirSync, readFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { barChart } from '../bench/peers/chart'
import { BENCH_FORMATS, writeRandomGguf } from '../bench/peers/random-gguf'
import { createCache, createDevice, loadModel, ropeFrequencies, type View } from '../lib'
import { median } from '../lib/cli/median'
import { readGguf } from '../lib/sources/gguf'
import { writeModel } from './fixtures'

const root = join(__dirname, '..')

describe('random GGUF files', () => {
  const shape = {
    name: 'tiny',
    layers: 2,
    hiddenSize: 256,
    intermediateSize: 512,
    queryHeads: 4,
    kvHeads: 2,
    headDim: 64,
    vocabSize: 300,
  }
  const path = join(mkdtempSync(join(tmpdir(), 'hogwild-bench-test-')), 'model.gguf')

  test.each(BENCH_FORMATS)('of %s load, and compute numbers of a usual size', async (format) => {
    await writeRandomGguf(path, shape, format, { repeated: false })
    const { tensors } = await readGguf(path)
    expect(tensors.get('blk.1.ffn_down.weight')).toMatchObject({ format, shape: [256, 512] })
    expect(tensors.get('blk.0.attn_norm.weight')).toMatchObject({ format: 'f32', shape: [256] })
    await using model = await loadModel(path, { threads: 1 })
    await using cache = model.createCache({ capacity: 64 })
    const view = { blocks: [cache.createBlock()] }
    const [output] = await model.step([{ view, tokens: [1, 2, 259], logits: 'last' }])
    const logits = Array.from(output?.logits as Float32Array)
    const deviation = Math.sqrt(logits.reduce((sum, x) => sum + x * x, 0) / logits.length)
    // 256 products of a normed value and a weight of 0.01 to 0.03.
    expect(deviation).toBeGreaterThan(0.1)
    expect(deviation).toBeLessThan(1)
  })

  test('take rows of whole blocks only', async () => {
    const odd = { ...shape, hiddenSize: 288 }
    await expect(writeRandomGguf(path, odd, 'q4_k', { repeated: true })).rejects.toThrow(
      '288 elements',
    )
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

  const peers = readdirSync(join(root, 'bench/results')).filter((name) =>
    /^peers-.*json$/.test(name),
  )

  const whereMeasured = peers.length > 0 ? test : test.skip
  whereMeasured('of bench:peers are what the samples say (no result: skipped)', () => {
    for (const name of peers) checkPeers(read(name.replace(/\.json$/, '')))
  })

  function checkPeers(report: ReturnType<typeof JSON.parse>): void {
    expect(report.formats.length).toBeGreaterThan(0)
    for (const { format, samples, runs, decode_ratio, ...figures } of report.formats) {
      const rate = (engine: string, workers: number) =>
        median(
          samples
            .filter(
              (s: { engine: string; workers: number }) =>
                s.engine === engine && s.workers === workers,
            )
            .map((s: { decodeSeconds: number }) => (workers * report.generate) / s.decodeSeconds),
        )
      const engines = [...new Set<string>(runs.map((run: { engine: string }) => run.engine))]
      const others = engines.filter((engine) => engine !== 'hogwild')
      for (const workers of Object.keys(decode_ratio).map(Number)) {
        const best = Math.max(...others.map((engine) => rate(engine, workers)))
        expect(decode_ratio[workers]).toBeCloseTo(rate('hogwild', workers) / best, 1)
      }
      expect(figures.logits_nmse).toBeLessThan(format === 'bf16' ? 1e-3 : 5e-2)
      expect(figures.bandwidth_gb_per_s).toHaveLength(report.rounds + 1)
      for (const key of ['prefill_ratio', 'read_share', 'step_4_over_1', 'memory_overhead_mb']) {
        expect(figures[key]).toBeGreaterThan(0)
      }
    }
  }

  const ofReal = 'kl-SmolLM2-135M-Instruct.Q4_1'
  const whereReal = existsSync(join(root, `bench/results/${ofReal}.json`)) ? test : test.skip
  whereReal('of bench:kl on a real file are within their bounds (no result: skipped)', () => {
    const { runs, peer_run, reference_perplexity } = read(ofReal)
    const most = { f32: 2e-6, f16: 2e-6, bf16: 1e-4, int8: 2e-3 }
    expect(runs.map(({ cache }: { cache: string }) => cache)).toEqual(Object.keys(most))
    for (const { cache, mean_kl } of runs) {
      expect(mean_kl).toBeLessThanOrEqual(most[cache as keyof typeof most])
    }
    const f16 = runs.find(({ cache }: { cache: string }) => cache === 'f16')
    expect(peer_run.mean_kl / f16.mean_kl).toBeGreaterThanOrEqual(30)
    expect(Math.abs(f16.perplexity / reference_perplexity - 1)).toBeLessThan(1e-3)
  })

  test('of bench:kl on each format are nearer to the exact ones than those of the peer', () => {
    const { runs } = read('kl-random')
    expect(runs.map(({ format }: { format: string }) => format)).toEqual(BENCH_FORMATS)
    for (const { format, mean_kl, peer_mean_kl, argmax } of runs) {
      expect(argmax.compared).toBeGreaterThan(10)
      if (format === 'f16' || format === 'bf16') expect(argmax.equal).toBe(argmax.compared)
      else expect(mean_kl).toBeLessThan(peer_mean_kl)
    }
  })

  test('of bench:attention name shape, tokens and workers of each run', () => {
    for (const run of ['attention-cpu', 'attention-cpu-int8'].flatMap((name) => read(name).runs)) {
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

  test('are the figures of README.md and docs/performance.md', () => {
    execFileSync('node', ['scripts/readme-figures.cjs', '--check'], { cwd: root })
  })
})

import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { createDevice, loadModel, probe, runWorkers } from '../lib'
import { FAMILIES } from '../lib/families'
import {
  codeOf,
  difference,
  expectClose,
  loadReference,
  Random,
  roundsActivations,
  stepTwins,
  type TwinWorker,
  twin,
} from './fixtures'

// Tiny models of every family against transformers in float64 (fixtures/families.py).
const root = join(__dirname, 'fixtures', 'families')
const names = readdirSync(root)

test('each family has models', () => {
  expect(names.length).toBeGreaterThanOrEqual(90)
  // Beyond windows and original contexts, where a family has them.
  const long = names.filter((name) => readExpected(name).greedy !== undefined)
  const types = long.map((name) => {
    const config = JSON.parse(readFileSync(join(root, name, 'config.json'), 'utf8'))
    return config.model_type as string
  })
  for (const { modelType } of Object.values(FAMILIES)) {
    expect(names).toContain(modelType)
    expect(types).toContain(modelType)
  }
})

interface Expected {
  tokens: number[]
  logits: number[][]
  greedy?: number[]
}

function readExpected(name: string): Expected {
  return JSON.parse(readFileSync(join(root, name, 'expected.json'), 'utf8')) as Expected
}

test.each(names)('%s', async (name) => {
  const folder = join(root, name)
  const { tokens, logits, greedy = [] } = readExpected(name)
  for (const simd of probe().simd) {
    using device = createDevice({ type: 'cpu', simd, threads: 1 })
    await using model = await loadModel(folder, { device })
    const context = tokens.length + greedy.length
    await using cache = model.createCache({ dtype: 'f32', capacity: context, context })
    const block = cache.createBlock()
    const output = await model.prefill(block, tokens, { logits: 'all' })
    const { vocabSize } = model.config
    expect(output.logits).toHaveLength(tokens.length * vocabSize)
    const found = logits.flatMap((_, i) => [
      ...(output.logits?.subarray(10 * i * vocabSize, (10 * i + 1) * vocabSize) ?? []),
    ])
    const { max, nmse } = difference(found, logits.flat())
    // Some levels also round what bf16 weights are multiplied with; what quantised ones are is rounded to 15 bits.
    if (roundsActivations(simd) && model.dtype === 'bf16') expect(nmse).toBeLessThan(2.5e-4)
    else if ('mxfp4' in model.weights) expect(nmse).toBeLessThan(1e-7)
    else expect(max).toBeLessThan(2e-4)
    if (roundsActivations(simd)) continue
    const continued = [output.token as number]
    while (continued.length < greedy.length) {
      const { token } = await model.prefill(block, continued.slice(-1))
      continued.push(token as number)
    }
    if (greedy.length > 0) expect(continued).toEqual(greedy)
  }
})

test('longrope: a cache is made for short views or for long ones', async () => {
  await using model = await loadModel(join(root, 'phi3_longrope'), { device: 'cpu', threads: 1 })
  await using short = model.createCache({ capacity: 256 })
  const block = short.createBlock()
  const tokens = readExpected('phi3_longrope').tokens
  await model.prefill(block, tokens.slice(0, 64))
  await expect(model.prefill(block, [1])).rejects.toThrow(/65 positions .* 64 .*context: 65/)
  expect(await codeOf(() => model.prefill(block, [1]))).toBe('HOGWILD_INVALID_ARGUMENT')
  expect(block.length).toBe(64)
  const far = (at: number) => [
    {
      view: {
        blocks: [
          { block, at },
          { block: own, at: 0 },
        ],
      },
      tokens: [1],
    },
  ]
  const own = short.createBlock()
  await expect(model.step(far(1))).rejects.toThrow(/65 positions .* 64 .*context: 65/)
  await model.step(far(0))

  const first = async (context: number) => {
    await using cache = model.createCache({ dtype: 'f32', capacity: 256, context })
    const { logits } = await model.prefill(cache.createBlock(), tokens.slice(0, 30), {
      logits: 'last',
    })
    return [...(logits as Float32Array)]
  }
  expect(await first(64)).toEqual(await first(1))
  expect(await first(65)).toEqual(await first(1000))
  expect(difference(await first(64), await first(65)).max).toBeGreaterThan(0.01)

  const workers = [{ name: 'a', prompt: [3], maxTokens: 70 }]
  const run = async (context?: number) => {
    for await (const _ of runWorkers({
      model,
      prompt: [1, 2, 5],
      workers,
      stopTokens: [],
      context,
    }));
  }
  expect(await codeOf(() => run())).toBe('HOGWILD_INVALID_ARGUMENT')
  await run(100)
})

/** Those that transformers 5 wrote whole; of the families with windows, those that are small. */
const scenarios = [
  ...Object.values(FAMILIES).map(({ modelType }) => modelType),
  ...['mistral_window', 'qwen3_window', 'phi3_longrope', 'phi3_longrope_factor'],
  ...['gemma2_caps', 'gemma3_text_linear'],
]

test.each(scenarios)(
  '%s: three workers in the combined layout are the definition',
  async (name) => {
    const folder = join(root, name)
    const context = 400
    await using model = await loadModel(folder, { device: 'cpu', threads: 1, dtype: 'f32' })
    await using cache = model.createCache({ dtype: 'f32', capacity: 2048, context })
    const reference = loadReference(folder, undefined, context)
    const random = new Random(5)
    const tokens = (n: number) => random.tokens(n, model.config.vocabSize)
    const [common, shared] = [twin(cache), twin(cache)]
    const own = [0, 1, 2].map(() => ({ header: twin(cache), text: twin(cache) }))
    const others = (w: number) => own.filter((_, i) => i !== w).map(({ text }) => text)
    let compared = 0
    const step = async (workers: TwinWorker[]) => {
      const { actual, expected } = await stepTwins(model, reference, workers)
      expected.forEach((rows, w) => {
        rows.forEach((row, i) => {
          expectClose(actual[w]![i]!, row, 2e-4, `${name}, worker ${w}, token ${i}`)
          compared++
        })
      })
    }

    await step([{ view: [common], tokens: tokens(60) }])
    await step([{ view: [shared], tokens: tokens(3) }])
    for (const { header } of own) await step([{ view: [header], tokens: tokens(2) }])
    for (const lengths of [
      [1, 1, 1],
      [30, 1, 17],
      [1, 1, 1],
      [5, 1, 1],
    ]) {
      await step(
        own.map(({ header, text }, w) => ({
          view: [common, shared, ...others(w), header, text],
          tokens: tokens(lengths[w]!),
        })),
      )
      // The first worker's turn ends: its text becomes part of what all begin with.
      const { text } = own[0]!
      common.block.appendFrom(text.block)
      common.expected.push(...text.expected)
      text.block.clear()
      text.expected.length = 0
    }
    await common.block.compact()
    await step([
      { view: [common, ...others(0), own[0]!.text], tokens: tokens(1) },
      { view: [own[1]!.text, common], tokens: tokens(2), writeTo: common },
    ])
    expect(compared).toBeGreaterThan(130)
    expect(common.expected.length).toBeGreaterThan(90)
  },
)

import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { createDevice, loadModel, probe } from '../lib'
import { FAMILIES } from '../lib/families'
import { difference } from './fixtures'

// Tiny models of every family against transformers in float64 (fixtures/families.py).
const root = join(__dirname, 'fixtures', 'families')
const names = readdirSync(root)

test('each family has models', () => {
  expect(names.length).toBeGreaterThanOrEqual(90)
  const long = names.filter((name) => readExpected(name).greedy !== undefined)
  for (const { modelType } of Object.values(FAMILIES)) expect(names).toContain(modelType)
  // Beyond windows and original contexts, where a family has them.
  expect(long.length).toBeGreaterThanOrEqual(18)
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
    // This level also rounds what bf16 weights are multiplied with.
    if (simd === 'avx512bf16' && model.dtype === 'bf16') expect(nmse).toBeLessThan(2.5e-4)
    else expect(max).toBeLessThan(2e-4)
    if (simd === 'avx512bf16') continue
    const continued = [output.token as number]
    while (continued.length < greedy.length) {
      const { token } = await model.prefill(block, continued.slice(-1))
      continued.push(token as number)
    }
    if (greedy.length > 0) expect(continued).toEqual(greedy)
  }
})

import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { createDevice, loadModel, probe } from '../lib'
import { FAMILIES } from '../lib/families'
import { difference } from './fixtures'

// Tiny models of every family against transformers in float64 (fixtures/families.py).
const root = join(__dirname, 'fixtures', 'families')
const names = readdirSync(root)

test('each family has models', () => {
  expect(names.length).toBeGreaterThanOrEqual(55)
  const families = new Set(names.map((name) => configOf(name).model_type))
  expect([...families].sort()).toEqual(Object.values(FAMILIES).map(modelTypeOf).sort())
})

function configOf(name: string): { model_type: string } {
  return JSON.parse(readFileSync(join(root, name, 'config.json'), 'utf8'))
}

function modelTypeOf({ modelType }: { modelType: string }): string {
  return modelType
}

test.each(names)('%s', async (name) => {
  const folder = join(root, name)
  const { tokens, logits } = JSON.parse(readFileSync(join(folder, 'expected.json'), 'utf8')) as {
    tokens: number[]
    logits: number[][]
  }
  for (const simd of probe().simd) {
    using device = createDevice({ type: 'cpu', simd, threads: 1 })
    await using model = await loadModel(folder, { device })
    await using cache = model.createCache({ dtype: 'f32', capacity: 64 })
    const output = await model.prefill(cache.createBlock(), tokens, {
      logits: 'all',
      sampler: null,
    })
    const { vocabSize } = model.config
    expect(output.logits).toHaveLength(tokens.length * vocabSize)
    const found = logits.flatMap((_, i) => [
      ...(output.logits?.subarray(10 * i * vocabSize, (10 * i + 1) * vocabSize) ?? []),
    ])
    const { max, nmse } = difference(found, logits.flat())
    // This level also rounds what bf16 weights are multiplied with.
    if (simd === 'avx512bf16' && model.dtype === 'bf16') expect(nmse).toBeLessThan(2.5e-4)
    else expect(max).toBeLessThan(2e-4)
  }
})

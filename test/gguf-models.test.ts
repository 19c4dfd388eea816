import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { createDevice, loadModel } from '../lib'
import { FAMILIES } from '../lib/families'
import { expectSameBits, temporaryFolder } from './fixtures'
import { CONVERTED_FAMILIES, type GgufModelOptions, writeGgufModel } from './gguf-models'

// The tiny models of every family (fixtures/families.py) as GGUF files: the same logits to the last bit.
const root = join(__dirname, 'fixtures', 'families')
/** GGUF says nothing of what makes them what they are. */
const UNSAID = /_(mscale|untruncated|silu|gelu)$|llama3/
const names = readdirSync(root).filter((name) => !UNSAID.test(name))

async function ggufOf(name: string, options?: GgufModelOptions): Promise<string> {
  const path = join(temporaryFolder(), `${name}.gguf`)
  await writeGgufModel(join(root, name), path, options)
  return path
}

async function logitsOf(path: string, tokens: number[], dtype: 'auto' | 'f32') {
  using device = createDevice({ type: 'cpu', threads: 1 })
  await using model = await loadModel(path, { device, dtype, onWarning: () => {} })
  await using cache = model.createCache({ dtype: 'f32', capacity: 64 })
  const { logits } = await model.prefill(cache.createBlock(), tokens, {
    logits: 'all',
    sampler: null,
  })
  return { logits: logits as Float32Array, config: model.config }
}

test('every family has a converter', () => {
  expect(CONVERTED_FAMILIES.toSorted()).toEqual(
    Object.values(FAMILIES)
      .map(({ modelType }) => modelType)
      .sort(),
  )
})

test.each(names)('%s', async (name) => {
  const { tokens } = JSON.parse(readFileSync(join(root, name, 'expected.json'), 'utf8'))
  for (const [type, dtype] of [
    ['stored', 'auto'],
    ['F32', 'f32'],
  ] as const) {
    const expected = await logitsOf(join(root, name), tokens, dtype)
    const found = await logitsOf(await ggufOf(name, { type }), tokens, dtype)
    expectSameBits(found.logits, expected.logits, `${name} as ${type}`)
    expect(found.config.layers.length).toBe(expected.config.layers.length)
  }
})

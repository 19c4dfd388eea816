import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { loadModel } from '../lib'

// Architectures that the oracle lacks, against transformers in float64 (fixtures/families.py).
test.each([
  ['gemma', 'GemmaForCausalLM'],
  ['llama_bias', 'LlamaForCausalLM'],
  ['mistral', 'MistralForCausalLM'],
  ['phi3', 'Phi3ForCausalLM'],
])('%s', async (name, architecture) => {
  const folder = join(__dirname, 'fixtures', 'families', name)
  const { tokens, logits } = JSON.parse(readFileSync(join(folder, 'expected.json'), 'utf8')) as {
    tokens: number[]
    logits: number[][]
  }
  await using model = await loadModel(folder)
  expect(model.config.architecture).toBe(architecture)
  expect(model.dtype).toBe('bf16')
  await using cache = model.createCache({ dtype: 'f32' })
  const output = await model.prefill(cache.createBlock(), tokens, { logits: 'all', sampler: null })
  const { vocabSize } = model.config
  expect(output.logits).toHaveLength(tokens.length * vocabSize)
  let worst = 0
  logits.forEach((row, i) => {
    row.forEach((expected, id) => {
      const found = output.logits?.[10 * i * vocabSize + id] as number
      worst = Math.max(worst, Math.abs(found - expected))
    })
  })
  expect(worst).toBeLessThan(2e-4)
})

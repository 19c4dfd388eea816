import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { createDevice, loadModel, probe } from '../lib'
import { difference } from './fixtures'

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
  for (const simd of probe().simd) {
    using device = createDevice({ type: 'cpu', simd })
    await using model = await loadModel(folder, { device })
    expect(model.config.architecture).toBe(architecture)
    expect(model.dtype).toBe('bf16')
    await using cache = model.createCache({ dtype: 'f32' })
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
    if (simd === 'avx512bf16') expect(nmse).toBeLessThan(2.5e-4)
    else expect(max).toBeLessThan(2e-4)
  }
})

import { join } from 'node:path'
import { createDevice, loadModel, probe } from '../lib'
import { expectTwinStep, loadReference, Random, type Twin, twin } from './fixtures'

// Mixtures of experts when several workers see each other, against the definition in float64. That plain sequences
// are as transformers computes them is shown by families.test.ts.
const root = join(__dirname, 'fixtures', 'families')

test.each(['mixtral_odd', 'qwen3_moe_odd_v4', 'qwen3_moe_dense_layers'])(
  '%s: three workers in a combined layout',
  async (name) => {
    const folder = join(root, name)
    const reference = loadReference(folder)
    for (const simd of probe().simd) {
      const random = new Random(12)
      using device = createDevice({ type: 'cpu', simd, threads: 2 })
      await using model = await loadModel(folder, { device })
      await using cache = model.createCache({ dtype: 'f32', capacity: 512 })
      const prompt = twin(cache)
      const own = [twin(cache), twin(cache), twin(cache)]
      const tokens = (length: number) => random.tokens(length, reference.vocabSize)
      const check = (workers: Parameters<typeof expectTwinStep>[2]) =>
        expectTwinStep(model, reference, workers, 2e-4, `${name}, ${simd}`)
      const views = own.map((mine): Twin[] => [prompt, ...own.filter((it) => it !== mine), mine])

      await check([{ view: [prompt], tokens: tokens(23) }])
      for (const lengths of [[3, 1, 5], ...Array<number[]>(6).fill([1, 1, 1]), [2, 4, 1]]) {
        await check(views.map((view, i) => ({ view, tokens: tokens(lengths[i] as number) })))
      }
    }
  },
)

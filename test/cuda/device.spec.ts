// The CUDA device from end to end: whole models, the cache's operations and the errors, beside the CPU device
// and the oracle. On a GPU, or on the emulated card of cuda/simt: the same kernels, launched by the same code.

import { join } from 'node:path'
import {
  createCache,
  createDevice,
  type Device,
  loadModel,
  loadTokenizer,
  type Model,
  probe,
  ropeFrequencies,
  runWorkers,
  Sampler,
  type StepOutput,
} from '../../lib'
import { codeOf, difference, oracleFolder, oracleModels, Random } from '../fixtures'
import { expectSameChoices } from '../oracle'

const demoFolder = join(__dirname, '..', '..', 'models', 'demo')

// RoPE of 8 to 32 pairs turns the first part of a head.
const rope = ropeFrequencies({ type: 'default', theta: 10000, rotaryDim: 24 })

let cuda: Device
let cpu: Device

beforeAll(() => {
  cuda = createDevice({ type: 'cuda' })
  cpu = createDevice({ type: 'cpu', threads: 1 })
  process.stdout.write(`on ${cuda.info.name}\n`)
})

afterAll(() => {
  cuda.close()
  cpu.close()
})

test('it is found, and chosen by itself', () => {
  const found = probe().cuda
  expect(found).toMatchObject({ compiled: true, reason: '' })
  expect(found.cards[0]?.computeCapability).toBeGreaterThanOrEqual(8)
  using device = createDevice()
  expect(device.info).toMatchObject({ type: 'cuda', index: 0, name: found.cards[0]?.name })
  expect(device.whyNotCuda).toBe('')
  expect(() => createDevice({ type: 'cuda', index: 99 })).toThrow(/there is no GPU 99/)
  expect(() => createDevice({ type: 'cuda', threads: 2 })).toThrow(/without threads/)
})

// f32 weights are rounded to bf16 when they are uploaded.
test.each(oracleModels)(
  'the oracle, %s: the argmax wherever the margin exceeds twice the error',
  async (name) => {
    const model = await loadModel(oracleFolder(name), { device: cuda })
    await expectSameChoices(model, name)
    await model.close()
  },
)

describe('the demo model', () => {
  const models: Model[] = []
  let prompt: (words: string) => number[]
  let stop: number[]

  beforeAll(async () => {
    for (const device of [cpu, cuda]) models.push(await loadModel(demoFolder, { device }))
    const tokenizer = await loadTokenizer(demoFolder)
    const encode = (text: string) => tokenizer.encodeSync(text, { addSpecialTokens: false })
    prompt = (words) =>
      encode(
        `<s>${words
          .split(' ')
          .map((word, i) => `${String.fromCharCode(65 + i)}:${[...word].reverse().join('')}\n`)
          .join('')}`,
      )
    stop = encode('</s>')
  })
  afterAll(() => Promise.all(models.map((model) => model.close())))

  /** Tokens of each worker, in order. */
  async function write(model: Model, words: string, names: string[], share: boolean) {
    const tokenizer = await loadTokenizer(demoFolder)
    const written = new Map<string, number[]>(names.map((name) => [name, []]))
    const run = runWorkers({
      model,
      prompt: prompt(words),
      workers: names.map((name) => ({
        name,
        prompt: tokenizer.encodeSync(name, { addSpecialTokens: false }),
      })),
      layout: 'contiguous',
      share,
      stopTokens: stop,
      maxTokens: 60,
      capacity: 2048,
    })
    for await (const event of run) {
      if (event.type === 'token') written.get(event.worker)?.push(event.token)
    }
    return Object.fromEntries(written)
  }

  test.each([
    ['many hands make light work', ['Alice', 'Bob', 'Carol', 'Dave'], true],
    ['see at once what is done already', ['Alice', 'Bob'], true],
    ['one alone', ['Alice'], true],
    ['nobody sees me', ['Alice', 'Bob', 'Carol'], false],
  ])('%s: each worker writes what it writes on the CPU', async (words, names, share) => {
    const [onCpu, onCuda] = await Promise.all(
      models.map((model) => write(model, words, names, share)),
    )
    expect(Object.values(onCpu ?? {}).flat().length).toBeGreaterThan(8)
    expect(onCuda).toEqual(onCpu)
  })

  test('fork, insert, forget, truncate and compact: the logits of the CPU in bf16', async () => {
    const rows = await Promise.all(
      models.map(async (model) => {
        const cache = model.createCache({ capacity: 2048, dtype: 'bf16' })
        const random = new Random(3)
        const common = cache.createBlock()
        const own = cache.createBlock()
        const logits: Float32Array[] = []
        const step = async (n: number) => {
          const tokens = random.tokens(n, 60)
          const out = await model.step([
            { view: { blocks: [common, own], bias: [0.25, 0] }, tokens, logits: 'last' },
          ])
          logits.push(out[0]?.logits as Float32Array)
        }
        await model.prefill(common, random.tokens(150, 60))
        await step(3)
        const fork = common.fork()
        common.insert(31, own)
        await step(1)
        common.forget(3, 20)
        await step(70)
        own.truncate(60)
        const { tokensMoved } = await common.compact()
        expect(tokensMoved).toBeGreaterThan(0)
        await step(1)
        common.clear()
        common.appendFrom(fork)
        await step(1)
        await cache.close()
        return logits
      }),
    )
    rows[0]?.forEach((row, i) => {
      const { max } = difference(rows[1]?.[i] ?? new Float32Array(), row)
      expect(max).toBeLessThan(0.6)
    })
  })

  test('greedy and sampled tokens with their log-probabilities', async () => {
    const draws = await Promise.all(
      models.map(async (model) => {
        const cache = model.createCache({ capacity: 2048 })
        const block = cache.createBlock()
        await model.prefill(block, prompt('sample me'))
        const out: StepOutput[] = []
        for (let seed = 0; seed < 12; seed++) {
          const fork = block.fork()
          const [output] = await model.step([
            {
              view: { blocks: [fork] },
              tokens: stop,
              logprob: true,
              sampler: new Sampler(
                seed % 3 === 0
                  ? { temperature: 0 }
                  : { temperature: 1.5, topK: 20, topP: 0.9, seed },
              ),
            },
          ])
          out.push(output as StepOutput)
        }
        await cache.close()
        return out
      }),
    )
    const same = draws[0]?.filter((drawn, i) => drawn.token === draws[1]?.[i]?.token).length
    expect(same).toBeGreaterThanOrEqual(11) // a draw may fall to the other side of a boundary
    draws[0]?.forEach((drawn, i) => {
      const other = draws[1]?.[i]
      if (other !== undefined && other.token === drawn.token) {
        expect(Math.abs((other.logprob ?? 0) - (drawn.logprob ?? 0))).toBeLessThan(0.3)
      }
    })
  })

  test('an aborted step and a refused one leave the cache as it was', async () => {
    const model = models[1] as Model
    const cache = model.createCache({ capacity: 128 })
    const block = cache.createBlock()
    await model.prefill(block, [1, 2, 3])
    const before = block.read(0)
    const controller = new AbortController()
    const step = model.step([{ view: { blocks: [block] }, tokens: [1], logits: 'last' }], {
      signal: controller.signal,
    })
    controller.abort()
    expect(await codeOf(() => step)).toBe('HOGWILD_ABORTED')
    expect(
      await codeOf(() => model.step([{ view: { blocks: [block] }, tokens: Array(200).fill(1) }])),
    ).toBe('HOGWILD_OUT_OF_PAGES')
    expect(block.length).toBe(3)
    expect(block.read(0)).toEqual(before)
    await cache.close()
  })
})

describe("an engine's own layers", () => {
  test('append and attend: what the CPU gives for the same bf16 cache', async () => {
    const random = new Random(11)
    const shape = { layers: 1, kvHeads: 2, headDim: 72, capacity: 1024, dtype: 'bf16' as const }
    const queryHeads = 6
    const lengths = [70, 1, 5]
    const data = lengths.map((n) => ({
      n,
      k: random.floats(n * 2 * 72),
      v: random.floats(n * 2 * 72),
      q: random.floats(n * queryHeads * 72),
    }))
    const found = await Promise.all(
      [cpu, cuda].map(async (device) => {
        const cache = createCache({ ...shape, rope, device })
        const block = cache.createBlock()
        const all = []
        for (const { n, k, v, q } of data) {
          const pass = cache.beginPass([{ view: { blocks: [block] }, tokens: n }])
          await pass.append(0, k, v)
          all.push(await pass.attend(0, q, { lse: true }))
          pass.commit()
        }
        await cache.close()
        return all
      }),
    )
    found[0]?.forEach(({ out, lse }, i) => {
      const other = found[1]?.[i]
      expect(difference(other?.out ?? [], out).max).toBeLessThan(0.03)
      expect(difference(other?.lse ?? [], lse ?? []).max).toBeLessThan(0.03)
    })
  })
})

describe('what it does not do', () => {
  test('a cache in f32, naming what it does; by default it is bf16', async () => {
    const options = { layers: 1, kvHeads: 1, headDim: 64, rope, device: cuda }
    expect(() => createCache({ ...options, dtype: 'f32' })).toThrow(/bf16 or f16/)
    const cache = createCache(options)
    expect(cache.shape.dtype).toBe('bf16')
    await cache.close()
  })

  test('more memory than there is: the sizes are in the message', () => {
    const options = { layers: 64, kvHeads: 8, headDim: 128, rope, device: cuda }
    expect(() => createCache({ ...options, capacity: 2 ** 26 })).toThrow(
      /the GPU refused \d+ bytes for keys of the cache: \d+ of its \d+ bytes are free/,
    )
  })
})

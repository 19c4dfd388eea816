// The hooks of a step on the CUDA device, beside the CPU device.

import { join } from 'node:path'
import {
  createDevice,
  type Device,
  loadModel,
  type Model,
  runWorkers,
  Sampler,
  type SpeculateOptions,
  type StepOutput,
  type StepWorker,
} from '../../lib'
import { codeOf, difference, Random } from '../fixtures'

const demoFolder = join(__dirname, '..', '..', 'models', 'demo')

let devices: Device[]
let models: Model[]

beforeAll(async () => {
  devices = [createDevice({ type: 'cpu', threads: 1 }), createDevice({ type: 'cuda' })]
  models = await Promise.all(devices.map((device) => loadModel(demoFolder, { device })))
})

afterAll(async () => {
  for (const model of models) await model.close()
  for (const device of devices) device.close()
})

/** The last step's outputs on each device: `use` makes its workers of three blocks. */
async function onBoth(
  use: (
    blocks: ReturnType<ReturnType<Model['createCache']>['createBlock']>[],
    model: Model,
  ) => StepWorker[],
  steps = 1,
): Promise<StepOutput[][]> {
  return await Promise.all(
    models.map(async (model) => {
      await using cache = model.createCache({ capacity: 2048, dtype: 'bf16' })
      const random = new Random(5)
      const blocks = [0, 1, 2].map(() => cache.createBlock())
      for (const block of blocks) await model.prefill(block, random.tokens(70, 60))
      let outputs: StepOutput[] = []
      for (let i = 0; i < steps; i++) outputs = await model.step(use(blocks, model))
      return outputs
    }),
  )
}

test('bias, processor and sampler see the same logits and choose the same tokens', async () => {
  const noise = new Random(6).floats(1024, 30)
  const outputs = await onBoth(([a, b, c]) =>
    [a!, b!, c!].map((block, i) => ({
      view: { blocks: [block] },
      tokens: [3 + i],
      logits: 'last',
      logprob: true,
      sampler: new Sampler({ temperature: i, repetitionPenalty: 1.2, seed: 9 }),
      logitBias: { 5: -Infinity, 6: 20, 7: 21 },
      // Gaps far beyond what the devices differ in.
      ...(i > 0 && {
        processLogits: (logits: Float32Array) => {
          for (let id = 0; id < logits.length; id++) logits[id]! += noise[id]!
        },
      }),
    })),
  )
  const [cpu, cuda] = outputs as [StepOutput[], StepOutput[]]
  expect(cuda.map(({ token }) => token)).toEqual(cpu.map(({ token }) => token))
  cpu.forEach(({ logprob, logits }, i) => {
    expect(Math.abs(cuda[i]!.logprob! - logprob!)).toBeLessThan(0.6)
    expect(difference(cuda[i]!.logits!, logits!).max).toBeLessThan(0.6)
  })
})

test('drafts save steps and change no token of a text that the model is sure of', async () => {
  const model = models[1]!
  const prompt = [1, 16, 3, 56, 45, 32, 44, 2, 17, 3, 50, 35, 45, 32, 39, 2]
  const write = async (speculate?: SpeculateOptions) => {
    const workers = ['Alice', 'Bob'].map((name, i) => ({ name, prompt: [12 + i] }))
    const run = runWorkers({
      ...{ model, prompt, workers, layout: 'contiguous', maxTokens: 12, capacity: 256, speculate },
    })
    let passes: number | undefined
    for await (const event of run) {
      if (event.type === 'end') passes = event.usage.speculation?.passes ?? event.steps
    }
    return { passes: passes!, tokens: run.workers.map(({ tokens }) => [...tokens]) }
  }
  const plain = await write()
  const knowing: SpeculateOptions = {
    tokens: 4,
    by: ({ worker, tokens }) => {
      const text = plain.tokens[worker === 'Alice' ? 0 : 1]!
      return text.slice(text.lastIndexOf(tokens.at(-1)!) + 1)
    },
  }
  const drafted = await write(knowing)
  expect(drafted.tokens).toEqual(plain.tokens)
  expect(drafted.passes).toBeLessThan(plain.passes)
  expect((await write({ by: 'lookup' })).tokens).toEqual(plain.tokens)
})

test('a processor that throws leaves no trace', async () => {
  await using cache = models[1]!.createCache({ capacity: 256 })
  const block = cache.createBlock()
  const worker: StepWorker = { view: { blocks: [block] }, tokens: [3] }
  for (const processLogits of [
    (logits: Float32Array) => void logits.fill(-Infinity),
    (logits: Float32Array) => void logits.fill(Number.NaN),
  ]) {
    const code = await codeOf(() => models[1]!.step([{ ...worker, processLogits }]))
    expect(code).toBe('HOGWILD_INVALID_ARGUMENT')
    expect([block.length, cache.stats.freePages]).toEqual([0, 4])
  }
  await models[1]!.step([worker])
  expect(block.length).toBe(1)
})

test('attention mass: the shares of the CPU, a hidden block and one that occurs twice among them', async () => {
  const outputs = await onBoth(
    ([a, b, c]) => [
      {
        view: {
          blocks: [{ block: a!, bias: -Infinity }, b!, { block: b!, bias: 1 }, c!],
          writeTo: c!,
        },
        tokens: [3, 4, 5],
        attentionMass: true,
      },
      { view: { blocks: [b!, a!], writeTo: a! }, tokens: [4], attentionMass: true },
      { view: { blocks: [b!] }, tokens: [6] },
    ],
    3,
  )
  const [cpu, cuda] = outputs as [StepOutput[], StepOutput[]]
  expect(cuda[2]!.attentionMass).toBeUndefined()
  for (const worker of [0, 1]) {
    const [mass, wanted] = [cuda[worker]!.attentionMass!, cpu[worker]!.attentionMass!]
    expect(difference(mass, wanted).max).toBeLessThan(0.02)
    expect(mass.reduce((sum, share) => sum + share, 0)).toBeCloseTo(1, 3)
  }
  expect(cuda[0]!.attentionMass![0]).toBe(0)
  for (const place of [1, 2, 3]) expect(cuda[0]!.attentionMass![place]).toBeGreaterThan(0)
})

test('hidden states', async () => {
  const outputs = await onBoth(
    ([a, b, c]) => [
      { view: { blocks: [a!, b!, c!] }, tokens: [3], hidden: true },
      { view: { blocks: [c!, a!], writeTo: a! }, tokens: [4, 5], hidden: true, sampler: null },
    ],
    3,
  )
  const [cpu, cuda] = outputs as [StepOutput[], StepOutput[]]
  cpu.forEach(({ hidden }, i) => {
    expect(difference(cuda[i]!.hidden!, hidden!).nmse).toBeLessThan(1e-3)
  })
})

test('embeddings: the hidden state of a step as the next one’s input', async () => {
  const outputs = await Promise.all(
    models.map(async (model) => {
      await using cache = model.createCache({ capacity: 256, dtype: 'bf16' })
      const view = { blocks: [cache.createBlock()] }
      let [output] = await model.step([{ view, tokens: [3, 4, 5], hidden: true }])
      for (let i = 0; i < 3; i++) {
        const embeddings = output!.hidden!
        ;[output] = await model.step([{ view, embeddings, hidden: true, logits: 'last' }])
      }
      expect([...view.blocks[0]!.tokens()]).toEqual([3, 4, 5, -1, -1, -1])
      // The graph of a step with ids is untouched by it.
      const [next] = await model.step([{ view, tokens: [6], logits: 'last' }])
      return [output!.logits!, next!.logits!]
    }),
  )
  outputs[0]!.forEach((logits, i) => {
    expect(difference(outputs[1]![i]!, logits).max).toBeLessThan(0.6)
  })
})

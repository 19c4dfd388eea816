// Drafts: what is written is what is written without, in fewer steps. The driver of random cases is
// test/long/speculation.cjs, which `npm run test:long` plays for longer.

import * as hogwild from '../lib'
import {
  type Cache,
  generate,
  loadModel,
  loadTokenizer,
  type Model,
  type RunOptions,
  runWorkers,
  Sampler,
  type SpeculateOptions,
  type StepWorker,
  type Tokenizer,
  type WorkerEvent,
} from '../lib'
import { lookup } from '../lib/speculation'
import { codeOf, expectSameBits, Random, writeModel } from './fixtures'
import { writeScriptedModel } from './scripted-model'

const { play } = require('./long/speculation.cjs') as {
  play(
    package_: typeof hogwild,
    seeds: readonly number[],
  ): Promise<{ cases: number; drafted: number; accepted: number; faults: string[] }>
}

test('48 random runs, generations and steps are the same without drafts and with them', async () => {
  const seeds = Array.from({ length: 48 }, (_, i) => i + 1)
  const { cases, drafted, accepted, faults } = await play(hogwild, seeds)
  expect(faults).toEqual([])
  expect(cases).toBe(48)
  // Right drafts and wrong ones.
  expect(accepted).toBeGreaterThan(100)
  expect(drafted - accepted).toBeGreaterThan(100)
}, 60_000)

// ---- on text that is known --------------------------------------------------------------------------

const opened: { close(): unknown }[] = []
afterAll(async () => {
  for (const each of opened.reverse()) await each.close()
})

/** Of each pair, the first character is followed by the second. */
async function scripted(pairs: string): Promise<{ model: Model; tokenizer: Tokenizer }> {
  const follows = Object.fromEntries(pairs.split(' ').map(([a, b]) => [a, b]))
  const path = writeScriptedModel({ follows, otherwise: ';' })
  const model = await loadModel(path, { threads: 1, onWarning: () => {} })
  const tokenizer = await loadTokenizer(path)
  opened.push(model, tokenizer)
  return { model, tokenizer }
}

async function random(seed = 5): Promise<Model> {
  const model = await loadModel(writeModel({ seed, vocabSize: 53 }), { threads: 1 })
  opened.push(model)
  return model
}

const ids = (text: string): number[] => Array.from(text, (byte) => byte.charCodeAt(0))

async function collect(run: AsyncIterable<WorkerEvent>): Promise<WorkerEvent[]> {
  const events: WorkerEvent[] = []
  for await (const event of run) events.push(event)
  return events
}

async function usageOf(options: Omit<RunOptions, 'capacity'>) {
  const events = await collect(runWorkers({ capacity: 512, stopTokens: [], ...options }))
  const end = events.at(-1)!
  if (end.type !== 'end') throw new Error('no end')
  return { steps: end.steps, ...end.usage.speculation! }
}

describe('steps on text that repeats itself', () => {
  const speculate = { by: 'lookup', tokens: 8 } as const

  test('generate', async () => {
    const { model } = await scripted('ab bc cd da')
    const options = { model, prompt: ids('a'), maxTokens: 60, stopTokens: [] }
    const plain = await generate(options).result
    const { tokens, usage } = await generate({ ...options, speculate }).result
    expect(tokens).toEqual(plain.tokens)
    expect(plain.usage.speculation).toBeUndefined()
    // 'abcda' is written before anything repeats; then 8 drafts in a step, all of them right.
    expect(usage.speculation).toEqual({ passes: 11, drafted: 49, accepted: 49 })
  })

  test('two workers that see each other', async () => {
    const { model } = await scripted('ab ba xy yz zx')
    const workers = ['a', 'x'].map((name) => ({ name, prompt: ids(name) }))
    const usage = await usageOf({ model, prompt: [], workers, maxTokens: 40, speculate })
    expect(usage.steps).toBe(41)
    expect(usage.passes).toBeLessThanOrEqual(41 / 1.5)
    // As many drafts of the one as of the other, and all of them right once both texts repeat.
    expect(usage.drafted - usage.accepted).toBeLessThanOrEqual(4)
  })

  test('a random model that has come to a loop', async () => {
    const model = await random()
    const options = { model, prompt: [1, 2, 3], maxTokens: 100, stopTokens: [] }
    const { tokens } = await generate(options).result
    const loop = await generate({ ...options, prompt: [1, 2, 3, ...tokens], speculate }).result
    expect(loop.usage.speculation!.passes).toBeLessThanOrEqual(100 / 1.5)
  })

  test('Jacobi iteration, where guesses do not depend on those before', async () => {
    const { model } = await scripted('ab bb')
    const options = { model, prompt: ids('a'), maxTokens: 41, stopTokens: [] }
    const { usage } = await generate({ ...options, speculate: { by: 'jacobi', tokens: 4 } }).result
    expect(usage.speculation).toEqual({ passes: 9, drafted: 32, accepted: 32 })
  })
})

test('lookup finds what followed the longest ending the last time, and goes on with what repeats', () => {
  const found = (text: string, count = 4) =>
    String.fromCharCode(...lookup(Int32Array.from(ids(text)), count))
  expect(found('xabcd-abc')).toBe('d-ab')
  expect(found('abc1 abc2 abc')).toBe('2 ab')
  expect(found('bc1 abc2 xbc')).toBe('2 xb')
  expect(found('ababab', 5)).toBe('ababa')
  expect(found('aa', 3)).toBe('aaa')
  expect(found('abc')).toBe('')
  expect(found('a')).toBe('')
})

// ---- a function of the user's -----------------------------------------------------------------------

describe('a function that guesses', () => {
  test('is told the view and how many drafts are used', async () => {
    const { model } = await scripted('ab bc cd de')
    const told: [string | undefined, string, number][] = []
    const by: SpeculateOptions['by'] = ({ worker, tokens, count }) => {
      told.push([worker, String.fromCharCode(...tokens), count])
      return ids('cdxxxxx')
    }
    const workers = [{ name: 'w', prompt: ids('a') }]
    const run = runWorkers({
      ...{ model, prompt: ids('P'), workers, stopTokens: [59], maxTokens: 9, capacity: 512 },
      speculate: { by, tokens: 3 },
    })
    await collect(run)
    expect(run.workers[0]!.tokens).toEqual(ids('abcde;'))
    expect(told).toEqual([
      ['w', 'Pa', 3],
      ['w', 'Pab', 3],
      ['w', 'Pabcde', 3],
    ])
    const { result } = generate({ model, prompt: ids('a'), maxTokens: 5, speculate: { by } })
    expect((await result).tokens).toEqual(ids('bcde;'))
    expect(told.slice(3)).toEqual([[undefined, 'ab', 3]])
  })

  test.each<[string, unknown, RegExp]>([
    ['a promise', async () => [], /speculate\.by/],
    ['an id that is none', () => [1e6], /the result of speculate\.by\[0\]/],
    ['nothing', () => undefined, /the result of speculate\.by/],
  ])('%s is refused', async (_, by, message) => {
    const { model } = await scripted('ab')
    const options = { model, prompt: ids('a'), speculate: { by: by as never } }
    const generation = generate(options)
    await expect(generation.result).rejects.toThrow(message)
    expect(await codeOf(() => generation.result)).toBe('HOGWILD_INVALID_ARGUMENT')
    const workers = [{ name: 'w', prompt: ids('a') }]
    await expect(collect(runWorkers({ ...options, prompt: [], workers }))).rejects.toThrow(message)
  })

  test('what it throws ends its run and no other', async () => {
    const { model } = await scripted('ab ba')
    const boom = new Error('boom')
    const by = () => {
      throw boom
    }
    const run = (speculate?: SpeculateOptions) =>
      collect(
        runWorkers({
          ...{ model, prompt: [], workers: [{ name: 'w', prompt: ids('a') }], maxTokens: 9 },
          ...{ capacity: 512, speculate },
        }),
      )
    const [failed, well] = await Promise.allSettled([run({ by }), run()])
    expect(failed).toEqual({ status: 'rejected', reason: boom })
    expect(well.status).toBe('fulfilled')
  })
})

// ---- refusals, and what an error leaves --------------------------------------------------------------

describe('what is refused', () => {
  test.each<[string, unknown]>([
    ['no source', {}],
    ['a source that is not known', { by: 'magic' }],
    ['no tokens', { by: 'lookup', tokens: 0 }],
    ['too many tokens', { by: 'lookup', tokens: 65 }],
    ['an option that is not known', { by: 'lookup', token: 4 }],
    ['no object', 'lookup'],
  ])('speculate: %s', async (_, speculate) => {
    const { model } = await scripted('ab')
    const options = { model, prompt: [1], speculate: speculate as never }
    expect(await codeOf(() => generate(options))).toBe('HOGWILD_INVALID_ARGUMENT')
    const workers = [{ name: 'w', prompt: [1] }]
    expect(await codeOf(() => runWorkers({ ...options, workers }))).toBe('HOGWILD_INVALID_ARGUMENT')
  })

  test.each<[string, Partial<StepWorker> & { embeddings?: Float32Array }, RegExp]>([
    ['an id that is none', { drafts: [53] }, /workers\[0\]\.drafts\[0\]/],
    ['beside sampler: null', { drafts: [1], sampler: null }, /absent where sampler is null/],
    ['beside hidden', { drafts: [1], hidden: true }, /absent beside hidden/],
    ['beside attentionMass', { drafts: [1], attentionMass: true }, /absent beside attentionMass/],
    [
      'beside embeddings',
      { drafts: [1], tokens: undefined as never, embeddings: new Float32Array(24) as never },
      /absent beside embeddings/,
    ],
  ])('drafts %s', async (_, part, message) => {
    const model = await random()
    const cache = model.createCache({ capacity: 64 })
    const block = cache.createBlock()
    const worker = { view: { blocks: [block] }, tokens: [1], ...part } as StepWorker
    await expect(model.step([worker])).rejects.toThrow(message)
    expect(await codeOf(() => model.step([worker]))).toBe('HOGWILD_INVALID_ARGUMENT')
    expect(block.length).toBe(0)
    await cache.close()
  })
})

describe('an error leaves cache and samplers as they were', () => {
  let model: Model
  let cache: Cache
  beforeEach(async () => {
    model = await random()
    cache = model.createCache({ capacity: 128 })
  })
  afterEach(() => cache.close())

  /** The worker's next tokens, and itself. */
  async function worker(rest: Partial<StepWorker> = {}) {
    const block = cache.createBlock()
    await model.prefill(block, new Random(1).tokens(60, 53), { sampler: null })
    const sampler = new Sampler({ temperature: 1, seed: 3 })
    const part = { view: { blocks: [block] }, tokens: [7], sampler, ...rest }
    const fork = {
      ...part,
      view: { blocks: [block.fork()] },
      sampler: Sampler.restore(sampler.state),
    }
    const next: number[] = []
    for (let tokens = [7]; next.length < 6; tokens = [next.at(-1)!]) {
      next.push((await model.step([{ ...fork, processLogits: undefined, tokens }]))[0]!.token!)
    }
    fork.view.blocks[0]!.close()
    return { block, sampler, part, next }
  }

  test('a processor that throws at a draft that was right', async () => {
    let calls = 0
    const processLogits = () => {
      if (++calls === 3) throw new Error('third')
    }
    const { block, sampler, part, next } = await worker({ processLogits })
    const before = [block.length, block.segments, cache.stats.freePages, sampler.state]
    const drafts = next.slice(0, 5)
    await expect(model.step([{ ...part, drafts }])).rejects.toThrow('third')
    expect([block.length, block.segments, cache.stats.freePages, sampler.state]).toEqual(before)
    // Pages that only drafts reached came back, and the step can be tried again.
    const [output] = await model.step([{ ...part, drafts }])
    expect(output!.drafted).toMatchObject({ kept: 5, guesses: [] })
    expect(output!.drafted!.chosen.map(({ token }) => token)).toEqual(next)
    expect(output!.token).toBe(next[5])
    expect([block.length, sampler.draws, calls]).toEqual([66, 6n, 9])
  })

  test('drafts that find no room', async () => {
    const { block, part } = await worker()
    const draft = cache.stats.freePages * 64 + 4
    const before = [block.length, cache.stats.freePages]
    const step = () => model.step([{ ...part, drafts: new Array(draft).fill(1) }])
    expect(await codeOf(step)).toBe('HOGWILD_OUT_OF_PAGES')
    expect([block.length, cache.stats.freePages]).toEqual(before)
  })

  test('pages of drafts that were wrong come back', async () => {
    const { block, part, next } = await worker()
    const wrong = (next[0]! + 1) % 53
    const [output] = await model.step([{ ...part, drafts: [wrong, 1, 2, 3, 4, 5] }])
    expect(output!.drafted).toMatchObject({ kept: 0, chosen: [{ token: next[0] }] })
    expect(output!.drafted!.guesses).toHaveLength(6)
    expect([block.length, cache.stats.freePages]).toEqual([61, 1])
    expect(block.segments).toHaveLength(1)
  })
})

test('a run whose drafts find no room goes on without', async () => {
  const { model } = await scripted('ab ba')
  const workers = [{ name: 'w', prompt: ids('a') }]
  const options = { model, prompt: [], workers, capacity: 64, stopTokens: [] }
  const tell = (events: WorkerEvent[]) =>
    events.flatMap((event) =>
      event.type === 'token' || event.type === 'stop' ? [{ ...event, milliseconds: 0 }] : [],
    )
  const plain = tell(await collect(runWorkers(options)))
  const drafted = tell(await collect(runWorkers({ ...options, speculate: { by: 'lookup' } })))
  expect(drafted).toEqual(plain)
  expect(plain.at(-1)).toMatchObject({ type: 'stop', reason: 'out-of-pages' })
})

test('a processor is called once for each token although the step is tried again', async () => {
  const { model } = await scripted('ab bc ca')
  const calls: number[] = []
  const boom = new Error('boom')
  let count = 0
  const run = (processLogits: hogwild.ProcessLogits) =>
    runWorkers({
      ...{ model, prompt: [], workers: [{ name: 'w', prompt: ids('a'), processLogits }] },
      ...{ maxTokens: 20, stopTokens: [], capacity: 512, speculate: { by: 'lookup' } },
    })
  const well = run((_, { block, tokens }) => calls.push(block.length + tokens.length))
  const ill = run(() => {
    if (++count === 9) throw boom
  })
  const [told, failed] = await Promise.allSettled([collect(well), collect(ill)])
  expect(failed).toEqual({ status: 'rejected', reason: boom })
  expect(told.status).toBe('fulfilled')
  expect(well.workers[0]!.tokens).toHaveLength(21)
  // The last token is written and nothing is chosen behind it.
  expect(calls).toEqual(Array.from({ length: 20 }, (_, i) => i + 1))
})

// ---- engines ----------------------------------------------------------------------------------------

test('a pass keeps a part of its tokens', async () => {
  const device = hogwild.createDevice({ type: 'cpu', threads: 1 })
  const shape = { layers: 1, kvHeads: 1, headDim: 8, dtype: 'f32' as const }
  const rope = { inverseFrequencies: Float64Array.of(1, 0.3, 0.1, 0.03), attentionFactor: 1 }
  const cache = hogwild.createCache({ device, ...shape, capacity: 256, rope })
  opened.push(device, cache)
  const numbers = new Random(3)
  const rows = (n: number) => numbers.floats(n * 8)
  const [k, v, q] = [rows(5), rows(5), rows(5)]
  const part = (array: Float32Array, ...at: number[]) =>
    Float32Array.from(at.flatMap((row) => Array.from(array.subarray(8 * row, 8 * row + 8))))
  /** a: rows 0 1 2, of which two are drafts; b: rows 3 4, of which one is. */
  const blocks = () => {
    const [a, b] = [cache.createBlock(), cache.createBlock()]
    return { a, b, views: [{ blocks: [b, a] }, { blocks: [a, b] }] as const }
  }
  const drafted = blocks()
  const pass = cache.beginPass([
    { view: drafted.views[0], tokens: 3, drafts: 2 },
    { view: drafted.views[1], tokens: 2, drafts: 1 },
  ])
  await pass.append(0, k, v)
  const { out } = await pass.attend(0, q)
  expect(await codeOf(() => pass.commit([4, 1]))).toBe('HOGWILD_INVALID_ARGUMENT')
  expect(await codeOf(() => pass.commit([1]))).toBe('HOGWILD_INVALID_ARGUMENT')
  pass.commit([3, 1])
  expect([drafted.a.length, drafted.b.length]).toEqual([3, 1])

  // The same step by step: both, both, then a alone.
  const plain = blocks()
  for (const [inA, inB] of [[0, 3], [1, 4], [2]] as const) {
    const taking = inB === undefined ? [inA] : [inA, inB]
    const step = cache.beginPass(taking.map((_, i) => ({ view: plain.views[i]!, tokens: 1 })))
    await step.append(0, part(k, ...taking), part(v, ...taking))
    const expected = await step.attend(0, part(q, ...taking))
    expectSameBits(part(out, ...taking), expected.out, `rows ${taking}`)
    step.commit()
  }
  const none = cache.beginPass([{ view: plain.views[0], tokens: 2 }])
  await none.append(0, rows(2), rows(2))
  none.commit([0])
  expect(plain.a.length).toBe(3)
  for (const drafts of [-1, 1, 0.5]) {
    const begin = () => cache.beginPass([{ view: plain.views[0], tokens: 1, drafts }])
    expect(await codeOf(begin)).toBe('HOGWILD_INVALID_ARGUMENT')
  }
})

// Samplers: the distribution that each option leaves, against float64, and that draws depend on a
// worker's own seed alone.

import {
  type Cache,
  loadModel,
  type Model,
  Sampler,
  type SamplerOptions,
  type StepWorker,
} from '../lib'
import { type NativeSampler, native } from '../lib/native'
import { codeOf, loadReference, Random, writeModel } from './fixtures'
import { argmax, logSoftmax, type ReferenceModel } from './reference'

// ---- distributions --------------------------------------------------------------------------------

type Options = Omit<SamplerOptions, 'seed'> & { seen?: readonly number[] }

/** What ops.h says, in its order: forbidden, penalty, temperature, top-k, top-p, min-p. */
function distribution(logits: ArrayLike<number>, options: Options): Float64Array {
  const { temperature = 1, topK = 0, topP = 1, minP = 0, repetitionPenalty = 1 } = options
  const { forbidden = [], seen = [], presencePenalty = 0, frequencyPenalty = 0 } = options
  const changed = Float64Array.from(logits)
  for (const id of new Set(seen)) {
    changed[id] =
      changed[id]! > 0 ? changed[id]! / repetitionPenalty : changed[id]! * repetitionPenalty
  }
  for (const id of new Set(seen)) changed[id]! -= presencePenalty
  for (const id of seen) changed[id]! -= frequencyPenalty
  for (const id of Array.from(forbidden)) changed[id] = -Infinity
  if (temperature === 0) {
    const out = new Float64Array(changed.length)
    out[argmax(changed)] = 1
    return out
  }
  const weights = logSoftmax(changed.map((x) => x / temperature)).map(Math.exp)
  const order = [...weights.keys()].sort((a, b) => weights[b]! - weights[a]! || a - b)
  let kept = topK > 0 ? order.slice(0, topK) : order
  const mass = (ids: readonly number[]): number => ids.reduce((sum, id) => sum + weights[id]!, 0)
  if (topP < 1) {
    const wanted = topP * mass(kept)
    kept = kept.slice(0, 1 + kept.findIndex((_, i) => mass(kept.slice(0, i + 1)) >= wanted))
  }
  kept = kept.filter((id) => weights[id]! >= minP * weights[order[0]!]!)
  const out = new Float64Array(weights.length)
  for (const id of kept) out[id] = weights[id]! / mass(kept)
  return out
}

describe('the distribution of drawn tokens', () => {
  const device = native.createDevice({
    type: 'cpu',
    index: 0,
    threads: 1,
    simd: '',
    profile: false,
  })
  afterAll(() => native.deviceClose(device))

  const sample = (
    logits: Float32Array,
    draws: number,
    options: Options,
    seed = 5n,
  ): { tokens: Int32Array; logprobs: Float32Array } => {
    const sampler: NativeSampler = {
      temperature: options.temperature ?? 1,
      topK: options.topK ?? 0,
      topP: options.topP ?? 1,
      minP: options.minP ?? 0,
      repetitionPenalty: options.repetitionPenalty ?? 1,
      presencePenalty: options.presencePenalty ?? 0,
      frequencyPenalty: options.frequencyPenalty ?? 0,
      scope: 'view',
      lastN: 0,
      forbidden: Int32Array.from(options.forbidden ?? []),
      seed,
      draw: 0n,
    }
    const counts = new Map<number, number>()
    for (const id of options.seen ?? []) counts.set(id, (counts.get(id) ?? 0) + 1)
    const rows = Array.from({ length: draws }, (_, i) => ({
      ...sampler,
      draw: BigInt(i),
      seen: Int32Array.from(counts.keys()),
      counts: Int32Array.from(counts.values()),
    }))
    const all = new Float32Array(draws * logits.length)
    for (let row = 0; row < draws; row++) all.set(logits, row * logits.length)
    return native.ops.sample(device, all, logits.length, rows)
  }

  const vocab = 19
  const logits = new Random(50).floats(vocab, 1.5)
  const cases: [string, Options][] = [
    ['temperature 1', {}],
    ['temperature 0.5', { temperature: 0.5 }],
    ['temperature 3', { temperature: 3 }],
    ['top-k 1', { topK: 1 }],
    ['top-k 5', { topK: 5 }],
    ['top-k of more than there are', { topK: 100 }],
    ['top-p 0.3', { topP: 0.3 }],
    ['top-p 0.9', { topP: 0.9 }],
    ['top-p of next to nothing', { topP: 1e-6 }],
    ['min-p 0.2', { minP: 0.2 }],
    ['min-p 1', { minP: 1 }],
    ['forbidden', { forbidden: [0, 3, argmax(logits)] }],
    ['repetition penalty 2', { repetitionPenalty: 2, seen: [0, 1, 2, 3, 4, 4, 4, 5] }],
    ['repetition penalty 0.5', { repetitionPenalty: 0.5, seen: [7, 8] }],
    ['presence penalty 1', { presencePenalty: 1, seen: [0, 1, 2, 3, 4, 4, 4, 5] }],
    ['frequency penalty 0.8', { frequencyPenalty: 0.8, seen: [0, 1, 2, 3, 4, 4, 4, 5] }],
    ['penalties that favour', { presencePenalty: -0.5, frequencyPenalty: -0.3, seen: [7, 7, 8] }],
    ['top-k, then top-p of what is left', { topK: 6, topP: 0.8, temperature: 2 }],
    [
      'all of them',
      {
        temperature: 1.5,
        topK: 10,
        topP: 0.9,
        minP: 0.1,
        forbidden: [2, 9],
        repetitionPenalty: 1.3,
        presencePenalty: 0.4,
        frequencyPenalty: 0.2,
        seen: [1, 2, 5, 6, 6],
      },
    ],
  ]

  it.each(cases)('%s', (_, options) => {
    const draws = 20_000
    const expected = distribution(logits, options)
    const { tokens } = sample(logits, draws, options)
    const counts = new Float64Array(vocab)
    for (const token of tokens) counts[token]!++
    let chiSquare = 0
    expected.forEach((probability, id) => {
      if (probability === 0) expect([id, counts[id]]).toEqual([id, 0])
      else chiSquare += (counts[id]! - draws * probability) ** 2 / (draws * probability)
    })
    // Of up to 18 degrees of freedom: exceeded once in 10,000 times by chance, and the seed is fixed.
    expect(chiSquare).toBeLessThan(46)
  })

  it('greedy takes the largest, and of equals the lowest id', () => {
    const ties = Float32Array.of(1, 3, 3, -2, 3)
    expect([...sample(ties, 3, { temperature: 0 }).tokens]).toEqual([1, 1, 1])
    expect([...sample(ties, 3, { temperature: 0, forbidden: [1] }).tokens]).toEqual([2, 2, 2])
    expect([...sample(ties, 3, { topK: 1 }).tokens]).toEqual([1, 1, 1])
  })

  it.each([1e-3, 1e-20, 1e-38, 1e-40, 1e-45, 1e-60])(
    'temperature %d is all but greedy',
    (temperature) => {
      const { tokens, logprobs } = sample(logits, 50, { temperature })
      expect(new Set(tokens)).toEqual(new Set([argmax(logits)]))
      expect(logprobs[0]).toBeCloseTo(logSoftmax(logits)[argmax(logits)]!, 5)
    },
  )

  it('logits that are huge, equal or -Infinity', () => {
    const huge = Float32Array.of(-3e38, 3e38, -Infinity, 3e38)
    expect(new Set(sample(huge, 200, {}).tokens)).toEqual(new Set([1, 3]))
    const flat = sample(new Float32Array(4), 400, {}).tokens
    expect(new Set(flat)).toEqual(new Set([0, 1, 2, 3]))
    expect(new Set(sample(Float32Array.of(-Infinity, 0), 50, { topP: 0.5 }).tokens)).toEqual(
      new Set([1]),
    )
  })

  it('the log-probability is that of the raw logits, whatever the options', () => {
    const exact = logSoftmax(logits)
    for (const [name, options] of cases) {
      const { tokens, logprobs } = sample(logits, 100, options)
      tokens.forEach((token, i) => {
        expect([name, Math.abs(logprobs[i]! - exact[token]!) < 2e-6]).toEqual([name, true])
      })
    }
  })

  it('depends on seed and draw, not on the row', () => {
    const tokens = [...sample(logits, 64, {}).tokens]
    expect([...sample(logits, 64, {}).tokens]).toEqual(tokens)
    expect([...sample(logits, 64, {}, 6n).tokens]).not.toEqual(tokens)
    // 64 bits of seed count.
    expect([...sample(logits, 64, {}, 5n + 2n ** 63n).tokens]).not.toEqual(tokens)
    expect([...sample(logits, 7, {}).tokens]).toEqual(tokens.slice(0, 7))
  })
})

// ---- in steps -------------------------------------------------------------------------------------

describe('samplers in steps', () => {
  let model: Model
  let reference: ReferenceModel
  let cache: Cache
  const vocab = 53

  beforeAll(async () => {
    const folder = writeModel({ seed: 60 })
    model = await loadModel(folder, { device: 'cpu', threads: 1 })
    reference = loadReference(folder)
  })
  beforeEach(() => {
    cache = model.createCache({ capacity: 4096 })
  })
  afterEach(() => cache.close())
  afterAll(() => model.close())

  const options: SamplerOptions = { temperature: 1.2, topK: 30, minP: 0.01 }

  /** Tokens that workers, each with a private view, sample in 12 steps; `order` is that of each step. */
  async function generate(order: readonly number[]): Promise<Map<number, number[]>> {
    const own = model.createCache({ capacity: 2048 })
    const workers = order.map((id) => ({
      id,
      block: own.createBlock(),
      sampler: new Sampler({ ...options, seed: id }),
      tokens: [id],
    }))
    for (let step = 0; step < 12; step++) {
      const outputs = await model.step(
        workers.map(({ block, sampler, tokens }) => ({
          view: { blocks: [block] },
          tokens: tokens.slice(-1),
          sampler,
        })),
      )
      outputs.forEach(({ token }, i) => {
        workers[i]!.tokens.push(token!)
      })
    }
    expect(workers.map(({ sampler }) => sampler.draws)).toEqual(workers.map(() => 12n))
    await own.close()
    return new Map(workers.map(({ id, tokens }) => [id, tokens]))
  }

  it('do not depend on the order or company of workers, and repeat with the seed', async () => {
    const together = await generate([1, 2, 3, 4])
    for (const order of [[4, 2, 1, 3], [3], [2, 1], [1, 2, 3, 4]]) {
      for (const [id, tokens] of await generate(order)) expect(tokens).toEqual(together.get(id))
    }
    expect(new Set([...together.values()].map((tokens) => tokens.slice(1).join())).size).toBe(4)
  })

  it('greedy is the default, and null samples nothing', async () => {
    const workers = ([undefined, null, new Sampler({ temperature: 0 })] as const).map(
      (sampler): StepWorker => ({
        view: { blocks: [cache.createBlock()] },
        tokens: [1, 2, 3],
        logits: 'last',
        logprob: true,
        ...(sampler !== undefined && { sampler }),
      }),
    )
    const [plain, none, greedy] = await model.step(workers)
    expect(plain!.token).toBe(argmax(plain!.logits!))
    expect(greedy!.token).toBe(plain!.token)
    expect([none!.token, none!.logprob]).toEqual([undefined, undefined])
    expect(plain!.logprob).toBeCloseTo(logSoftmax(plain!.logits!)[plain!.token!]!, 5)
  })

  it('penalise what the view holds, the new tokens included, and nothing else', async () => {
    const [common, other, hidden, own] = [0, 1, 2, 3].map(() => cache.createBlock())
    const random = new Random(61)
    for (const block of [common, other, hidden])
      await model.prefill(block!, random.tokens(9, vocab))
    const ids = (block: typeof common): number[] => [...block!.tokens()]
    const seen = [...ids(common), ...ids(own), 7, 8]
    const sampler = new Sampler({ temperature: 0, repetitionPenalty: 3 })
    const view = { blocks: [common!, { block: hidden!, bias: -Infinity }, own!] }
    const [output] = await model.step([{ view, tokens: [7, 8], sampler, logits: 'last' }])
    const expected = distribution(output!.logits!, { temperature: 0, repetitionPenalty: 3, seen })
    expect(output!.token).toBe(argmax(expected))
    // A forbidden token does not come out, however often one asks.
    const forbidden = [argmax(output!.logits!)]
    const never = new Sampler({ temperature: 5, forbidden, seed: 1 })
    for (let i = 0; i < 40; i++) {
      const [drawn] = await model.step([{ view: { blocks: [own!] }, tokens: [7], sampler: never }])
      expect(forbidden).not.toContain(drawn!.token)
    }
  })

  it.each(Array.from({ length: 8 }, (_, i) => 400 + i))(
    'count what their scope and lastN say, seed %i',
    async (seed) => {
      const random = new Random(seed)
      const blocks = [0, 1, 2].map(() => cache.createBlock())
      for (const block of blocks) await model.prefill(block, random.tokens(12, 8))
      const penalties = {
        repetitionPenalty: random.pick([1, 1.5]),
        presencePenalty: random.pick([0, 0.7]),
        frequencyPenalty: random.pick([0, 0.4]),
      }
      const workers = random.shuffle(blocks).map((writeTo) => {
        const scope = random.pick(['own', 'view'] as const)
        const lastN = random.pick([undefined, 1, 5, 14, 40])
        const blocksOfView = random.shuffle([...blocks, random.pick(blocks)])
        const view = {
          blocks: blocksOfView.map((block, at) => ({
            block,
            bias: at === 1 ? random.pick([0, -Infinity]) : 0,
            lag: random.pick([0, 0, 1] as const),
          })),
          writeTo,
        }
        const sampler = new Sampler({ ...penalties, temperature: 0, scope, lastN })
        const tokens = random.tokens(random.int(1, 3), 8)
        return { view, sampler, tokens, logits: 'last' as const, scope, lastN }
      })
      const before = new Map(blocks.map((block) => [block, [...block.tokens()]]))
      const outputs = await model.step(workers.map(({ scope: _, lastN: __, ...rest }) => rest))
      outputs.forEach(({ token, logits }, i) => {
        const { view, scope, lastN } = workers[i]!
        const target = view.blocks.findIndex(({ block }) => block === view.writeTo)
        const places = view.blocks.map(({ block, bias, lag }, at) => {
          const ids = lag && at !== target ? before.get(block)! : [...block.tokens()]
          return ids.map((id) => ({ id, hidden: bias === -Infinity }))
        })
        const own = [...view.writeTo.tokens()]
        const upToNew = places.slice(0, lastN === undefined ? undefined : target + 1).flat()
        const shown = upToNew.slice(-(lastN ?? upToNew.length)).filter(({ hidden }) => !hidden)
        const seen = scope === 'own' ? own.slice(-(lastN ?? own.length)) : shown.map(({ id }) => id)
        const expected = distribution(logits!, { ...penalties, temperature: 0, seen })
        expect([i, token]).toEqual([i, argmax(expected)])
      })
    },
  )

  it('bring the most likely tokens with their log-probabilities, whatever is drawn', async () => {
    const worker = (
      options: SamplerOptions | null,
      topLogprobs: number,
      logits: 'last' | 'none',
    ) => ({
      view: { blocks: [cache.createBlock()] },
      tokens: [1, 2, 3],
      sampler: options === null ? null : new Sampler({ seed: 3, ...options }),
      logprob: true,
      topLogprobs,
      logits,
    })
    const outputs = await model.step([
      worker({ temperature: 0 }, 5, 'last'),
      worker({ temperature: 3, forbidden: [0, 1], frequencyPenalty: 2 }, 5, 'none'),
      worker({ temperature: 0 }, 1000, 'none'),
      worker({ temperature: 0 }, 0, 'none'),
      worker(null, 5, 'none'),
    ])
    const exact = logSoftmax(outputs[0]!.logits!)
    const order = [...exact.keys()].sort((a, b) => exact[b]! - exact[a]! || a - b)
    for (const [i, count] of [5, 5, vocab].entries()) {
      const top = outputs[i]!.topLogprobs!
      expect(top.map(({ token }) => token)).toEqual(order.slice(0, count))
      for (const { token, logprob } of top) expect(logprob).toBeCloseTo(exact[token]!, 5)
    }
    expect(outputs[0]!.topLogprobs![0]).toEqual({
      token: outputs[0]!.token,
      logprob: outputs[0]!.logprob,
    })
    expect([outputs[3]!.topLogprobs, outputs[4]!.topLogprobs]).toEqual([undefined, undefined])
    const { topLogprobs } = await model.prefill(cache.createBlock(), [1, 2, 3], { topLogprobs: 1 })
    expect(topLogprobs).toEqual([outputs[0]!.topLogprobs![0]])
    for (const wrong of [-1, 1.5, 1025, '5'] as number[]) {
      expect(await codeOf(() => model.step([worker({}, wrong, 'none')]))).toBe(
        'HOGWILD_INVALID_ARGUMENT',
      )
    }
  })

  it('do not move on when a step is refused or aborted', async () => {
    const [twin, sampler] = [7, 7].map((seed) => new Sampler({ ...options, seed }))
    const [block, other, full] = [cache.createBlock(), cache.createBlock(), cache.createBlock()]
    const worker = { view: { blocks: [block] }, tokens: [3], sampler: sampler! }
    const refused: [string, () => Promise<unknown>][] = [
      ['HOGWILD_INVALID_ARGUMENT', () => model.step([{ ...worker, tokens: [vocab] }])],
      [
        'HOGWILD_WRITE_CONFLICT',
        () => model.step([worker, { view: { blocks: [other, block] }, tokens: [1] }]),
      ],
      [
        'HOGWILD_OUT_OF_PAGES',
        () => model.step([worker, { view: { blocks: [full] }, tokens: new Int32Array(5000) }]),
      ],
      ['HOGWILD_ABORTED', () => model.step([worker], { signal: AbortSignal.abort() })],
      // Every token forbidden: known only once there are logits.
      [
        'HOGWILD_INVALID_ARGUMENT',
        () => {
          const all = new Sampler({ forbidden: Array.from({ length: vocab }, (_, id) => id) })
          return model.step([worker, { view: { blocks: [other] }, tokens: [1], sampler: all }])
        },
      ],
    ]
    for (const [code, call] of refused) {
      expect(await codeOf(call)).toBe(code)
      expect([sampler!.draws, block.length, other.length]).toEqual([0n, 0, 0])
    }
    for (let step = 0; step < 5; step++) {
      const outputs = await model.step([
        { ...worker, tokens: [step] },
        { view: { blocks: [other] }, tokens: [step], sampler: twin! },
      ])
      expect(outputs[0]!.token).toBe(outputs[1]!.token)
    }
    expect([sampler!.draws, twin!.draws]).toEqual([5n, 5n])
  })

  it('serve one worker of a step each', async () => {
    const sampler = new Sampler()
    const workers = [0, 1].map(() => ({
      view: { blocks: [cache.createBlock()] },
      tokens: [1],
      sampler,
    }))
    expect(await codeOf(() => model.step(workers))).toBe('HOGWILD_INVALID_ARGUMENT')
    expect(sampler.draws).toBe(0n)
  })

  it('draw what the reference model makes likely', async () => {
    // One position, many seeds: the whole way from weights to tokens.
    const [logits] = reference.step([{ view: [[]], tokens: [5, 6, 7] }])
    const expected = distribution(logits!.at(-1)!, { temperature: 2 })
    const counts = new Float64Array(vocab)
    const rounds = 60
    const width = 50
    for (let round = 0; round < rounds; round++) {
      const blocks = Array.from({ length: width }, () => cache.createBlock())
      const outputs = await model.step(
        blocks.map((block, i) => ({
          view: { blocks: [block] },
          tokens: [5, 6, 7],
          sampler: new Sampler({ temperature: 2, seed: round * width + i }),
        })),
      )
      for (const { token } of outputs) counts[token!]!++
      for (const block of blocks) block.close()
    }
    // Total variation: with 3,000 draws over 53 tokens about 0.05 by chance.
    const distance = counts.reduce((sum, n, id) => sum + Math.abs(n / 3000 - expected[id]!), 0) / 2
    expect(distance).toBeLessThan(0.09)
  })

  it('64-bit seeds, numbers and bigints alike', () => {
    expect(new Sampler({ seed: 5 }).seed).toBe(5n)
    expect(new Sampler({ seed: 2n ** 64n - 1n }).seed).toBe(2n ** 64n - 1n)
    expect(new Sampler().seed).not.toBe(new Sampler().seed)
  })

  it.each<[string, object]>([
    ['temperature', { temperature: -1 }],
    ['temperature', { temperature: Number.NaN }],
    ['temperature', { temperature: '1' }],
    ['topK', { topK: -1 }],
    ['topK', { topK: 1.5 }],
    ['topP', { topP: 0 }],
    ['topP', { topP: 1.01 }],
    ['minP', { minP: -0.1 }],
    ['minP', { minP: 2 }],
    ['repetitionPenalty', { repetitionPenalty: 0 }],
    ['repetitionPenalty', { repetitionPenalty: Infinity }],
    ['presencePenalty', { presencePenalty: 101 }],
    ['presencePenalty', { presencePenalty: Number.NaN }],
    ['frequencyPenalty', { frequencyPenalty: -101 }],
    ['scope', { scope: 'all' }],
    ['lastN', { lastN: 0 }],
    ['lastN', { lastN: 1.5 }],
    ['forbidden', { forbidden: [-1] }],
    ['forbidden', { forbidden: 3 }],
    ['seed', { seed: -1 }],
    ['seed', { seed: 2n ** 64n }],
    ['seed', { seed: 0.5 }],
  ])('refuses a wrong %s', async (name, wrong) => {
    let message = ''
    const call = (): unknown => {
      try {
        return new Sampler(wrong)
      } catch (error) {
        message = (error as Error).message
        throw error
      }
    }
    expect(await codeOf(call)).toBe('HOGWILD_INVALID_ARGUMENT')
    expect(message).toContain(name)
  })

  it('refuses a forbidden id outside of the vocabulary, and loses nothing', async () => {
    const block = cache.createBlock()
    const sampler = new Sampler({ forbidden: [vocab] })
    const call = (): unknown => model.prefill(block, [1], { sampler })
    expect(await codeOf(call)).toBe('HOGWILD_INVALID_ARGUMENT')
    expect([block.length, sampler.draws]).toEqual([0, 0n])
  })
})

// Entries of views (docs/semantics.md): where a block stands, when it is seen, how warm it is. The tables of the
// document written out by hand, the properties that follow from the definition, and random views against the
// float64 reference.

import { inspect } from 'node:util'
import {
  type Block,
  type Cache,
  createCache,
  createDevice,
  type Device,
  HogwildError,
  loadModel,
  type Model,
  type StepWorker,
  type View,
  type ViewEntry,
} from '../lib'
import {
  codeOf,
  expectClose,
  expectSameBits,
  expectTwinStep,
  loadReference,
  Random,
  type Twin,
  type TwinEntry,
  type TwinWorker,
  twin,
  writeModel,
} from './fixtures'
import type { ReferenceModel } from './reference'

// As in model.test.ts: logits have a standard deviation near 4.
const tolerance = 2e-4
const vocab = 53

let device: Device
const opened: { close(): unknown }[] = []

beforeAll(() => {
  device = createDevice({ type: 'cpu', threads: 2 })
})

afterEach(async () => {
  for (const each of opened.splice(0).reverse()) await each.close()
})

afterAll(() => device.close())

async function open(
  seed: number,
): Promise<{ model: Model; cache: Cache; reference: ReferenceModel }> {
  const folder = writeModel({ seed, family: 'qwen3', queryHeads: 4, kvHeads: 2 })
  const model = await loadModel(folder, { device, onWarning: () => {} })
  const cache = model.createCache({ dtype: 'f32', capacity: 8192 })
  opened.push(model, cache)
  return { model, cache, reference: loadReference(folder) }
}

type Part = Pick<StepWorker, 'view' | 'tokens'>

/** Logits of all new tokens of each worker. */
async function logitsOf(model: Model, workers: Part[]): Promise<Float32Array[]> {
  const outputs = await model.step(
    workers.map((worker) => ({ ...worker, sampler: null, logits: 'all' as const })),
  )
  return outputs.map(({ logits }) => logits!)
}

// ---- the tables of the document -------------------------------------------------------------------

/** What a new token sees: its own view position, and those of each block's tokens, by the name of the block. */
type Sight = { p: number } & Record<string, number | number[]>

/**
 * A cache of which one can tell from an output what it was made of: the value of token i is the unit vector i, and the
 * score of a key at t for a query at p is sin((p - t) / 2000).
 */
class Stage {
  private readonly width = 64
  private readonly slow = 1 / 2000
  readonly cache: Cache
  private readonly blocks = new Map<string, Block>()
  /** The name of each token's block, in the order in which they were written. */
  private readonly owners: string[] = []

  constructor() {
    this.cache = createCache({
      layers: 1,
      kvHeads: 1,
      headDim: this.width,
      rope: { inverseFrequencies: Float64Array.of(this.slow), attentionFactor: 1 },
      capacity: 2048,
      device,
    })
    opened.push(this.cache)
  }

  async block(name: string, tokens: number): Promise<Block> {
    const block = this.cache.createBlock()
    this.blocks.set(name, block)
    if (tokens > 0) await this.step([[[name], tokens]])
    return block
  }

  /** Each worker's view, by names and fields, and how many tokens it brings; the last entry is written. */
  async step(
    workers: [(string | [string, Omit<ViewEntry, 'block'>])[], number][],
  ): Promise<Sight[][]> {
    const views = workers.map(([entries]) => ({
      blocks: entries.map((entry) =>
        typeof entry === 'string'
          ? this.blocks.get(entry)!
          : { block: this.blocks.get(entry[0])!, ...entry[1] },
      ),
    }))
    const pass = this.cache.beginPass(views.map((view, i) => ({ view, tokens: workers[i]![1] })))
    const first = this.owners.length
    for (const [entries, tokens] of workers) {
      const last = entries.at(-1)!
      const name = typeof last === 'string' ? last : last[0]
      this.owners.push(...Array<string>(tokens).fill(name))
    }
    const rows = (index: (row: number) => number) => {
      const values = new Float32Array(pass.tokens * this.width)
      for (let row = 0; row < pass.tokens; row++) values[row * this.width + index(row)] = 1
      return values
    }
    await pass.append(
      0,
      rows(() => 1),
      rows((row) => first + row),
    )
    const { out, lse } = await pass.attend(
      0,
      rows(() => 0),
      { scale: 1, lse: true },
    )
    pass.commit()
    let row = 0
    return workers.map(([, tokens]) =>
      Array.from({ length: tokens }, () => {
        const weights = out.subarray(row * this.width, (row + 1) * this.width)
        return this.sight(weights, lse[row++]!)
      }),
    )
  }

  private sight(weights: Float32Array, lse: number): Sight {
    const distances = new Map<number, number>()
    weights.forEach((weight, token) => {
      if (weight === 0) return
      const score = Math.log(weight) + lse
      distances.set(token, Math.round(Math.asin(score) / this.slow))
    })
    // The first token of all is the prompt's, at 0 in every view here.
    const p = distances.get(0)!
    const sight: Sight = { p }
    for (const [token, distance] of distances) {
      const name = this.owners[token]!
      sight[name] = [...((sight[name] as number[] | undefined) ?? []), p - distance]
    }
    return sight
  }
}

/** first, first + 1, …, last */
const range = (first: number, last: number): number[] =>
  Array.from({ length: last - first + 1 }, (_, i) => first + i)

describe('the examples, a prompt of 6 tokens at 0 to 5', () => {
  const prompt = range(0, 5)

  async function stage(a: number, b: number): Promise<Stage> {
    const stage = new Stage()
    await stage.block('prompt', 6)
    await stage.block('a', a)
    await stage.block('b', b)
    return stage
  }

  it('branches from a common prefix, in sight of one another', async () => {
    const workers = await stage(2, 3)
    const sights = await workers.step([
      [['prompt', ['b', { at: 6 }], ['a', { at: 6 }]], 1],
      [['prompt', ['a', { at: 6 }], ['b', { at: 6 }]], 2],
    ])
    expect(sights).toEqual([
      [{ p: 8, prompt, b: range(6, 10), a: range(6, 8) }],
      [
        { p: 9, prompt, a: range(6, 8), b: range(6, 9) },
        { p: 10, prompt, a: range(6, 8), b: range(6, 10) },
      ],
    ])
  })

  it('branches that do not see each other', async () => {
    const workers = await stage(2, 3)
    const sights = await workers.step([
      [['prompt', 'a'], 1],
      [['prompt', 'b'], 1],
    ])
    expect(sights).toEqual([[{ p: 8, prompt, a: range(6, 8) }], [{ p: 9, prompt, b: range(6, 9) }]])
  })

  it('a join behind the longest branch, and branches behind the join', async () => {
    const workers = await stage(3, 5)
    for (const name of ['m', 'n', 'x', 'y']) await workers.block(name, 0)
    const branches = { prompt, a: range(6, 8), b: range(6, 10) }
    const sights = await workers.step([
      [['prompt', ['a', { at: 6 }], ['b', { at: 6 }], 'm'], 1],
      [['prompt', ['b', { at: 6 }], ['a', { at: 6 }], ['n', { at: 11 }]], 1],
    ])
    expect(sights).toEqual([[{ p: 11, ...branches, m: [11] }], [{ p: 11, ...branches, n: [11] }]])
    const joined: [string, { at: number }][] = [
      ['a', { at: 6 }],
      ['b', { at: 6 }],
      ['m', { at: 11 }],
    ]
    const behind = await workers.step([
      [['prompt', ...joined, ['x', { at: 12 }]], 1],
      [['prompt', ...joined, ['y', { at: 12 }]], 2],
    ])
    expect(behind).toEqual([
      [{ p: 12, ...branches, m: [11], x: [12] }],
      [
        { p: 12, ...branches, m: [11], y: [12] },
        { p: 13, ...branches, m: [11], y: [12, 13] },
      ],
    ])
  })

  it('a range of places for each worker, and another when it is full', async () => {
    const workers = await stage(2, 2)
    const viewOfA: [string, { at: number }][] = [
      ['b', { at: 106 }],
      ['a', { at: 6 }],
    ]
    expect(await workers.step([[['prompt', ...viewOfA], 1]])).toEqual([
      [{ p: 8, prompt, b: [106, 107], a: range(6, 8) }],
    ])
    const sights = await workers.step([
      [['prompt', ...viewOfA], 1],
      [['prompt', ['a', { at: 6 }], ['b', { at: 106 }]], 1],
    ])
    expect(sights).toEqual([
      [{ p: 9, prompt, b: range(106, 108), a: range(6, 9) }],
      [{ p: 108, prompt, a: range(6, 9), b: range(106, 108) }],
    ])
    await workers.block('more', 0)
    expect(await workers.step([[['prompt', ...viewOfA, ['more', { at: 206 }]], 1]])).toEqual([
      [{ p: 206, prompt, b: range(106, 108), a: range(6, 9), more: [206] }],
    ])
  })

  it('a worker that sees the other a step late', async () => {
    const workers = await stage(2, 3)
    const views: [(string | [string, { lag: 1 }])[], string[]] = [
      ['prompt', ['b', { lag: 1 }], 'a'],
      ['prompt', 'a', 'b'],
    ]
    const first = await workers.step([
      [views[0], 1],
      [views[1], 2],
    ])
    expect(first).toEqual([
      [{ p: 11, prompt, b: range(6, 8), a: range(9, 11) }],
      [
        { p: 12, prompt, a: range(6, 8), b: range(9, 12) },
        { p: 13, prompt, a: range(6, 8), b: range(9, 13) },
      ],
    ])
    const second = await workers.step([
      [views[0], 1],
      [views[1], 1],
    ])
    expect(second).toEqual([
      [{ p: 14, prompt, b: range(6, 10), a: range(11, 14) }],
      [{ p: 15, prompt, a: range(6, 9), b: range(10, 15) }],
    ])
  })

  it('fills in a middle, seeing the text behind it', async () => {
    const workers = await stage(2, 3)
    expect(await workers.step([[['prompt', ['b', { at: 90 }], ['a', { at: 6 }]], 1]])).toEqual([
      [{ p: 8, prompt, b: range(90, 92), a: range(6, 8) }],
    ])
  })

  it('an empty block with a start shows nothing, and what follows starts there', async () => {
    const workers = await stage(2, 0)
    await workers.block('c', 1)
    expect(await workers.step([[['prompt', ['b', { at: 40 }], 'c', 'a'], 1]])).toEqual([
      [{ p: 43, prompt, c: [40], a: range(41, 43) }],
    ])
    // A hidden one keeps its places.
    expect(await workers.step([[['prompt', ['c', { at: 20, bias: -Infinity }], 'a'], 1]])).toEqual([
      [{ p: 24, prompt, a: range(21, 24) }],
    ])
  })

  it('a block twice, each time with fields of its own; where it is written, at its first place', async () => {
    const workers = await stage(2, 3)
    // b shows three tokens at 50, then all four at 53.
    const [ofA, ofB] = await workers.step([
      [['prompt', ['b', { at: 50, lag: 1 }], 'b', 'a'], 1],
      [['prompt', 'b'], 1],
    ])
    expect([ofA![0]!.p, ofA![0]!.a]).toEqual([59, range(57, 59)])
    expect(ofB).toEqual([{ p: 9, prompt, b: range(6, 9) }])
    expect(await workers.step([[['prompt', ['a', { at: 20, lag: 1 }], 'b', 'a'], 1]])).toEqual([
      [{ p: 23, prompt, a: range(20, 23) }],
    ])
  })
})

test('temperature 2 and bias 0.5 on scores 0.8 and -0.4, beside 1.2', async () => {
  const cache = createCache({
    layers: 1,
    kvHeads: 1,
    headDim: 8,
    rope: [null],
    capacity: 128,
    device,
  })
  opened.push(cache)
  const [block, own] = [cache.createBlock(), cache.createBlock()]
  const vectors = (...firsts: number[]) =>
    Float32Array.from(firsts.flatMap((x) => [x, 0, 0, 0, 0, 0, 0, 0]))
  const write = async (view: View, keys: number[], values: number[]) => {
    const pass = cache.beginPass([{ view, tokens: keys.length }])
    await pass.append(0, vectors(...keys), vectors(...values))
    const state = await pass.attend(0, vectors(...keys.map(() => 1)), { scale: 1, lse: true })
    pass.commit()
    return state
  }
  await write({ blocks: [block] }, [0.8, -0.4], [1, 10])
  const view = { blocks: [{ block, temperature: 2, bias: 0.5 }, own] }
  const { out, lse } = await write(view, [1.2], [100])
  const sum = Math.exp(0.9) + Math.exp(0.3) + Math.exp(1.2)
  const expected = (Math.exp(0.9) + 10 * Math.exp(0.3) + 100 * Math.exp(1.2)) / sum
  expect(expected).toBeCloseTo(0.345 + 10 * 0.189 + 100 * 0.466, 0)
  expectClose([out[0]!, lse[0]!], [expected, Math.log(sum)], 1e-5, 'out and lse')
})

test('a soft cap comes before the temperature: it is the score that is divided', async () => {
  const cache = createCache({
    layers: 1,
    kvHeads: 1,
    headDim: 8,
    rope: [null],
    capacity: 64,
    device,
  })
  opened.push(cache)
  const own = cache.createBlock()
  const pass = cache.beginPass([
    { view: { blocks: [{ block: own, temperature: 0.5 }] }, tokens: 2 },
  ])
  const keys = new Float32Array(16)
  keys[0] = 3
  keys[8] = -1
  const queries = new Float32Array(16)
  queries[8] = 1
  await pass.append(0, keys, keys)
  const { lse } = await pass.attend(0, queries, { scale: 1, softcap: 2, lse: true })
  pass.commit()
  const score = (x: number) => (2 * Math.tanh(x / 2)) / 0.5
  expectClose([lse[1]!], [Math.log(Math.exp(score(3)) + Math.exp(score(-1)))], 1e-5, 'lse')
})

// ---- properties -------------------------------------------------------------------------------------

/** A view of blocks with some text, and the block of its own that a worker writes to. */
interface RandomView {
  before: ViewEntry[]
  own: ViewEntry
  behind: ViewEntry[]
}

describe.each(Array.from({ length: 6 }, (_, i) => 500 + i))(
  'what changes nothing, seed %i',
  (seed) => {
    let random: Random
    let model: Model
    let cache: Cache
    let blocks: Block[]

    beforeEach(async () => {
      random = new Random(seed)
      ;({ model, cache } = await open(seed))
      blocks = []
      for (let i = 0; i < 4; i++) {
        const block = cache.createBlock()
        await model.prefill(block, random.tokens(random.pick([1, 5, 64, 90]), vocab))
        blocks.push(block)
      }
      blocks.push(cache.createBlock())
      // Segments that were rotated elsewhere.
      blocks[0]!.appendFrom(blocks[1]!)
      blocks[2]!.insert(random.int(0, blocks[2]!.length), blocks[0]!)
    })

    const fields = (): Omit<ViewEntry, 'block'> => ({
      at: random.chance(0.5) ? random.int(0, 400) : undefined,
      lag: random.pick([undefined, 0, 1] as const),
      temperature: random.pick([undefined, 0.5, 1, 2.5]),
      bias: random.pick([undefined, 0, -1, 0.7, -Infinity]),
    })

    function randomView(): RandomView {
      const some = (count: number): ViewEntry[] =>
        Array.from({ length: count }, () => ({ block: random.pick(blocks), ...fields() }))
      const own = { block: cache.createBlock(), ...fields(), bias: random.pick([0, 0.5]) }
      return { before: some(random.int(1, 4)), own, behind: some(random.int(0, 2)) }
    }

    /** Steps that begin alike: with the same text in own blocks of their own. */
    async function compare(views: View[]): Promise<Float32Array[]> {
      const tokens = [random.tokens(random.pick([1, 3, 66]), vocab), random.tokens(1, vocab)]
      const results: number[][] = views.map(() => [])
      for (const [i, view] of views.entries()) {
        for (const part of tokens) {
          const [logits] = await logitsOf(model, [{ view, tokens: part }])
          results[i]!.push(...logits!)
        }
      }
      return results.map((logits) => Float32Array.from(logits))
    }

    /** The same view with another block of its own to write to. */
    const fresh = (entry: ViewEntry): ViewEntry => ({ ...entry, block: cache.createBlock() })

    /** Starts that follow from the entries before, written out. */
    function placed(entries: ViewEntry[]): (ViewEntry & { at: number })[] {
      let end = 0
      return entries.map((entry) => {
        const at = entry.at ?? end
        end = at + entry.block.length
        return { ...entry, at }
      })
    }

    it('no fields, and fields with their defaults', async () => {
      const list = random.shuffle(blocks).slice(0, 3)
      const [plain, entries, full] = [0, 1, 2].map(() => cache.createBlock()) as [
        Block,
        Block,
        Block,
      ]
      const defaults = { lag: 0 as const, temperature: 1, bias: 0 }
      const [expected, ...others] = await compare([
        { blocks: [...list, plain] },
        { blocks: [...list, entries].map((block) => ({ block })) },
        { blocks: placed([...list, full].map((block) => ({ block, ...defaults }))), writeTo: full },
      ])
      for (const other of others) expectSameBits(other, expected!, 'defaults')
    })

    it('starts written out; all of them later; what stands behind; the order of what stands before', async () => {
      for (let round = 0; round < 3; round++) {
        const { before, own, behind } = randomView()
        const owns = Array.from({ length: 5 }, () => fresh(own))
        const out = owns.map((each) => placed([...before, each]))
        const later = (entry: ViewEntry & { at: number }) => ({ ...entry, at: entry.at + 977 })
        const [expected, written, moved, without, shuffled] = await compare([
          { blocks: [...before, owns[0]!, ...behind], writeTo: owns[0]!.block },
          { blocks: out[1]! },
          { blocks: out[2]!.map(later) },
          { blocks: [...before, owns[3]!] },
          { blocks: [...random.shuffle(out[4]!.slice(0, -1)), out[4]!.at(-1)!] },
        ])
        expectSameBits(written!, expected!, 'starts written out')
        expectSameBits(moved!, expected!, 'all starts + 977')
        expectSameBits(without!, expected!, 'nothing behind')
        expectClose(shuffled!, expected!, tolerance, 'another order')
      }
    })

    it('a block cut into two neighbours, the second without a start', async () => {
      const { before, own } = randomView()
      const cut = before.flatMap((entry) => {
        const [front, back] = [entry.block.fork(), entry.block.fork()]
        const at = random.int(0, front.length)
        front.truncate(at)
        back.forget(0, at)
        return [
          { ...entry, block: front },
          { ...entry, block: back, at: undefined },
        ]
      })
      const [expected, actual] = await compare([
        { blocks: [...before, fresh(own)] },
        { blocks: [...cut, fresh(own)] },
      ])
      expectClose(actual!, expected!, tolerance, 'cut')
    })

    it('a bias of ln 2, and the entry twice at the same start', async () => {
      const { before, own } = randomView()
      const seen = placed(before)
      const entry = { ...random.pick(seen), bias: 0 }
      const [expected, twice] = await compare([
        { blocks: [...seen, { ...entry, bias: Math.LN2 }, { ...fresh(own), at: 50 }] },
        { blocks: [...seen, entry, entry, { ...fresh(own), at: 50 }] },
      ])
      expectClose(twice!, expected!, tolerance, 'ln 2')
    })

    it('several tokens of one worker at once, and one by one', async () => {
      const { before, own } = randomView()
      const tokens = random.tokens(70, vocab)
      const run = async (sizes: number[]) => {
        const view = { blocks: [...before, fresh(own)] }
        const logits: number[] = []
        let first = 0
        for (const size of sizes) {
          const [rows] = await logitsOf(model, [
            { view, tokens: tokens.slice(first, first + size) },
          ])
          logits.push(...rows!)
          first += size
        }
        return Float32Array.from(logits)
      }
      const expected = await run([70])
      expectSameBits(await run(Array(70).fill(1)), expected, 'one by one')
      expectSameBits(await run([3, 60, 7]), expected, 'in three parts')
    })

    it('lag 1 everywhere, and the workers one after the other on forks', async () => {
      const own = Array.from({ length: 3 }, () => cache.createBlock())
      for (const block of own) await model.prefill(block, random.tokens(random.int(1, 70), vocab))
      const parts = own.map((block) => {
        const others = random.shuffle([blocks[0]!, ...own.filter((other) => other !== block)])
        const entries = [...others, block].map((each) => ({
          block: each,
          ...fields(),
          lag: 1 as const,
        }))
        entries.at(-1)!.bias = 0
        return { entries, tokens: random.tokens(random.int(1, 4), vocab) }
      })
      const forked: Float32Array[] = []
      for (const { entries, tokens } of parts) {
        const forks = new Map(entries.map(({ block }) => [block, block.fork()]))
        const view = {
          blocks: entries.map((entry) => ({ ...entry, block: forks.get(entry.block)! })),
        }
        forked.push(...(await logitsOf(model, [{ view, tokens }])))
      }
      const together = await logitsOf(
        model,
        parts.map(({ entries, tokens }) => ({ view: { blocks: entries }, tokens })),
      )
      together.forEach((logits, i) => {
        expectClose(logits, forked[i]!, tolerance, `worker ${i}`)
      })
    })

    it('company, in any order, to the last bit', async () => {
      const views = Array.from({ length: 3 }, randomView)
      const tokens = views.map(() => random.tokens(random.int(1, 5), vocab))
      const parts = () =>
        views.map(({ before, own, behind }, i) => {
          const target = fresh(own)
          const view = { blocks: [...before, target, ...behind], writeTo: target.block }
          return { view, tokens: tokens[i]! }
        })
      const [first, second, third] = await logitsOf(model, parts())
      const [c, a, b] = await logitsOf(model, [parts()[2]!, ...parts().slice(0, 2)])
      for (const [i, [one, other]] of [
        [first, a],
        [second, b],
        [third, c],
      ].entries()) {
        expectSameBits(other!, one!, `worker ${i}`)
      }
      const alone = await logitsOf(model, [parts()[1]!])
      expectSameBits(alone[0]!, second!, 'alone')
    })
  },
)

// ---- against the reference --------------------------------------------------------------------------

describe('random views against the reference', () => {
  it.each(Array.from({ length: 16 }, (_, i) => 600 + i))('seed %i', async (seed) => {
    const random = new Random(seed)
    const { model, cache, reference } = await open(seed)
    const blocks = Array.from({ length: 4 }, () => twin(cache))
    const entry = (twin: Twin): TwinEntry => ({
      twin,
      at: random.chance(0.4) ? random.int(0, 300) : undefined,
      lag: random.pick([undefined, 0, 1] as const),
      temperature: random.pick([undefined, 1, 0.25, 0.6, 3]),
      bias: random.pick([undefined, 0, random.normal(), -Infinity]),
    })
    for (let step = 0; step < 8; step++) {
      if (random.chance(0.3)) blocks.push(twin(cache))
      const workers = random
        .shuffle(blocks)
        .slice(0, random.int(1, 4))
        .map((writeTo): TwinWorker => {
          const others = Array.from({ length: random.int(0, 5) }, () => random.pick(blocks))
          const view = random.shuffle([writeTo, ...others]).map(entry)
          const length = random.chance(0.15) ? random.int(60, 70) : random.int(1, 4)
          return { view, writeTo, tokens: random.tokens(length, vocab) }
        })
      await expectTwinStep(model, reference, workers, tolerance, `seed ${seed}, step ${step}`)
      const [to, from] = random.shuffle(blocks) as [Twin, Twin]
      const at = random.int(0, to.expected.length)
      const op = random.pick(['none', 'append', 'insert', 'forget', 'truncate', 'fork', 'compact'])
      if (to.expected.length + from.expected.length > 400) continue
      if (op === 'append') {
        to.block.appendFrom(from.block, { clearSource: true })
        to.expected.push(...from.expected.splice(0))
      } else if (op === 'insert') {
        to.block.insert(at, from.block)
        to.expected.splice(at, 0, ...from.expected)
      } else if (op === 'forget') {
        to.block.forget(0, at)
        to.expected.splice(0, at)
      } else if (op === 'truncate') {
        to.block.truncate(at)
        to.expected.length = at
      } else if (op === 'fork') {
        blocks.push({ block: from.block.fork(), expected: [...from.expected] })
      } else if (op === 'compact') await to.block.compact()
    }
  })

  it('far away: places of 10^5 and 2^24, ahead of the query and behind it', async () => {
    const { model, cache, reference } = await open(700)
    const random = new Random(700)
    const [prompt, a, b] = [twin(cache), twin(cache), twin(cache)]
    const prefill = (block: Twin, count: number) =>
      expectTwinStep(
        model,
        reference,
        [{ view: [block], tokens: random.tokens(count, vocab) }],
        tolerance,
        'prefill',
      )
    await prefill(prompt, 70)
    await prefill(a, 20)
    await prefill(b, 30)
    // The last tokens stand at 2^24 itself.
    const last = 2 ** 24 - 31
    for (const [start, ofA, ofB] of [
      [0, 100_000, 7],
      [0, 7, 100_000],
      [131_071, 0, 99_999],
      [0, 70, last],
      [last - 40, last, 5],
    ] as const) {
      const view = [
        { twin: prompt, at: start },
        { twin: b, at: ofB },
        { twin: a, at: ofA },
      ]
      const workers = [{ view, writeTo: a, tokens: random.tokens(2, vocab) }]
      const what = `prompt ${start}, a ${ofA}, b ${ofB}`
      await expectTwinStep(model, reference, workers, tolerance, what)
      a.block.truncate(20)
      a.expected.length = 20
    }
  })

  it('a long input in chunks beside workers that are late and workers that are not', async () => {
    const { model, cache, reference } = await open(701)
    const random = new Random(701)
    const [a, b, c] = [twin(cache), twin(cache), twin(cache)]
    const first = [
      { view: [{ twin: c, at: 900 }, b, { twin: a, at: 3 }], tokens: random.tokens(600, vocab) },
      { view: [{ twin: a, lag: 1 as const }, c, b], tokens: random.tokens(300, vocab) },
      { view: [{ twin: a, temperature: 2, at: 40 }, b, c], tokens: random.tokens(2, vocab) },
    ]
    await expectTwinStep(model, reference, first, tolerance, 'long')
    const then = [
      { view: [b, { twin: a, lag: 1 as const, at: 0 }, c], tokens: random.tokens(1, vocab) },
      { view: [{ twin: c, lag: 1 as const }, a], tokens: random.tokens(1, vocab) },
    ]
    await expectTwinStep(model, reference, then, tolerance, 'after it')
  })
})

// ---- what is refused ----------------------------------------------------------------------------------

describe('entries that are taken and entries that are refused', () => {
  let model: Model
  let cache: Cache
  let block: Block
  let own: Block

  beforeEach(async () => {
    ;({ model, cache } = await open(800))
    block = cache.createBlock()
    own = cache.createBlock()
    await model.prefill(block, [1, 2, 3])
  })

  const taken: [string, Record<string, unknown>][] = [
    ['nothing', {}],
    [
      'undefined for all',
      { at: undefined, lag: undefined, temperature: undefined, bias: undefined },
    ],
    ['at 0', { at: 0 }],
    ['at -0', { at: -0 }],
    ['at 2^24 - 2, with three tokens', { at: 2 ** 24 - 2 }],
    ['lag 0', { lag: 0 }],
    ['lag 1', { lag: 1 }],
    ['temperature 1e-6', { temperature: 1e-6 }],
    ['temperature 1e6', { temperature: 1e6 }],
    ['temperature 0.25', { temperature: 0.25 }],
    ['bias -1e5', { bias: -1e5 }],
    ['bias 1e300', { bias: 1e300 }],
    ['bias -1e300', { bias: -1e300 }],
    ['bias -Infinity', { bias: -Infinity }],
    ['all of them', { at: 7, lag: 1, temperature: 0.5, bias: -0.25 }],
  ]
  it.each(taken)('%s', async (_, fields) => {
    const entry = { block, ...fields } as ViewEntry
    const view = { blocks: [entry, { block: own, at: 0 }] }
    const [output] = await model.step([{ view, tokens: [4] }])
    expect(output!.token).toBeGreaterThanOrEqual(0)
    expect([block.length, own.length]).toEqual([3, 1])
    cache.beginPass([{ view, tokens: 1 }]).abort()
  })

  const values = (field: string, ...list: unknown[]): [string, Record<string, unknown>, string][] =>
    list.map((value) => [`${field} ${inspect(value)}`, { [field]: value }, field])
  const refused = [
    ...values('at', -1, 0.5, 2 ** 24 + 1, Number.NaN, Infinity, -Infinity, null, '3', true, 3n, {}),
    ...values('lag', 2, -1, 0.5, Number.NaN, null, '1', true, false),
    ...values('temperature', 0, -1, 9.9e-7, 1.1e6, Number.NaN, Infinity, null, '1', true),
    ...values('bias', Number.NaN, Infinity, null, '0', false, [0]),
    ...values('tempreture', 1),
    ...values('block', undefined, null, 'b', 3, {}),
  ]
  it.each(refused)('%s', async (_, fields, field) => {
    const before = JSON.stringify([cache.stats, [...block.tokens()], block.segments])
    const entry = { block, ...fields } as ViewEntry
    const views = [{ blocks: [own, entry], writeTo: own }, { blocks: [entry, entry, own] }]
    for (const [i, view] of views.entries()) {
      const calls = [
        () =>
          model.step([
            { view: { blocks: [block] }, tokens: [1] },
            { view, tokens: [1] },
          ]),
        () =>
          Promise.resolve().then(() =>
            cache.beginPass([
              { view: { blocks: [block] }, tokens: 1 },
              { view, tokens: 1 },
            ]),
          ),
      ]
      for (const call of calls) {
        const error: unknown = await call().catch((thrown: unknown) => thrown)
        expect(error).toBeInstanceOf(HogwildError)
        const { code, message } = error as HogwildError
        expect(code).toBe('HOGWILD_INVALID_ARGUMENT')
        expect(message).toContain(`workers[1].view.blocks[${1 - i}]`)
        expect(message).toContain(field)
      }
    }
    expect(JSON.stringify([cache.stats, [...block.tokens()], block.segments])).toBe(before)
  })

  it.each([null, undefined, 3, 'b', () => 1])(
    '%p in place of a block or an entry',
    async (entry) => {
      const view = { blocks: [entry as never, own] }
      await expect(model.step([{ view, tokens: [1] }])).rejects.toMatchObject({
        code: 'HOGWILD_INVALID_ARGUMENT',
        message: expect.stringContaining('workers[0].view.blocks[0]'),
      })
    },
  )

  it('an entry of another cache, a closed block, a list of biases beside the blocks', async () => {
    const other = model.createCache({ capacity: 64 })
    opened.push(other)
    const step = (view: View) => () => model.step([{ view, tokens: [1] }])
    expect(await codeOf(step({ blocks: [{ block: other.createBlock() }, own] }))).toBe(
      'HOGWILD_INVALID_ARGUMENT',
    )
    const biases = { blocks: [block, own], bias: [0, 0] }
    expect(await codeOf(step(biases))).toBe('HOGWILD_INVALID_ARGUMENT')
    block.close()
    expect(await codeOf(step({ blocks: [own, { block, at: 3 }], writeTo: own }))).toBe(
      'HOGWILD_CLOSED',
    )
  })

  it('positions beyond 2^24, of what is seen alone', async () => {
    const max = 2 ** 24
    const step = (blocks: View['blocks'], tokens = [1]) =>
      model.step([
        { view: { blocks: [cache.createBlock()] }, tokens: [1] },
        { view: { blocks, writeTo: own }, tokens },
      ])
    const refuses = async (blocks: View['blocks'], message: RegExp, tokens?: number[]) => {
      const before = JSON.stringify([cache.stats.freePages, block.length, own.length])
      await expect(step(blocks, tokens)).rejects.toMatchObject({
        code: 'HOGWILD_INVALID_ARGUMENT',
        message: expect.stringMatching(message),
      })
      expect(JSON.stringify([cache.stats.freePages, block.length, own.length])).toBe(before)
    }
    const far = { block, at: max - 1 }
    await refuses([far, { block: own, at: 0 }], /entry 0 .* worker 1 .* 16777217/)
    await refuses(
      [
        { ...far, bias: -Infinity },
        { block: own, at: 0 },
      ],
      /entry 0 .* worker 1 /,
    )
    await refuses([block, { block: own, at: max }], /entry 1 .* worker 1 .* 16777217/, [1, 2])
    await refuses([{ block, at: max - 2 }, own], /entry 1 .* worker 1 .* 16777217/)
    // Behind what is written nothing is seen, an empty block shows nothing, and what is late is not there.
    await step([{ block: own, at: max }, far])
    own.clear()
    await step([block, { block: cache.createBlock(), at: max }, { block: own, at: max }])
    own.clear()
    const late = { block, at: max - 2, lag: 1 as const }
    await model.step([
      { view: { blocks: [block] }, tokens: [1] },
      { view: { blocks: [late, { block: own, at: max }] }, tokens: [1] },
    ])
    expect([block.length, own.length]).toEqual([4, 1])
  })
})

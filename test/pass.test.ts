// Passes: the cache for engines that bring their own model, on q, k and v of their own.

import {
  type AttendOptions,
  type Block,
  type Cache,
  type CacheDtype,
  type CacheOptions,
  createCache,
  createDevice,
  type Device,
  type Pass,
  ropeFrequencies,
  type View,
  type ViewEntry,
} from '../lib'
import { KV_DTYPES, kvDtypes } from '../lib/formats'
import { codeOf, expectClose, expectSameBits, Random } from './fixtures'
import { attend, type Rope, rotate, type Seen, seen } from './reference'

// Scores have a standard deviation near 1 and values are near 1: a few roundings of 2^-24 each.
const tolerance = { f32: 2e-5, f16: 4e-3, bf16: 3e-2, int8: 6e-2 }

let device: Device
const caches: Cache[] = []

beforeAll(() => {
  device = createDevice({ type: 'cpu', threads: 2 })
})

afterEach(async () => {
  for (const cache of caches.splice(0)) await cache.close()
})

afterAll(() => device.close())

function ropeFor(headDim: number, attentionFactor = 1): Rope {
  const pairs = headDim / 2
  const inverseFrequencies = Float64Array.from({ length: pairs }, (_, u) => 1000 ** (-u / pairs))
  return { inverseFrequencies, attentionFactor }
}

function openCache(options: Partial<CacheOptions> = {}): Cache {
  const headDim = options.headDim ?? 16
  const cache = createCache({
    layers: 2,
    kvHeads: 2,
    headDim,
    rope: ropeFor(headDim),
    capacity: 2048,
    device,
    ...options,
  })
  caches.push(cache)
  return cache
}

const entryOf = (entry: Block | ViewEntry): ViewEntry =>
  'block' in entry ? entry : { block: entry }

/** What a block must hold: per token and layer its key before RoPE and its value. */
interface Expected {
  k: Float64Array[]
  v: Float64Array[]
}

class Engine {
  readonly expected = new Map<Block, Expected[]>()

  constructor(
    readonly cache: Cache,
    readonly rope: Rope,
    readonly queryHeads: number,
    readonly random: Random,
  ) {}

  block(): Block {
    const block = this.cache.createBlock()
    this.expected.set(block, [])
    return block
  }

  /** One pass of random q, k, v, compared with the reference in every layer. */
  async pass(
    workers: { view: View; tokens: number }[],
    {
      what = '',
      ...features
    }: Pick<AttendOptions, 'scale' | 'window' | 'softcap' | 'sinks'> & { what?: string } = {},
  ): Promise<void> {
    const { layers, kvHeads, headDim, dtype } = this.cache.shape
    const { keys, values } = kvDtypes(dtype)
    const near = Math.max(tolerance[keys], tolerance[values])
    const target = (view: View): Block => view.writeTo ?? entryOf(view.blocks.at(-1)!).block
    const held = new Map(Array.from(this.expected.values(), (list) => [list, list.length]))
    const pass = this.cache.beginPass(workers)
    expect(pass.tokens).toBe(workers.reduce((sum, { tokens }) => sum + tokens, 0))
    for (const { view, tokens } of workers) {
      const list = this.expected.get(target(view))!
      for (let i = 0; i < tokens; i++) list.push({ k: [], v: [] })
    }
    const width = kvHeads * headDim
    for (let layer = 0; layer < layers; layer++) {
      const k = this.random.floats(pass.tokens * width)
      const v = this.random.floats(pass.tokens * width)
      const q = this.random.floats(pass.tokens * this.queryHeads * headDim)
      let row = 0
      for (const { view, tokens } of workers) {
        const list = this.expected.get(target(view))!
        for (const token of list.slice(-tokens)) {
          token.k.push(Float64Array.from(k.subarray(row * width, (row + 1) * width)))
          token.v.push(Float64Array.from(v.subarray(row * width, (row + 1) * width)))
          row++
        }
      }
      await pass.append(layer, k, v)
      const { out, lse } = await pass.attend(layer, q, { ...features, lse: true })
      const plain = await pass.attend(layer, q, features)
      expectSameBits(plain.out, out, 'with and without lse')
      expect(plain.lse).toBeUndefined()

      row = 0
      for (const { view, tokens } of workers) {
        const entries = view.blocks
          .map(entryOf)
          .map((entry) => ({ ...entry, block: this.expected.get(entry.block)! }))
        const own = this.expected.get(target(view))!
        const places = seen(entries, own, layer, (list) => held.get(list as Expected[])!)
        const size = this.queryHeads * headDim
        const queries = Array.from({ length: tokens }, (_, i) =>
          Float64Array.from(q.subarray((row + i) * size, (row + i + 1) * size)),
        )
        const shape = {
          queryHeads: this.queryHeads,
          kvHeads,
          headDim,
          ...features,
          scale: features.scale ?? 1 / Math.sqrt(headDim),
        }
        const wanted = attend(queries, places, shape, this.rope)
        wanted.out.forEach((expected, i) => {
          const place = `${what} layer ${layer} row ${row + i}`
          const actual = out.subarray((row + i) * size, (row + i + 1) * size)
          expectClose(actual, expected, near, `${place}, out`)
          const heads = lse.subarray((row + i) * this.queryHeads, (row + i + 1) * this.queryHeads)
          expectClose(heads, wanted.lse[i]!, near, `${place}, lse`)
        })
        row += tokens
      }
    }
    pass.commit()
  }
}

/** Blocks anywhere, late, warm, weighted and hidden. */
function randomEntries(random: Random, blocks: readonly Block[]): ViewEntry[] {
  return blocks.map((block) => ({
    block,
    at: random.chance(0.3) ? random.int(0, 500) : undefined,
    lag: random.pick([undefined, 0, 1] as const),
    temperature: random.pick([undefined, 1, 0.5, 4]),
    bias: random.pick([undefined, 0, 1, -Infinity, random.normal()]),
  }))
}

const shapes = [
  [2, 2, 8, 1],
  [4, 2, 16, 1],
  [5, 1, 24, 1.3],
  [14, 2, 40, 1],
  [16, 1, 64, 1],
  [6, 3, 128, 1.1],
  [4, 1, 256, 1],
] as const

const dtypes: CacheDtype[] = [
  ...KV_DTYPES,
  { keys: 'bf16', values: 'int8' },
  { keys: 'int8', values: 'f16' },
]

describe.each(dtypes)('%j', (dtype) => {
  // Half precision is a matter of the conversion, so few shapes say all.
  const cases = dtype === 'f32' ? shapes : shapes.slice(1, 4)

  it.each(cases)(
    '%i query heads, %i kv heads, head_dim %i, attention factor %f',
    async (queryHeads, kvHeads, headDim, factor) => {
      const rope = ropeFor(headDim, factor)
      const layers = headDim < 64 ? 2 : 1
      const cache = openCache({ kvHeads, headDim, rope, dtype, layers })
      const engine = new Engine(cache, rope, queryHeads, new Random(headDim))
      const [prompt, a, b, tail] = [engine.block(), engine.block(), engine.block(), engine.block()]
      await engine.pass([{ view: { blocks: [prompt] }, tokens: 63 }])
      await engine.pass([{ view: { blocks: [tail] }, tokens: 5 }])
      await engine.pass([
        { view: { blocks: [prompt, b, a] }, tokens: 1 },
        { view: { blocks: [prompt, a, b, tail], writeTo: b }, tokens: 3 },
      ])
      await engine.pass([
        { view: { blocks: [a, tail, prompt, a] }, tokens: 2 },
        {
          view: {
            blocks: [
              { block: b, bias: -1 },
              { block: b, bias: 2 },
            ],
          },
          tokens: 2,
        },
        {
          view: {
            blocks: [
              { block: prompt, bias: -Infinity },
              { block: tail, bias: 0.5 },
            ],
          },
          tokens: 9,
        },
      ])
      await engine.pass([
        {
          view: { blocks: [{ block: prompt, temperature: 0.5 }, b, { block: a, at: 40 }] },
          tokens: 1,
        },
        {
          view: { blocks: [{ block: a, lag: 1, at: 300, temperature: 3 }, prompt, b] },
          tokens: 70,
        },
      ])
    },
  )
})

describe('views', () => {
  it.each(Array.from({ length: 12 }, (_, i) => 200 + i))('random ones, seed %i', async (seed) => {
    const random = new Random(seed)
    const rope = ropeFor(8)
    const engine = new Engine(openCache({ kvHeads: 1, headDim: 8, layers: 1 }), rope, 3, random)
    const blocks = [engine.block(), engine.block(), engine.block(), engine.block()]
    for (let step = 0; step < 6; step++) {
      const workers = random
        .shuffle(blocks)
        .slice(0, random.int(1, 4))
        .map((writeTo) => {
          const others = Array.from({ length: random.int(0, 4) }, () => random.pick(blocks))
          const list = random.shuffle([writeTo, ...others])
          const view = { blocks: random.chance(0.3) ? list : randomEntries(random, list), writeTo }
          return { view, tokens: random.pick([1, 1, 2, 7, 64, 66]) }
        })
      await engine.pass(workers, { what: `seed ${seed}, step ${step}` })
    }
  })

  it('a token that sees nothing gets 0 and a log-sum-exp of -Infinity', async () => {
    const cache = openCache({ layers: 1, kvHeads: 1, headDim: 8 })
    const block = cache.createBlock()
    const pass = cache.beginPass([{ view: { blocks: [{ block, bias: -Infinity }] }, tokens: 2 }])
    const rows = new Random(1).floats(16)
    await pass.append(0, rows, rows)
    const { out, lse } = await pass.attend(0, rows, { lse: true })
    expect([...out]).toEqual(Array(16).fill(0))
    expect([...lse!]).toEqual([-Infinity, -Infinity])
    pass.commit()
  })

  it('takes a scale, and scores far beyond the range of exp', async () => {
    const random = new Random(2)
    const engine = new Engine(openCache(), ropeFor(16), 4, random)
    const block = engine.block()
    await engine.pass([{ view: { blocks: [block] }, tokens: 70 }], { scale: 0.01 })
    const cache = openCache({ layers: 1, kvHeads: 1, headDim: 8 })
    const own = cache.createBlock()
    const pass = cache.beginPass([{ view: { blocks: [own] }, tokens: 3 }])
    // Scores of +-8e5: the largest wins outright; an exp without its maximum taken off would overflow.
    const k = new Float32Array(24).fill(1000)
    const q = Float32Array.from({ length: 24 }, (_, i) => (i < 8 ? 0 : i < 16 ? 100 : -100))
    await pass.append(
      0,
      k,
      Float32Array.from({ length: 24 }, (_, i) => Math.floor(i / 8)),
    )
    const { out, lse } = await pass.attend(0, q, { lse: true, scale: 1 })
    for (const value of [...out, ...lse!]) expect(Number.isFinite(value)).toBe(true)
    pass.commit()
  })

  it('stores keys turned to their place in the block, values as they are, and no token ids', async () => {
    const rope = ropeFor(16)
    const engine = new Engine(openCache(), rope, 2, new Random(3))
    const block = engine.block()
    await engine.pass([{ view: { blocks: [block] }, tokens: 66 }])
    await engine.pass([{ view: { blocks: [engine.block(), block] }, tokens: 1 }])
    expect([...block.tokens()]).toEqual(Array(67).fill(-1))
    const tokens = engine.expected.get(block)!
    for (const layer of [0, 1]) {
      const { k, v, rotatedAt } = block.read(layer)
      expect([...rotatedAt]).toEqual(tokens.map((_, i) => i))
      tokens.forEach((token, i) => {
        const turned = rotate(token.k[layer]!, 16, i, rope)
        expectClose(k.subarray(i * 32, (i + 1) * 32), turned, 1e-6, `key ${i}`)
        expectSameBits(v.subarray(i * 32, (i + 1) * 32), token.v[layer]!, `value ${i}`)
      })
    }
  })
})

const WINDOWS = [1, 2, 9, 63, 64, 65, 130, 1e6]

describe('windows, soft caps and sinks', () => {
  /** Sinks for three heads. */
  const threeSinks = (random: Random) =>
    Float32Array.from({ length: 3 }, () => random.pick([-Infinity, random.normal(), 4]))

  it.each(Array.from({ length: 12 }, (_, i) => 300 + i))(
    'random views and moves, seed %i',
    async (seed) => {
      const random = new Random(seed)
      const engine = new Engine(
        openCache({ kvHeads: 1, headDim: 8, layers: 1 }),
        ropeFor(8),
        3,
        random,
      )
      const blocks = [engine.block(), engine.block(), engine.block(), engine.block()]
      const tokens = (block: Block) => engine.expected.get(block)!
      for (let step = 0; step < 6; step++) {
        const what = `seed ${seed}, step ${step}`
        const workers = random
          .shuffle(blocks)
          .slice(0, random.int(1, 4))
          .map((writeTo) => {
            const others = Array.from({ length: random.int(0, 4) }, () => random.pick(blocks))
            const list = random.shuffle([writeTo, ...others])
            const view = {
              blocks: random.chance(0.3) ? list : randomEntries(random, list),
              writeTo,
            }
            return { view, tokens: random.pick([1, 1, 2, 7, 64, 66]) }
          })
        await engine.pass(workers, {
          what,
          window: random.pick(WINDOWS),
          softcap: random.pick([undefined, 0.7, 5]),
          sinks: random.pick([undefined, threeSinks(random)]),
        })
        const [from, to] = random.shuffle(blocks) as [Block, Block]
        const at = random.int(0, tokens(to).length)
        const move = random.pick(['append', 'insert', 'forget', 'none'])
        if (move === 'append') to.appendFrom(from)
        if (move === 'insert') to.insert(at, from)
        if (move === 'forget') to.forget(0, at)
        if (move === 'append') tokens(to).push(...tokens(from))
        if (move === 'insert') tokens(to).splice(at, 0, ...tokens(from))
        if (move === 'forget') tokens(to).splice(0, at)
      }
    },
  )

  it.each(['f16', 'bf16'] as const)('of keys and values in %s', async (dtype) => {
    const engine = new Engine(openCache({ dtype }), ropeFor(16), 4, new Random(5))
    const [prompt, own] = [engine.block(), engine.block()]
    await engine.pass([{ view: { blocks: [prompt] }, tokens: 90 }], { window: 30 })
    const sinks = Float32Array.of(0, 1, -1, 2)
    for (const window of WINDOWS) {
      await engine.pass([{ view: { blocks: [prompt, own] }, tokens: 3 }], {
        window,
        softcap: 10,
        sinks,
      })
    }
  })

  it('refuses what is out of range, by its name', async () => {
    const cache = openCache({ layers: 1, kvHeads: 1, headDim: 8 })
    const pass = cache.beginPass([{ view: { blocks: [cache.createBlock()] }, tokens: 2 }])
    const rows = new Random(6).floats(2 * 2 * 8)
    await pass.append(0, rows.subarray(16), rows.subarray(16))
    const wrong: AttendOptions[] = [
      { window: 0 },
      { window: -1 },
      { window: 1.5 },
      { window: Number.POSITIVE_INFINITY },
      { softcap: 0 },
      { softcap: -1 },
      { softcap: 1e-7 },
      { softcap: 1e7 },
      { softcap: Number.NaN },
      { sinks: new Float32Array(1) },
      { sinks: new Float64Array(2) as never },
      { sinks: Float32Array.of(0, Number.NaN) },
      { sinks: Float32Array.of(Number.POSITIVE_INFINITY, 0) },
    ]
    for (const options of wrong) {
      const error: unknown = await pass.attend(0, rows, options).catch((thrown) => thrown)
      expect(error).toMatchObject({
        code: 'HOGWILD_INVALID_ARGUMENT',
        message: expect.stringContaining(`options.${Object.keys(options)[0]}`),
      })
    }
    await pass.attend(0, rows, { window: Number.MAX_SAFE_INTEGER, softcap: 1e-6 })
    pass.commit()
  })
})

describe('what a window shows', () => {
  const WIDTH = 24
  let cache: Cache
  let appended: number

  beforeEach(() => {
    cache = openCache({ layers: 1, kvHeads: 1, headDim: WIDTH })
    appended = 0
  })

  /**
   * Numbers of the tokens that each new token of each worker sees; tokens are numbered as they are appended. All
   * scores are 0 and the value of token i is the unit vector i, so that an output shows what it was made of.
   */
  async function step(workers: { view: View; tokens: number }[], window: number) {
    const pass = cache.beginPass(workers)
    const zeros = new Float32Array(pass.tokens * WIDTH)
    const values = zeros.slice()
    for (let i = 0; i < pass.tokens; i++) values[i * WIDTH + appended++] = 1
    await pass.append(0, zeros, values)
    const { out } = await pass.attend(0, zeros, { window })
    pass.commit()
    return Array.from({ length: pass.tokens }, (_, i) =>
      [...out.subarray(i * WIDTH, (i + 1) * WIDTH)].flatMap((weight, token) =>
        weight === 0 ? [] : [token],
      ),
    )
  }

  async function block(tokens: number): Promise<Block> {
    const block = cache.createBlock()
    await step([{ view: { blocks: [block] }, tokens }], 1)
    return block
  }

  it('the last tokens of the view, each new one of its own', async () => {
    const [prompt, own] = [await block(4), await block(2)] // 0-3, 4-5
    const view = { blocks: [prompt, own] }
    expect(await step([{ view, tokens: 3 }], 4)).toEqual([
      [3, 4, 5, 6],
      [4, 5, 6, 7],
      [5, 6, 7, 8],
    ])
    expect(await step([{ view, tokens: 1 }], 1)).toEqual([[9]])
    expect(await step([{ view, tokens: 1 }], 11)).toEqual([[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]])
    expect(await step([{ view, tokens: 1 }], 11)).toEqual([[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]])
  })

  it('by their places in each view, whenever they were written', async () => {
    const [prompt, a, b] = [await block(2), await block(3), await block(2)] // 0-1, 2-4, 5-6
    // In a step: 7 for a, 8 for b. What stands between hides what comes before, new or old.
    const workers = [
      { view: { blocks: [prompt, b, a] }, tokens: 1 },
      { view: { blocks: [b, a, prompt], writeTo: b }, tokens: 1 },
    ]
    expect(await step(workers, 5)).toEqual([
      [2, 3, 4, 7, 8],
      [5, 6, 8],
    ])
    // Text before the window goes out of it as another block grows in between: here by 9 and 10.
    await step([{ view: { blocks: [b] }, tokens: 2 }], 1)
    expect(await step([{ view: { blocks: [a, b, prompt] }, tokens: 1 }], 7)).toEqual([
      [0, 1, 6, 8, 9, 10, 11],
    ])
    expect(await step([{ view: { blocks: [prompt, a] }, tokens: 1 }], 5)).toEqual([
      [2, 3, 4, 7, 12],
    ])
  })

  it('moved tokens where they stand now', async () => {
    const [common, own] = [await block(3), await block(3)] // 0-2, 3-5
    common.appendFrom(own, { clearSource: true })
    expect(await step([{ view: { blocks: [common, own] }, tokens: 1 }], 4)).toEqual([[3, 4, 5, 6]])
    common.insert(5, own) // 0 1 2 3 4 6 5
    expect(await step([{ view: { blocks: [common] }, tokens: 1 }], 4)).toEqual([[4, 5, 6, 7]])
  })

  it('nothing behind the write target, nothing of a hidden block, which keeps its places', async () => {
    const [a, b, c] = [await block(3), await block(2), await block(2)] // 0-2, 3-4, 5-6
    const view = { blocks: [a, b, c], writeTo: b }
    expect(await step([{ view, tokens: 1 }], 5)).toEqual([[1, 2, 3, 4, 7]])
    const hide = (block: Block) => ({ block, bias: -Infinity })
    expect(await step([{ view: { blocks: [a, hide(b), c] }, tokens: 1 }], 7)).toEqual([
      [2, 5, 6, 8],
    ])
    expect(await step([{ view: { blocks: [a, b, hide(c)] }, tokens: 1 }], 4)).toEqual([[]])
  })

  it('places, wherever the list has them: back from the new token alone', async () => {
    const [a, b, c] = [await block(3), await block(2), await block(2)] // 0-2, 3-4, 5-6
    // c at 4: its new token stands at 6 and sees 4, 5 and 6; and all of what stands ahead.
    const view = {
      blocks: [
        { block: a, at: 3 },
        { block: b, at: 100 },
        { block: c, at: 4 },
      ],
    }
    expect(await step([{ view, tokens: 1 }], 3)).toEqual([[1, 2, 3, 4, 5, 6, 7]])
    expect(await step([{ view, tokens: 1 }], 1)).toEqual([[3, 4, 8]])
    // What is late takes no place: here 9, written in the same step, which would push 0 out.
    const late = { blocks: [a, { block: b, lag: 1 as const }, { block: c, lag: 1 as const }] }
    const writer = { view: { blocks: [b] }, tokens: 1 }
    expect(await step([writer, { view: late, tokens: 1 }], 10)).toEqual([
      [3, 4, 9],
      [0, 1, 2, 3, 4, 5, 6, 7, 8, 10],
    ])
    expect(await step([{ view: late, tokens: 1 }], 10)).toEqual([[2, 3, 4, 5, 6, 7, 8, 9, 10, 11]])
  })

  it('each occurrence of a block by its own place', async () => {
    const [a, own] = [await block(3), await block(1)] // 0-2, 3
    expect(await step([{ view: { blocks: [a, own, a, own] }, tokens: 1 }], 4)).toEqual([
      [1, 2, 3, 4],
    ])
    const later = { blocks: [a, own, a], writeTo: a }
    expect(await step([{ view: later, tokens: 1 }], 2)).toEqual([[2, 5]])
    const end = cache.createBlock()
    expect(await step([{ view: { blocks: [a, own, a, end] }, tokens: 1 }], 6)).toEqual([
      [0, 1, 2, 4, 5, 6],
    ])
  })

  it('tokens again that come closer as those behind them are forgotten or cut off', async () => {
    const own = await block(8)
    const view = { blocks: [own] }
    expect(await step([{ view, tokens: 1 }], 3)).toEqual([[6, 7, 8]])
    own.forget(4, 8)
    expect(await step([{ view, tokens: 1 }], 4)).toEqual([[2, 3, 8, 9]])
    own.truncate(2)
    expect(await step([{ view, tokens: 1 }], 4)).toEqual([[0, 1, 10]])
  })

  it('the same when all that is before every window is forgotten', async () => {
    const random = new Random(8)
    const rope = ropeFor(16)
    const results: Float32Array[] = []
    const rows = Array.from({ length: 3 }, () => random.floats(190 * 2 * 16))
    for (const forgotten of [0, 70]) {
      const own = openCache({ rope, layers: 1 })
      const text = own.createBlock()
      const run = async (tokens: number, from: number) => {
        const [k, v, q] = rows.map((row) => row.subarray(from * 32, (from + tokens) * 32)) as [
          Float32Array,
          Float32Array,
          Float32Array,
        ]
        const pass = own.beginPass([{ view: { blocks: [text] }, tokens }])
        await pass.append(0, k, v)
        const { out } = await pass.attend(0, q, { window: 100 })
        pass.commit()
        return out
      }
      await run(180, 0)
      text.forget(0, forgotten)
      results.push(await run(10, 180))
    }
    expectClose(results[0]!, results[1]!, 1e-6, 'out')
  })
})

describe("the caller's arrays", () => {
  async function ready(tokens = 3) {
    const cache = openCache({ layers: 1 })
    const block = cache.createBlock()
    const random = new Random(9)
    const pass = cache.beginPass([{ view: { blocks: [block] }, tokens }])
    await pass.append(0, random.floats(tokens * 32), random.floats(tokens * 32))
    const q = random.floats(tokens * 4 * 16)
    return { pass, q, expected: await pass.attend(0, q, { lse: true }) }
  }

  it('take the results, also one without the other, and the queries may be one of them', async () => {
    const { pass, q, expected } = await ready()
    const memory = new Float32Array(3 * 4 * 17 + 8)
    const out = memory.subarray(8, 8 + 3 * 4 * 16)
    const lse = memory.subarray(8 + 3 * 4 * 16)
    const both = await pass.attend(0, q, { out, lse })
    expect(both.out).toBe(out)
    expect(both.lse).toBe(lse)
    expectSameBits(out, expected.out, 'out')
    expectSameBits(lse, expected.lse, 'lse')
    expect([...memory.subarray(0, 8)]).toEqual(Array(8).fill(0))

    memory.fill(7)
    const alone = await pass.attend(0, q, { out })
    expect(alone.lse).toBeUndefined()
    expectSameBits(out, expected.out, 'out alone')
    expect([...lse]).toEqual(Array(12).fill(7))
    const other = await pass.attend(0, q, { lse })
    expect(other.out).not.toBe(out)
    expectSameBits(other.out, expected.out, 'new out')
    expectSameBits(lse, expected.lse, 'lse alone')

    const inPlace = q.slice()
    await pass.attend(0, inPlace, { out: inPlace })
    expectSameBits(inPlace, expected.out, 'in place')
    pass.commit()
  })

  it('are filled whole after a pass of several pieces', async () => {
    const { pass, q, expected } = await ready(1200)
    const [out, lse] = [new Float32Array(q.length), new Float32Array(1200 * 4)]
    const before = pass.attend(0, q, { out, lse })
    expect(out.every((x) => x === 0)).toBe(true)
    await before
    expectSameBits(out, expected.out, 'out')
    expectSameBits(lse, expected.lse, 'lse')
  })

  it('are refused where they do not fit, and left alone by a call that fails', async () => {
    const { pass, q, expected } = await ready()
    const memory = new Float32Array(3 * 4 * 16 + 8).fill(7)
    const out = memory.subarray(0, 3 * 4 * 16)
    const wrong: AttendOptions[] = [
      { out: out.subarray(1) },
      { out: new Float64Array(out.length) as never },
      { out: [...out] as never },
      { out, lse: new Float32Array(11) },
      { out, lse: null as never },
      { out, lse: memory.subarray(3 * 4 * 16 - 4) },
      { out, lse: out.subarray(0, 12) },
      { out, scale: -1 },
    ]
    for (const options of wrong) {
      expect(await codeOf(() => pass.attend(0, q, options))).toBe('HOGWILD_INVALID_ARGUMENT')
    }
    expect(memory.every((x) => x === 7)).toBe(true)

    const kept = new Float32Array(12).fill(7)
    const running = pass.attend(0, q, { out, lse: kept })
    structuredClone(memory, { transfer: [memory.buffer] })
    const error: unknown = await running.catch((thrown) => thrown)
    expect(error).toMatchObject({
      code: 'HOGWILD_INVALID_ARGUMENT',
      message: expect.stringContaining('options.out'),
    })
    expect([...kept]).toEqual(Array(12).fill(7))
    expectSameBits((await pass.attend(0, q)).out, expected.out, 'afterwards')
    pass.commit()
  })
})

describe('rules', () => {
  const rows = (tokens: number): Float32Array => new Random(4).floats(tokens * 32)

  async function started(): Promise<{ cache: Cache; block: Block; pass: Pass }> {
    const cache = openCache()
    const block = cache.createBlock()
    const first = cache.beginPass([{ view: { blocks: [block] }, tokens: 63 }])
    for (const layer of [0, 1]) await first.append(layer, rows(63), rows(63))
    first.commit()
    return { cache, block, pass: cache.beginPass([{ view: { blocks: [block] }, tokens: 3 }]) }
  }

  const state = (cache: Cache, block: Block): unknown => {
    const { peakPages: _, ...stats } = cache.stats
    return { stats, segments: block.segments, contents: [block.read(0), block.read(1)] }
  }

  it.each(['abort', 'dispose'] as const)('%s leaves the cache as it was', async (how) => {
    const { cache, block, pass } = await started()
    pass.abort()
    const before = state(cache, block)
    for (const append of [[], [0], [0, 1]]) {
      const again = cache.beginPass([
        { view: { blocks: [cache.createBlock(), block] }, tokens: 200 },
      ])
      for (const layer of append) await again.append(layer, rows(200), rows(200))
      expect(block.length).toBe(63)
      if (how === 'abort') again.abort()
      else again[Symbol.dispose]()
      again.abort()
      expect(state(cache, block)).toEqual(before)
    }
  })

  it('keeps the cache busy until it has ended', async () => {
    const { cache, block, pass } = await started()
    const calls = [
      () => cache.beginPass([{ view: { blocks: [block] }, tokens: 1 }]),
      () => cache.createBlock(),
      () => block.fork(),
      () => block.truncate(0),
      () => block.clear(),
      () => block.compact(),
      () => block.read(0),
    ]
    for (const call of calls) expect(await codeOf(call)).toBe('HOGWILD_BUSY')
    expect(block.length).toBe(63)
    for (const layer of [0, 1]) await pass.append(layer, rows(3), rows(3))
    pass.commit()
    expect(block.length).toBe(66)
    block.truncate(65)
  })

  it('answers HOGWILD_CLOSED after its end and after the cache is closed', async () => {
    const { cache, block, pass } = await started()
    pass.abort()
    for (const call of [
      () => pass.append(0, rows(3), rows(3)),
      () => pass.attend(0, rows(3)),
      () => pass.commit(),
    ]) {
      expect(await codeOf(call)).toBe('HOGWILD_CLOSED')
    }
    const open = cache.beginPass([{ view: { blocks: [block] }, tokens: 1 }])
    await cache.close()
    for (const call of [() => open.append(0, rows(1), rows(1)), () => open.commit()]) {
      expect(await codeOf(call)).toBe('HOGWILD_CLOSED')
    }
    expect(await codeOf(() => block.length)).toBe('HOGWILD_CLOSED')
  })

  it('refuses arrays of other sizes and types', async () => {
    const { cache, block, pass } = await started()
    const calls = [
      () => pass.append(0, rows(2), rows(3)),
      () => pass.append(0, rows(3), rows(4)),
      () => pass.append(2, rows(3), rows(3)),
      () => pass.append(-1, rows(3), rows(3)),
      () => pass.append(0, new Float64Array(96) as never, rows(3)),
      () => pass.attend(0, rows(3).subarray(1)),
      () => pass.attend(0, new Float32Array(0)),
      // 3 query heads over 2 kv heads
      () => pass.attend(0, new Float32Array(3 * 3 * 16)),
      () => pass.attend(0, [...rows(3)] as never),
      () => pass.attend(0, rows(3), { scale: Number.NaN }),
      () => pass.attend(0, rows(3), { scale: -1 }),
    ]
    for (const call of calls) expect(await codeOf(call)).toBe('HOGWILD_INVALID_ARGUMENT')
    pass.abort()
    expect(block.length).toBe(63)
    const workers: [string, () => unknown][] = [
      ['HOGWILD_INVALID_ARGUMENT', () => cache.beginPass([])],
      [
        'HOGWILD_INVALID_ARGUMENT',
        () => cache.beginPass([{ view: { blocks: [block] }, tokens: 0 }]),
      ],
      [
        'HOGWILD_INVALID_ARGUMENT',
        () => cache.beginPass([{ view: { blocks: [block] }, tokens: 1.5 }]),
      ],
      [
        'HOGWILD_OUT_OF_PAGES',
        () => cache.beginPass([{ view: { blocks: [block] }, tokens: 2 ** 31 - 1 }]),
      ],
      [
        'HOGWILD_OUT_OF_PAGES',
        () => cache.beginPass([{ view: { blocks: [block] }, tokens: 2048 }]),
      ],
    ]
    for (const [code, call] of workers) expect(await codeOf(call)).toBe(code)
  })

  it('says in its terms what is expected and what came', async () => {
    const { cache, block, pass } = await started()
    const messageOf = (call: () => unknown): Promise<string> =>
      Promise.resolve()
        .then(call)
        .then(
          () => 'nothing is refused',
          ({ message }) => message,
        )
    expect(await messageOf(() => pass.append(0, rows(2), rows(3)))).toBe(
      'expected k to be a Float32Array of 96 elements ([T, Hkv, D] = [3, 2, 16]), received a Float32Array of 64 elements',
    )
    await pass.append(0, rows(3), rows(3))
    expect(await messageOf(() => pass.attend(0, new Float32Array(3 * 3 * 16)))).toBe(
      'expected q to be a Float32Array of a multiple of 96 elements ([T, Hq, D] = [3, Hq, 16], Hq a multiple of 2), received a Float32Array of 144 elements',
    )
    pass.abort()
    const long = { view: { blocks: [block] }, tokens: 4096 }
    expect(await messageOf(() => cache.beginPass([long]))).toMatch(
      /^workers\[0\]\.tokens: 4096 new/,
    )
    const shape = { layers: 2, kvHeads: 2, headDim: 16 }
    const rope = ropeFrequencies({ type: 'default', theta: 1e4, rotaryDim: 32 })
    expect(await messageOf(() => createCache({ ...shape, rope }))).toMatch(
      /1 to headDim \/ 2 = 8 finite numbers, received a Float64Array of 16 elements$/,
    )
    expect(await messageOf(() => createCache(shape as never))).toMatch(
      /expected options.rope to be RopeOptions .*, received undefined$/,
    )
  })

  it('refuses to attend to, or to commit, keys that were not appended', async () => {
    const { block, pass } = await started()
    expect(await codeOf(() => pass.attend(0, rows(3)))).toBe('HOGWILD_INVALID_ARGUMENT')
    await pass.append(0, rows(3), rows(3))
    await pass.attend(0, rows(3))
    expect(await codeOf(() => pass.attend(1, rows(3)))).toBe('HOGWILD_INVALID_ARGUMENT')
    expect(await codeOf(() => pass.commit())).toBe('HOGWILD_INVALID_ARGUMENT')
    expect(block.length).toBe(63)
    await pass.append(1, rows(3), rows(3))
    pass.commit()
    expect(block.length).toBe(66)
  })

  it('takes the arrays as they are at the call', async () => {
    const { block, pass } = await started()
    const k = rows(3)
    const appended = pass.append(0, k, k)
    expect(await codeOf(() => pass.commit())).toBe('HOGWILD_BUSY')
    k.fill(7)
    await appended
    await pass.append(1, rows(3), rows(3))
    pass.commit()
    expectSameBits(block.read(0).v.subarray(63 * 32), rows(3), 'values')
  })

  it('aborts once the call under way has ended', async () => {
    const { cache, block, pass } = await started()
    const running = pass.append(0, rows(3), rows(3))
    pass.abort()
    expect(await codeOf(() => block.clear())).toBe('HOGWILD_BUSY')
    await codeOf(() => running)
    block.clear()
    expect(cache.stats.freePages).toBe(cache.stats.pages)
  })
})

test('layers with a RoPE of their own, and one without', async () => {
  const headDim = 16
  const [a, b] = [ropeFor(headDim), { inverseFrequencies: Float64Array.of(0.3, 0.01) }]
  const layers = 4
  const cache = openCache({ layers, headDim, rope: [b, a, null, b] })
  const random = new Random(3)
  const [first, second] = [cache.createBlock(), cache.createBlock()]
  const places: Seen[][] = Array.from({ length: layers }, () => [])
  const row = () => random.floats(2 * headDim)
  const place = (k: Float32Array, v: Float32Array, position: number): Seen => ({
    k: Float64Array.from(k),
    v: Float64Array.from(v),
    position,
    temperature: 1,
    bias: 0,
  })
  const tokens = [70, 40]
  for (const [i, block] of [first, second].entries()) {
    const pass = cache.beginPass([{ view: { blocks: [block] }, tokens: tokens[i]! }])
    for (let layer = 0; layer < layers; layer++) {
      const [k, v] = [0, 1].map(() => Array.from({ length: tokens[i]! }, row))
      await pass.append(
        layer,
        Float32Array.from(k!.flatMap((x) => [...x])),
        Float32Array.from(v!.flatMap((x) => [...x])),
      )
      k!.forEach((key, t) => {
        places[layer]!.push(place(key, v![t]!, places[layer]!.length))
      })
    }
    pass.commit()
  }
  first.appendFrom(second)
  const check = async () => {
    const view = { blocks: [first, cache.createBlock()] }
    const pass = cache.beginPass([{ view, tokens: 1 }])
    for (let layer = 0; layer < layers; layer++) {
      const [k, v, q] = [row(), row(), random.floats(4 * headDim)]
      await pass.append(layer, k, v)
      const { out } = await pass.attend(layer, q)
      const seen = [...places[layer]!, place(k, v, 110)]
      const rope = [b, a, { inverseFrequencies: new Float64Array(0) }, b][layer]!
      const shape = { queryHeads: 4, kvHeads: 2, headDim, scale: 1 / Math.sqrt(headDim) }
      const wanted = attend([Float64Array.from(q)], seen, shape, {
        attentionFactor: 1,
        ...rope,
      })
      expectClose(out, wanted.out[0]!, 1e-5, `layer ${layer}`)
    }
    pass.abort()
  }
  await check()
  const { k } = first.read(2)
  await first.compact()
  await check()
  expect(first.read(2).k).toEqual(k)
})

test.each([
  ['too few', [null], /a list of 2/],
  ['not a RoPE', [null, 3], /rope\[1\]/],
  ['none', undefined, /rope/],
])('a list of RoPEs that does not fit: %s', (_, rope, message) => {
  expect(() => openCache({ rope: rope as never })).toThrow(message)
})

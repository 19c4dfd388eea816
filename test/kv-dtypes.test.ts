// Caches in every dtype of keys and values, int8 and mixed ones above all: what is stored, that nothing but writing rounds,
// how far attention is from that on f32, and that it does not depend on who shares the step.

import {
  type Block,
  type Cache,
  type CacheDtype,
  createCache,
  createDevice,
  type Device,
  type KvDtype,
  loadModel,
} from '../lib'
import { KV_DTYPES, kvDtypes, kvRowBytes } from '../lib/formats'
import { codeOf, expectSameBits, Random, writeModel } from './fixtures'

const PAGE = 64

let device: Device
const caches: Cache[] = []

beforeAll(() => {
  device = createDevice({ type: 'cpu', threads: 2 })
})

afterEach(async () => {
  for (const cache of caches.splice(0)) await cache.close()
})

afterAll(() => device.close())

interface Shape {
  layers?: number
  kvHeads?: number
  headDim?: number
  capacity?: number
}

function openCache(
  dtype: CacheDtype,
  { layers = 1, kvHeads = 2, headDim = 24, capacity = 4096 }: Shape = {},
): Cache {
  const pairs = headDim / 2
  const inverseFrequencies = Float64Array.from({ length: pairs }, (_, u) => 1000 ** (-u / pairs))
  const rope = { inverseFrequencies }
  const cache = createCache({ layers, kvHeads, headDim, rope, capacity, device, dtype })
  caches.push(cache)
  return cache
}

/** Appends random keys and values to a block, the same in all layers. Before the commit: `attend`. */
async function write(
  block: Block,
  k: Float32Array,
  v: Float32Array,
  attend?: (pass: ReturnType<Cache['beginPass']>) => Promise<void>,
): Promise<void> {
  const { layers, kvHeads, headDim } = block.cache.shape
  const tokens = k.length / (kvHeads * headDim)
  const pass = block.cache.beginPass([{ view: { blocks: [block] }, tokens }])
  for (let layer = 0; layer < layers; layer++) await pass.append(layer, k, v)
  await attend?.(pass)
  pass.commit()
}

/** What int8 makes of a row of f32. */
function quantised(row: Float32Array): Float32Array {
  const largest = row.reduce((most, x) => Math.max(most, Math.abs(x)), 0)
  if (!Number.isFinite(largest)) return new Float32Array(row.length).fill(Number.NaN)
  if (largest < 2 ** -100) return new Float32Array(row.length)
  const scale = Math.fround(largest / 127)
  return row.map((x) => scale * roundEven(Math.fround(x / scale)) + 0) // + 0: no -0
}

function roundEven(x: number): number {
  const below = Math.floor(x)
  if (x - below !== 0.5) return Math.round(x)
  return below % 2 === 0 ? below : below + 1
}

function rowsOf(values: Float32Array, headDim: number): Float32Array[] {
  const rows: Float32Array[] = []
  for (let at = 0; at < values.length; at += headDim) rows.push(values.subarray(at, at + headDim))
  return rows
}

describe('what is stored', () => {
  it.each([8, 24, 64, 128, 256])('int8, head_dim %i: the reference rounding', async (headDim) => {
    const random = new Random(headDim)
    const tokens = 70
    const k = random.floats(tokens * 2 * headDim, 3)
    const v = random.floats(tokens * 2 * headDim)
    // Ties, zeros, rows next to nothing, tiny and huge ones.
    v.set([127, 0.5, 1.5, 2.5, -0.5, -1.5, 126.5, -127], 0)
    v.fill(0, headDim, 2 * headDim)
    v.fill(1e-31, 2 * headDim, 3 * headDim)
    v.set(
      v.subarray(5 * headDim, 6 * headDim).map((x) => x * 1e-29),
      3 * headDim,
    )
    v.set(
      v.subarray(5 * headDim, 6 * headDim).map((x) => x * 1e37),
      4 * headDim,
    )
    const exact = openCache('f32', { headDim }).createBlock()
    const block = openCache('int8', { headDim }).createBlock()
    await write(exact, k, v)
    await write(block, k, v)
    const stored = block.read(0)
    const rotated = exact.read(0).k
    for (const [got, given, what] of [
      [stored.k, rotated, 'keys'],
      [stored.v, v, 'values'],
    ] as const) {
      const rows = rowsOf(got, headDim)
      rowsOf(given, headDim).forEach((row, i) => {
        expectSameBits(rows[i]!, quantised(row), `${what}, row ${i}`)
      })
    }
  })

  it('a row that is not finite is NaN, and no other is', async () => {
    const headDim = 16
    const v = new Random(3).floats(4 * 2 * headDim)
    v[headDim + 3] = Number.NaN
    v[3 * headDim + 15] = Number.NEGATIVE_INFINITY
    const block = openCache('int8', { headDim }).createBlock()
    await write(block, v, v)
    for (const values of [block.read(0).k, block.read(0).v]) {
      const finite = rowsOf(values, headDim).map((row) => row.every(Number.isFinite))
      expect(finite).toEqual([true, false, true, false, true, true, true, true])
      expect(rowsOf(values, headDim)[1]!.every(Number.isNaN)).toBe(true)
    }
  })

  const combinations = KV_DTYPES.flatMap((keys) => KV_DTYPES.map((values) => ({ keys, values })))

  it.each(combinations)('keys in $keys, values in $values, in bytes', async ({ keys, values }) => {
    const shape = { layers: 3, kvHeads: 2, headDim: 40 }
    const cache = openCache({ keys, values }, shape)
    expect(cache.shape.dtype).toEqual(keys === values ? keys : { keys, values })
    const bytes: Record<KvDtype, number> = { f32: 160, f16: 80, bf16: 80, int8: 44 }
    expect(kvRowBytes(keys, 40)).toBe(bytes[keys])
    expect(cache.stats.bytesPerPage).toBe(3 * 2 * PAGE * (bytes[keys] + bytes[values]))
    // Each part is what a cache of one dtype makes of it.
    const random = new Random(11)
    const [k, v] = [random.floats(90 * 80), random.floats(90 * 80)]
    const block = cache.createBlock()
    await write(block, k, v)
    const [likeKeys, likeValues] = [openCache(keys, shape), openCache(values, shape)]
    const [forKeys, forValues] = [likeKeys.createBlock(), likeValues.createBlock()]
    await write(forKeys, k, v)
    await write(forValues, k, v)
    for (let layer = 0; layer < 3; layer++) {
      expectSameBits(block.read(layer).k, forKeys.read(layer).k, 'keys')
      expectSameBits(block.read(layer).v, forValues.read(layer).v, 'values')
    }
  })
})

describe('block operations', () => {
  it.each([1, 2, 3, 4])('100 random ones leave every code and scale, seed %i', async (seed) => {
    const cache = openCache('int8', { layers: 2, capacity: 200 * PAGE })
    const random = new Random(seed)
    const { kvHeads, headDim, layers } = cache.shape
    const width = kvHeads * headDim
    /** Per token: what each layer had of it when it was written. */
    type Token = { k: Float32Array; v: Float32Array }[]
    const blocks: { block: Block; tokens: Token[] }[] = []
    const create = () => {
      blocks.push({ block: cache.createBlock(), tokens: [] })
      return blocks.at(-1)!
    }
    const grow = async ({ block, tokens }: (typeof blocks)[number]) => {
      const count = random.int(1, 90)
      await write(block, random.floats(count * width), random.floats(count * width))
      const stored = Array.from({ length: layers }, (_, layer) => block.read(layer))
      for (let i = block.length - count; i < block.length; i++) {
        const row = [i * width, (i + 1) * width] as const
        tokens.push(stored.map(({ k, v }) => ({ k: k.slice(...row), v: v.slice(...row) })))
      }
    }
    await grow(create())
    await grow(create())
    let left = 0
    let joined = 0
    for (let move = 0; move < 100; move++) {
      const one = random.pick(blocks)
      const other = random.pick(blocks)
      const at = random.int(0, one.tokens.length)
      const end = random.int(at, one.tokens.length)
      const operation = random.pick([
        'fork',
        'append',
        'insert',
        'forget',
        'truncate',
        'compact',
        'grow',
      ])
      if (operation === 'fork') {
        const tokens = [...one.tokens]
        blocks.push({ block: one.block.fork(), tokens })
      } else if (operation === 'append') {
        one.tokens.push(...[...other.tokens])
        one.block.appendFrom(other.block)
      } else if (operation === 'insert') {
        one.tokens.splice(at, 0, ...other.tokens)
        one.block.insert(at, other.block)
      } else if (operation === 'forget') {
        one.tokens.splice(at, Math.min(end - at, 40))
        one.block.forget(at, Math.min(end, at + 40))
      } else if (operation === 'truncate') {
        one.tokens.length = Math.max(at, one.tokens.length - 20)
        one.block.truncate(one.tokens.length)
      } else if (operation === 'grow') {
        await grow(one)
      } else {
        const before = one.block.segments
        const goesOn = before.filter(
          ({ rotatedAt }, i) =>
            i > 0 && before[i - 1]!.rotatedAt + before[i - 1]!.length === rotatedAt,
        )
        const result = await one.block.compact()
        expect(result.segmentsBefore).toBe(before.length)
        expect(result.segmentsAfter).toBe(before.length - goesOn.length)
        expect(one.block.segments).toHaveLength(result.segmentsAfter)
        joined += goesOn.length
        left += Math.max(0, result.segmentsAfter - 1)
      }
      for (const { block, tokens } of blocks) {
        expect(block.length).toBe(tokens.length)
        for (let layer = 0; layer < layers; layer++) {
          const { k, v } = block.read(layer)
          const written = (part: 'k' | 'v') => {
            const rows = new Float32Array(tokens.length * width)
            for (const [i, token] of tokens.entries()) rows.set(token[layer]![part], i * width)
            return rows
          }
          expectSameBits(k, written('k'), `${operation}, keys`)
          expectSameBits(v, written('v'), `${operation}, values`)
        }
      }
      while (blocks.length > 4 || blocks.some(({ tokens }) => tokens.length > 900)) {
        const longest = blocks.reduce((a, b) => (a.tokens.length > b.tokens.length ? a : b))
        longest.block.close()
        blocks.splice(blocks.indexOf(longest), 1)
        if (blocks.length === 0) await grow(create())
      }
    }
    process.stdout.write(`int8, seed ${seed}: compact joined ${joined} segments and left ${left}\n`)
  })

  it('compact joins what needs no turn, in place and by copies, and leaves the rest', async () => {
    const cache = openCache('int8')
    const random = new Random(5)
    const floats = (tokens: number) => random.floats(tokens * 48)
    const block = cache.createBlock()
    await write(block, floats(70), floats(70))
    const fork = block.fork()
    await write(fork, floats(40), floats(40)) // its rotation goes on, in pages of its own
    const source = cache.createBlock()
    await write(source, floats(100), floats(100))
    fork.appendFrom(source) // turned
    await write(fork, floats(10), floats(10)) // goes on in the block, and so in rotation: not behind `source`
    const before = fork.read(0)
    const segments = fork.segments.map(({ length, rotatedAt }) => [length, rotatedAt])
    expect(segments).toEqual([
      [70, 0],
      [40, 70],
      [100, 0],
      [10, 210],
    ])
    const result = await fork.compact()
    expect(result).toEqual({ segmentsBefore: 4, segmentsAfter: 3, tokensMoved: 46 })
    expect(fork.segments.map(({ length, rotatedAt }) => [length, rotatedAt])).toEqual([
      [110, 0],
      [100, 0],
      [10, 210],
    ])
    const after = fork.read(0)
    expectSameBits(after.k, before.k, 'keys')
    expectSameBits(after.v, before.v, 'values')
    expect(cache.stats.keyBytesMoved).toBe(46 * 2 * (24 + 4))
    expect(await fork.compact()).toEqual({ segmentsBefore: 3, segmentsAfter: 3, tokensMoved: 0 })
    await write(fork, floats(3), floats(3))
    expect(fork.length).toBe(223)
  })

  it('compact continues a page once, where several runs end with the same tokens', async () => {
    const cache = openCache('int8')
    const random = new Random(12)
    const floats = (tokens: number) => random.floats(tokens * 48)
    const block = cache.createBlock()
    await write(block, floats(70), floats(70))
    const [again, ...parts] = [block.fork(), block.fork(), block.fork()]
    for (const part of parts) {
      await write(part, floats(30), floats(30))
      part.forget(0, 70)
    }
    block.appendFrom(parts[0]!)
    block.appendFrom(again)
    block.appendFrom(parts[1]!)
    const [before, beforeAgain] = [block.read(0), again.read(0)]
    // Of the second run the six tokens on the page that the first one goes on in are copied as well.
    expect(await block.compact()).toEqual({ segmentsBefore: 4, segmentsAfter: 2, tokensMoved: 66 })
    const after = block.read(0)
    expectSameBits(after.k, before.k, 'keys')
    expectSameBits(after.v, before.v, 'values')
    expectSameBits(again.read(0).k, beforeAgain.k, 'keys of the fork')
  })

  it('compact turns keys of another dtype beside int8 values', async () => {
    const cache = openCache({ keys: 'bf16', values: 'int8' })
    const random = new Random(6)
    const [block, source] = [cache.createBlock(), cache.createBlock()]
    for (const each of [block, source]) await write(each, random.floats(3360), random.floats(3360))
    block.appendFrom(source)
    const before = block.read(0).v
    expect(await block.compact()).toMatchObject({ segmentsBefore: 2, segmentsAfter: 1 })
    expectSameBits(block.read(0).v, before, 'values')
  })
})

describe('attention', () => {
  /** Attention of one token at the end of `tokens` random ones: out and lse per dtype. */
  async function attended(dtype: CacheDtype, tokens: number, shape: Shape, seed: number) {
    const { headDim = 24, kvHeads = 2 } = shape
    const cache = openCache(dtype, shape)
    const random = new Random(seed)
    const block = cache.createBlock()
    const values: Float32Array[] = []
    const rows = tokens * kvHeads * headDim
    const [k, v] = [random.floats(rows), random.floats(rows)]
    const queryHeads = 3 * kvHeads
    const q = random.floats(tokens * queryHeads * headDim)
    await write(block, k, v, async (pass) => {
      const { out } = await pass.attend(0, q)
      values.push(out)
    })
    return { k: block.read(0).k, v: block.read(0).v, q, out: values[0]!, queryHeads }
  }

  it('on int8 is as near to that on f32 as rounded keys and values allow', async () => {
    const shape = { headDim: 128, kvHeads: 1, capacity: 600 }
    const tokens = 500
    const [headDim, scale] = [128, 1 / Math.sqrt(128)]
    const exact = await attended('f32', tokens, shape, 7)
    const int8 = await attended('int8', tokens, shape, 7)
    // A code is off by half a unit of its row's scale, a score by the sum of that times |q|: all weights change by at
    // most a factor e^(2 error), and a mean of values by that share of their spread.
    let squares = 0
    let total = 0
    const scales = (rows: Float32Array) =>
      rowsOf(rows, headDim).map((row) => row.reduce((a, x) => Math.max(a, Math.abs(x)), 0) / 127)
    const [keyScales, valueScales] = [scales(exact.k), scales(exact.v)]
    const largest = exact.v.reduce((a, x) => Math.max(a, Math.abs(x)), 0)
    const rounding = 1e-3 // of queries and weights, at most
    for (let token = 0; token < tokens; token++) {
      const most = Math.max(...keyScales.slice(0, token + 1))
      const valueError = Math.max(...valueScales.slice(0, token + 1)) / 2
      for (let head = 0; head < 3; head++) {
        const at = (token * 3 + head) * headDim
        const q = exact.q.subarray(at, at + headDim)
        // Rotation keeps the norm, and a sum of d terms is at most sqrt(d) times it.
        const norm = Math.hypot(...q) * Math.sqrt(headDim)
        const bound =
          Math.expm1(2 * scale * norm * (most / 2)) * 2 * largest + valueError + rounding
        for (let d = 0; d < headDim; d++) {
          const error = Math.abs(int8.out[at + d]! - exact.out[at + d]!)
          if (!(error <= bound)) throw new Error(`token ${token}, ${d}: ${error} > ${bound}`)
          squares += error ** 2
          total += exact.out[at + d]! ** 2
        }
      }
    }
    process.stdout.write(`int8 against f32: NMSE ${(squares / total).toExponential(1)}\n`)
    expect(squares / total).toBeLessThan(3e-4)
  })

  const dtypes: CacheDtype[] = [
    'int8',
    { keys: 'int8', values: 'f32' },
    { keys: 'bf16', values: 'int8' },
    { keys: 'int8', values: 'bf16' },
    { keys: 'f16', values: 'int8' },
  ]

  it.each(dtypes)('%j: a row that is NaN concerns those who see it', async (dtype) => {
    const run = async (poison: 'k' | 'v' | undefined) => {
      const cache = openCache(dtype, { headDim: 32 })
      const random = new Random(8)
      const [prompt, a, b] = [cache.createBlock(), cache.createBlock(), cache.createBlock()]
      await write(prompt, random.floats(80 * 64), random.floats(80 * 64))
      const [k, v] = [random.floats(3 * 64), random.floats(3 * 64)]
      if (poison === 'k') k[64 + 5] = Number.NaN // token 1, the first kv head
      if (poison === 'v') v[64 + 5] = Number.POSITIVE_INFINITY
      using pass = cache.beginPass([
        { view: { blocks: [prompt, a] }, tokens: 2 },
        { view: { blocks: [prompt, b] }, tokens: 1 },
      ])
      await pass.append(0, k, v)
      return (await pass.attend(0, random.floats(3 * 4 * 32))).out
    }
    const clean = await run(undefined)
    for (const poison of ['k', 'v'] as const) {
      const out = await run(poison)
      for (let row = 0; row < 3 * 4; row++) {
        const [got, expected] = [out, clean].map((all) => all.subarray(row * 32, (row + 1) * 32))
        const sees = row === 4 || row === 5
        if (sees) expect(got!.some((x) => !Number.isFinite(x))).toBe(true)
        else expectSameBits(got!, expected!, `row ${row}`)
      }
    }
  })

  it.each(dtypes)('%j: a step gives the same bits whoever shares it', async (dtype) => {
    const folder = writeModel({ seed: 9, layers: 2, headDim: 32, queryHeads: 4, kvHeads: 2 })
    await using model = await loadModel(folder, { device })
    const random = new Random(10)
    const [common, ...own] = [200, 70, 3, 40].map((length) => random.tokens(length, 17))
    const run = async (workers: number[]) => {
      const cache = model.createCache({ capacity: 1024, dtype })
      const prompt = cache.createBlock()
      await model.prefill(prompt, common!)
      const blocks = own.map(() => cache.createBlock())
      for (const [i, block] of blocks.entries()) await model.prefill(block, own[i]!)
      const outputs = await model.step(
        workers.map((worker) => ({
          view: { blocks: [prompt, blocks[worker]!] },
          tokens: [worker, 5],
          logits: 'all' as const,
        })),
      )
      return new Map(workers.map((worker, i) => [worker, outputs[i]!.logits as Float32Array]))
    }
    const together = await run([0, 1, 2])
    for (const workers of [[0], [1], [2], [2, 0]]) {
      for (const [worker, logits] of await run(workers)) {
        expectSameBits(logits, together.get(worker)!, `worker ${worker} of ${workers}`)
      }
    }
  })
})

it('refuses other dtypes by name', async () => {
  const open = (dtype: unknown) => openCache(dtype as CacheDtype)
  const messages = await Promise.all(
    ['fp8', 8, null, { keys: 'int8' }, { keys: 'int4', values: 'f16' }, { k: 'f16' }].map(
      async (dtype) => {
        expect(await codeOf(() => open(dtype))).toBe('HOGWILD_INVALID_ARGUMENT')
        try {
          open(dtype)
        } catch (error) {
          return (error as Error).message
        }
        return ''
      },
    ),
  )
  expect(messages[0]).toContain("'f32', 'f16', 'bf16', 'int8', or { keys, values }")
  expect(messages[3]).toContain('options.dtype.values')
  expect(messages[4]).toContain('options.dtype.keys')
  expect(kvDtypes('int8')).toEqual({ keys: 'int8', values: 'int8' })
})

// Quantised weights on the CPU: decoding and panels against gguf-py, products against float64 at every SIMD level.

import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { FORMATS, type Format, isQuantised } from '../lib/formats'
import { type NativeTensor, native, type SimdLevel } from '../lib/native'
import { difference, encode, expectSameBits, Random } from './fixtures'

const { cacheShape, randomModel, stepWorker } = require('./lifetime/random-model.cjs')

interface Fixture {
  cols: number
  /** Where a block has its f16 numbers. */
  halves: number[]
  /** Where it has f32 ones. */
  floats: number[]
  blocks: string
  /** What gguf-py, or their definition, makes of them, f32. */
  values: string
}

const fixtures: Record<string, Fixture> = JSON.parse(
  readFileSync(join(__dirname, 'fixtures', 'quant.json'), 'utf8'),
)
const formats = (Object.keys(FORMATS) as Format[]).filter(isQuantised)
const levels = native.probe().simd

function cpu(simd: SimdLevel | '', threads = 2) {
  return native.createDevice({ type: 'cpu', index: 0, threads, simd, profile: false })
}

/** Rows of random blocks, with scales such that weights are of size 1 or so. */
function randomRows(random: Random, format: Format, rows: number, cols: number): Uint8Array {
  const { elements, bytes } = FORMATS[format]
  const count = (rows * cols) / elements
  const blocks = Uint8Array.from(random.tokens(count * bytes, 256))
  const { halves, floats } = fixtures[format]!
  // Codes with two levels of scales reach to a thousand and more.
  const size = elements === 256 ? 0.001 : 0.02
  const scale = () => size * (0.5 + random.next()) * (random.chance(0.5) ? 1 : -1)
  for (let block = 0; block < count; block++) {
    const begin = block * bytes
    for (const at of halves) blocks.set(encode([scale()], 'f16'), begin + at)
    for (const at of floats) blocks.set(encode([scale()], 'f32'), begin + at)
    if (format === 'mxfp4') blocks[begin] = random.int(123, 128)
    if (format.startsWith('int4')) blocks[begin + 4] = random.int(0, 15)
  }
  return blocks
}

/** The weights in f32, which is exact. */
function dequantised(blocks: Uint8Array, format: Format, cols: number): Float32Array {
  const rows = (blocks.length / FORMATS[format].bytes) * (FORMATS[format].elements / cols)
  const all = Int32Array.from({ length: rows }, (_, row) => row)
  return native.ops.embedding(reader, all, blocks, format, cols, 1)
}

const reader = cpu('baseline', 1)
afterAll(() => native.deviceClose(reader))

it('every quantised format has a fixture', () => {
  expect(Object.keys(fixtures).sort()).toEqual([...formats].sort())
})

it.each(formats)('%s: rows of a table are those of the fixture', (format) => {
  const { cols, blocks, values } = fixtures[format]!
  const actual = dequantised(Buffer.from(blocks, 'base64'), format, cols)
  const expected = new Float32Array(Uint8Array.from(Buffer.from(values, 'base64')).buffer)
  expect(actual.length).toBe(expected.length)
  // All NaNs are alike; everything else, the sign of 0 included, is the same number.
  actual.forEach((value, i) => {
    if (!Object.is(value, expected[i])) throw new Error(`${i}: ${value}, not ${expected[i]}`)
  })
  expect(actual.some(Number.isFinite)).toBe(true)
})

/** A product, computed once for all levels. */
interface Product {
  k: number
  n: number
  x: Float32Array
  weight: { data: Uint8Array; format: Format; bias: Float32Array }
  /** [rows, n] in float64, and how far rounding x to 15 bits and adding up in f32 may lead from it. */
  expected: Float64Array
  bounds: Float64Array
}

const ROWS = 17
const products = new Map<Format, Product[]>()

/** One group, sizes of real models, outputs that do not fill panels. */
function productsOf(format: Format): Product[] {
  const known = products.get(format)
  if (known !== undefined) return known
  const random = new Random(1)
  const { elements } = FORMATS[format]
  const lengths = elements > 32 ? [elements, 3 * elements, 1536] : [32, 96, 576, 1536]
  const made = lengths.map((k, i) => product(random, format, k, [5, 16, 70, 33][i]!))
  products.set(format, made)
  return made
}

function product(random: Random, format: Format, k: number, n: number): Product {
  const data = randomRows(random, format, n, k)
  const weights = dequantised(data, format, k)
  const bias = random.floats(n)
  const x = random.floats(ROWS * k)
  const expected = new Float64Array(ROWS * n)
  const bounds = new Float64Array(ROWS * n)
  for (let row = 0; row < ROWS; row++) {
    x[row * k + 7] = 40 // far larger than its neighbours
    x.fill(0, row * k + k - 32, row * k + k - 1)
    const values = x.subarray(row * k, (row + 1) * k)
    const units = unitsOf(values)
    for (let output = 0; output < n; output++) {
      let sum = bias[output]!
      let sizes = Math.abs(sum)
      let rounding = 0
      for (let i = 0; i < k; i++) {
        const weight = weights[output * k + i]!
        sum += weight * values[i]!
        sizes += Math.abs(weight * values[i]!)
        rounding += Math.abs(weight) * units[i >> 5]!
      }
      expected[row * n + output] = sum
      bounds[row * n + output] = 0.5 * rounding + 2 ** -20 * sizes
    }
  }
  return { k, n, x, weight: { data, format, bias }, expected, bounds }
}

/** What one unit of the 15-bit integers is worth, for each 32 columns. */
function unitsOf(row: Float32Array): number[] {
  return Array.from({ length: row.length / 32 }, (_, group) => {
    const columns = row.subarray(32 * group, 32 * group + 32)
    return columns.reduce((most, value) => Math.max(most, Math.abs(value)), 0) / 16319
  })
}

describe.each(levels)('%s', (simd) => {
  const threadCounts = [1, 3]
  const devices = threadCounts.map((threads) => cpu(simd, threads))
  afterAll(() => {
    for (const device of devices) native.deviceClose(device)
  })

  it.each(formats)('%s: products are those of float64', (format) => {
    for (const { k, n, x, weight, expected, bounds } of productsOf(format)) {
      for (const rows of [1, 2, 3, 4, ROWS]) {
        const [out] = native.ops.matmul(devices[0]!, x.slice(0, rows * k), rows, [weight])
        out!.forEach((value, i) => {
          if (Math.abs(value - expected[i]!) <= bounds[i]!) return
          throw new Error(`k ${k}, n ${n}, ${rows} rows, output ${i}: ${value}, not ${expected[i]}`)
        })
      }
      const [out] = native.ops.matmul(devices[1]!, x, ROWS, [weight])
      expect(difference(Float64Array.from(out!), expected).nmse).toBeLessThan(3e-8)
    }
  })

  it.each(formats)('%s: other rows, threads and matrices change no bit of a row', (format) => {
    const random = new Random(3)
    const [k, n] = [768, 150]
    const weights = [
      { data: randomRows(random, format, n, k), format, bias: null },
      { data: encode(random.normals(20 * k), 'bf16'), format: 'bf16' as const, bias: null },
      { data: randomRows(random, 'q6_k', 40, k), format: 'q6_k' as const, bias: random.floats(40) },
    ]
    const rows = 17
    const x = random.floats(rows * k)
    const alone = weights.map((weight) =>
      Array.from({ length: rows }, (_, row) => {
        const [out] = native.ops.matmul(devices[0]!, x.slice(row * k, (row + 1) * k), 1, [weight])
        return out!
      }),
    )
    for (const device of devices) {
      for (let count = 1; count <= rows; count++) {
        const first = random.int(0, rows - count)
        const outs = native.ops.matmul(
          device,
          x.slice(first * k, (first + count) * k),
          count,
          weights,
        )
        outs.forEach((out, i) => {
          const columns = out.length / count
          for (let row = 0; row < count; row++) {
            const part = out.slice(row * columns, (row + 1) * columns)
            expectSameBits(
              part,
              alone[i]![first + row]!,
              `row ${first + row} of ${count}, output ${i}`,
            )
          }
        })
      }
    }
  })

  it.each(formats)('%s: a row that is not finite stays alone', (format) => {
    const random = new Random(4)
    const [k, n, rows] = [256, 20, 6]
    const weights = [{ data: randomRows(random, format, n, k), format, bias: null }]
    const x = random.floats(rows * k)
    const before = native.ops.matmul(devices[0]!, x, rows, weights)[0]!
    x[1 * k + 40] = Number.NaN
    x[4 * k + 200] = Number.POSITIVE_INFINITY
    const after = native.ops.matmul(devices[0]!, x, rows, weights)[0]!
    for (let row = 0; row < rows; row++) {
      const part = after.slice(row * n, (row + 1) * n)
      if (row === 1 || row === 4) expect([...part].every(Number.isNaN)).toBe(true)
      else expectSameBits(part, before.slice(row * n, (row + 1) * n), `row ${row}`)
    }
  })
})

it.each(formats)('%s: all levels with fused multiply-add give the same bits', (format) => {
  const random = new Random(5)
  const [k, n, rows] = [1536, 48, 7]
  const weights = [{ data: randomRows(random, format, n, k), format, bias: random.floats(n) }]
  const x = random.floats(rows * k)
  const results = levels
    .filter((level) => level !== 'baseline')
    .map((level) => {
      const device = cpu(level)
      const [out] = native.ops.matmul(device, x, rows, weights)
      native.deviceClose(device)
      return { level, out: out! }
    })
  for (const { level, out } of results.slice(1)) {
    expectSameBits(out, results[0]!.out, `${level} and ${results[0]!.level}`)
  }
})

describe('a model with quantised matrices', () => {
  const { config, tensors, remove } = randomModel({ vocabSize: 70 })
  const folder = mkdtempSync(join(tmpdir(), 'hogwild-quant-'))
  const device = cpu('')
  afterAll(() => {
    remove()
    native.deviceClose(device)
    rmSync(folder, { recursive: true, force: true })
  })
  const stored = readFileSync(tensors[0].path)

  /** The random model with its matrices in Q8_0; `change` may alter the bytes of one before they are written. */
  function quantised(
    change: (tensor: NativeTensor, bytes: Uint8Array) => void = () => {},
  ): NativeTensor[] {
    const path = join(folder, `${Math.random()}.bin`)
    const chunks: Uint8Array[] = []
    let offset = 0
    const all = tensors.map((tensor: NativeTensor) => {
      const { rows, cols, offset: from } = tensor
      const values = new Float32Array(
        Uint8Array.from(stored.subarray(from, from + 4 * rows * cols)).buffer,
      )
      const bytes = rows === 1 ? new Uint8Array(values.buffer) : toQ8(values)
      const at: NativeTensor = { ...tensor, path, offset, format: rows === 1 ? 'f32' : 'q8_0' }
      change(at, bytes)
      chunks.push(bytes)
      offset += bytes.length
      return at
    })
    writeFileSync(path, Buffer.concat(chunks))
    return all
  }

  async function logits(
    from: NativeTensor[],
    {
      convertTo = null,
      mapped = true,
      repack = true,
    }: { convertTo?: 'f32' | null; mapped?: boolean; repack?: boolean } = {},
  ): Promise<Float32Array> {
    const model = await native.createModel(
      device,
      config,
      from,
      convertTo,
      null,
      null,
      mapped,
      repack,
    )
    const cache = native.createCache(device, cacheShape(config, 64))
    const block = native.createBlock(cache)
    const worker = { ...stepWorker([block], [1, 2, 3, 4, 5]), logits: 'all' as const }
    const { extras } = await native.step(model, cache, [worker], null)
    native.modelClose(model)
    native.cacheClose(cache)
    return extras[0]!.logits!
  }

  it('is the model of its dequantised weights, repacked or not, mapped or not', async () => {
    const from = quantised()
    const repacked = await logits(from)
    expectSameBits(await logits(from, { repack: false }), repacked, 'as the file has them')
    expectSameBits(await logits(from, { mapped: false }), repacked, 'read into memory')
    expectSameBits(await logits(from, { mapped: false, repack: false }), repacked, 'neither')
    const exact = await logits(from, { convertTo: 'f32' })
    const { nmse } = difference(Float64Array.from(repacked), Float64Array.from(exact))
    expect(nmse).toBeLessThan(1e-6)
    expect(nmse).toBeGreaterThan(0) // they were not converted
  })

  it('interleaved heads', async () => {
    const { headDim } = config
    const inOrder = quantised()
    const interleaved = quantised((tensor, bytes) => {
      if (!/[qk]_proj/.test(tensor.name)) return
      tensor.interleaved = { headDim, rotaryDim: headDim }
      const size = bytes.length / tensor.rows
      const before = bytes.slice()
      for (let row = 0; row < tensor.rows; row++) {
        const inHead = row % headDim
        const to = row - inHead + (inHead % (headDim / 2)) * 2 + (inHead < headDim / 2 ? 0 : 1)
        bytes.set(before.subarray(row * size, (row + 1) * size), to * size)
      }
    })
    const expected = await logits(inOrder)
    for (const repack of [true, false]) {
      expectSameBits(await logits(interleaved, { repack }), expected, `repack: ${repack}`)
    }
  })

  it('names a matrix with scales that are not numbers', async () => {
    const damaged = quantised((tensor, bytes) => {
      if (tensor.name === 'layers.1.up_proj') bytes.set([0x00, 0x7e], 34 * 5)
    })
    for (const repack of [true, false]) {
      await expect(logits(damaged, { repack })).rejects.toMatchObject({
        code: 'HOGWILD_INVALID_MODEL',
        message: expect.stringContaining("'layers.1.up_proj'"),
      })
    }
  })

  it('refuses parts of blocks, and tensors that end behind their file', async () => {
    const from = quantised()
    const last = from.findIndex(({ name }) => name.endsWith('1.down_proj'))
    for (const change of [{ cols: 48 }, { rows: 1 << 20 }, { format: 'q4_k' as const }]) {
      const wrong = from.map((tensor, i) => (i === last ? { ...tensor, ...change } : tensor))
      await expect(logits(wrong)).rejects.toMatchObject({
        code: 'HOGWILD_INVALID_MODEL',
        message: expect.stringContaining("'layers.1.down_proj'"),
      })
    }
  })
})

/** Blocks of 32 columns: the largest value is 127 steps. */
function toQ8(values: Float32Array): Uint8Array {
  const bytes = new Uint8Array((values.length / 32) * 34)
  for (let block = 0; block * 32 < values.length; block++) {
    const part = values.subarray(block * 32, block * 32 + 32)
    const largest = part.reduce((most, value) => Math.max(most, Math.abs(value)), 0)
    bytes.set(encode([largest / 127], 'f16'), block * 34)
    bytes.set(
      Int8Array.from(part, (value) => Math.round((value / largest) * 127)),
      block * 34 + 2,
    )
  }
  return bytes
}

// Single ops of the CPU device against float64 loops, at every SIMD level that this machine has.

import { type Dtype, native, type SimdLevel } from '../lib/native'
import {
  decode,
  difference,
  encode,
  expectClose,
  expectSameBits,
  Random,
  rounded,
  roundsActivations,
  rowsOf,
} from './fixtures'
import { geluTanh, linear, rmsNorm, silu } from './reference'

const known: SimdLevel[] = [
  'baseline',
  'avx2',
  'avxvnni',
  'avx512',
  'avx512vnni',
  'avx512bf16',
  'amx',
  'neon',
  'neondot',
]
const levels = native.probe().simd
const dtypes: Dtype[] = ['f32', 'f16', 'bf16']
const threadCounts = [1, 2, 3]
// Below, at and above vector widths, tiles and unrolled loops; 204 and 99 are multiples of none.
const sizes = [1, 7, 8, 19, 64, 99, 204]
// Half a unit in the last place of a number near 1.
const half = 2 ** -24

it('names the levels that were tested', () => {
  const skipped = known.filter((level) => !levels.includes(level))
  process.stdout.write(`SIMD levels tested: ${levels.join(', ')}; skipped: ${skipped.join(', ')}\n`)
  expect(levels).toContain(process.arch === 'arm64' ? 'neon' : 'baseline')
})

describe.each(levels)('%s', (simd) => {
  const devices = threadCounts.map((threads) =>
    native.createDevice({ type: 'cpu', index: 0, threads, simd, profile: false }),
  )
  const [device] = devices
  afterAll(() => {
    for (const each of devices) native.deviceClose(each)
  })

  it.each(dtypes)('embedding, %s', (dtype) => {
    const random = new Random(1)
    for (const cols of sizes) {
      const rows = 13
      const table = encode(random.normals(rows * cols), dtype)
      const tokens = Int32Array.from([0, rows - 1, 5, 5, ...random.tokens(9, rows)])
      const values = rowsOf(decode(table, dtype), cols)
      for (const scale of [1, Math.fround(Math.sqrt(cols))]) {
        const out = native.ops.embedding(device!, tokens, table, dtype, cols, scale)
        // One product, rounded once.
        const expected = [...tokens].flatMap((id) => [...values[id]!].map((x) => x * scale))
        expectSameBits(out, expected, `${cols} columns, scale ${scale}`)
      }
    }
  })

  it('RMSNorm', () => {
    const random = new Random(2)
    for (const cols of [...sizes, 576, 4096]) {
      for (const rows of [1, 3]) {
        for (const magnitude of [1, 1e-4, 1e4]) {
          const x = random.floats(rows * cols, magnitude)
          const weight = random.floats(cols)
          const eps = 1e-5
          const out = native.ops.rmsNorm(device!, x, weight, eps)
          const expected = rmsNorm(Float64Array.from(x), Float64Array.from(weight), eps)
          // The sum of squares is off by at most cols roundings, in practice by few; then four more.
          const tolerance = (8 + Math.sqrt(cols)) * half * Math.max(...expected.map(Math.abs))
          expectClose(out, expected, tolerance, `[${rows}, ${cols}] of size ${magnitude}`)
        }
      }
    }
  })

  it.each(dtypes)('matmul, %s weights', (dtype) => {
    const random = new Random(3)
    let worst = 0
    let worstNmse = 0
    for (const k of [...sizes, 1000]) {
      const columns = random.shuffle([...sizes, 130]).slice(0, random.int(1, 3))
      const weights = columns.map((n) => {
        const data = encode(random.normals(n * k), dtype)
        return { data, format: dtype, bias: random.chance(0.5) ? random.floats(n) : null }
      })
      for (const rows of [1, 3, 4, 9, 17, 35]) {
        const x = random.floats(rows * k)
        const out = native.ops.matmul(device!, x, rows, weights)
        // x in bf16 is part of what these levels compute.
        const factors = roundsActivations(simd) && dtype === 'bf16' ? rounded(x, 'bf16') : x
        weights.forEach(({ data, bias }, i) => {
          const weight = decode(data, dtype)
          const sizesOf = weight.map(Math.abs)
          const n = weight.length / k
          const offset = bias ? Float64Array.from(bias) : undefined
          const actual = rowsOf(Float64Array.from(out[i]!), n)
          rowsOf(Float64Array.from(factors), k).forEach((row, r) => {
            const expected = linear(weight, row, offset)
            // Weights are exact in f32, so all that is lost is lost in adding up k products, in any
            // order: at most (k + 1) half units of the sum of their sizes (Higham, section 3.1).
            const bound = linear(sizesOf, row.map(Math.abs), offset?.map(Math.abs))
            expected.forEach((value, column) => {
              const error = Math.abs(actual[r]![column]! - value)
              if (!(error <= (k + 1) * half * bound[column]!)) {
                const place = `[${rows}, ${k}] x [${n}, ${k}], output ${i}, row ${r}, column ${column}`
                throw new Error(`${place}: ${actual[r]![column]}, not ${value}`)
              }
              worst = Math.max(worst, error / bound[column]! / half)
            })
            // A single product may vanish by chance; rows of some length do not.
            if (n > 1) worstNmse = Math.max(worstNmse, difference(actual[r]!, expected).nmse)
          })
        })
      }
    }
    process.stdout.write(
      `${simd} ${dtype}: worst matmul error ${worst.toFixed(1)} half units of the sum of sizes, ` +
        `NMSE ${worstNmse.toExponential(1)}\n`,
    )
    expect(worstNmse).toBeLessThan(1e-11)
  })

  it.each(dtypes)('matmul, %s: other rows and threads change no bit of a row', (dtype) => {
    const random = new Random(4)
    for (const k of [8, 19, 99, 576]) {
      for (const n of [1, 19, 64, 204]) {
        const weights = [{ data: encode(random.normals(n * k), dtype), format: dtype, bias: null }]
        const rows = 21
        const x = random.floats(rows * k)
        const alone = Array.from({ length: rows }, (_, row) => {
          const [out] = native.ops.matmul(device!, x.slice(row * k, (row + 1) * k), 1, weights)
          return out!
        })
        devices.forEach((other, i) => {
          for (const count of [1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 21]) {
            const first = random.int(0, rows - count)
            const part = x.slice(first * k, (first + count) * k)
            const [out] = native.ops.matmul(other, part, count, weights)
            for (let row = 0; row < count; row++) {
              const what = `row ${first + row} of ${count}, k ${k}, n ${n}, ${threadCounts[i]} threads`
              expectSameBits(out!.slice(row * n, (row + 1) * n), alone[first + row]!, what)
            }
          }
        })
      }
    }
  })

  it('matmul: a column does not depend on the matrices beside it', () => {
    const random = new Random(5)
    const k = 64
    const x = random.floats(3 * k)
    const weights = dtypes.map((dtype, i) => ({
      data: encode(random.normals([40, 19, 99][i]! * k), dtype),
      format: dtype,
      bias: null,
    }))
    const together = native.ops.matmul(device!, x, 3, weights)
    weights.forEach((weight, i) => {
      const [alone] = native.ops.matmul(device!, x, 3, [weight])
      expectSameBits(together[i]!, alone!, `output ${i}`)
    })
  })

  it.each(['silu', 'gelu_tanh'] as const)('gated activation, %s', (activation) => {
    const random = new Random(6)
    const exact = activation === 'silu' ? silu : geluTanh
    // exp overflows f32 from 88.8 on; at -104 it is below the least subnormal number.
    const edges = [0, -0, 1e-30, 20, -20, 87, -87, 88.8, -88.8, 104, -104, 1e4, -1e4, 3e38, -3e38]
    for (const n of [...sizes, edges.length]) {
      const gate =
        n === edges.length ? Float32Array.from(edges) : random.floats(n, random.pick([1, 5, 30]))
      const up = n === edges.length ? new Float32Array(n).fill(1) : random.floats(n)
      const out = native.ops.gatedActivation(device!, gate, up, activation)
      gate.forEach((g, i) => {
        const expected = exact(g) * up[i]!
        // e^x is good to a few units of its argument's last place: |x| / 2^24 relative. GELU's
        // 1 + tanh may lose what cancels, half a unit of 1, until both are 0.
        const relative = (16 + Math.min(Math.abs(g), 104)) * half * Math.abs(expected)
        const cancelled =
          activation === 'silu' ? 0 : 4 * half * Math.min(Math.abs(g), 10) * Math.abs(up[i]!)
        const tolerance = relative + cancelled + 1e-30
        if (!(Math.abs(out[i]! - expected) <= tolerance)) {
          throw new Error(`${activation}(${g}) * ${up[i]} is ${out[i]}, not ${expected}`)
        }
      })
    }
  })
})

it('rounds to f16 and bf16 as IEEE 754 says', () => {
  // The fixtures' own conversion, which all the above builds on.
  const cases: [Dtype, number, number][] = [
    ['f16', 65504, 65504],
    ['f16', 65519, 65504],
    ['f16', 1 + 2 ** -11, 1],
    ['f16', 1 + 3 * 2 ** -11, 1 + 2 ** -9],
    ['f16', 2047.5, 2048],
    ['f16', 2 ** -24, 2 ** -24],
    ['f16', -(2 ** -25), -0],
    ['f16', 0.1, 0.0999755859375],
    ['bf16', 1 + 2 ** -8, 1],
    ['bf16', 1 + 3 * 2 ** -8, 1 + 2 ** -6],
    ['bf16', -0.1, -0.10009765625],
  ]
  for (const [dtype, value, expected] of cases) {
    expect([dtype, value, rounded([value], dtype)[0]]).toEqual([dtype, value, expected])
  }
})

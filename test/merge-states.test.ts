// mergeStates: partial results of attention joined, against the definition in float64 and against attention
// over all keys at once.

import {
  type AttentionState,
  createCache,
  createDevice,
  mergeStates,
  ropeFrequencies,
} from '../lib'
import { codeOf, expectClose, expectSameBits, Random } from './fixtures'

const { exp, log } = Math

function randomState(random: Random, rows: number, width: number): AttentionState {
  return { out: random.floats(rows * width), lse: random.floats(rows, 5) }
}

/** By the definition, on scales that exp can take. */
function merged(a: AttentionState, b: AttentionState): { out: number[]; lse: number[] } {
  const width = a.out.length / a.lse.length
  const sums = Array.from(a.lse, (lse, i) => exp(lse) + exp(b.lse[i]!))
  return {
    out: Array.from(a.out, (x, i) => {
      const row = Math.floor(i / width)
      return (exp(a.lse[row]!) * x + exp(b.lse[row]!) * b.out[i]!) / sums[row]!
    }),
    lse: sums.map(log),
  }
}

it.each([
  [1, 1],
  [3, 5],
  [14, 64],
])('is the definition: %i rows of %i', (rows, width) => {
  const random = new Random(rows)
  const a = randomState(random, rows, width)
  const b = randomState(random, rows, width)
  const kept = structuredClone([a, b])
  const { out, lse } = mergeStates(a, b)
  const exact = merged(a, b)
  expectClose(out, exact.out, 1e-6, 'out')
  expectClose(lse, exact.lse, 1e-6, 'lse')
  expect([a, b]).toEqual(kept)
  const turned = mergeStates(b, a)
  expectSameBits(turned.out, out, 'turned')
  expectSameBits(turned.lse, lse, 'turned lse')
})

it('takes scores of any size', () => {
  const state = (out: number, lse: number) => ({
    out: Float32Array.of(out),
    lse: Float32Array.of(lse),
  })
  expect(mergeStates(state(1, 1e38), state(3, 1e38))).toEqual(state(2, 1e38))
  expect(mergeStates(state(1, -1e38), state(3, 1e38))).toEqual(state(3, 1e38))
  expect(mergeStates(state(1, -900), state(3, -900)).lse[0]).toBeCloseTo(-900 + log(2), 3)
})

it('takes nothing of a part that saw nothing', () => {
  const nothing = (): AttentionState => ({
    out: Float32Array.of(Number.NaN, Number.POSITIVE_INFINITY),
    lse: Float32Array.of(-Infinity),
  })
  const some = { out: Float32Array.of(0.1, -0.2), lse: Float32Array.of(0.3) }
  expect(mergeStates(nothing(), some)).toEqual(some)
  expect(mergeStates(some, nothing())).toEqual(some)
  expect(mergeStates(nothing(), nothing())).toEqual({
    out: new Float32Array(2),
    lse: Float32Array.of(-Infinity),
  })
})

it('writes into arrays of the caller, which may be its arguments', () => {
  const random = new Random(3)
  const [a, b] = [randomState(random, 4, 8), randomState(random, 4, 8)]
  const expected = mergeStates(a, b)
  for (const into of [randomState(random, 4, 8), a]) {
    const copy = structuredClone(b)
    const result = mergeStates(a, copy, into)
    expect(result.out).toBe(into.out)
    expect(result.lse).toBe(into.lse)
    expect(result).toEqual(expected)
    expect(copy).toEqual(b)
  }
})

it('refuses other sizes and types and writes nothing', async () => {
  const random = new Random(4)
  const a = randomState(random, 3, 4)
  const into = { out: new Float32Array(12).fill(7), lse: new Float32Array(3).fill(7) }
  const lse = (x: number) => ({ out: a.out, lse: Float32Array.of(0, x, 0) })
  const wrong: unknown[][] = [
    [a, randomState(random, 3, 5), into],
    [a, randomState(random, 6, 2), into],
    [a, a, randomState(random, 3, 5)],
    [{ out: a.out.subarray(1), lse: a.lse }, a, into],
    [{ out: a.out, lse: new Float32Array(0) }, a, into],
    [{ out: new Float32Array(0), lse: a.lse }, a, into],
    [{ out: Float64Array.from(a.out), lse: a.lse }, a, into],
    [{ out: a.out, lse: undefined }, a, into],
    [{ ...a, sinks: 1 }, a, into],
    [undefined, a, into],
    [lse(Number.NaN), a, into],
    [a, lse(Number.POSITIVE_INFINITY), into],
  ]
  for (const call of wrong) {
    expect(await codeOf(() => (mergeStates as (...args: unknown[]) => unknown)(...call))).toBe(
      'HOGWILD_INVALID_ARGUMENT',
    )
  }
  expect(() => mergeStates(a, lse(Number.NaN))).toThrow('b.lse[1]')
  expect([...into.out, ...into.lse]).toEqual(Array(15).fill(7))
})

it('joins attention over parts of a view, in any order, a sink in one of them', async () => {
  using device = createDevice({ type: 'cpu', threads: 1 })
  const rope = ropeFrequencies({ type: 'default', theta: 100, rotaryDim: 16 })
  await using cache = createCache({
    device,
    rope,
    layers: 1,
    kvHeads: 2,
    headDim: 16,
    capacity: 1024,
  })
  const random = new Random(5)
  const blocks = [cache.createBlock(), cache.createBlock(), cache.createBlock()]
  for (const block of blocks) {
    const pass = cache.beginPass([{ view: { blocks: [block] }, tokens: 70 }])
    await pass.append(0, random.floats(70 * 32), random.floats(70 * 32))
    pass.commit()
  }
  const [k, v, q] = [random.floats(2 * 32), random.floats(2 * 32), random.floats(2 * 4 * 16)]
  const sinks = random.floats(4)
  const attend = async (shown: boolean[], withSinks: boolean) => {
    using pass = cache.beginPass([
      {
        view: { blocks: blocks.map((block, i) => ({ block, bias: shown[i] ? 0 : -Infinity })) },
        tokens: 2,
      },
    ])
    await pass.append(0, k, v)
    return pass.attend(0, q, { lse: true, softcap: 2, ...(withSinks && { sinks }) })
  }
  const whole = await attend([true, true, true], true)
  const parts = [
    await attend([true, false, false], false),
    await attend([false, true, false], true),
    await attend([false, false, true], false),
    await attend([false, false, false], false),
  ]
  for (let round = 0; round < 6; round++) {
    const joined = random.shuffle(parts).reduce((a, b) => mergeStates(a, b))
    expectClose(joined.out, whole.out, 2e-6, 'out')
    expectClose(joined.lse, whole.lse, 2e-6, 'lse')
  }
})

// examples/makespan.mjs: the exact order against the heuristic, all places tried out, and instances whose optimum is known.

import { loadExample } from './examples'
import { Random } from './fixtures'

type Ticks = number[][]
const { ticksOf, spans, longestFirst, exact, queues } = loadExample<{
  ticksOf: (groups: Record<string, number>, devices: Record<string, number>) => Ticks
  spans: (ticks: Ticks, places: number[]) => number[]
  longestFirst: (ticks: Ticks) => number[]
  exact: (ticks: Ticks) => Promise<number[]>
  queues: (groups: object, devices: object, places: number[]) => Record<string, string[]>
}>('makespan.mjs')

beforeEach(() => {
  jest.spyOn(console, 'info').mockImplementation(() => {}) // clingo-wasm tells that it begins
})
afterEach(() => jest.restoreAllMocks())

/** Of groups that take as long on each of so many devices. */
const alike = (times: number[], devices: number): Ticks =>
  times.map((time) => new Array(devices).fill(time))

const named = (values: number[]) => Object.fromEntries(values.map((value, i) => [`${i}`, value]))

/** Negative: `one` is less. */
function compare(one: number[], other: number[]): number {
  const at = one.findIndex((span, i) => span !== other[i])
  return at < 0 ? 0 : one[at]! - other[at]!
}

/** The least spans of all places. */
function tried(ticks: Ticks, places: number[] = []): number[] {
  if (places.length === ticks.length) return spans(ticks, places)
  const all = ticks[0]!.map((_, device) => tried(ticks, [...places, device]))
  return all.reduce((best, one) => (compare(one, best) < 0 ? one : best))
}

test.each<[string, number[], number, number[], number[]]>([
  ['two devices', [3, 3, 2, 2, 2], 2, [7, 5], [6, 6]],
  // Graham's worst case of three devices: (4 m - 1) / 3 m.
  ['longest first at its worst', [5, 5, 4, 4, 3, 3, 3], 3, [11, 8, 8], [9, 9, 9]],
  // The longest group alone decides the makespan; what comes behind it is made even too.
  ['behind the makespan', [10, 4, 4, 3, 3, 2], 3, [10, 9, 7], [10, 8, 8]],
  ['more devices than groups', [4, 2], 4, [4, 2, 0, 0], [4, 2, 0, 0]],
])('%s', async (_, times, devices, byHeuristic, optimum) => {
  const ticks = alike(times, devices)
  expect(spans(ticks, longestFirst(ticks))).toEqual(byHeuristic)
  expect(spans(ticks, await exact(ticks))).toEqual(optimum)
})

test('the exact order is never worse, and the best of all', async () => {
  const random = new Random(1)
  let better = 0
  for (let round = 0; round < 30; round++) {
    const groups = Array.from({ length: random.int(1, 7) }, () => random.int(1, 40))
    const speeds = Array.from({ length: random.int(1, 3) }, () => random.int(1, 4))
    const ticks = ticksOf(named(groups), named(speeds))
    const found = spans(ticks, await exact(ticks))
    const difference = compare(found, spans(ticks, longestFirst(ticks)))
    expect(difference).toBeLessThanOrEqual(0)
    if (difference < 0) better++
    expect(found).toEqual(tried(ticks))
  }
  expect(better).toBeGreaterThan(0)
})

test('groups of a device, the shortest first', async () => {
  const groups = { long: 90, short: 10, middle: 40 }
  const devices = { fast: 10, slow: 5 }
  const ticks = ticksOf(groups, devices)
  expect(ticks).toEqual([
    [9, 18],
    [1, 2],
    [4, 8],
  ])
  const places = await exact(ticks)
  expect(queues(groups, devices, places)).toEqual({ fast: ['short', 'long'], slow: ['middle'] })
  expect(await exact([])).toEqual([])
})

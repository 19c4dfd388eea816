// The order in which groups begin. Multi-bin batching is held against the formula of arXiv 2412.04504 in a simulation.

import { firstCome, multiBin, type OrderPolicy, type QueuedGroup } from '../lib'
import { isSafe } from '../lib/workers/banker'
import { Random } from './fixtures'

const group = (maxTokens: number, priority = 0): QueuedGroup => ({
  prompt: new Int32Array(0),
  workers: 1,
  maxTokens,
  pages: 1,
  priority,
})

test('first come, first served, within a priority', () => {
  const waiting = [group(1), group(2, 5), group(3), group(4, 5), group(5, -1)]
  const chosen = firstCome().choose(waiting, [group(9)])
  expect(chosen.map(({ maxTokens }) => maxTokens)).toEqual([2, 4, 1, 3, 5])
})

describe('multi-bin', () => {
  const predictLength = ({ maxTokens }: QueuedGroup) => maxTokens
  const policy = (bins: number, batch: number) =>
    multiBin({ predictLength, bins, batch, shortest: 0, longest: 100 })
  const chosen = (waiting: QueuedGroup[], bins = 4, batch = 2) =>
    policy(bins, batch)
      .choose(waiting, [])
      .map(({ maxTokens }) => maxTokens)

  test('takes the first bin that is full', () => {
    expect(chosen([10, 90, 30, 95, 20].map((n) => group(n)))).toEqual([90, 95])
    expect(chosen([10, 90, 30, 40, 60].map((n) => group(n)))).toEqual([30, 40])
  })

  test('takes the bin of whoever has waited longest where none is full', () => {
    expect(chosen([10, 90, 30].map((n) => group(n)))).toEqual([10])
    expect(chosen([])).toEqual([])
  })

  test('higher priorities fill their bin first', () => {
    expect(chosen([group(1), group(90), group(2, 1), group(91, 1)])).toEqual([2, 1])
  })

  test('lengths outside the range are in the outer bins', () => {
    expect(chosen([group(-5), group(1e9), group(99)], 4, 2)).toEqual([1e9, 99])
  })

  test('nobody joins a batch under way', () => {
    expect(policy(2, 2).choose([group(1), group(2)], [group(3)])).toEqual([])
  })

  test.each([
    [{ bins: 0 }, /bins/],
    [{ batch: 1.5 }, /batch/],
    [{ longest: 0 }, /longest/],
    [{ predictLength: 5 as never }, /predictLength.*function/],
  ])('refuses %p', (changes, message) => {
    const options = { predictLength, bins: 2, batch: 2, shortest: 0, longest: 1, ...changes }
    expect(() => multiBin(options)).toThrow(message)
  })

  test('a prediction that is no number is an error', () => {
    const order = multiBin({
      predictLength: () => Number.NaN,
      bins: 2,
      batch: 2,
      shortest: 0,
      longest: 1,
    })
    expect(() => order.choose([group(1)], [])).toThrow(/predictLength/)
  })

  // Groups wait in plenty, so that some bin is always full; a batch takes as long as its longest group.
  const throughput = (order: OrderPolicy, batch: number, lengths: number[]): number => {
    let waiting = lengths.slice(0, 200).map((length) => group(length))
    let [next, time, served] = [200, 0, 0]
    while (next < lengths.length) {
      const begun = order.choose(waiting, []).slice(0, batch)
      expect(begun).toHaveLength(batch)
      time += Math.max(...begun.map(({ maxTokens }) => maxTokens))
      served += batch
      waiting = waiting.filter((one) => !begun.includes(one))
      while (waiting.length < 200 && next < lengths.length) {
        waiting.push(group(lengths[next++] as number))
      }
    }
    return served / time
  }

  test('has the throughput of the paper’s formula, which grows with the bins', () => {
    const random = new Random(7)
    const [shortest, longest, batch] = [10, 1010, 8]
    const lengths = Array.from(
      { length: 6000 },
      () => shortest + random.next() * (longest - shortest),
    )
    const measured: number[] = []
    for (const bins of [1, 2, 4, 8, 16]) {
      const order = multiBin({ predictLength, bins, batch, shortest, longest })
      const duration =
        (shortest + longest) / 2 + (((longest - shortest) / (2 * bins)) * (batch - 1)) / (batch + 1)
      const rate = throughput(order, batch, lengths)
      expect(Math.abs((rate * duration) / batch - 1)).toBeLessThan(0.03)
      measured.push(rate)
    }
    expect(measured).toEqual([...measured].sort((one, other) => one - other))
    // One bin is first come, first served in batches.
    const served = throughput(firstCome(), batch, lengths)
    expect(measured[0]).toBeCloseTo(served, 10)
    expect((measured[4] as number) / served).toBeGreaterThan(1.5)
  })
})

describe('the banker’s algorithm', () => {
  test('knows safe and unsafe states', () => {
    // Dijkstra's example: 10 florins; the customers have 1, 5 and 2 of at most 8, 9 and 4.
    const claims = [
      { used: 4, limit: 8 },
      { used: 2, limit: 3 },
      { used: 2, limit: 9 },
    ]
    expect(isSafe(claims, 10)).toBe(true)
    expect(isSafe([{ used: 5, limit: 8 }, ...claims.slice(1)], 10)).toBe(true)
    expect(isSafe([...claims.slice(0, 2), { used: 4, limit: 9 }], 10)).toBe(false)
    expect(isSafe([], 0)).toBe(true)
    expect(isSafe([{ used: 2, limit: 2 }], 1)).toBe(false)
  })

  test('agrees with trying all orders', () => {
    const random = new Random(3)
    const below = (n: number) => Math.floor(random.next() * n)
    const canFinish = (claims: { used: number; limit: number }[], free: number): boolean =>
      claims.length === 0 ||
      claims.some(
        ({ used, limit }, i) =>
          limit - used <= free &&
          canFinish(
            claims.filter((_, other) => other !== i),
            free + used,
          ),
      )
    let safe = 0
    for (let round = 0; round < 2000; round++) {
      const claims = Array.from({ length: 1 + below(5) }, () => {
        const limit = below(8)
        return { used: below(limit + 1), limit }
      })
      const used = claims.reduce((sum, claim) => sum + claim.used, 0)
      const free = below(4)
      const expected = canFinish(claims, free)
      expect(isSafe(claims, used + free)).toBe(expected)
      if (expected) safe++
    }
    expect(safe).toBeGreaterThan(200)
    expect(safe).toBeLessThan(1800)
  })
})

// Calls of one moment that a tool takes together.

import { loadModel, mergeCalls, runWorkers } from '../lib'
import { codeOf, oracleFolder } from './fixtures'

const turn = () => new Promise(setImmediate)

/** A tool that doubles numbers, and what it was called with. */
function doubling() {
  const calls: { numbers: readonly number[]; signal: AbortSignal }[] = []
  const double = mergeCalls(async (numbers: readonly number[], signal) => {
    calls.push({ numbers, signal })
    await turn()
    return numbers.map((number) => 2 * number)
  })
  return { double, calls }
}

test('calls of one moment go together, in their order; later ones apart', async () => {
  const { double, calls } = doubling()
  const first = [double(1), double(2)]
  await Promise.resolve()
  first.push(double(3))
  await turn()
  const later = double(4)
  expect(await Promise.all([...first, later])).toEqual([2, 4, 6, 8])
  expect(calls.map(({ numbers }) => numbers)).toEqual([[1, 2, 3], [4]])
})

test('all of them reject with what the tool throws, and where it gives another number of results', async () => {
  const mine = new Error('mine')
  const failing = mergeCalls(() => Promise.reject<never[]>(mine))
  const outcomes = await Promise.allSettled([failing(1), failing(2)])
  expect(outcomes.map((outcome) => 'reason' in outcome && outcome.reason)).toEqual([mine, mine])
  for (const wrong of [[1], [1, 2, 3], undefined as never]) {
    const call = mergeCalls(() => Promise.resolve(wrong))
    const both = await Promise.all([codeOf(() => call(1)), codeOf(() => call(2))])
    expect(both).toEqual(['HOGWILD_INVALID_ARGUMENT', 'HOGWILD_INVALID_ARGUMENT'])
  }
  expect(() => mergeCalls(5 as never)).toThrow(/tool to be a function/)
})

test('who is aborted waits no more; the work is aborted with the last', async () => {
  const { double, calls } = doubling()
  const [a, b, c] = [new AbortController(), new AbortController(), new AbortController()]
  const early = codeOf(() => double(1, a.signal))
  const others = [codeOf(() => double(2, b.signal)), codeOf(() => double(3, c.signal))]
  a.abort()
  expect(await early).toBe('HOGWILD_ABORTED')
  while (calls.length === 0) await turn()
  expect(calls[0]?.numbers).toEqual([2, 3])
  b.abort()
  expect(calls[0]?.signal.aborted).toBe(false)
  c.abort()
  expect(calls[0]?.signal.aborted).toBe(true)
  expect(await Promise.all(others)).toEqual(['HOGWILD_ABORTED', 'HOGWILD_ABORTED'])
  expect(await codeOf(() => double(4, a.signal))).toBe('HOGWILD_ABORTED')
  const nobody = new AbortController()
  const none = codeOf(() => double(5, nobody.signal))
  nobody.abort()
  await none
  await turn()
  expect(calls).toHaveLength(1)
})

test('of workers that are parked at the same step boundary', async () => {
  await using model = await loadModel(oracleFolder('llama'), { onWarning: () => {} })
  const { double, calls } = doubling()
  const names = ['Alice', 'Bob', 'Carol']
  const workers = names.map((name, i) => ({ name, prompt: [10 + i] }))
  const run = runWorkers({ model, prompt: [1, 2], workers, stopTokens: [], maxTokens: 6 })
  const given: Record<string, number[]> = { Alice: [], Bob: [], Carol: [] }
  for await (const event of run) {
    if (event.type === 'token' && event.forced) given[event.worker]!.push(event.token)
    if (event.type !== 'token' || event.step !== (event.worker === 'Carol' ? 3 : 1)) continue
    const call = event.worker.length
    run.park(event.worker, async (signal) => [await double(call, signal)])
  }
  expect(calls.map(({ numbers }) => numbers)).toEqual([[5, 3], [5]])
  expect(given).toEqual({ Alice: [10, 10], Bob: [11, 6], Carol: [12, 10] })
})

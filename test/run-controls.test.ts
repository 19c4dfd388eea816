// Controls of a run at every moment. The driver is test/long/controls.cjs, which `npm run test:long` plays for longer.

import * as hogwild from '../lib'

const { play } = require('./long/controls.cjs') as {
  play(
    package_: typeof hogwild,
    seeds: readonly number[],
  ): Promise<{
    runs: number
    restored: number
    events: Record<string, number>
    faults: string[]
  }>
}

test('120 random runs, with controls and saves from events, callbacks, warnings and timers', async () => {
  const seeds = Array.from({ length: 120 }, (_, i) => i + 1)
  const { runs, restored, events, faults } = await play(hogwild, seeds)
  expect(faults).toEqual([])
  expect(runs).toBe(120)
  expect(restored).toBeGreaterThan(20)
  // The runs come to every kind of event.
  const kinds = ['join', 'pause', 'resume', 'token', 'turn', 'stop', 'warning', 'step', 'end']
  expect(Object.keys(events).sort()).toEqual(kinds.sort())
})

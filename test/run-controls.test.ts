// Controls of a run at every moment. The driver is test/long/controls.cjs, which `npm run test:long` plays for longer.

import * as hogwild from '../lib'

const { play } = require('./long/controls.cjs') as {
  play(
    package_: typeof hogwild,
    seeds: readonly number[],
  ): Promise<{
    runs: number
    calls: { save: number; restore: number; tool: number; probe: number; generate: number }
    events: Record<string, number>
    faults: string[]
  }>
}

test('120 random runs, with controls, saves, tools and probes from events, callbacks, warnings and timers', async () => {
  const seeds = Array.from({ length: 120 }, (_, i) => i + 1)
  const { runs, calls, events, faults } = await play(hogwild, seeds)
  expect(faults).toEqual([])
  expect(runs).toBe(120)
  expect(calls.restore).toBeGreaterThan(20)
  // How many come to be called depends on how fast steps are.
  for (const times of Object.values(calls)) expect(times).toBeGreaterThan(3)
  // The runs come to every kind of event.
  const controls = ['join', 'pause', 'resume', 'append', 'stop']
  const kinds = [...controls, 'token', 'turn', 'warning', 'step', 'end']
  expect(Object.keys(events).sort()).toEqual(kinds.sort())
})

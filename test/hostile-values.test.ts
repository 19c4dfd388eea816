// Hostile values for the public interface. The driver is test/long/hostile.cjs, which `npm run test:long` plays in full.

import * as hogwild from '../lib'

const { attack } = require('./long/hostile.cjs') as {
  attack(
    package_: typeof hogwild,
    take: (n: number) => boolean,
  ): Promise<{ calls: number; outcomes: Record<string, number>; faults: string[] }>
}

test('one in thirteen of all hostile values in all places: success or a HogwildError', async () => {
  const { calls, outcomes, faults } = await attack(hogwild, (n) => n % 13 === 0)
  expect(faults).toEqual([])
  expect(calls).toBeGreaterThan(500)
  // Most values are refused, and some are right.
  expect(outcomes.HOGWILD_INVALID_ARGUMENT).toBeGreaterThan(calls / 2)
  expect(outcomes.ok).toBeGreaterThan(20)
})

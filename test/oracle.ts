// The oracle's scenarios on a device, and how close a 16-bit model comes to them.

import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Model } from '../lib'
import { largest } from '../lib/cli/replay'
import { type ReplayResult, replay } from '../lib/cli/replay/replay'
import { parseScript, type ReplayOp } from '../lib/replay/script'
import { difference, readScenario } from './fixtures'
import { argmax } from './reference'

const goldens = join(__dirname, 'oracle', 'goldens')

export function scenarios(model: string): string[] {
  return readdirSync(join(goldens, model))
    .filter((file) => file.endsWith('.json') && file !== 'plain.json')
    .map((file) => file.replace('.json', ''))
}

export function script(model: string, scenario: string): ReplayOp[] {
  return parseScript(JSON.parse(readFileSync(join(goldens, model, `${scenario}.json`), 'utf8')))
}

export async function results(model: Model, ops: readonly ReplayOp[]): Promise<ReplayResult[]> {
  const all = []
  for await (const result of replay(model, ops)) all.push(result)
  return all
}

/** Name of an op's logits in the goldens. */
export function number(op: number): string {
  return String(op).padStart(3, '0')
}

/**
 * Bound of bf16 for the oracle's models: mean square error of a row of logits over its mean square. Rounding nothing
 * but weights and cache gives up to 1.1e-3 (the CPU device without AVX512_BF16); a device that multiplies in bf16
 * rounds as often again. A temperature below 1 makes the errors of scores grow.
 */
const BF16_NMSE = 2.2e-3
const BF16_NMSE_WITH_TEMPERATURES = 2 * BF16_NMSE

const hasTemperature = (ops: readonly ReplayOp[]): boolean =>
  ops.some(
    (op) => op.op === 'worker' && op.view.some((e) => typeof e === 'object' && 'temperature' in e),
  )

/**
 * All scenarios of an oracle model: logits within the bound of bf16, and the same argmax
 * wherever the margin exceeds twice the error.
 */
export async function expectSameChoices(model: Model, name: string): Promise<void> {
  let largestError = 0
  let largestNmse = 0
  let compared = 0
  let closeCalls = 0
  for (const scenario of scenarios(name)) {
    const { exact } = readScenario(name, scenario)
    const ops = script(name, scenario)
    for (const { op, logits } of await results(model, ops)) {
      exact.get(number(op))?.forEach((row, worker) => {
        const actual = logits[worker] ?? new Float32Array()
        const { max, nmse } = difference(actual, row)
        expect(nmse).toBeLessThan(hasTemperature(ops) ? BF16_NMSE_WITH_TEMPERATURES : BF16_NMSE)
        largestError = Math.max(largestError, max)
        largestNmse = Math.max(largestNmse, nmse)
        const [first = 0, second = 0] = largest(Float32Array.from(row), 2)
        const margin = (row[first] ?? 0) - (row[second] ?? 0)
        compared += 1
        if (margin <= 2 * max) closeCalls += 1
        else expect([scenario, op, worker, argmax(actual)]).toEqual([scenario, op, worker, first])
      })
    }
  }
  expect(closeCalls).toBeLessThan(compared / 2)
  process.stdout.write(
    `${name} bf16: largest error ${largestError.toFixed(3)}, NMSE ${largestNmse.toExponential(1)}; ` +
      `${closeCalls} of ${compared} choices have a margin within twice their error\n`,
  )
}

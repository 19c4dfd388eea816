// The float64 reference agrees with the oracle, a PyTorch program written apart from it.

import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import {
  expectClose,
  loadReference,
  oracleFolder,
  oracleModels,
  readPlain,
  readScenario,
  replayOnReference,
} from './fixtures'

// The goldens are float64 logits of up to about 20, rounded once to float32: half a unit of 2^-19.
const rounding = 2 ** -20

describe.each(oracleModels)('%s', (name) => {
  const model = loadReference(oracleFolder(name))
  const scenarios = readdirSync(join(__dirname, 'oracle', 'goldens', name))
    .filter((file) => file.endsWith('.json') && file !== 'plain.json')
    .map((file) => file.slice(0, -5))

  it('decodes an ordinary sequence', () => {
    const { tokens, greedy, exact } = readPlain(name)
    const sequence = [...tokens, ...greedy].slice(0, -1)
    const [logits] = model.step([{ view: [[]], tokens: sequence }])
    exact.forEach((row, i) => {
      expectClose(logits![i]!, row, rounding, `token ${i}`)
    })
    expect(exact).toHaveLength(sequence.length)
  })

  it.each(scenarios)('replays %s', (scenario) => {
    const { ops, exact } = readScenario(name, scenario)
    const logits = replayOnReference(model, ops)
    for (const [number, rows] of exact) {
      rows.forEach((row, worker) => {
        expectClose(logits.get(number)![worker]!, row, rounding, `op ${number}, worker ${worker}`)
      })
    }
    expect([...logits.keys()]).toEqual([...exact.keys()].sort())
  })
})

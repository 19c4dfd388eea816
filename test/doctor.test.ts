// The check of `hogwild doctor`. HOGWILD_WRITE=1 writes models/demo/check.json, after a change of the model.

import { cpSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { check, devices } from '../lib/cli/doctor/check'
import { demoModelPath, probe } from '../lib/index'
import { loadReference, temporaryFolder } from './fixtures'
import type { Block } from './reference'

const file = join(demoModelPath, 'check.json')

/** <s>A:ynam\nB:sdnah\n; Alice begins with A=, Bob with B=. */
const prompt = [1, 16, 3, 56, 45, 32, 44, 2, 17, 3, 50, 35, 45, 32, 39, 2]
const workers = [
  [12, 16, 4],
  [13, 17, 4],
]

/** By the float64 definition. */
function expected() {
  const reference = loadReference(demoModelPath)
  const first: Block = []
  const blocks: Block[] = workers.map(() => [])
  reference.step([{ view: [first], tokens: prompt }])
  const logits = reference.step(
    workers.map((tokens, worker) => ({
      view: [first, ...blocks.filter((_, other) => other !== worker), blocks[worker]!],
      tokens,
    })),
  )
  return {
    prompt,
    workers: workers.map((tokens, worker) => ({
      tokens,
      logits: logits[worker]!.map((row) => Array.from(row, (x) => Number(x.toFixed(5)))),
    })),
  }
}

test('models/demo/check.json is what the definition gives', () => {
  if (process.env.HOGWILD_WRITE) writeFileSync(file, `${JSON.stringify(expected())}\n`)
  expect(JSON.parse(readFileSync(file, 'utf8'))).toEqual(expected())
})

test('every device of this machine computes what it should', async () => {
  const all = devices(probe())
  expect(all.length).toBeGreaterThan(0)
  for (const options of all) {
    const { problem, error } = await check(options, demoModelPath)
    expect(problem).toBe('')
    expect(error).toBeGreaterThan(0)
  }
})

test('a device that computes something else is wrong', async () => {
  const folder = join(temporaryFolder(), 'model')
  cpSync(demoModelPath, folder, { recursive: true })
  for (const options of devices(probe())) {
    const changed = JSON.parse(readFileSync(file, 'utf8'))
    changed.workers[1].logits[2][5] += 1.5
    writeFileSync(join(folder, 'check.json'), JSON.stringify(changed))
    expect((await check(options, folder)).problem).toMatch(/^off by 1\.\d+, allowed/)
    writeFileSync(join(folder, 'check.json'), JSON.stringify({ prompt, workers: [] }))
    expect((await check(options, folder)).problem).not.toBe('')
  }
})

// The check of `hogwild doctor`. HOGWILD_WRITE=1 writes models/demo/check.json, after a change of the model.

import { cpSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { check, devices } from '../lib/cli/doctor/check'
import { compareReuse, diverge, isWrong, type ReuseCase } from '../lib/cli/doctor/reuse'
import { demoModelPath, loadModel, probe } from '../lib/index'
import { loadReference, oracleFolder, temporaryFolder } from './fixtures'
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

// ---- --reuse ----------------------------------------------------------------------------------------------

const open = (path: string) => loadModel(path, { device: 'cpu', threads: 1, onWarning: () => {} })

const named = (cases: readonly ReuseCase[]) =>
  new Map(cases.map((one) => [`${one.case} ${one.against} ${one.cache}`, one]))

test.each([
  ['the demo', demoModelPath, 'english'],
  ['llama', oracleFolder('llama'), 'random'],
  ['qwen2', oracleFolder('qwen2'), 'random'],
  ['gemma3_text, with windows', join(__dirname, 'fixtures/families/gemma3_text'), 'random'],
])('reuse on %s: no bit differs, moved blocks are their keys turned', async (_, path, texts) => {
  await using model = await open(path)
  const { texts: used, cases } = await compareReuse(model, path)
  expect(used).toBe(texts)
  const found = named(cases)
  expect([...found.keys()].sort()).toEqual(
    ['f32', 'f16', 'bf16', 'int8']
      .flatMap((dtype) => [
        ...['reuse', 'fork', 'moved', 'interleaved'].map((name) => `${name} afresh ${dtype}`),
        ...['moved', 'interleaved'].map((name) => `${name} turned ${dtype}`),
      ])
      .sort(),
  )
  for (const [name, one] of found) {
    expect([name, isWrong(one)]).toEqual([name, false])
    expect([name, one.tokens]).toEqual([name, 16])
    if (one.case === 'reuse' || one.case === 'fork') {
      expect(one).toMatchObject({ difference: 0, kl: 0, sameArgmax: 16, allowed: 0 })
    } else if (one.against === 'afresh') {
      // It saw another text.
      expect([name, one.deviations > 0.01, one.allowed]).toEqual([name, true, null])
      expect(one.kl).toBeGreaterThan(0)
    } else expect([name, (one.allowed ?? 0) > 0]).toEqual([name, true])
  }
})

test('a model that computes something else behind blocks that are used again is found out', async () => {
  await using model = await open(demoModelPath)
  const step = model.step.bind(model)
  let asked = 0
  jest.spyOn(model, 'step').mockImplementation(async (workers, options) => {
    const outputs = await step(workers, options)
    // Every second question is behind blocks that are used again.
    const logits = outputs[0]?.logits
    if (logits !== undefined && asked++ % 2 === 1) logits[3]! += 5
    return outputs
  })
  const { cases } = await compareReuse(model, demoModelPath)
  expect(cases.filter(isWrong)).toEqual(cases.filter(({ allowed }) => allowed !== null))
})

test('divergence of logits, by hand', () => {
  const ln = (...p: number[]) => p.map(Math.log)
  const expected = Float32Array.from([...ln(0.5, 0.25, 0.25), ...ln(0.1, 0.8, 0.1)])
  const actual = Float32Array.from([...ln(0.25, 0.5, 0.25), ...ln(0.1, 0.8, 0.1)])
  const { difference, deviations, kl, sameArgmax, tokens } = diverge(actual, expected, 3)
  expect(difference).toBeCloseTo(Math.LN2, 6)
  const logits = [...expected]
  const mean = logits.reduce((a, b) => a + b) / 6
  const variance = logits.reduce((sum, x) => sum + (x - mean) ** 2, 0) / 6
  expect(deviations).toBeCloseTo(Math.LN2 / Math.sqrt(variance), 5)
  expect(kl).toBeCloseTo(0.25 * Math.LN2, 6)
  expect([sameArgmax, tokens]).toEqual([1, 2])
  const same = diverge(expected, expected, 3)
  expect(same).toEqual({ difference: 0, deviations: 0, kl: 0, sameArgmax: 2, tokens: 2 })
  const broken = { ...diverge(actual.fill(Number.NaN, 4, 5), expected, 3), allowed: 1 }
  expect(broken.difference).toBeNaN()
  expect(isWrong(broken as ReuseCase)).toBe(true)
})

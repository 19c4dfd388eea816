// The trace of a run is a script that computes the same again: `replay` of it gives, after each step, the tokens that the
// run chose. Its lines are what docs/trace.schema.json says.

import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import Ajv from 'ajv/dist/2020'
import { loadModel, type Model, type RunOptions, runWorkers, type WorkerEvent } from '../lib'
import { replay } from '../lib/cli/replay/replay'
import { parseScript } from '../lib/replay/script'
import { scriptOfTrace } from '../lib/replay/trace'
import { readText } from '../lib/sources/files'
import { codeOf, temporaryFolder, writeModel } from './fixtures'
import { argmax } from './reference'

const validate = new Ajv({ strict: false }).compile(
  JSON.parse(readFileSync(join(__dirname, '..', 'docs', 'trace.schema.json'), 'utf8')),
)

let model: Model

beforeAll(async () => {
  model = await loadModel(
    writeModel({
      ...{ seed: 4, layers: 2, hiddenSize: 32, intermediateSize: 32, vocabSize: 60 },
      ...{ queryHeads: 4, kvHeads: 2, headDim: 8 },
    }),
    { device: 'cpu', threads: 1 },
  )
})

afterAll(() => model.close())

let next = 0

/** A run to its end: its events and the path of its trace. */
async function traced(
  options: Partial<RunOptions>,
  handle: (event: WorkerEvent, run: ReturnType<typeof runWorkers>) => void = () => {},
) {
  const trace = join(temporaryFolder(), `${next++}.jsonl`)
  const run = runWorkers({
    model,
    prompt: [1, 2, 3],
    workers: [],
    stopTokens: [],
    trace,
    ...options,
  })
  const events: WorkerEvent[] = []
  for await (const event of run) {
    events.push(event)
    handle(event, run)
  }
  return { events, trace }
}

const linesOf = (path: string) =>
  readFileSync(path, 'utf8')
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line) as Record<string, unknown>)

function expectValid(path: string): void {
  const lines = linesOf(path)
  const wrong = lines.filter((line) => !validate(line)).map((line) => JSON.stringify(line))
  expect(wrong).toEqual([])
  const times = lines.slice(1).map(({ time }) => time as number)
  expect(times).toEqual([...times].sort((one, other) => one - other))
}

/** Replays a trace of greedy workers; how many tokens it chose as the run did. */
async function expectSameTokens(
  path: string,
  { events }: { events: WorkerEvent[] },
): Promise<number> {
  const ops = parseScript(scriptOfTrace(await readText(path)))
  const chosen = new Map<string, number[]>()
  for await (const { op, kind, logits } of replay(model, ops)) {
    if (kind !== 'step') continue
    const step = ops[op]
    if (step?.op !== 'step') throw new Error('no step')
    step.workers.forEach((name, i) => {
      chosen.set(name, [...(chosen.get(name) ?? []), argmax(logits[i]!)])
    })
  }
  // The token after each step of a worker is the next one of it that was not given, unless something cut in.
  let compared = 0
  const sampled = new Map<string, number[]>()
  for (const event of events) {
    if (event.type !== 'token' || event.forced) continue
    sampled.set(event.worker, [...(sampled.get(event.worker) ?? []), event.token])
  }
  for (const [name, tokens] of sampled) {
    const all = chosen.get(name)!
    // One sampled token per step, from the first step on; steps that were stopped in gave none.
    expect(tokens).toEqual(all.slice(0, tokens.length))
    compared += tokens.length
  }
  return compared
}

const layouts = ['contiguous', 'interleaved', 'combined'] as const

describe.each(layouts)('layout %s', (layout) => {
  test.each([true, false])('a trace gives the tokens of the run, share: %p', async (share) => {
    const turns =
      layout === 'contiguous'
        ? {}
        : { turnEnds: (ids: readonly number[]) => ids.length === 4, turnHeader: () => [9, 8] }
    const { events, trace } = await traced(
      {
        ...{ layout, share, maxTokens: 14, ...turns },
        ...(layout === 'combined' ? { sharedHeader: [11, 12] } : {}),
        workers: [
          { name: 'a', prompt: [5] },
          { name: 'b', prompt: [6, 7], header: [20, 21] },
        ],
      },
      (event, run) => {
        if (event.type !== 'step') return
        if (event.step === 2) run.join({ name: '', prompt: [4], header: [30] })
        if (event.step === 3) run.pause('a')
        if (event.step === 5) run.resume('a')
        if (event.step === 6) run.inject('a', [40, 41])
      },
    )
    expectValid(trace)
    const lines = linesOf(trace)
    expect(lines[0]).toMatchObject({
      ...{ trace: 2, layout, share, model: await model.fingerprint() },
      architecture: 'LlamaForCausalLM',
    })
    expect(lines.at(-1)).toMatchObject({ event: 'end' })
    for (const type of ['join', 'pause', 'resume', 'stop']) {
      const told = events.filter((event) => event.type === type)
      expect(lines.filter(({ event }) => event === type)).toHaveLength(told.length)
    }
    const steps = events.filter(({ type }) => type === 'step')
    expect(lines.filter(({ op }) => op === 'step').map(({ milliseconds }) => milliseconds)).toEqual(
      steps.map((event) => (event as { milliseconds: number }).milliseconds),
    )
    expect(await expectSameTokens(trace, { events })).toBe(3 * 14)
  })
})

test('stops, marks and a full cache are in it', async () => {
  const { events, trace } = await traced(
    {
      capacity: 128,
      prompt: Array.from({ length: 60 }, (_, i) => i % 50),
      workers: ['a', 'b'].map((name) => ({ name, prompt: [5] })),
      stopTokens: [],
      maxTokens: 200,
    },
    (event, run) => {
      if (event.type === 'step' && event.step === 3) run.stop('a', { append: [7, 7] })
    },
  )
  expectValid(trace)
  const reasons = events.flatMap((event) => (event.type === 'stop' ? [event.reason] : []))
  expect(linesOf(trace).flatMap(({ reason }) => reason ?? [])).toEqual(reasons)
  expect(await expectSameTokens(trace, { events })).toBeGreaterThan(2)
})

test.each([true, false])('branches, what is appended, and work, share: %p', async (share) => {
  const { events, trace } = await traced(
    {
      ...{ share, layout: 'combined', maxTokens: 12, prompt: [] },
      workers: [
        { name: 'root', prompt: [5, 6] },
        { name: 'other', prompt: [7], header: [20] },
      ],
    },
    (event, run) => {
      if (event.type !== 'step') return
      if (event.step === 2) {
        run.join({ name: 'branch', from: 'root', prompt: [9], maxTokens: 3 })
        run.park('root', () => run.stopped(['branch']).then(() => [40, 41]), { data: { tool: 1 } })
      }
      if (event.step === 4) run.append([30, 31, 32])
    },
  )
  expectValid(trace)
  const lines = linesOf(trace)
  expect(lines).toContainEqual(
    expect.objectContaining({ op: 'fork', block: 'own root', name: 'own branch' }),
  )
  expect(lines).toContainEqual(
    expect.objectContaining({ event: 'pause', worker: 'root', parked: { data: { tool: 1 } } }),
  )
  const filled = lines.filter(({ op, tokens }) => op === 'prefill' && `${tokens}` === '30,31,32')
  const commons = ['root', 'other', 'branch'].map((name) => `common ${name}`)
  expect(filled.map(({ block }) => block)).toEqual(share ? ['common'] : ['common', ...commons])
  expect(await expectSameTokens(trace, { events })).toBe(12 + 12 + 3)
})

test('where tokens look: the same as the step tells it, of those that ask', async () => {
  const { events, trace } = await traced({
    maxTokens: 5,
    workers: [
      { name: 'a', prompt: [5, 6], attentionMass: true },
      { name: 'b', prompt: [6], header: [20] },
    ],
  })
  expectValid(trace)
  const told = events.flatMap((event) =>
    event.type === 'token' && event.attentionMass !== undefined ? [event] : [],
  )
  expect(told.map(({ worker, token }) => [worker, token])).toEqual(
    linesOf(trace).flatMap(({ inputs }) =>
      inputs ? [['a', (inputs as number[][])[0]!.at(-1)]] : [],
    ),
  )
  const steps = linesOf(trace).filter(({ op }) => op === 'step')
  steps.forEach(({ attention }, i) => {
    const [ofA, ofB] = attention as (number[] | null)[]
    expect(ofB).toBeNull()
    expect(ofA).toHaveLength(3) // common, own b, own a
    expect(ofA!.reduce((sum, share) => sum + share, 0)).toBeCloseTo(1, 4)
    ofA!.forEach((share, block) => {
      expect(Math.abs(share - told[i]!.attentionMass![block]!)).toBeLessThanOrEqual(5e-7)
    })
  })
  expect(steps.length).toBeGreaterThan(4)
  const one = { name: 'a', prompt: [5], attentionMass: true }
  expect(await codeOf(() => traced({ workers: [{ ...one, attentionMass: 1 as never }] }))).toBe(
    'HOGWILD_INVALID_ARGUMENT',
  )
  expect(await codeOf(() => traced({ workers: [one], speculate: { by: 'lookup' } }))).toBe(
    'HOGWILD_INVALID_ARGUMENT',
  )
})

test('what a line must not be', () => {
  const good = { time: 1, op: 'prefill', block: 'common', tokens: [1] }
  expect(validate(good)).toBe(true)
  for (const bad of [
    { ...good, tokens: [] },
    { ...good, more: 1 },
    { ...good, time: -1 },
    {},
    null,
    { time: 1, event: 'token' },
  ]) {
    expect(validate(bad)).toBe(false)
  }
})

test('other files, and a trace that was cut', async () => {
  const { trace } = await traced({ workers: [{ name: 'a', prompt: [5], maxTokens: 3 }] })
  const text = await readText(trace)
  const whole = scriptOfTrace(text)!.ops.length
  expect(scriptOfTrace(text.slice(0, -5))!.ops.length).toBe(whole)
  expect(scriptOfTrace(text.slice(0, text.indexOf('"op":"step"')))!.ops.length).toBeLessThan(whole)
  expect(scriptOfTrace('{"ops": []}\n')).toBeUndefined()
  expect(scriptOfTrace('')).toBeUndefined()
  expect(() => scriptOfTrace('{"trace":1}\n')).toThrow(/version 1.*reads version 2/)
  expect(() => scriptOfTrace('{"trace":2}\n5\n')).toThrow(/line 2/)
})

test('a trace that cannot be written ends the run', async () => {
  const options = { workers: [{ name: 'a', prompt: [5], maxTokens: 3 }] }
  for (const trace of ['/dev/full', join(temporaryFolder(), 'none', 'x')]) {
    expect(await codeOf(() => traced({ ...options, trace }))).toBe('HOGWILD_NOT_WRITTEN')
  }
  expect(await codeOf(() => traced({ ...options, trace: 5 as never }))).toBe(
    'HOGWILD_INVALID_ARGUMENT',
  )
  await using cache = model.createCache({ capacity: 64 })
  expect(await codeOf(() => traced({ ...options, cache }))).toBe('HOGWILD_INVALID_ARGUMENT')
})

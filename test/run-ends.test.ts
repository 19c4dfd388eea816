// How workers of a run end: stop tokens, stop strings, a full cache, the model's context.

import { cpSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import {
  type Cache,
  loadModel,
  loadTokenizer,
  type Model,
  type RunOptions,
  runWorkers,
  type StopEvent,
  type Tokenizer,
  type Warning,
  type WorkerEvent,
} from '../lib'
import { codeOf, oracleFolder } from './fixtures'

const demo = join(__dirname, '../models/demo')
const warnings: Warning[] = []
let model: Model
let tokenizer: Tokenizer

beforeAll(async () => {
  model = await loadModel(demo, { threads: 1, onWarning: (warning) => warnings.push(warning) })
  tokenizer = await loadTokenizer(demo)
})
afterAll(() => model.close())
afterEach(() => jest.restoreAllMocks())

async function collect(run: AsyncIterable<WorkerEvent>): Promise<WorkerEvent[]> {
  const events: WorkerEvent[] = []
  for await (const event of run) events.push(event)
  return events
}

const ofType = <T extends WorkerEvent['type']>(events: readonly WorkerEvent[], type: T) =>
  events.filter((event): event is Extract<WorkerEvent, { type: T }> => event.type === type)

const stopsOf = (events: readonly WorkerEvent[]): [string, StopEvent['reason']][] =>
  ofType(events, 'stop').map(({ worker, reason }) => [worker, reason])

const tokensOf = (events: readonly WorkerEvent[], worker: string): number[] =>
  ofType(events, 'token').flatMap((event) => (event.worker === worker ? [event.token] : []))

/** The text of a worker: of its tokens and of its stop. */
const textOf = (events: readonly WorkerEvent[], worker: string): string =>
  events
    .flatMap((event) =>
      (event.type === 'token' || event.type === 'stop') && event.worker === worker
        ? [event.text ?? '']
        : [],
    )
    .join('')

// One worker's text on this prompt: Alice+A=many … (the demo's language).
const options = (changes: Partial<RunOptions> = {}): RunOptions => ({
  model,
  tokenizer,
  layout: 'contiguous',
  prompt: encode('<s>A:ynam\nB:sdnah\nC:ekam\n'),
  workers: [{ name: 'Alice', prompt: encode('Alice') }],
  maxTokens: 60,
  ...changes,
})
const encode = (text: string): number[] =>
  Array.from(
    text.matchAll(/<s>|Alice|Bob|[\s\S]/g),
    ([symbol]) => tokenizer.tokenId(symbol) as number,
  )

describe('stop strings', () => {
  test('end the text before every place at which they can begin, whatever the tokens', async () => {
    const whole = textOf(await collect(runWorkers(options({ stopTokens: [] }))), 'Alice')
    const own = whole.slice('Alice'.length)
    expect(own.length).toBeGreaterThan(30)
    for (const length of [1, 2, 5, 11]) {
      for (let at = 0; at + length <= 30; at += 7) {
        const stop = own.slice(at, at + length)
        const events = await collect(runWorkers(options({ stopTokens: [], stop: [stop] })))
        expect([stop, textOf(events, 'Alice')]).toEqual([
          stop,
          `Alice${own.slice(0, own.indexOf(stop))}`,
        ])
        expect(stopsOf(events)).toEqual([['Alice', 'stop-string']])
        // Its tokens are in the block, the stop string's included.
        const written = tokenizer.decode(tokensOf(events, 'Alice').slice(1))
        expect(own.startsWith(written) && written.includes(stop)).toBe(true)
      }
    }
  })

  test('are of the run or of one worker; forced tokens do not count', async () => {
    const workers = [
      { name: 'Alice', prompt: encode('Alice') },
      { name: 'Bob', prompt: encode('Bob'), stop: [] },
      { name: 'Carol', prompt: encode('Alice'), stop: ['ice', 'Alice'] },
    ]
    const events = await collect(
      runWorkers(options({ workers, stop: ['=', 'Bob'], maxTokens: 6, stopTokens: [] })),
    )
    expect(Object.fromEntries(stopsOf(events))).toEqual({
      Alice: 'stop-string',
      Bob: 'max-tokens',
      Carol: 'max-tokens',
    })
    expect(textOf(events, 'Alice')).not.toContain('=')
    expect(textOf(events, 'Carol')).toBe(tokenizer.decode(tokensOf(events, 'Carol')))
  })

  test('what is held back comes with the next forced token, or with the stop', async () => {
    const whole = textOf(await collect(runWorkers(options({ stopTokens: [] }))), 'Alice')
    // Never complete: held back up to the end.
    const stop = [`${whole.slice('Alice'.length)}never`]
    const held = await collect(runWorkers(options({ stopTokens: [], stop })))
    expect(
      ofType(held, 'token')
        .map(({ text }) => text)
        .join(''),
    ).toBe('Alice')
    expect(ofType(held, 'stop')).toMatchObject([{ reason: 'max-tokens' }])
    expect(textOf(held, 'Alice')).toBe(whole)

    const run = runWorkers(options({ stopTokens: [], stop }))
    const events: WorkerEvent[] = []
    for await (const event of run) {
      events.push(event)
      if (event.type === 'step' && event.step === 5) run.inject('Alice', encode('x'))
    }
    expect(textOf(events, 'Alice')).toBe(tokenizer.decode(tokensOf(events, 'Alice')))
    const injected = ofType(events, 'token').find(({ step, forced }) => step > 0 && forced)
    expect(injected?.text).toBe(`${whole.slice('Alice'.length, 'Alice'.length + 5)}x`)
  })

  test.each<[string, Partial<RunOptions>, RegExp]>([
    ['without a tokenizer', { tokenizer: undefined, stop: ['x'] }, /options\.stop.*tokenizer/],
    ['an empty one', { stop: ['x', ''] }, /options\.stop\[1\].*at least one character/],
    ['what is none', { stop: 'x' as never }, /options\.stop.*array/],
    ['numbers', { workers: [{ name: 'A', prompt: [1], stop: [5 as never] }] }, /stop\[0\].*string/],
  ])('refused: %s', (_, changes, message) => {
    expect(() => runWorkers(options(changes))).toThrow(message)
  })
})

describe('stop tokens are by default those of the model and of the tokenizer', () => {
  let bareFolder: string
  beforeAll(() => {
    bareFolder = mkdtempSync(join(tmpdir(), 'hogwild-ends-'))
    cpSync(demo, bareFolder, { recursive: true })
    for (const file of ['config.json', 'generation_config.json']) {
      rmSync(join(bareFolder, file), { force: true })
    }
  })
  afterAll(() => rmSync(bareFolder, { recursive: true }))

  test('a tokenizer that has none leaves the model’s', async () => {
    const bare = await loadTokenizer(bareFolder)
    const events = await collect(runWorkers(options({ tokenizer: bare, maxTokens: 100 })))
    expect(stopsOf(events)).toEqual([['Alice', 'stop-token']])
  })

  test('both count, and ids outside the vocabulary are dropped with a warning', async () => {
    const equals = encode('=')[0] as number
    // A tokenizer may have tokens that the model has not.
    const other = await loadTokenizer(demo)
    jest.replaceProperty(other, 'eosTokenIds', [equals, 151_643])
    warnings.length = 0
    const events = await collect(runWorkers(options({ tokenizer: other })))
    expect(stopsOf(events)).toEqual([['Alice', 'stop-token']])
    expect(tokensOf(events, 'Alice').at(-1)).toBe(equals)
    expect(events[0]).toEqual({
      type: 'warning',
      step: 0,
      code: 'HOGWILD_UNKNOWN_EOS_TOKEN',
      message: expect.stringContaining('151643'),
    })
    expect(warnings).toEqual([{ code: 'HOGWILD_UNKNOWN_EOS_TOKEN', message: expect.any(String) }])
    expect(() => runWorkers(options({ stopTokens: [151_643] }))).toThrow(/stopTokens\[0\]/)
  })
})

describe('a full cache stops workers', () => {
  let llama: Model
  beforeAll(async () => {
    llama = await loadModel(oracleFolder('llama'), { onWarning: () => {} })
  })
  afterAll(() => llama.close())

  const names = ['a', 'b', 'c']
  const start = (pages: number, changes: Partial<RunOptions> = {}) =>
    runWorkers({
      model: llama,
      prompt: [222, 345, 53],
      workers: names.map((name, i) => ({ name, prompt: new Array(20 * i + 1).fill(7) })),
      stopTokens: [],
      capacity: 64 * pages,
      ...changes,
    })

  test('those without room, one after the other; the others go on; the cache stays to the end', async () => {
    const caches: Cache[] = []
    const createCache = llama.createCache.bind(llama)
    jest.spyOn(llama, 'createCache').mockImplementation((given) => {
      caches.push(createCache(given))
      return caches.at(-1) as Cache
    })
    const events: WorkerEvent[] = []
    const run = start(5)
    for await (const event of run) {
      events.push(event)
      expect(caches[0]?.closed).toBe(false)
    }
    expect(caches[0]?.closed).toBe(true)
    // The prompt has one page and each worker one; the longest, c, gets the last.
    expect(stopsOf(events)).toEqual([
      ['b', 'out-of-pages'],
      ['a', 'out-of-pages'],
      ['c', 'out-of-pages'],
    ])
    expect(names.map((name) => tokensOf(events, name).length)).toEqual([64, 64, 128])
    expect(run.workers.map(({ tokens }) => tokens)).toEqual(names.map((n) => tokensOf(events, n)))
    expect(events.at(-1)).toMatchObject({ type: 'end', tokens: 256 })
  })

  test('without changing what the others write', async () => {
    const alone = await collect(start(100, { maxTokens: 50 }))
    const full = await collect(start(4, { maxTokens: 50 }))
    expect(Object.fromEntries(stopsOf(full)).c).toBe('out-of-pages')
    // Up to the step in which c stops, all see the same.
    const steps = ofType(full, 'stop')[0]?.step as number
    expect(steps).toBeGreaterThan(10)
    const untilStop = (events: readonly WorkerEvent[]) =>
      ofType(events, 'token').filter(({ step }) => step < steps)
    expect(untilStop(full)).toEqual(untilStop(alone))
    expect(Object.fromEntries(stopsOf(full))).toMatchObject({ a: 'max-tokens', b: 'out-of-pages' })
  })

  test('a newcomer whose header finds no room stops at once', async () => {
    const run = start(4, { maxTokens: 3 })
    run.join({ name: 'd', prompt: [1], header: new Array(300).fill(1) })
    const events = await collect(run)
    expect(stopsOf(events)[0]).toEqual(['d', 'out-of-pages'])
    expect(ofType(events, 'join').map(({ worker }) => worker)).toEqual(['a', 'b', 'c', 'd'])
    expect(
      stopsOf(events)
        .slice(1)
        .map(([, reason]) => reason),
    ).toEqual(Array(3).fill('max-tokens'))
  })
})

describe('beyond the model’s context', () => {
  const long = () => new Array(model.config.maxPositions).fill(1)

  test('a run tells it once, as an event and to the handler, and goes on', async () => {
    const own = await loadModel(demo, { threads: 1, onWarning: (warning) => told.push(warning) })
    const told: Warning[] = []
    try {
      for (let round = 0; round < 2; round++) {
        const events = await collect(
          runWorkers(options({ model: own, prompt: long(), maxTokens: 3, stopTokens: [] })),
        )
        expect(ofType(events, 'warning')).toEqual([
          {
            type: 'warning',
            step: 0,
            code: 'HOGWILD_BEYOND_CONTEXT',
            message: expect.stringMatching(/1025 positions.*1024/),
          },
        ])
        expect(stopsOf(events)).toEqual([['Alice', 'max-tokens']])
      }
      expect(told.map(({ code }) => code)).toEqual(['HOGWILD_BEYOND_CONTEXT'])
    } finally {
      await own.close()
    }
  })

  test('or is refused, by the run or by the model', async () => {
    const beyond = options({ prompt: long(), maxTokens: 3, beyondContext: 'error' })
    expect(await codeOf(() => collect(runWorkers(beyond)))).toBe('HOGWILD_INVALID_ARGUMENT')
    const strict = await loadModel(demo, { threads: 1, beyondContext: 'error' })
    try {
      const cache = strict.createCache({ capacity: 2048 })
      const [first, second] = [cache.createBlock(), cache.createBlock()]
      await strict.prefill(first, long(), { sampler: null })
      const step = () => strict.step([{ view: { blocks: [first, second] }, tokens: [1] }])
      expect(await codeOf(step)).toBe('HOGWILD_INVALID_ARGUMENT')
      await expect(step()).rejects.toThrow(/1025 positions.*1024/)
      expect(second.length).toBe(0)
      // A block that is seen twice counts twice; what stands behind the one that is written does not.
      const ones = (count: number) => new Array(count).fill(1)
      await strict.step([{ view: { blocks: [second] }, tokens: ones(500) }])
      const own = cache.createBlock()
      const twice = (count: number) => [
        { view: { blocks: [second, second, own, first], writeTo: own }, tokens: ones(count) },
      ]
      expect(await codeOf(() => strict.step(twice(25)))).toBe('HOGWILD_INVALID_ARGUMENT')
      expect(await strict.step(twice(24), { beyondContext: 'error' })).toHaveLength(1)
      // The largest place counts: not the number of tokens, and not what is late.
      const at = (place: number) => [
        {
          view: {
            blocks: [
              { block: second, at: place },
              { block: own, at: 3 },
            ],
          },
          tokens: [1],
        },
      ]
      expect(await codeOf(() => strict.step(at(525)))).toBe('HOGWILD_INVALID_ARGUMENT')
      await strict.step(at(524))
      const late = { block: second, at: 524, lag: 1 as const }
      await strict.step([
        { view: { blocks: [late, { block: own, at: 0 }] }, tokens: [1] },
        { view: { blocks: [second] }, tokens: [1] },
      ])
    } finally {
      await strict.close()
    }
  })
})

test('the time of a step leaves out the wait for others', async () => {
  const cache = model.createCache({ capacity: 4096 })
  const step = model.timedStep.bind(model)
  const waits: number[] = []
  jest.spyOn(model, 'timedStep').mockImplementation(async (parts, stepOptions) => {
    // Another step of the device comes before each.
    const before = step([
      { view: { blocks: [cache.createBlock()] }, tokens: new Array(300).fill(1) },
    ])
    const begin = performance.now()
    const outputs = await step(parts, stepOptions)
    waits.push(performance.now() - begin)
    await before
    return outputs
  })
  const events = await collect(runWorkers(options({ maxTokens: 4 })))
  const steps = ofType(events, 'step').map(({ milliseconds }) => milliseconds)
  expect(steps).toHaveLength(5)
  steps.forEach((milliseconds, i) => {
    expect(milliseconds).toBeGreaterThan(0)
    expect(milliseconds).toBeLessThan((waits.slice(-5)[i] as number) / 2)
  })
  const sum = steps.reduce((total, time) => total + time, 0)
  expect(events.at(-1)).toMatchObject({ type: 'end', milliseconds: sum })
  await cache.close()
})

test('workers stay readable when the consumer has left', async () => {
  const run = runWorkers(options())
  const seen: WorkerEvent[] = []
  for await (const event of run) {
    seen.push(event)
    if (event.type === 'step' && event.step === 3) break
  }
  expect(run.workers).toEqual([
    { name: 'Alice', state: 'stopped', tokens: tokensOf(seen, 'Alice') },
  ])
})

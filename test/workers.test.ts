import { join } from 'node:path'
import {
  type Cache,
  type LayoutName,
  loadModel,
  loadTokenizer,
  type Model,
  type RunOptions,
  runWorkers,
  Sampler,
  type StepWorker,
  type Tokenizer,
  type WorkerEvent,
  type WorkerRun,
  type WorkerSpec,
} from '../lib'
import { codeOf, loadReference, oracleFolder, readPlain, writeModel } from './fixtures'
import { argmax, type Block, type ReferenceModel } from './reference'
import { byteLevelFolder } from './tokenizer-fixtures'

const folder = oracleFolder('llama')
let model: Model
let reference: ReferenceModel

beforeAll(async () => {
  model = await loadModel(folder)
  reference = loadReference(folder)
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

const tokensOf = (events: readonly WorkerEvent[], worker: string): number[] =>
  ofType(events, 'token').flatMap((event) => (event.worker === worker ? [event.token] : []))

// ---- the loop against a simulation ------------------------------------------------------------------

/** What is asked of a run before a step. */
type Order =
  | { do: 'join'; spec: WorkerSpec }
  | { do: 'pause' | 'resume'; name: string }
  | { do: 'stop'; name: string; append: number[] }
  | { do: 'inject'; name: string; tokens: number[] }

interface Script {
  layout: LayoutName
  share: boolean
  prompt: number[]
  sharedHeader: number[]
  workers: WorkerSpec[]
  maxTokens: number
  stopTokens: number[]
  turnEnds: ((ids: readonly number[]) => boolean) | undefined
  turnHeader: (worker: string, turn: number) => number[]
  orders: Record<number, Order[]>
}

/** One lock step: who took part, what each saw before it (a list of tokens per block), what each wrote. */
type LockStep = Record<string, { view: number[][]; wrote: number[] }>

/** The loop over lists of tokens on the float64 reference, written down from docs/semantics.md and the paper. */
function simulate(script: Script): LockStep[] {
  interface Simulated {
    name: string
    common: Block
    header: Block
    own: Block
    next: number[]
    sampled: number
    turnIds: number[]
    turns: number
    leaving: boolean
    state: 'on' | 'off' | 'gone'
  }
  const filled = (tokens: ArrayLike<number>): Block => {
    const block: Block = []
    if (tokens.length > 0) reference.step([{ view: [block], tokens: Array.from(tokens) }])
    return block
  }
  const common = filled(script.prompt)
  const shared = filled(script.sharedHeader)
  const team: Simulated[] = []
  const enter = (spec: WorkerSpec) =>
    team.push({
      name: spec.name,
      common: script.share ? common : [...common],
      header: filled(spec.header ?? []),
      own: [],
      next: Array.from(spec.prompt),
      sampled: 0,
      turnIds: [],
      turns: 0,
      leaving: false,
      state: 'on',
    })
  const viewOf = (worker: Simulated): Block[] => {
    const others = team.filter((other) => other !== worker).map(({ own }) => own)
    const visible = script.share && script.layout !== 'interleaved' ? others : []
    const view = [worker.common]
    if (script.layout === 'combined' && shared.length > 0) view.push(shared)
    view.push(...visible)
    if (worker.header.length > 0) view.push(worker.header)
    return [...view, worker.own]
  }

  script.workers.forEach(enter)
  const steps: LockStep[] = []
  for (;;) {
    for (const order of script.orders[steps.length] ?? []) {
      if (order.do === 'join') {
        enter(order.spec)
        continue
      }
      const worker = team.find(({ name }) => name === order.name)!
      if (worker.state === 'gone') continue
      if (order.do === 'pause') worker.state = 'off'
      if (order.do === 'resume') worker.state = 'on'
      if (order.do === 'inject') worker.next = [...order.tokens, ...worker.next]
      if (order.do === 'stop') {
        worker.state = order.append.length > 0 ? 'on' : 'gone'
        worker.next = order.append
        worker.leaving = true
      }
    }
    const active = team.filter(({ state }) => state === 'on')
    if (active.length === 0) return steps
    const views = active.map(viewOf)
    const seen = views.map((view) => view.map((block) => block.map(({ id }) => id)))
    const logits = reference.step(active.map(({ next }, i) => ({ view: views[i]!, tokens: next })))
    steps.push(
      Object.fromEntries(
        active.map(({ name, next }, i) => [name, { view: seen[i]!, wrote: next }]),
      ),
    )
    active.forEach((worker, i) => {
      if (worker.leaving) {
        worker.state = 'gone'
        return
      }
      const token = argmax(logits[i]!.at(-1)!)
      worker.next = [token]
      worker.sampled++
      worker.turnIds.push(token)
      if (script.stopTokens.includes(token) || worker.sampled === script.maxTokens) {
        worker.leaving = true
      } else if (script.turnEnds?.(worker.turnIds)) {
        worker.common.push(...worker.own.splice(0))
        worker.turns++
        worker.turnIds = []
        worker.next.push(...script.turnHeader(worker.name, worker.turns))
      }
    })
  }
}

/** The same by the package: what the model was given is read off its steps. */
async function play(script: Script): Promise<{ steps: LockStep[]; events: WorkerEvent[] }> {
  const { orders, workers, sharedHeader, ...options } = script
  const run = runWorkers({
    model,
    workers,
    ...options,
    ...(script.layout === 'combined' && { sharedHeader }),
  })
  const give = (order: Order): void => {
    if (order.do === 'join') run.join(order.spec)
    else if (order.do === 'stop') run.stop(order.name, { append: order.append })
    else if (order.do === 'inject') run.inject(order.name, order.tokens)
    else run[order.do](order.name)
  }
  const given: { views: number[][][]; tokens: number[][] }[] = []
  const step = model.timedStep.bind(model)
  jest.spyOn(model, 'timedStep').mockImplementation((parts, stepOptions) => {
    const views = parts.map(({ view }) =>
      view.blocks.map((entry) => [...('block' in entry ? entry.block : entry).tokens()]),
    )
    given.push({ views, tokens: parts.map(({ tokens }) => Array.from(tokens!)) })
    return step(parts, stepOptions)
  })
  for (const order of orders[0] ?? []) give(order)
  const events: WorkerEvent[] = []
  for await (const event of run) {
    events.push(event)
    if (event.type === 'step') for (const order of orders[event.step + 1] ?? []) give(order)
  }
  const headers = [...workers, ...Object.values(orders).flat().flatMap(joined)].filter(
    ({ header }) => header !== undefined,
  ).length
  const prefills = 1 + headers + (script.layout === 'combined' && sharedHeader.length > 0 ? 1 : 0)
  // Headers of late workers are prefilled between steps; a lock step is one that brought token events.
  const lockSteps = given.filter(({ views }) => views.every((view) => view.length > 1))
  expect(given).toHaveLength(lockSteps.length + prefills)
  const steps = lockSteps.map(({ views, tokens }, i): LockStep => {
    const names = [
      ...new Set(ofType(events, 'token').flatMap((e) => (e.step === i ? [e.worker] : []))),
    ]
    return Object.fromEntries(
      names.map((name, w) => [name, { view: views[w]!, wrote: tokens[w]! }]),
    )
  })
  return { steps, events }
}

const joined = (order: Order): WorkerSpec[] => (order.do === 'join' ? [order.spec] : [])

const worker = (name: string, n: number, header = false): WorkerSpec => ({
  name,
  prompt: [n, n + 1],
  ...(header && { header: [n + 100, n + 101, n + 102] }),
})

const plain: Script = {
  layout: 'contiguous',
  share: true,
  prompt: [222, 345, 53, 204, 183, 35, 242],
  sharedHeader: [],
  workers: [worker('Alice', 10), worker('Bob', 20), worker('Carol', 30)],
  maxTokens: 8,
  stopTokens: [],
  turnEnds: undefined,
  turnHeader: () => [],
  orders: {},
}
const turns: Partial<Script> = {
  // About every third token.
  turnEnds: (ids) => (ids.at(-1) as number) % 3 === 0,
  turnHeader: (name, turn) => [...Buffer.from(name).subarray(0, 2), turn],
}
const headed = [worker('Alice', 10, true), worker('Bob', 20, true), worker('Carol', 30, true)]
const disturbed: Script['orders'] = {
  0: [{ do: 'pause', name: 'Bob' }],
  2: [
    { do: 'resume', name: 'Bob' },
    { do: 'join', spec: worker('Dave', 40, true) },
  ],
  3: [{ do: 'inject', name: 'Alice', tokens: [300, 301] }],
  4: [{ do: 'stop', name: 'Carol', append: [7] }],
  5: [
    { do: 'pause', name: 'Alice' },
    { do: 'stop', name: 'Bob', append: [] },
  ],
  8: [
    { do: 'inject', name: 'Carol', tokens: [5] },
    { do: 'resume', name: 'Alice' },
  ],
}

describe('each lock step is that of the simulation over lists of tokens', () => {
  test.each<[string, Partial<Script>]>([
    ['contiguous', {}],
    ['contiguous with headers and disturbances', { workers: headed, orders: disturbed }],
    ['interleaved with turns', { layout: 'interleaved', workers: headed, ...turns }],
    ['combined with turns', { layout: 'combined', sharedHeader: [60, 61], ...turns }],
    [
      'combined with everything',
      {
        layout: 'combined',
        sharedHeader: [60, 61],
        workers: headed,
        maxTokens: 12,
        ...turns,
        orders: disturbed,
      },
    ],
    ['contiguous, not shared', { share: false }],
    [
      'combined, not shared, with turns',
      { layout: 'combined', share: false, workers: headed, ...turns },
    ],
    ['one worker, turns', { layout: 'combined', workers: [worker('Alice', 10)], ...turns }],
  ])('%s', async (_, changes) => {
    const script = { ...plain, ...changes }
    const expected = simulate(script)
    const { steps, events } = await play(script)
    expect(steps).toEqual(expected)

    const written = (name: string) => expected.flatMap((step) => step[name]?.wrote ?? [])
    for (const name of new Set(expected.flatMap((step) => Object.keys(step)))) {
      expect(tokensOf(events, name)).toEqual(written(name))
    }
    const steps0 = ofType(events, 'step')
    expect(steps0.map(({ step }) => step)).toEqual(expected.map((__, i) => i))
    expect(steps0.map(({ workers }) => workers)).toEqual(expected.map((s) => Object.keys(s).length))
    const total = expected.flatMap((step) => Object.values(step)).flatMap(({ wrote }) => wrote)
    expect(events.at(-1)).toEqual({
      type: 'end',
      steps: expected.length,
      tokens: total.length,
      milliseconds: expect.any(Number),
      usage: expect.objectContaining({ peakPages: expect.any(Number) }),
    })
    if (script.turnEnds) expect(ofType(events, 'turn').length).toBeGreaterThan(2)
  })
})

test('one worker is ordinary decoding', async () => {
  const { tokens, greedy } = readPlain('llama')
  const prompt = tokens.slice(0, -1)
  const workers = [{ name: 'Alice', prompt: tokens.slice(-1) }]
  for (const layout of ['contiguous', 'interleaved', 'combined'] as const) {
    const run = runWorkers({ model, prompt, workers, layout, maxTokens: 24, stopTokens: [] })
    expect(tokensOf(await collect(run), 'Alice')).toEqual([tokens.at(-1), ...greedy])
  }
})

// ---- events and ends --------------------------------------------------------------------------------

const prompt = [222, 345, 53]
const alice = { name: 'Alice', prompt: [10, 11] }
const bob = { name: 'Bob', prompt: [20] }
const start = (options: Partial<RunOptions> = {}): WorkerRun =>
  runWorkers({
    model,
    prompt,
    workers: [alice, bob],
    layout: 'contiguous',
    stopTokens: [],
    maxTokens: 3,
    ...options,
  })

/** The caches that runs make from here on. */
function watchCaches(): Cache[] {
  const caches: Cache[] = []
  const createCache = model.createCache.bind(model)
  jest.spyOn(model, 'createCache').mockImplementation((options) => {
    const cache = createCache(options)
    caches.push(cache)
    return cache
  })
  return caches
}

test('events come in order: joins, then per step tokens, stops and the step, then the end', async () => {
  const events = await collect(start({ workers: [alice, { ...bob, maxTokens: 1 }] }))
  const brief = events.map((event) => {
    if (event.type === 'end') return 'end'
    if (event.type === 'step') return `${event.step} step ${event.workers} ${event.tokens}`
    if (event.type === 'warning' || event.type === 'append') return `${event.step} ${event.type}`
    if (event.type === 'token') return `${event.step} ${event.worker} ${event.forced ? '!' : ''}`
    return `${event.step} ${event.worker} ${event.type}${event.type === 'stop' ? ` ${event.reason}` : ''}`
  })
  expect(brief).toEqual([
    '0 Alice join',
    '0 Bob join',
    '0 Alice !',
    '0 Alice !',
    '0 Bob !',
    '0 step 2 3',
    '1 Alice ',
    '1 Bob ',
    '1 Bob stop max-tokens',
    '1 step 2 2',
    '2 Alice ',
    '2 step 1 1',
    '3 Alice ',
    '3 Alice stop max-tokens',
    '3 step 1 1',
    'end',
  ])
})

test('a sampled stop token is written, then the worker stops; a forced one means nothing', async () => {
  const [, , , second] = tokensOf(await collect(start({ workers: [alice] })), 'Alice')
  const events = await collect(
    start({ workers: [{ ...alice, prompt: alice.prompt }], stopTokens: [second as number, 10] }),
  )
  expect(tokensOf(events, 'Alice')).toHaveLength(4)
  expect(tokensOf(events, 'Alice').at(-1)).toBe(second)
  expect(ofType(events, 'stop')).toMatchObject([{ reason: 'stop-token', step: 2 }])
})

test('stop tokens default to those of the model', async () => {
  const everything = Array.from({ length: model.config.vocabSize }, (_, id) => id)
  jest.replaceProperty(model, 'config', { ...model.config, eosTokenIds: everything })
  const events = await collect(start({ stopTokens: undefined }))
  expect(ofType(events, 'stop').map(({ reason }) => reason)).toEqual(['stop-token', 'stop-token'])
})

test('a mark is not written by a worker that has not begun', async () => {
  const run = start()
  run.stop('Bob', { append: [7] })
  const events = await collect(run)
  expect(tokensOf(events, 'Bob')).toEqual([])
  expect(ofType(events, 'stop')[0]).toEqual({
    type: 'stop',
    worker: 'Bob',
    step: 0,
    reason: 'stopped',
  })
})

test('controls on a worker that has stopped have no effect', async () => {
  const run = start()
  for await (const event of run) {
    if (event.type !== 'stop') continue
    run.pause(event.worker)
    run.resume(event.worker)
    run.inject(event.worker, [1])
    run.stop(event.worker, { append: [1] })
  }
  expect(run.workers.map(({ state, tokens }) => [state, tokens.length])).toEqual([
    ['stopped', 5],
    ['stopped', 4],
  ])
})

test('workers tells name, state and tokens', async () => {
  const run = start()
  run.pause('Bob')
  const events: WorkerEvent[] = []
  for await (const event of run) {
    events.push(event)
    if (event.type === 'step' && event.step === 1) {
      expect(run.workers).toEqual([
        { name: 'Alice', state: 'active', tokens: tokensOf(events, 'Alice') },
        { name: 'Bob', state: 'paused', tokens: [] },
      ])
      run.resume('Bob')
    }
  }
  expect(run.workers.map(({ tokens }) => tokens)).toEqual(
    ['Alice', 'Bob'].map((name) => tokensOf(events, name)),
  )
})

test('no step runs before its events are asked for', async () => {
  const step = jest.spyOn(model, 'timedStep')
  const run = start()
  expect(step).not.toHaveBeenCalled()
  const iterator = run[Symbol.asyncIterator]()
  const next = async () => (await iterator.next()).value as WorkerEvent
  expect([(await next()).type, (await next()).type]).toEqual(['join', 'join'])
  expect(step).toHaveBeenCalledTimes(1) // the prompt
  for (let i = 0; i < 4; i++) await next() // three tokens, step
  await new Promise((resolve) => setTimeout(resolve, 20))
  expect(step).toHaveBeenCalledTimes(2)
  await run.close()
})

test('samplers: the same seeds write the same, others do not', async () => {
  const write = async (seed: number) => {
    const workers = [alice, bob].map((spec, i) => ({
      ...spec,
      sampler: { temperature: 2, seed: seed + i },
    }))
    const events = await collect(start({ workers, maxTokens: 8 }))
    return ['Alice', 'Bob'].map((name) => tokensOf(events, name))
  }
  const first = await write(1)
  expect(await write(1)).toEqual(first)
  expect(await write(5)).not.toEqual(first)
})

test('ids without a token are not chosen', async () => {
  // A head of 300 rows over 258 tokens.
  await using padded = await loadModel(writeModel({ vocabSize: 300, seed: 3 }), { device: 'cpu' })
  await using bytes = await loadTokenizer(byteLevelFolder())
  const write = async (tokenizer?: Tokenizer) => {
    const workers = [
      { name: 'Alice', prompt: [1] },
      { name: 'Bob', prompt: [2], sampler: { temperature: 1, seed: 1 } },
    ]
    const options = { model: padded, prompt: [3], workers, stopTokens: [], maxTokens: 40 }
    const events = await collect(runWorkers({ ...options, tokenizer }))
    return workers.map(({ name }) => tokensOf(events, name).filter((id) => id >= 258).length)
  }
  for (const chosen of await write()) expect(chosen).toBeGreaterThan(0)
  expect(await write(bytes)).toEqual([0, 0])
})

test('text is that of the tokens, without a tokenizer none', async () => {
  const demo = join(__dirname, '../models/demo')
  await using writer = await loadModel(demo, { threads: 1 })
  const tokenizer = await loadTokenizer(demo)
  const options: RunOptions = {
    model: writer,
    prompt: tokenizer.encodeSync('<s>A:ynam\nB:sdnah\n'),
    workers: [
      { name: 'Alice', prompt: tokenizer.encodeSync('Alice') },
      { name: 'Bob', prompt: tokenizer.encodeSync('Bob') },
    ],
    layout: 'contiguous',
    maxTokens: 40,
  }
  const events = await collect(runWorkers({ ...options, tokenizer }))
  for (const name of ['Alice', 'Bob']) {
    const text = ofType(events, 'token').flatMap((e) => (e.worker === name ? [e.text] : []))
    expect(text.join('')).toBe(tokenizer.decode(tokensOf(events, name)))
    expect(text[0]).toBe(name)
  }
  const silent = await collect(runWorkers(options))
  expect(ofType(silent, 'token').every(({ text }) => text === '')).toBe(true)
})

describe('a run frees its cache', () => {
  test('at its end, and takes no more controls', async () => {
    const caches = watchCaches()
    const run = start()
    await collect(run)
    expect(caches.map(({ closed }) => closed)).toEqual([true])
    for (const call of [
      () => run.join({ name: 'Carol', prompt: [1] }),
      () => run.stop('Bob'),
      () => run.pause('Bob'),
      () => run.resume('Bob'),
      () => run.inject('Bob', [1]),
    ]) {
      expect(await codeOf(call)).toBe('HOGWILD_CLOSED')
    }
    await run.close()
  })

  test('when the consumer leaves', async () => {
    const caches = watchCaches()
    for await (const event of start()) if (event.type === 'token') break
    expect(caches.map(({ closed }) => closed)).toEqual([true])
  })

  test('when it is closed between events, as often as one likes', async () => {
    const caches = watchCaches()
    const run = start()
    for await (const event of run) {
      if (event.type !== 'step') continue
      await Promise.all([run.close(), run.close()])
      expect(caches.map(({ closed }) => closed)).toEqual([true])
    }
    expect(await run[Symbol.asyncIterator]().next()).toEqual({ done: true, value: undefined })
  })

  test('when it is closed during a step: the iteration ends', async () => {
    const caches = watchCaches()
    const run = start({ prompt: Array.from({ length: 4000 }, (_, i) => i % 384) })
    const next = run[Symbol.asyncIterator]().next()
    await new Promise((resolve) => setImmediate(resolve))
    await run.close()
    expect(await next).toEqual({ done: true, value: undefined })
    expect(caches.map(({ closed }) => closed)).toEqual([true])
  })

  test('when it was never begun', async () => {
    const caches = watchCaches()
    const run = start()
    await run.close()
    expect(await collect(run)).toEqual([])
    expect(caches).toEqual([])
  })

  test('when it waits for paused workers and is closed', async () => {
    const caches = watchCaches()
    const run = start()
    run.pause('Alice')
    run.pause('Bob')
    const all = collect(run)
    await new Promise((resolve) => setTimeout(resolve, 20))
    await run.close()
    expect((await all).map(({ type }) => type)).toEqual(['join', 'join', 'pause', 'pause'])
    expect(caches.map(({ closed }) => closed)).toEqual([true])
  })

  test('when the prompt does not fit, which the iterator throws', async () => {
    const caches = watchCaches()
    const run = start({ capacity: 64, prompt: new Array(65).fill(1) })
    expect(await codeOf(() => collect(run))).toBe('HOGWILD_OUT_OF_PAGES')
    expect(caches.map(({ closed }) => closed)).toEqual([true])
    expect(await run[Symbol.asyncIterator]().next()).toEqual({ done: true, value: undefined })
  })
})

describe('an AbortSignal', () => {
  const reason = new Error('enough')
  const expectAborted = async (run: AsyncIterable<WorkerEvent>) => {
    const error = await collect(run).then(
      () => undefined,
      (thrown) => thrown,
    )
    expect(error).toMatchObject({ code: 'HOGWILD_ABORTED', cause: reason })
  }

  test('that is aborted before the first event', async () => {
    const caches = watchCaches()
    await expectAborted(start({ signal: AbortSignal.abort(reason) }))
    expect(caches).toEqual([])
  })

  test('between two steps', async () => {
    const caches = watchCaches()
    const controller = new AbortController()
    const run = start({ signal: controller.signal })
    const iterator = run[Symbol.asyncIterator]()
    while ((await iterator.next()).value?.type !== 'step');
    controller.abort(reason)
    await expectAborted(run)
    expect(caches.map(({ closed }) => closed)).toEqual([true])
  })

  test('during a step', async () => {
    const controller = new AbortController()
    const long = Array.from({ length: 4000 }, (_, i) => i % 384)
    setImmediate(() => controller.abort(reason))
    await expectAborted(start({ prompt: long, signal: controller.signal }))
  })

  test('while all workers are paused', async () => {
    const controller = new AbortController()
    const run = start({ signal: controller.signal })
    run.pause('Alice')
    run.pause('Bob')
    setTimeout(() => controller.abort(reason), 20)
    await expectAborted(run)
  })
})

test('a run without workers waits for none', async () => {
  const run = start({ workers: [] })
  run.join(alice)
  expect(tokensOf(await collect(run), 'Alice')).toHaveLength(5)
  expect((await collect(start({ workers: [] }))).map(({ type }) => type)).toEqual(['end'])
})

test.each<[string, Partial<RunOptions> | (() => unknown), RegExp]>([
  ['no model', { model: {} as Model }, /options\.model.*Model/],
  ['a token out of range', { prompt: [384] }, /options\.prompt\[0\].*\[0, 383\].*384/],
  ['a prompt as text', { prompt: 'x' as never }, /options\.prompt/],
  [
    'a worker without a prompt',
    { workers: [{ ...alice, prompt: [] }] },
    /prompt.*at least 1 token/,
  ],
  ['a name twice', { workers: [alice, alice] }, /workers\[1\]\.name.*"Alice"/],
  ['an unknown layout', { layout: 'round' as LayoutName }, /'contiguous'.*"round"/],
  ['a shared header elsewhere', { sharedHeader: [1] }, /sharedHeader.*combined/],
  ['turns in contiguous', { turnEnds: () => true }, /turnEnds.*contiguous/],
  ['what is no signal', { signal: {} as AbortSignal }, /options\.signal.*AbortSignal/],
  ['no tokens at all', { maxTokens: 0 }, /maxTokens.*>= 1/],
  ['a sampler out of range', { workers: [{ ...alice, sampler: { topP: 2 } }] }, /topP.*\(0, 1\]/],
  ['an unknown worker', () => start().stop('Eve'), /one of 'Alice', 'Bob', received "Eve"/],
  ['a join of the same name', () => start().join(bob), /name.*"Bob"/],
  ['an injected token out of range', () => start().inject('Bob', [-1]), /tokens\[0\]/],
])('refused: %s', async (_, options, message) => {
  const call = typeof options === 'function' ? options : () => start(options)
  expect(call).toThrow(message)
  expect(await codeOf(call)).toBe('HOGWILD_INVALID_ARGUMENT')
})

test('errors of the callbacks come out of the iterator', async () => {
  const caches = watchCaches()
  const run = start({
    layout: 'combined',
    turnEnds: () => {
      throw new Error('mine')
    },
  })
  await expect(collect(run)).rejects.toThrow('mine')
  const header = start({ layout: 'combined', turnEnds: () => true, turnHeader: () => [1e9] })
  expect(await codeOf(() => collect(header))).toBe('HOGWILD_INVALID_ARGUMENT')
  expect(caches.map(({ closed }) => closed)).toEqual([true, true])
})

test('workers that are not to sample are told so', async () => {
  const step = jest.spyOn(model, 'timedStep')
  await collect(start({ workers: [alice], maxTokens: 1 }))
  const samplers = step.mock.calls.map(([[part]]) => (part as StepWorker).sampler)
  expect(samplers).toEqual([null, expect.any(Sampler), null])
})

test('onPrefill tells how much of a long prompt is computed, and pieces change no result', async () => {
  const { vocabSize } = model.config
  const prompt = Array.from({ length: 1100 }, (_, i) => (7 * i) % vocabSize)
  const told: unknown[] = []
  const tokens: number[] = []
  const run = runWorkers({
    model,
    prompt,
    workers: [{ name: 'a', prompt: [1] }],
    maxTokens: 8,
    stopTokens: [],
    onPrefill: (progress) => told.push(progress),
  })
  for await (const event of run) if (event.type === 'token') tokens.push(event.token)
  expect(told).toEqual([512, 1024, 1100].map((tokens) => ({ tokens, totalTokens: 1100 })))
  await using cache = model.createCache({ capacity: 2048 })
  const [common, own] = [cache.createBlock(), cache.createBlock()]
  await model.prefill(common, prompt, { sampler: null })
  const [output] = await model.step([{ view: { blocks: [common, own] }, tokens: [1] }])
  expect(tokens.slice(0, 2)).toEqual([1, output?.token])
  const full = runWorkers({
    model,
    prompt,
    workers: [],
    capacity: 640,
    onPrefill: () => told.push(0),
  })
  await expect(full[Symbol.asyncIterator]().next()).rejects.toMatchObject({
    code: 'HOGWILD_OUT_OF_PAGES',
  })
  expect(told).toHaveLength(3)
})

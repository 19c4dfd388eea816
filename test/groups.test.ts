// Groups that share steps and pages: each writes what it writes alone, whatever the others do.

import { channel, subscribe, unsubscribe } from 'node:diagnostics_channel'
import {
  type Cache,
  createScheduler,
  firstCome,
  type LayoutName,
  loadModel,
  type Model,
  multiBin,
  type RunOptions,
  runWorkers,
  type SchedulerOptions,
  schedulerOf,
  type WorkerEvent,
  type WorkerRun,
} from '../lib'
import type { GroupMessage, StepMessage } from '../lib/workers/channels'
import { codeOf, oracleFolder, Random } from './fixtures'

let model: Model

beforeAll(async () => {
  model = await loadModel(oracleFolder('llama'), { onWarning: () => {} })
})
afterAll(() => model.close())
afterEach(() => jest.restoreAllMocks())

const LAYOUTS: readonly LayoutName[] = ['contiguous', 'interleaved', 'combined']

async function collect(run: AsyncIterable<WorkerEvent>): Promise<WorkerEvent[]> {
  const events: WorkerEvent[] = []
  for await (const event of run) events.push(event)
  return events
}

const ofType = <T extends WorkerEvent['type']>(events: readonly WorkerEvent[], type: T) =>
  events.filter((event): event is Extract<WorkerEvent, { type: T }> => event.type === type)

/** Events without times, which nobody can foresee. */
const timeless = (events: readonly WorkerEvent[]) =>
  events.map((event) => ('milliseconds' in event ? { ...event, milliseconds: 0 } : event))

/** What is published on a channel while `use` runs. */
async function published<T>(name: string, use: () => Promise<unknown>): Promise<T[]> {
  const messages: T[] = []
  const listener = (message: unknown) => messages.push(message as T)
  subscribe(name, listener)
  try {
    await use()
  } finally {
    unsubscribe(name, listener)
  }
  return messages
}

const steps = (use: () => Promise<unknown>) => published<StepMessage>('hogwild:step', use)

// ---- random groups ----------------------------------------------------------------------------------

/** What is asked of a run once its step of this number has ended. */
type Script = Map<number, ((run: WorkerRun) => void)[]>

interface Play {
  options: RunOptions
  script: Script
}

/** A group with everything: layouts, headers, turns, samplers, controls and, for some, too few pages. */
function randomPlay(seed: number): Play {
  const random = new Random(seed)
  const tokens = (least: number, most: number) => random.tokens(random.int(least, most), 384)
  const layout = random.pick(LAYOUTS)
  const names = ['a', 'b', 'c', 'd'].slice(0, random.int(1, 4))
  const spec = (name: string, index: number) => ({
    name,
    prompt: tokens(1, 5),
    maxTokens: random.int(3, 14),
    ...(random.chance(0.4) && { header: tokens(1, 70) }),
    ...(random.chance(0.5) && { sampler: { seed: 100 * seed + index, temperature: 1.5 } }),
  })
  const options: RunOptions = {
    model,
    layout,
    share: random.chance(0.8),
    prompt: random.chance(0.2) ? tokens(520, 700) : tokens(0, 100),
    workers: names.map(spec),
    stopTokens: tokens(0, 10),
    capacity: 64 * random.pick([20, 24, 40]),
    ...(random.chance(0.3) && { prompt: tokens(1, 60), capacity: 64 * 5 }),
    ...(layout === 'combined' && random.chance(0.5) && { sharedHeader: tokens(1, 9) }),
    ...(layout !== 'contiguous' && {
      turnEnds: (ids: readonly number[]) => (ids.at(-1) as number) % 4 === 0,
      turnHeader: (name: string, turn: number) => [name.charCodeAt(0), turn],
    }),
  }
  const script: Script = new Map()
  const at = (step: number, order: (run: WorkerRun) => void) =>
    script.set(step, [...(script.get(step) ?? []), order])
  for (let step = 0; step < 12; step++) {
    if (!random.chance(0.4)) continue
    const name = random.pick(names)
    const given = tokens(1, 3)
    const newcomer = spec(`j${step}`, 10 + step)
    at(
      step,
      random.pick([
        (run) => run.inject(name, given),
        (run) => run.stop(name, { append: given }),
        (run) => run.join(newcomer),
        (run) => {
          run.pause(name)
          run.resume(name)
        },
      ]),
    )
  }
  return { options, script }
}

/** `delay`: what the consumer does before it asks for the next event. */
async function play(
  { options, script }: Play,
  changes: Partial<RunOptions> = {},
  delay: () => Promise<void> | undefined = () => undefined,
): Promise<WorkerEvent[]> {
  const run = runWorkers({ ...options, ...changes })
  const events: WorkerEvent[] = []
  for await (const event of run) {
    events.push(event)
    if (event.type === 'step') for (const order of script.get(event.step) ?? []) order(run)
    await delay()
  }
  return timeless(events)
}

/** Now and then a consumer lets other work come first. */
function randomDelay(seed: number): () => Promise<void> | undefined {
  const random = new Random(seed)
  return () => {
    if (random.chance(0.9)) return undefined
    if (random.chance(0.7)) return new Promise((resolve) => setImmediate(resolve))
    return new Promise((resolve) => setTimeout(resolve, random.int(0, 3)))
  }
}

const seeds = (count: number, first = 1) => Array.from({ length: count }, (_, i) => first + i)

/** Events of each group alone, one after the other. */
const alone = new Map<number, WorkerEvent[]>()
async function eventsAlone(seed: number): Promise<WorkerEvent[]> {
  const known = alone.get(seed)
  if (known !== undefined) return known
  const events = await play(randomPlay(seed))
  alone.set(seed, events)
  return events
}

async function expectAsAlone(played: ReadonlyMap<number, WorkerEvent[]>): Promise<void> {
  for (const [seed, events] of played) {
    expect({ seed, events }).toEqual({ seed, events: await eventsAlone(seed) })
  }
}

async function playTogether(
  list: readonly number[],
  changes: Partial<RunOptions> = {},
): Promise<Map<number, WorkerEvent[]>> {
  const played = await Promise.all(
    list.map((seed) => play(randomPlay(seed), changes, randomDelay(seed))),
  )
  return new Map(list.map((seed, i) => [seed, played[i] as WorkerEvent[]]))
}

describe('random groups write what they write alone', () => {
  test('on the scheduler of their model, which lets them all begin', async () => {
    const list = seeds(40)
    let played = new Map<number, WorkerEvent[]>()
    const messages = await steps(async () => {
      played = await playTogether(list)
    })
    await expectAsAlone(played)
    // They were in the same steps, and the plays come to everything.
    const together = messages.filter(({ groups }) => groups > 8)
    expect(together.length).toBeGreaterThan(5)
    const events = [...played.values()].flat()
    for (const type of ['join', 'pause', 'resume', 'turn', 'stop', 'token', 'end'] as const) {
      expect([type, ofType(events, type).length > 0]).toEqual([type, true])
    }
    const reasons = new Set(ofType(events, 'stop').map(({ reason }) => reason))
    expect([...reasons].sort()).toEqual(['max-tokens', 'out-of-pages', 'stop-token', 'stopped'])
    expect(schedulerOf(model).metrics).toMatchObject({
      groups: { waiting: 0, running: 0 },
      pages: { total: 0, used: 0, reserved: 0 },
    })
  })

  test.each<[string, Partial<SchedulerOptions>]>([
    ['few pages, reserved', { capacity: 64 * 50 }],
    ['few pages, lent', { capacity: 64 * 50, admission: 'park' }],
    ['the fewest pages, lent', { capacity: 64 * 40, admission: 'park', chunk: 7 }],
    ['three at a time, in small chunks', { maxGroups: 3, chunk: 16 }],
    [
      'in bins',
      {
        order: multiBin({
          predictLength: ({ maxTokens, prompt }) => Math.min(maxTokens, prompt.length),
          bins: 3,
          batch: 5,
          shortest: 0,
          longest: 100,
        }),
      },
    ],
  ])('with %s', async (_, options) => {
    const scheduler = createScheduler({ model, ...options })
    const list = seeds(16)
    let played = new Map<number, WorkerEvent[]>()
    let most = 0
    const messages = await steps(async () => {
      const listener = () => {
        const { pages, groups } = scheduler.metrics
        expect(pages.used).toBeLessThanOrEqual(pages.total)
        if (options.admission !== 'park') expect(pages.used).toBeLessThanOrEqual(pages.reserved)
        if (options.capacity !== undefined) expect(pages.total).toBe(options.capacity / 64)
        most = Math.max(most, groups.running)
      }
      subscribe('hogwild:step', listener)
      played = await playTogether(list, { scheduler })
      unsubscribe('hogwild:step', listener)
    })
    await expectAsAlone(played)
    expect(most).toBeGreaterThan(1)
    expect(most).toBeLessThanOrEqual(options.maxGroups ?? Number.POSITIVE_INFINITY)
    const chunk = options.chunk ?? 512
    expect(messages.every(({ prefilledTokens }) => prefilledTokens <= chunk)).toBe(true)
    const { groups, pages, steps: count, tokens } = scheduler.metrics
    expect([groups.waiting, groups.running, pages.total]).toEqual([0, 0, 0])
    expect(count).toBe(messages.length)
    const written = ofType([...played.values()].flat(), 'step').reduce((n, s) => n + s.tokens, 0)
    expect(tokens).toBe(written)
  })

  test('a prompt and a header wait for lent pages that others have', async () => {
    const scheduler = createScheduler({ model, capacity: 64 * 8, admission: 'park' })
    const first = runWorkers(small({ scheduler, prompt: new Array(256).fill(1), capacity: 384 }))
    const iterator = first[Symbol.asyncIterator]()
    while ((await iterator.next()).value?.type !== 'step');
    const late = small({
      prompt: new Array(200).fill(2),
      workers: [{ name: 'a', prompt: [1], header: new Array(70).fill(3) }],
      capacity: 64 * 8,
    })
    let isDone = false
    const parked = collect(runWorkers({ ...late, scheduler })).finally(() => {
      isDone = true
    })
    await new Promise((resolve) => setTimeout(resolve, 20))
    expect([isDone, scheduler.metrics.groups.running]).toEqual([false, 2])
    await first.close()
    expect(timeless(await parked)).toEqual(timeless(await collect(runWorkers(late))))
  })

  test('lent pages let more groups run than reserved ones', async () => {
    const running = async (admission: 'reserve' | 'park') => {
      const scheduler = createScheduler({ model, capacity: 64 * 40, admission })
      let most = 0
      const listener = () => {
        most = Math.max(most, scheduler.metrics.groups.running)
      }
      subscribe('hogwild:step', listener)
      await playTogether(seeds(12), { scheduler })
      unsubscribe('hogwild:step', listener)
      return most
    }
    expect(await running('park')).toBeGreaterThan(await running('reserve'))
  })
})

// ---- one group and the others -------------------------------------------------------------------------

const small = (changes: Partial<RunOptions> = {}): RunOptions => ({
  model,
  prompt: [222, 345, 53],
  workers: [
    { name: 'Alice', prompt: [10, 11] },
    { name: 'Bob', prompt: [20] },
  ],
  layout: 'combined',
  stopTokens: [],
  maxTokens: 8,
  ...changes,
})

describe('what happens to one group leaves the others as they are', () => {
  const reason = new Error('enough')
  const others = seeds(6)
  const withOthers = async (one: Promise<unknown>) => {
    const [played] = await Promise.all([playTogether(others), one])
    await expectAsAlone(played)
  }

  test('a callback that throws', async () => {
    const run = runWorkers(
      small({
        turnEnds: (ids) => {
          if (ids.length === 3) throw reason
          return false
        },
      }),
    )
    await withOthers(expect(collect(run)).rejects.toBe(reason))
  })

  test('a signal, in the middle of a step', async () => {
    const controller = new AbortController()
    const run = runWorkers(small({ signal: controller.signal }))
    let count = 0
    const timedStep = model.timedStep.bind(model)
    jest.spyOn(model, 'timedStep').mockImplementation((parts, options) => {
      if (++count === 4) setImmediate(() => controller.abort(reason))
      return timedStep(parts, options)
    })
    await withOthers(
      expect(collect(run)).rejects.toMatchObject({ code: 'HOGWILD_ABORTED', cause: reason }),
    )
  })

  test('a close, at any time', async () => {
    for (let wait = 0; wait < 6; wait++) {
      const run = runWorkers(small())
      const ended = collect(run)
      await Promise.all([
        withOthers(ended),
        new Promise((resolve) => setTimeout(resolve, wait)).then(() => run.close()),
      ])
    }
  })

  test('a view beyond the context that it refuses', async () => {
    jest.replaceProperty(model, 'config', { ...model.config, maxPositions: 1000 })
    const long = new Array(999).fill(1)
    const strict = collect(runWorkers(small({ prompt: long, beyondContext: 'error' })))
    await withOthers(expect(strict).rejects.toMatchObject({ code: 'HOGWILD_INVALID_ARGUMENT' }))
    const lenient = runWorkers(small({ prompt: long }))
    let warned: WorkerEvent[] = []
    await withOthers(
      collect(lenient).then((events) => {
        warned = ofType(events, 'warning')
      }),
    )
    expect(warned).toMatchObject([{ code: 'HOGWILD_BEYOND_CONTEXT' }])
  })

  test('a prompt that its budget has no room for', async () => {
    const full = runWorkers(small({ prompt: new Array(700).fill(1), capacity: 640 }))
    await withOthers(expect(collect(full)).rejects.toMatchObject({ code: 'HOGWILD_OUT_OF_PAGES' }))
  })

  test('a consumer that does not come back', async () => {
    const run = runWorkers(small())
    const iterator = run[Symbol.asyncIterator]()
    while ((await iterator.next()).value?.type !== 'step');
    await withOthers(Promise.resolve())
    // It goes on where it was.
    const rest: WorkerEvent[] = []
    for await (const event of { [Symbol.asyncIterator]: () => iterator }) rest.push(event)
    const whole = timeless(await collect(runWorkers(small())))
    expect(timeless(rest)).toEqual(whole.slice(-rest.length))
    expect(ofType(rest, 'step')[0]?.step).toBe(1)
  })
})

test('while a long prompt is computed, the others write in every step', async () => {
  const scheduler = createScheduler({ model, chunk: 64 })
  const writer = runWorkers(small({ scheduler, maxTokens: 200 }))
  const iterator = writer[Symbol.asyncIterator]()
  while ((await iterator.next()).value?.type !== 'step');
  const writing = (async () => {
    let count = 0
    for await (const event of { [Symbol.asyncIterator]: () => iterator }) {
      if (event.type === 'step') count++
    }
    return count
  })()
  const prompt = new Random(5).tokens(3000, 384)
  const late = runWorkers(small({ scheduler, prompt, maxTokens: 2 }))
  const messages = await steps(() => collect(late))
  const filling = messages.filter(({ prefilledTokens }) => prefilledTokens > 0)
  expect(filling).toHaveLength(Math.ceil(3000 / 64))
  // The writer is in each of them but the first, which may begin before it asks.
  expect(filling.filter(({ workers }) => workers === 2).length).toBeGreaterThan(40)
  expect(await writing).toBe(200)
})

// ---- who begins when ----------------------------------------------------------------------------------

describe('groups that wait', () => {
  const begin = async (runs: readonly [string, RunOptions][]) => {
    const order: string[] = []
    await Promise.all(
      runs.map(async ([name, options]) => {
        for await (const event of runWorkers(options)) if (event.type === 'join') order.push(name)
      }),
    )
    return order.filter((name, i) => order.indexOf(name) === i)
  }

  test('begin by priority, then in the order in which they came', async () => {
    const scheduler = createScheduler({ model, maxGroups: 1 })
    const run = (priority: number): RunOptions => small({ scheduler, priority, maxTokens: 2 })
    const order = await begin([
      ['first', run(0)],
      ['low', run(-1)],
      ['b', run(0)],
      ['high', run(3)],
      ['c', run(0)],
    ])
    expect(order).toEqual(['first', 'high', 'b', 'c', 'low'])
  })

  test('for pages hold up those behind them', async () => {
    const scheduler = createScheduler({ model, capacity: 640, order: firstCome() })
    const run = (capacity: number): RunOptions => small({ scheduler, capacity, maxTokens: 2 })
    const order = await begin([
      ['half', run(320)],
      ['all', run(640)],
      ['little', run(64 * 4)],
    ])
    expect(order).toEqual(['half', 'all', 'little'])
  })

  test('may be aborted or closed, and those behind them begin', async () => {
    const scheduler = createScheduler({ model, maxGroups: 1 })
    const first = runWorkers(small({ scheduler }))
    const events = first[Symbol.asyncIterator]()
    await events.next()
    const controller = new AbortController()
    const aborted = collect(runWorkers(small({ scheduler, signal: controller.signal })))
    const closed = runWorkers(small({ scheduler }))
    const ofClosed = collect(closed)
    const last = collect(runWorkers(small({ scheduler })))
    expect(scheduler.metrics.groups).toEqual({ waiting: 3, running: 1 })
    controller.abort(new Error('enough'))
    await expect(aborted).rejects.toMatchObject({ code: 'HOGWILD_ABORTED' })
    await closed.close()
    expect(await ofClosed).toEqual([])
    expect(scheduler.metrics.groups).toEqual({ waiting: 1, running: 1 })
    await first.close()
    expect((await last).at(-1)?.type).toBe('end')
    expect(scheduler.metrics.groups).toEqual({ waiting: 0, running: 0 })
  })

  test('are told what the order throws', async () => {
    const broken = new Error('broken')
    const order = {
      name: 'broken',
      choose: () => {
        throw broken
      },
    }
    const scheduler = createScheduler({ model, order })
    await expect(collect(runWorkers(small({ scheduler })))).rejects.toBe(broken)
    expect(scheduler.metrics.groups.waiting).toBe(0)
  })

  test('reject when the model is closed', async () => {
    const own = await loadModel(oracleFolder('llama'), { onWarning: () => {} })
    const scheduler = createScheduler({ model: own, maxGroups: 1 })
    const runs = [1, 2, 3].map(() => collect(runWorkers(small({ model: own, scheduler }))))
    const outcomes = Promise.allSettled(runs)
    await new Promise((resolve) => setTimeout(resolve, 5))
    await own.close()
    for (const outcome of await outcomes) {
      if (outcome.status === 'fulfilled') continue
      expect(['HOGWILD_CLOSED', 'HOGWILD_ABORTED']).toContain(outcome.reason.code)
    }
  })
})

test('the model’s scheduler never makes a group wait: it gets a pool of its own', async () => {
  const capacity = 64 * 8192
  const runs = Array.from({ length: 3 }, () => runWorkers(small({ capacity, maxTokens: 2 })))
  const iterators = runs.map((run) => run[Symbol.asyncIterator]())
  // One consumer that asks them in turn.
  for (const iterator of iterators) expect((await iterator.next()).value?.type).toBe('join')
  const { groups, pages } = schedulerOf(model).metrics
  expect(groups).toEqual({ waiting: 0, running: 3 })
  expect(pages.reserved).toBe(3 * 8192)
  for (const run of runs) await run.close()
  expect(schedulerOf(model).metrics.pages.total).toBe(0)
})

test('groups with other caches live in other pools', async () => {
  const created: Cache[] = []
  const createCache = model.createCache.bind(model)
  jest.spyOn(model, 'createCache').mockImplementation((options) => {
    created.push(createCache(options))
    return created.at(-1) as Cache
  })
  await Promise.all(
    (['f32', 'int8', 'f32', { keys: 'int8', values: 'int8' }] as const).map((cacheDtype) =>
      collect(runWorkers(small({ cacheDtype }))),
    ),
  )
  expect(created.map(({ shape }) => shape.dtype)).toEqual(['f32', 'int8'])
  expect(created.every(({ closed }) => closed)).toBe(true)
})

// ---- a cache of the user's ------------------------------------------------------------------------------

describe('in a cache of the user’s', () => {
  const tokensOf = (events: readonly WorkerEvent[]) =>
    ofType(events, 'token').map(({ worker, token }) => [worker, token])

  test('a run writes the same, and leaves the cache as it was', async () => {
    await using cache = model.createCache({ capacity: 4096 })
    const others = collect(runWorkers(small({ cache })))
    const events = await collect(runWorkers(small({ cache })))
    const pool = await collect(runWorkers(small()))
    expect(tokensOf(events)).toEqual(tokensOf(pool))
    expect(tokensOf(await others)).toEqual(tokensOf(pool))
    expect(cache.closed).toBe(false)
    expect(cache.stats.freePages).toBe(cache.stats.pages)
    expect(ofType(events, 'end')[0]?.usage.peakPages).toBeUndefined()
  })

  test('all runs on it are in the same steps, whoever schedules them', async () => {
    await using cache = model.createCache({ capacity: 4096 })
    const scheduler = createScheduler({ model })
    const messages = await steps(() =>
      Promise.all([
        collect(runWorkers(small({ cache }))),
        collect(runWorkers(small({ cache, scheduler }))),
      ]),
    )
    expect(messages.filter(({ groups }) => groups === 2).length).toBeGreaterThan(5)
  })

  test('a common block is computed once for many runs, and shared by their forks', async () => {
    await using cache = model.createCache({ capacity: 4096 })
    const prompt = new Random(9).tokens(300, 384)
    const common = cache.createBlock()
    await model.prefill(common, prompt, { sampler: null })
    const tails = [[1, 2], [3], []]
    const together = await Promise.all(
      tails.map((tail) =>
        collect(runWorkers(small({ cache, common: common.fork(), prompt: tail }))),
      ),
    )
    for (const [i, tail] of tails.entries()) {
      const alone = await collect(runWorkers(small({ prompt: [...prompt, ...tail] })))
      expect(tokensOf(together[i] as WorkerEvent[])).toEqual(tokensOf(alone))
    }
    expect(common.length).toBe(300)
  })

  test('blocks stay where asked, and a worker goes on in them', async () => {
    await using cache = model.createCache({ capacity: 4096 })
    const workers = [{ name: 'Alice', prompt: [10, 11], header: [7, 8] }]
    const options = small({ cache, workers, sharedHeader: [60, 61], keepBlocks: true })
    const whole = tokensOf(await collect(runWorkers({ ...options, maxTokens: 12 })))
    const first = runWorkers({ ...options, maxTokens: 5 })
    expect(first.blocks).toEqual({ common: undefined, shared: undefined, workers: {} })
    const written = tokensOf(await collect(first))
    const { common, shared, workers: of } = first.blocks
    const own = of.Alice?.own
    expect(Array.from(own?.tokens() ?? [])).toEqual(written.map(([, token]) => token))
    // The last token is processed again, so that one follows.
    own?.truncate(own.length - 1)
    const last = written.at(-1)?.[1] as number
    const header = of.Alice?.header as NonNullable<typeof own>
    const second = runWorkers({
      ...options,
      common,
      prompt: [],
      sharedHeader: undefined,
      shared,
      workers: [{ name: 'Alice', prompt: [last], own, headerBlock: header }],
      maxTokens: 7,
    })
    expect([...written.slice(0, -1), ...tokensOf(await collect(second))]).toEqual(whole)
    expect(second.blocks.workers.Alice?.own).toBe(own)
  })

  test('a turn’s text is in the common block afterwards', async () => {
    await using cache = model.createCache({ capacity: 4096 })
    const common = cache.createBlock()
    const run = runWorkers(
      small({
        cache,
        common,
        turnEnds: (ids) => ids.length === 3,
        workers: [{ name: 'a', prompt: [9] }],
      }),
    )
    const written = tokensOf(await collect(run)).map(([, token]) => token)
    const kept = Array.from(common.tokens())
    expect(kept).toEqual([222, 345, 53, ...written.slice(0, kept.length - 3)])
    expect(kept.length).toBeGreaterThan(6)
    expect(run.blocks.common).toBeUndefined()
  })

  test('a budget bounds a run, not the others', async () => {
    await using cache = model.createCache({ capacity: 64 * 40 })
    const bounded = small({ cache, capacity: 64 * 3, maxTokens: 200 })
    const [events, free] = await Promise.all([
      collect(runWorkers(bounded)),
      collect(runWorkers(small({ cache, maxTokens: 80 }))),
    ])
    expect(ofType(events, 'stop').map(({ reason }) => reason)).toEqual([
      'out-of-pages',
      'out-of-pages',
    ])
    expect(ofType(events, 'end')[0]?.usage.peakPages).toBe(3)
    expect(ofType(free, 'stop').map(({ reason }) => reason)).toEqual(['max-tokens', 'max-tokens'])
    const apart = await collect(runWorkers(small({ capacity: 64 * 3, maxTokens: 200 })))
    expect(tokensOf(events)).toEqual(tokensOf(apart))
  })

  test('a full cache stops workers of whoever asks, and the others go on', async () => {
    await using cache = model.createCache({ capacity: 64 * 7 })
    const played = await Promise.all(
      [60, 200].map((maxTokens) => collect(runWorkers(small({ cache, maxTokens })))),
    )
    expect(ofType(played[0] as WorkerEvent[], 'stop').map(({ reason }) => reason)).toEqual([
      'max-tokens',
      'max-tokens',
    ])
    expect(ofType(played[1] as WorkerEvent[], 'stop').map(({ reason }) => reason)).toContain(
      'out-of-pages',
    )
    expect(cache.stats.freePages).toBe(7)
  })
})

// ---- figures and messages -------------------------------------------------------------------------------

test('usage counts what was given, what was written, and pages', async () => {
  const events = await collect(
    runWorkers(
      small({
        sharedHeader: [1, 2],
        workers: [
          { name: 'a', prompt: [10, 11], header: [7] },
          { name: 'b', prompt: [5] },
        ],
        maxTokens: 4,
      }),
    ),
  )
  expect(ofType(events, 'end')[0]?.usage).toEqual({
    promptTokens: 3 + 2 + 1 + 2 + 1,
    reusedTokens: 0,
    completionTokens: 8,
    peakPages: 5,
  })
})

test('channels tell of groups and steps, and nothing is put together where nobody listens', async () => {
  const scheduler = createScheduler({ model, maxGroups: 1 })
  const both = () =>
    Promise.all([0, 1].map((priority) => collect(runWorkers(small({ scheduler, priority })))))
  const all: Record<string, GroupMessage[]> = {}
  const listen = ['wait', 'begin', 'end'].map((kind) => {
    const name = `hogwild:group:${kind}`
    const listener = (message: unknown) => {
      all[kind] = [...(all[kind] ?? []), message as GroupMessage]
    }
    subscribe(name, listener)
    return () => unsubscribe(name, listener)
  })
  await both()
  for (const forget of listen) forget()
  const message = (priority: number) => ({ workers: 2, promptTokens: 3, pages: 128, priority })
  expect(all).toEqual({
    wait: [message(1)],
    begin: [message(0), message(1)],
    end: [message(0), message(1)],
  })
  const publish = jest.spyOn(channel('hogwild:step'), 'publish')
  await both()
  expect(publish).not.toHaveBeenCalled()
  expect(scheduler.metrics.tokensPerSecond).toBeGreaterThan(0)
})

test.each<[string, () => unknown, RegExp]>([
  ['no model', () => createScheduler({} as SchedulerOptions), /options\.model/],
  ['a capacity of nothing', () => createScheduler({ model, capacity: 0 }), /capacity/],
  ['an unknown admission', () => createScheduler({ model, admission: 'x' as 'park' }), /admission/],
  ['no groups', () => createScheduler({ model, maxGroups: 0 }), /maxGroups/],
  ['no tokens in a chunk', () => createScheduler({ model, chunk: 0 }), /chunk/],
  ['an order without choose', () => createScheduler({ model, order: {} as never }), /order/],
  ['no scheduler', () => runWorkers(small({ scheduler: {} as never })), /options\.scheduler/],
  [
    'a budget larger than the pool',
    () =>
      runWorkers(small({ capacity: 129, scheduler: createScheduler({ model, capacity: 128 }) })),
    /options\.capacity.*at most the 128/,
  ],
  ['no cache', () => runWorkers(small({ cache: {} as never })), /options\.cache/],
  ['a priority that is none', () => runWorkers(small({ priority: Number.NaN })), /priority/],
  ['blocks kept in a pool', () => runWorkers(small({ keepBlocks: true })), /keepBlocks.*absent/],
  [
    'a dtype beside a cache',
    () => runWorkers(small({ cacheDtype: 'f32', cache: model.createCache({ capacity: 64 }) })),
    /cacheDtype.*absent/,
  ],
  [
    'a block of another cache',
    () =>
      runWorkers(
        small({
          cache: model.createCache({ capacity: 64 }),
          common: model.createCache({ capacity: 64 }).createBlock(),
        }),
      ),
    /options\.common.*of options\.cache/,
  ],
  [
    'an own block without a cache',
    () =>
      runWorkers(
        small({
          workers: [
            { name: 'a', prompt: [1], own: model.createCache({ capacity: 64 }).createBlock() },
          ],
        }),
      ),
    /own.*of options\.cache/,
  ],
])('refused: %s', async (_, call, message) => {
  expect(call).toThrow(message)
  expect(await codeOf(call)).toBe('HOGWILD_INVALID_ARGUMENT')
})

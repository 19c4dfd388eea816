// Stored prefixes (SchedulerOptions.prefixes): whatever is reused, from memory or from files of another process, each group
// writes what it writes alone, to the last bit of its logits, and ends where it would have ended; what is kept gives way.

import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import {
  copyFileSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import * as hogwild from '../lib'
import {
  type CacheDtype,
  createScheduler,
  type GenerateOptions,
  generate,
  loadModel,
  type Model,
  type PrefixOptions,
  type RunOptions,
  runWorkers,
  type Scheduler,
  type SchedulerOptions,
  type Warning,
  type WorkerEvent,
} from '../lib'
import { codeOf, Random, temporaryFolder, writeModel } from './fixtures'

interface Recorded {
  written: { events: WorkerEvent[]; logits: string }
  reusedTokens: number
}
const { record } = require('./prefixes/record.cjs') as {
  record(module: typeof hogwild, options: RunOptions): Promise<Recorded>
}
const recordOf = (options: RunOptions) => record(hogwild, options)

const VOCAB = 53
const PAGE = 64

const models: Model[] = []
const schedulers: Scheduler[] = []
let model: Model
let modelPath: string

async function open(path: string, warnings: Warning[] = []): Promise<Model> {
  const opened = await loadModel(path, {
    device: 'cpu',
    threads: 1,
    onWarning: (warning) => warnings.push(warning),
  })
  models.push(opened)
  return opened
}

beforeAll(async () => {
  modelPath = writeModel()
  model = await open(modelPath)
})

afterEach(async () => {
  for (const scheduler of schedulers.splice(0)) await scheduler.close()
})

afterAll(async () => {
  for (const one of models) await one.close()
})

function schedule(options: Partial<SchedulerOptions> = {}): Scheduler {
  const scheduler = createScheduler({ model, prefixes: {}, ...options })
  schedulers.push(scheduler)
  return scheduler
}

// ---- random groups that begin alike ---------------------------------------------------------------------

/** Texts of which some begin as others do, or go on behind them, as the turns of a chat. */
function randomTexts(random: Random, count: number, vocab: number): number[][] {
  const texts: number[][] = [random.tokens(random.int(100, 400), vocab)]
  while (texts.length < count) {
    const base = random.pick(texts)
    const length = random.pick([0, 63, 64, 65, 128, base.length, random.int(0, base.length)])
    texts.push([...base.slice(0, length), ...random.tokens(random.int(0, 150), vocab)])
  }
  return texts
}

/** Groups whose prompts and headers are from the same texts. Everything that JSON can hold. */
function randomRuns(seed: number, count: number, vocab = VOCAB): Omit<RunOptions, 'model'>[] {
  const random = new Random(seed)
  const texts = randomTexts(random, 8, vocab)
  return Array.from({ length: count }, () => {
    const layout = random.pick(['contiguous', 'interleaved', 'combined'] as const)
    const names = ['a', 'b', 'c'].slice(0, random.int(1, 3))
    return {
      layout,
      share: random.chance(0.8),
      prompt: random.pick(texts),
      ...(layout === 'combined' && random.chance(0.3) && { sharedHeader: random.pick(texts) }),
      workers: names.map((name, i) => ({
        name,
        prompt: random.tokens(random.int(1, 3), vocab),
        maxTokens: random.int(1, 5),
        ...(random.chance(0.4) && { header: random.pick(texts).slice(0, 200) }),
        ...(random.chance(0.5) && { sampler: { seed: 10 * seed + i, temperature: 1.2 } }),
      })),
      stopTokens: random.tokens(random.int(0, 3), vocab),
      // For some too few: they stop in the middle, or cannot begin.
      capacity: PAGE * random.pick([6, 10, 24, 30]),
    }
  })
}

/** What a run writes, or the code and message that it ends with. */
async function outcome(options: RunOptions): Promise<Recorded | string> {
  try {
    return await recordOf(options)
  } catch (error) {
    const { code, message } = error as { code?: string; message: string }
    // How many pages are free when it is refused depends on what was reused.
    return `${code} ${message.replace(/[0-9]+ /g, '')}`
  }
}

const written = (one: Recorded | string) => (typeof one === 'string' ? one : one.written)

async function expectAsAlone(
  runs: readonly Omit<RunOptions, 'model'>[],
  outcomes: readonly (Recorded | string)[],
  cacheDtype?: CacheDtype,
  own = model,
): Promise<void> {
  for (const [i, options] of runs.entries()) {
    const alone = await outcome({ ...options, model: own, cacheDtype })
    expect({ i, written: written(outcomes[i]!) }).toEqual({ i, written: written(alone) })
  }
}

/** All that is known of a pool while steps end in it. */
async function watched<T>(scheduler: Scheduler, reserves: boolean, use: () => Promise<T>) {
  let kept = 0
  const look = () => {
    const { pages } = scheduler.metrics
    expect(pages.used + pages.kept).toBeLessThanOrEqual(pages.total)
    if (reserves) expect(pages.used).toBeLessThanOrEqual(pages.reserved)
    kept = Math.max(kept, pages.kept)
  }
  subscribe('hogwild:step', look)
  try {
    return { result: await use(), kept }
  } finally {
    unsubscribe('hogwild:step', look)
  }
}

const DTYPES: CacheDtype[] = ['f32', 'f16', 'bf16', 'int8', { keys: 'bf16', values: 'int8' }]

describe('groups write what they write alone, to the last bit', () => {
  test.each(DTYPES)('one after the other, in a cache of %j', async (cacheDtype) => {
    const scheduler = schedule()
    const runs = randomRuns(1, 14)
    const outcomes: (Recorded | string)[] = []
    for (const run of runs) {
      outcomes.push(await outcome({ ...run, model, scheduler, cacheDtype }))
    }
    await expectAsAlone(runs, outcomes, cacheDtype)
    const { prefixes, prefilledTokens, pages } = scheduler.metrics
    expect(prefixes.hits).toBeGreaterThan(5)
    expect(prefixes.reusedTokens).toBeGreaterThan(prefilledTokens / 2)
    expect(pages.used).toBe(0)
    expect(pages.kept).toBeGreaterThan(2)
  })

  test.each([
    'gemma3_text', // windows, several ropes
    'gpt_oss_odd', // sinks, experts
    'mixtral_window',
    'phi3_longrope',
    'qwen3_moe_odd_v4',
  ])('one after the other, on %s', async (family) => {
    const own = await open(join(__dirname, 'fixtures', 'families', family))
    const scheduler = schedule({ model: own })
    const runs = randomRuns(7, 8, Math.min(VOCAB, own.config.vocabSize)).map((run) => ({
      ...run,
      prompt: Array.from(run.prompt).slice(0, 200),
      beyondContext: 'warn' as const,
      context: 400,
    }))
    const outcomes: (Recorded | string)[] = []
    for (const run of runs) outcomes.push(await outcome({ ...run, model: own, scheduler }))
    await expectAsAlone(runs, outcomes, undefined, own)
    expect(scheduler.metrics.prefixes.hits).toBeGreaterThan(2)
  })

  test.each<[string, Partial<SchedulerOptions>, PrefixOptions]>([
    ['as many as like', {}, {}],
    ['with a store of 3 pages', {}, { capacity: 3 * PAGE }],
    ['in few pages, reserved', { capacity: PAGE * 40 }, {}],
    ['in few pages, in chunks of 7', { capacity: PAGE * 40, chunk: 7 }, {}],
    ['in few pages, lent', { capacity: PAGE * 40, admission: 'park' }, {}],
    [
      'in few pages, lent, in chunks of 100',
      { capacity: PAGE * 32, admission: 'park', chunk: 100 },
      { capacity: 20 * PAGE },
    ],
    ['three at a time', { maxGroups: 3, capacity: PAGE * 70 }, {}],
  ])('together, %s', async (_, options, prefixes) => {
    for (const seed of [2, 3]) {
      const scheduler = schedule({ ...options, prefixes })
      const runs = randomRuns(seed, 10)
      const { result, kept } = await watched(scheduler, options.admission !== 'park', () =>
        Promise.all(runs.map((run) => outcome({ ...run, model, scheduler }))),
      )
      await expectAsAlone(runs, result)
      const { groups, pages, prefixes: counted } = scheduler.metrics
      expect(groups).toEqual({ waiting: 0, running: 0 })
      expect(counted.hits).toBeGreaterThan(0)
      expect(pages).toMatchObject({ used: 0, reserved: 0 })
      if (prefixes.capacity !== undefined) {
        expect(kept).toBeLessThanOrEqual(prefixes.capacity / PAGE)
      }
      // Pages that were kept were given up for others.
      if (options.capacity !== undefined) expect(pages.total).toBe(options.capacity / PAGE)
      await scheduler.close()
      expect(scheduler.metrics.pages).toEqual({ total: 0, used: 0, reserved: 0, kept: 0 })
    }
  })
})

// ---- what is reused ---------------------------------------------------------------------------------------

const tokens = (seed: number, count: number) => new Random(seed).tokens(count, VOCAB)

const small = (changes: Partial<RunOptions> = {}): RunOptions => ({
  model,
  prompt: tokens(9, 300),
  workers: [{ name: 'a', prompt: [1, 2], maxTokens: 3 }],
  stopTokens: [],
  ...changes,
})

const reusedBy = async (options: RunOptions) => (await recordOf(options)).reusedTokens

describe('what is reused', () => {
  test('whole pages from the beginning on, as far as tokens are the same', async () => {
    const scheduler = schedule()
    const prompt = tokens(9, 300)
    expect(await reusedBy(small({ scheduler }))).toBe(0)
    expect(await reusedBy(small({ scheduler }))).toBe(256)
    expect(scheduler.metrics).toMatchObject({
      pages: { used: 0, kept: 4 },
      prefixes: { hits: 1, reusedTokens: 256 },
      prefilledTokens: 300 + 44,
    })
    expect(await reusedBy(small({ scheduler, prompt: prompt.slice(0, 256) }))).toBe(256)
    expect(await reusedBy(small({ scheduler, prompt: prompt.slice(0, 255) }))).toBe(192)
    expect(await reusedBy(small({ scheduler, prompt: prompt.slice(0, 63) }))).toBe(0)
    expect(await reusedBy(small({ scheduler, prompt: prompt.slice(1) }))).toBe(0)
    const other = prompt.with(130, (prompt[130]! + 1) % VOCAB)
    expect(await reusedBy(small({ scheduler, prompt: other }))).toBe(128)
    // A turn of a chat goes on behind the one before.
    const turn = [...prompt, ...tokens(10, 100)]
    expect(await reusedBy(small({ scheduler, prompt: turn }))).toBe(256)
    expect(await reusedBy(small({ scheduler, prompt: [...turn, 5] }))).toBe(384)
  })

  test('headers, whichever group had them, and the prompts of others', async () => {
    const scheduler = schedule()
    const text = tokens(9, 300)
    const header = { name: 'a', prompt: [1], header: text, maxTokens: 2 }
    expect(await reusedBy(small({ scheduler }))).toBe(0)
    expect(await reusedBy(small({ scheduler, prompt: [], workers: [header] }))).toBe(256)
    const twice = { scheduler, sharedHeader: text, workers: [header], layout: 'combined' as const }
    expect(await reusedBy(small(twice))).toBe(3 * 256)
  })

  test('nothing without the option', async () => {
    const scheduler = createScheduler({ model })
    await recordOf(small({ scheduler }))
    expect(await reusedBy(small({ scheduler }))).toBe(0)
    expect(scheduler.metrics.pages.total).toBe(0)
  })

  test('nothing that workers or other views wrote, and nothing of another cache', async () => {
    const scheduler = schedule()
    const prompt = tokens(9, 20)
    // A turn ends in the common block: prompt, then the own block's tokens, which saw the prompt before them.
    const turns = small({
      scheduler,
      prompt,
      layout: 'interleaved',
      workers: [{ name: 'a', prompt: tokens(11, 200), maxTokens: 4 }],
      turnEnds: () => true,
    })
    await recordOf(turns)
    expect(scheduler.metrics.pages.kept).toBe(0)
    expect(await reusedBy(small({ scheduler, prompt: [...prompt, ...tokens(11, 200)] }))).toBe(0)
    await recordOf(small({ scheduler }))
    expect(await reusedBy(small({ scheduler, cacheDtype: 'bf16' }))).toBe(0)
    expect(await reusedBy(small({ scheduler, cacheDtype: 'bf16' }))).toBe(256)
    await using cache = model.createCache()
    expect(await reusedBy(small({ scheduler, cache }))).toBe(0)
  })

  test('nothing of a block that its user has changed meanwhile', async () => {
    const scheduler = schedule({ chunk: PAGE })
    // The first token of the prompt goes while the rest is computed.
    const run = runWorkers(
      small({
        scheduler,
        onPrefill: ({ tokens: done }) => {
          if (done === PAGE) void run.betweenSteps(({ common }) => common?.forget(0, 1))
        },
      }),
    )
    for await (const _ of run);
    expect(run.workers[0]?.tokens).toHaveLength(5)
    expect(scheduler.metrics.pages.kept).toBe(1)
    expect(await recordOf(small({ scheduler }))).toEqual({
      written: (await recordOf(small())).written,
      reusedTokens: PAGE,
    })
  })

  test('what another group has just computed, chunk by chunk', async () => {
    const scheduler = schedule({ chunk: PAGE })
    const prompt = tokens(12, 640)
    const runs = [1, 2, 3, 4].map(() => recordOf(small({ scheduler, prompt, capacity: 2048 })))
    const reused = (await Promise.all(runs)).map(({ reusedTokens }) => reusedTokens)
    expect(reused).toEqual([0, 640, 640, 640])
    expect(scheduler.metrics.prefilledTokens).toBe(640)
  })

  test('progress tells of it', async () => {
    const scheduler = schedule({ chunk: 100 })
    const seen: number[] = []
    const onPrefill = ({ tokens: done }: { tokens: number }) => seen.push(done)
    await recordOf(small({ scheduler }))
    await recordOf(small({ scheduler, onPrefill }))
    expect(seen).toEqual([256, 300])
    await recordOf(small({ scheduler, prompt: tokens(9, 128), onPrefill }))
    expect(seen).toEqual([256, 300, 128])
  })
})

// ---- room -------------------------------------------------------------------------------------------------

describe('room', () => {
  test('those used last are kept', async () => {
    const scheduler = schedule({ prefixes: { capacity: 6 * PAGE } })
    const text = (seed: number) => small({ scheduler, prompt: tokens(seed, 2 * PAGE) })
    for (const seed of [1, 2, 3]) await recordOf(text(seed))
    expect(await reusedBy(text(1))).toBe(2 * PAGE)
    await recordOf(text(4))
    expect(scheduler.metrics.pages).toMatchObject({ used: 0, kept: 6 })
    expect(await reusedBy(text(1))).toBe(2 * PAGE)
    expect(await reusedBy(text(2))).toBe(0)
    // Of one text the beginning stays longest.
    await recordOf(small({ scheduler, prompt: tokens(5, 9 * PAGE), capacity: 2048 }))
    expect(await reusedBy(small({ scheduler, prompt: tokens(5, 9 * PAGE), capacity: 2048 }))).toBe(
      6 * PAGE,
    )
  })

  test('pages in use are nobody else’s; a group that wants those that are kept gets them', async () => {
    const scheduler = schedule({ capacity: 10 * PAGE })
    await recordOf(small({ scheduler, prompt: tokens(1, 8 * PAGE) }))
    expect(scheduler.metrics.pages).toEqual({ total: 10, used: 0, reserved: 0, kept: 8 })
    const long = small({ scheduler, prompt: tokens(2, 7 * PAGE) })
    expect(await recordOf(long)).toEqual(await recordOf({ ...long, scheduler: undefined }))
    // Seven of the new text, and of the old one as many as left a page free before each step.
    expect(scheduler.metrics.pages).toMatchObject({ used: 0, kept: 8 })
    // A probe, a compaction and a header that joins find room as well.
    const run = runWorkers(small({ scheduler, prompt: tokens(3, 65), capacity: 10 * PAGE }))
    for await (const event of run) {
      if (event.type !== 'step' || event.step !== 0) continue
      await run.probe('a', tokens(4, 3 * PAGE))
      run.join({ name: 'b', prompt: [1], header: tokens(5, 4 * PAGE), maxTokens: 1 })
    }
    expect(run.workers.map(({ tokens }) => tokens.length)).toEqual([5, 2])
  })

  test('a group that waits for pages does not wait for those that are kept', async () => {
    const scheduler = schedule({ capacity: 8 * PAGE })
    await recordOf(small({ scheduler, prompt: tokens(1, 6 * PAGE), capacity: 8 * PAGE }))
    const [one, other] = await Promise.all(
      [2, 3].map((seed) =>
        recordOf(small({ scheduler, prompt: tokens(seed, 3 * PAGE), capacity: 4 * PAGE })),
      ),
    )
    expect([one?.reusedTokens, other?.reusedTokens]).toEqual([0, 0])
  })

  test('a budget counts what was reused: the run stops where it would have stopped', async () => {
    const scheduler = schedule()
    const full = { prompt: tokens(1, 3 * PAGE), capacity: 4 * PAGE }
    const options = small({ scheduler, ...full, workers: [{ name: 'a', prompt: [1] }] })
    const first = await recordOf(options)
    const second = await recordOf(options)
    expect(second.reusedTokens).toBe(3 * PAGE)
    expect(second.written).toEqual(first.written)
    expect(first.written.events).toContainEqual(
      expect.objectContaining({ type: 'stop', reason: 'out-of-pages' }),
    )
    const short = { ...options, capacity: 2 * PAGE }
    expect(await codeOf(() => recordOf(short))).toBe('HOGWILD_OUT_OF_PAGES')
    expect(scheduler.metrics.pages).toMatchObject({ used: 0, kept: 3 })
  })

  test('lent pages that are shared do not park everyone', async () => {
    const scheduler = schedule({ capacity: 20 * PAGE, admission: 'park' })
    const options = small({ scheduler, prompt: tokens(1, 8 * PAGE), capacity: 16 * PAGE })
    await recordOf(options)
    const all = await Promise.all(Array.from({ length: 5 }, () => recordOf(options)))
    for (const { written } of all) {
      expect(written).toEqual((await recordOf({ ...options, scheduler: undefined })).written)
    }
  })
})

// ---- the folder -------------------------------------------------------------------------------------------

const filesOf = (folder: string) => readdirSync(folder).sort()

describe('a folder', () => {
  let folder: string
  beforeEach(() => {
    folder = join(temporaryFolder(), 'not', 'yet')
  })

  const keeping = (changes: Partial<PrefixOptions> = {}, options: Partial<SchedulerOptions> = {}) =>
    schedule({ ...options, prefixes: { folder, ...changes } })

  /** Writes it with a scheduler of its own. */
  async function fill(runs: readonly RunOptions[] = [small()]): Promise<void> {
    const scheduler = keeping()
    for (const run of runs) await recordOf({ ...run, scheduler })
    await scheduler.close()
  }

  test.each(DTYPES)('serves other processes, in a cache of %j', async (dtype) => {
    const runs = randomRuns(6, 10).filter(({ capacity }) => capacity! >= 24 * PAGE)
    expect(runs.length).toBeGreaterThan(4)
    const half = runs.slice(0, runs.length / 2)
    await fill(half.map((run) => ({ ...run, model, cacheDtype: dtype })))
    expect(filesOf(folder).length).toBeGreaterThan(3)
    const script = join(__dirname, 'prefixes', 'record.cjs')
    const argument = JSON.stringify({ model: modelPath, dtype, prefixes: { folder }, runs })
    const { stdout } = await promisify(execFile)(process.execPath, [script, argument])
    const { records, prefixes } = JSON.parse(stdout)
    await expectAsAlone(runs, records, dtype)
    expect(prefixes.loadedPages).toBeGreaterThan(3)
    expect(prefixes.damagedFiles).toBe(0)
    // What the other process has written is used here.
    const scheduler = keeping()
    const last = await recordOf({ ...runs.at(-1)!, model, scheduler, cacheDtype: dtype })
    expect(last).toEqual({ written: records.at(-1).written, reusedTokens: expect.any(Number) })
    expect(last.reusedTokens).toBeGreaterThanOrEqual(records.at(-1).reusedTokens)
  })

  test('files are those of cache.export, one for each page', async () => {
    await fill()
    const files = filesOf(folder)
    expect(files).toHaveLength(4)
    await using cache = model.createCache()
    const found = await Promise.all(
      files.map(async (name) => {
        const { blocks } = await model.createCache().import(join(folder, name))
        return Array.from(blocks[0]!.tokens())
      }),
    )
    expect(found.flat().sort()).toEqual(tokens(9, 256).sort())
    expect(cache.stats.freePages).toBe(cache.stats.pages)
    // The same again writes nothing.
    const before = files.map((name) => statSync(join(folder, name)).ino)
    await fill()
    expect(filesOf(folder).map((name) => statSync(join(folder, name)).ino)).toEqual(before)
  })

  test('another model, dtype or device finds nothing in it', async () => {
    await fill()
    const others: [string, RunOptions][] = [
      ['dtype', small({ cacheDtype: 'bf16' })],
      ['weights', small({ model: await open(writeModel({ seed: 2 })) })],
      ['dtype of weights', small({ model: await openAs({ dtype: 'bf16' }), cacheDtype: 'f32' })],
      ['SIMD level', small({ model: await openAs({ simd: 'baseline' }) })],
    ]
    for (const [what, run] of others) {
      const scheduler = keeping({}, { model: run.model })
      expect([what, await reusedBy({ ...run, scheduler })]).toEqual([what, 0])
      await scheduler.close()
      const again = keeping({}, { model: run.model })
      expect([what, await reusedBy({ ...run, scheduler: again })]).toEqual([what, 256])
    }
    const scheduler = keeping()
    expect(await reusedBy(small({ scheduler }))).toBe(256)
  })

  async function openAs({ dtype, simd }: { dtype?: 'bf16'; simd?: 'baseline' }): Promise<Model> {
    const device = hogwild.createDevice({ type: 'cpu', threads: 1, ...(simd && { simd }) })
    const opened = await loadModel(modelPath, { device, ...(dtype && { dtype }) })
    models.push(opened)
    return opened
  }

  test.each<[string, (path: string, other: string) => void]>([
    ['a bit of the data', (path) => flip(path, 0.9)],
    ['a bit of the head', (path) => flip(path, 0.01)],
    ['cut short', (path) => truncateSync(path, statSync(path).size - 1)],
    ['emptied', (path) => truncateSync(path, 0)],
    ['text', (path) => writeFileSync(path, 'not a file of blocks')],
    ['another page', (path, other) => copyFileSync(other, path)],
  ])('a file that is damaged is computed, and goes: %s', async (_, damage) => {
    await fill()
    const [, second, third] = await inOrder()
    damage(join(folder, second!), join(folder, third!))
    const scheduler = keeping()
    const { written, reusedTokens } = await recordOf(small({ scheduler }))
    expect(written).toEqual((await recordOf(small())).written)
    expect(reusedTokens).toBe(PAGE)
    expect(scheduler.metrics.prefixes).toMatchObject({ damagedFiles: 1, loadedPages: 1 })
    await scheduler.close()
    // It was written anew, once its page was computed.
    const again = keeping()
    expect(await reusedBy(small({ scheduler: again }))).toBe(256)
    expect(again.metrics.prefixes).toMatchObject({ damagedFiles: 0, loadedPages: 4 })
  })

  /** The folder's files by the page that they are of. */
  async function inOrder(): Promise<string[]> {
    const pages = await Promise.all(
      filesOf(folder).map(async (name) => {
        const { data } = await model.createCache().import(join(folder, name))
        return { name, page: (data as { page: number }).page }
      }),
    )
    return pages.sort((one, other) => one.page - other.page).map(({ name }) => name)
  }

  function flip(path: string, where: number): void {
    const bytes = readFileSync(path)
    const at = Math.floor(bytes.length * where)
    bytes[at]! ^= 1
    writeFileSync(path, bytes)
  }

  test('has no more bytes than it may, those used longest ago go, and nothing else', async () => {
    await fill()
    const bytes = statSync(join(folder, filesOf(folder)[0]!)).size
    const [first, ...rest] = await inOrder()
    const ago = (name: string, seconds: number) => {
      const then = Date.now() / 1e3 - seconds
      utimesSync(join(folder, name), then, then)
    }
    for (const [i, name] of rest.entries()) ago(name, 1000 + i)
    ago(first!, 5000)
    const partial = `${first}.0a1b2c3d.partial`
    const young = `${first}.ffffffff.partial`
    for (const name of ['mine.txt', partial, young]) writeFileSync(join(folder, name), 'text')
    ago(partial, 7200)
    ago('mine.txt', 9000)

    // Used now, the oldest is the youngest.
    const using = keeping()
    await recordOf(small({ scheduler: using, prompt: tokens(9, 70) }))
    await using.close()
    expect(using.metrics.prefixes).toMatchObject({ loadedPages: 1, savedPages: 0 })
    expect(filesOf(folder)).toEqual([...rest, first, young, 'mine.txt'].sort())

    const scheduler = keeping({ folderBytes: 5.5 * bytes })
    await recordOf(small({ scheduler, prompt: tokens(10, 2 * PAGE) }))
    await scheduler.close()
    expect(scheduler.metrics.prefixes).toMatchObject({ savedPages: 2 })
    const left = filesOf(folder).filter((name) => name.endsWith('.blocks'))
    expect(left).toHaveLength(4)
    expect(left).toEqual(expect.arrayContaining([first, rest[0]]))
    expect(filesOf(folder)).toEqual(expect.arrayContaining(['mine.txt', young]))
  })

  test('that cannot be used is told of once, and runs go on', async () => {
    const warnings: Warning[] = []
    const own = await open(modelPath, warnings)
    mkdirSync(join(folder, '..'), { recursive: true })
    writeFileSync(folder, 'a file')
    const scheduler = keeping({}, { model: own })
    const run = small({ scheduler, model: own })
    await recordOf(run)
    expect(await reusedBy(run)).toBe(256)
    await scheduler.close()
    expect(warnings).toEqual([
      { code: 'HOGWILD_PREFIXES_NOT_KEPT', message: expect.stringContaining(folder) },
    ])
  })

  test('many that begin alike read each file once, and no more than is kept', async () => {
    await fill()
    const scheduler = keeping()
    const runs = await Promise.all(Array.from({ length: 5 }, () => recordOf(small({ scheduler }))))
    expect(runs.map(({ reusedTokens }) => reusedTokens)).toEqual(new Array(5).fill(256))
    expect(scheduler.metrics.prefixes.loadedPages).toBe(4)
    const little = keeping({ capacity: 2 * PAGE })
    expect(await reusedBy(small({ scheduler: little }))).toBe(128)
  })

  test('an abort while files are read ends the run, and gives its pages back', async () => {
    await fill()
    const scheduler = keeping()
    const controller = new AbortController()
    const run = recordOf(small({ scheduler, signal: controller.signal }))
    setImmediate(() => controller.abort())
    expect(await codeOf(() => run)).toBe('HOGWILD_ABORTED')
    expect(scheduler.metrics).toMatchObject({
      groups: { waiting: 0, running: 0 },
      pages: { used: 0, reserved: 0 },
    })
  })
})

// ---- generate ---------------------------------------------------------------------------------------------

/** What a text is, with a hash of the logits that its tokens were chosen from. */
async function textOf(options: Omit<GenerateOptions, 'model'>) {
  const hash = createHash('sha256')
  const processLogits = (logits: Float32Array) => {
    hash.update(new Uint8Array(logits.buffer, logits.byteOffset, logits.byteLength))
  }
  const answer = generate({ stopTokens: [], maxTokens: 6, ...options, model, processLogits })
  const { usage, ...written } = await answer.result
  const { reusedTokens, ...counted } = usage
  return { written: { ...written, usage: counted, logits: hash.digest('hex') }, reusedTokens }
}

/** Prompts that begin alike, of whole pages and others. */
function randomTextOptions(seed: number, count: number): Omit<GenerateOptions, 'model'>[] {
  const random = new Random(seed)
  const texts = randomTexts(random, 6, VOCAB)
  texts.push(texts[0]!.slice(0, 2 * PAGE), texts[0]!.slice(0, PAGE), texts[0]!.slice(0, 65))
  return Array.from({ length: count }, (_, i) => ({
    prompt: random.pick(texts.filter(({ length }) => length > 0)),
    maxTokens: random.int(1, 80),
    ...(random.chance(0.5) && { sampler: { seed: 10 * seed + i, temperature: 1.2 } }),
    ...(random.chance(0.5) && { speculate: { by: 'lookup' as const, tokens: random.int(1, 5) } }),
  }))
}

describe('texts of generate', () => {
  test.each(DTYPES)('are the same to the last bit in a pool of %j', async (cacheDtype) => {
    const scheduler = schedule()
    for (const options of randomTextOptions(5, 16)) {
      const alone = await textOf({ ...options, cacheDtype })
      expect(alone.reusedTokens).toBe(0)
      const { written } = await textOf({ ...options, cacheDtype, scheduler })
      expect(written).toEqual(alone.written)
    }
    const { prefixes, pages, groups } = scheduler.metrics
    expect(prefixes.hits).toBeGreaterThan(5)
    expect(prefixes.reusedTokens).toBeGreaterThanOrEqual(PAGE * prefixes.hits)
    expect(pages).toMatchObject({ used: 0, reserved: 0 })
    expect(groups).toEqual({ waiting: 0, running: 0 })
  })

  test.each<[string, Partial<SchedulerOptions>]>([
    ['as many as like', {}],
    ['in few pages, reserved', { capacity: PAGE * 40 }],
    ['in few pages, lent', { capacity: PAGE * 40, admission: 'park' }],
    ['two at a time', { maxGroups: 2, prefixes: { capacity: 3 * PAGE } }],
    ['without a store', { prefixes: undefined }],
  ])('beside runs, %s', async (_, options) => {
    const scheduler = schedule(options)
    const texts = randomTextOptions(6, 8)
    const runs = randomRuns(6, 6)
    const [written, outcomes] = await Promise.all([
      Promise.all(texts.map((text) => textOf({ ...text, scheduler }))),
      Promise.all(runs.map((run) => outcome({ ...run, model, scheduler }))),
    ])
    await expectAsAlone(runs, outcomes)
    for (const [i, text] of texts.entries()) {
      expect({ i, ...written[i]?.written }).toEqual({ i, ...(await textOf(text)).written })
    }
    expect(scheduler.metrics).toMatchObject({
      groups: { waiting: 0, running: 0 },
      pages: { used: 0, reserved: 0 },
    })
  })

  test('what is reused: whole pages but for the last token, of texts, runs and turns before', async () => {
    const scheduler = schedule()
    const prompt = tokens(9, 300)
    const seen: number[] = []
    const reused = async (options: Omit<GenerateOptions, 'model'>) => {
      return (await textOf({ ...options, scheduler })).reusedTokens
    }
    expect(await reused({ prompt })).toBe(0)
    expect(await reused({ prompt, onPrefill: ({ tokens: done }) => seen.push(done) })).toBe(256)
    expect(seen).toEqual([300])
    expect(await reused({ prompt: prompt.slice(0, 256) })).toBe(192)
    expect(await reused({ prompt: prompt.slice(0, 257) })).toBe(256)
    expect(await reused({ prompt: [...prompt, ...tokens(10, 100)] })).toBe(256)
    expect(await reused({ prompt: [...prompt, ...tokens(10, 101)] })).toBe(384)
    expect(await reusedBy(small({ scheduler, prompt: [...prompt, ...tokens(10, 100)] }))).toBe(384)
    await recordOf(small({ scheduler, prompt: tokens(11, 130) }))
    expect(await reused({ prompt: tokens(11, 130) })).toBe(128)
    expect(scheduler.metrics.prefixes).toMatchObject({ hits: 7 })
  })

  test('a folder keeps them for other schedulers', async () => {
    const folder = temporaryFolder()
    const prompt = tokens(9, 300)
    const one = schedule({ prefixes: { folder } })
    const first = await textOf({ prompt, scheduler: one })
    await one.close()
    expect(one.metrics.prefixes.savedPages).toBe(4)
    const other = schedule({ prefixes: { folder } })
    expect(await textOf({ prompt, scheduler: other })).toEqual({ ...first, reusedTokens: 256 })
    expect(other.metrics.prefixes).toMatchObject({ loadedPages: 4, hits: 1, reusedTokens: 256 })
  })

  test('one that waits for pages or writes can be left, and a scheduler must be able to hold it', async () => {
    const scheduler = schedule({ capacity: 4 * PAGE })
    const long = { model, scheduler, prompt: tokens(1, 100), maxTokens: 150, stopTokens: [] }
    await using running = generate(long)
    const waiting = generate(long)
    for await (const _ of running) break
    await waiting.close()
    expect(await waiting.result).toMatchObject({ reason: 'stopped', tokens: [] })
    expect(await running.result).toMatchObject({ reason: 'stopped' })
    expect(scheduler.metrics).toMatchObject({
      groups: { waiting: 0, running: 0 },
      pages: { used: 0, reserved: 0 },
    })
    const tooLong = generate({ ...long, maxTokens: 157 }).result
    await expect(tooLong).rejects.toMatchObject({
      code: 'HOGWILD_INVALID_ARGUMENT',
      message: expect.stringContaining('at most the 256 tokens of the scheduler'),
    })
    const other = await open(modelPath)
    const call = () => generate({ ...long, scheduler: schedule({ model: other }) })
    expect(call).toThrow('options.scheduler')
    await scheduler.close()
    expect(await codeOf(() => generate(long).result)).toBe('HOGWILD_CLOSED')
  })
})

// ---- the end ----------------------------------------------------------------------------------------------

describe('close', () => {
  test('lets no group begin, lets those that run end, and gives all pages back', async () => {
    const scheduler = schedule({ maxGroups: 1 })
    const running = recordOf(small({ scheduler }))
    const waiting = recordOf(small({ scheduler }))
    const closed = codeOf(() => waiting)
    await new Promise((resolve) => setImmediate(resolve))
    await Promise.all([scheduler.close(), scheduler.close()])
    expect(await closed).toBe('HOGWILD_CLOSED')
    expect(await codeOf(() => recordOf(small({ scheduler })))).toBe('HOGWILD_CLOSED')
    expect((await running).written).toEqual((await recordOf(small())).written)
    expect(scheduler.metrics.pages).toEqual({ total: 0, used: 0, reserved: 0, kept: 0 })
  })

  test('a model that is closed first takes its pools with it', async () => {
    const own = await open(modelPath)
    const folder = temporaryFolder()
    const scheduler = schedule({ model: own, prefixes: { folder } })
    await recordOf(small({ model: own, scheduler, prompt: tokens(1, 40 * PAGE) }))
    await own.close()
    expect(scheduler.metrics.pages.total).toBe(0)
    await scheduler.close()
  })
})

test('options are checked', async () => {
  const bad: [unknown, string][] = [
    [{ capacity: 0 }, 'options.prefixes.capacity'],
    [{ folder: 5 }, 'options.prefixes.folder'],
    [{ folderBytes: 5 }, 'options.prefixes.folderBytes'],
    [{ folder: 'x', folderBytes: 0.5 }, 'options.prefixes.folderBytes'],
    [{ pages: 5 }, 'pages'],
    [true, 'options.prefixes'],
  ]
  for (const [prefixes, name] of bad) {
    const call = () => createScheduler({ model, prefixes: prefixes as PrefixOptions })
    expect([prefixes, await codeOf(call)]).toEqual([prefixes, 'HOGWILD_INVALID_ARGUMENT'])
    expect(call).toThrow(name)
  }
})

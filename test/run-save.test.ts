// Runs in files: what is left of a run is the same in another process, whatever it was in the middle of; what a file cannot
// hold is asked for by name; whatever else a file holds is refused by a code, and nothing of it stays.

import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import {
  createGrammar,
  createScheduler,
  demoModelPath,
  loadModel,
  loadTokenizer,
  type Model,
  type RestoreOptions,
  type RunOptions,
  restoreRun,
  runWorkers,
  schedulerOf,
  type Tokenizer,
  type WorkerEvent,
  type WorkerRun,
} from '../lib'
import { codeOf, Random, temporaryFolder, writeModel } from './fixtures'

let model: Model
let tokenizer: Tokenizer
let folder: string

beforeAll(async () => {
  model = await loadModel(demoModelPath, { device: 'cpu', threads: 1 })
  tokenizer = await loadTokenizer(demoModelPath)
})
beforeEach(() => {
  folder = temporaryFolder()
})
afterEach(() => expect(schedulerOf(model).metrics.groups).toEqual({ waiting: 0, running: 0 }))
afterAll(async () => {
  await model.close()
  await tokenizer.close()
})

const file = (name = 'team.run') => join(folder, name)

/** Events without times, which nobody can foresee, as JSON has them. */
const timeless = (events: readonly WorkerEvent[]) =>
  JSON.parse(
    JSON.stringify(
      events.map((event) => ('milliseconds' in event ? { ...event, milliseconds: 0 } : event)),
    ),
  )

async function rest(run: WorkerRun): Promise<WorkerEvent[]> {
  const events: WorkerEvent[] = []
  for await (const event of run) events.push(event)
  return timeless(events)
}

const options = (more: Partial<RunOptions> = {}): RunOptions => ({
  model,
  prompt: [1, 20, 21],
  stopTokens: [],
  maxTokens: 12,
  capacity: 1024,
  workers: ['a', 'b'].map((name, seed) => {
    return { name, prompt: [5 + seed, 6], sampler: { temperature: 1.5, seed } }
  }),
  ...more,
})

/** Consumes so many events and saves; what is left of the run, which is closed then, and what a save resolved to. */
async function saved(run: WorkerRun, events: number, path = file()) {
  const iterator = run[Symbol.asyncIterator]()
  for (let i = 0; i < events; i++) await iterator.next()
  const bytes = await run.save(path, { data: { events } })
  return { bytes, left: await rest(run) }
}

async function restored(more: Partial<RestoreOptions> = {}, path = file()): Promise<WorkerEvent[]> {
  const { run } = await restoreRun(path, { model, ...more })
  return await rest(run)
}

const message = (promise: Promise<unknown>) =>
  promise.then(
    () => 'done',
    (error: Error & { code?: string }) => `${error.code}: ${error.message}`,
  )

// ---- the same run ---------------------------------------------------------------------------------

test('ten moments: a process saves and is killed, another one goes on with the same events and bits', async () => {
  const script = join(__dirname, 'sessions', 'runs.cjs')
  const seeds = ['202', '205', '207', '209', '211', '213', '215', '216', '220', '227']
  const node = (mode: string) =>
    promisify(execFile)(process.execPath, [script, mode, folder, ...seeds])
  await expect(node('save')).rejects.toMatchObject({ signal: 'SIGKILL' })
  const { stdout } = await node('restore')
  const { moments, beside, layouts, places, traits, faults } = JSON.parse(stdout)
  expect(faults).toEqual([])
  expect(moments).toBe(seeds.length)
  expect(beside).toBeGreaterThan(0)
  expect(Object.keys(layouts).sort()).toEqual(['combined', 'contiguous', 'interleaved'])
  expect(Object.keys(places).sort()).toEqual(['cache', 'pool', 'scheduler'])
  // All but those that depend on how fast a prompt is computed.
  const { 'a prompt half computed': _, ...others } = traits
  expect(Object.entries(others).filter(([, n]) => n === 0)).toEqual([])
}, 120_000)

test('several runs go on from one file, beside the one that was saved, and can be saved again', async () => {
  const whole = await rest(runWorkers(options()))
  const run = runWorkers(options())
  const iterator = run[Symbol.asyncIterator]()
  for (let i = 0; i < 11; i++) await iterator.next()
  const bytes = await run.save(file(), { data: [1, { two: null }] })
  expect(readFileSync(file())).toHaveLength(bytes)
  const [one, other] = [await restoreRun(file(), { model }), await restoreRun(file(), { model })]
  expect(one.data).toEqual([1, { two: null }])
  const again = one.run[Symbol.asyncIterator]()
  for (let i = 0; i < 9; i++) await again.next()
  await one.run.save(file('again'))
  const lefts = await Promise.all([rest(run), rest(one.run), rest(other.run)])
  expect(lefts.map(({ length }) => length)).toEqual([11, 20, 11].map((n) => whole.length - n))
  for (const left of [...lefts, await restored({}, file('again'))]) {
    expect(left).toEqual(whole.slice(whole.length - left.length))
  }
})

test('equal runs give equal files but for their times', async () => {
  const headers = []
  for (const name of ['one', 'two']) {
    await saved(runWorkers(options()), 9, file(name))
    headers.push(headerOf(readFileSync(file(name))))
  }
  const [one, two] = headers.map(({ data }) => {
    const { milliseconds, ...group } = data.run.group
    const events = timeless([...group.events, ...group.outbox])
    return { ...data.run, group: { ...group, events, outbox: [] } }
  })
  expect(one).toEqual(two)
})

test('log-probabilities that JSON does not know come back', async () => {
  const hidden = { 7: -Infinity, 9: -Infinity }
  const workers = [{ name: 'a', prompt: [4], logitBias: hidden, logprobs: true, topLogprobs: 3 }]
  const { left } = await saved(runWorkers(options({ workers })), 4)
  expect(await restored()).toEqual(left)
})

test('where tokens look is told on; not beside drafts', async () => {
  const workers = ['a', 'b'].map((name) => ({ name, prompt: [4], attentionMass: name === 'a' }))
  const { left } = await saved(runWorkers(options({ workers })), 4)
  expect(left.filter((event) => 'attentionMass' in event).length).toBeGreaterThan(5)
  expect(await restored()).toEqual(left)
  expect(await message(restored({ speculate: { by: 'lookup' } }))).toMatch(
    /HOGWILD_INVALID_ARGUMENT: expected options\.speculate to be absent beside attentionMass of 'a'/,
  )
})

// ---- what a file cannot hold ----------------------------------------------------------------------

test('functions, tokenizer, cache and grammar are asked for by name', async () => {
  const grammar = await createGrammar({ tokenizer, ebnf: 'root ::= [a-z ]+', stopTokens: [6] })
  const other = await createGrammar({ tokenizer, ebnf: 'root ::= "xyz"', stopTokens: [6] })
  const cache = model.createCache({ capacity: 1024 })
  const processLogits = () => {}
  const turnEnds = (ids: readonly number[]) => ids.length > 4
  const turnHeader = () => [3]
  const action = () => {}
  const triggers = [{ text: 'zq', limit: 2, action }]
  const all = { cache, tokenizer, turnEnds, turnHeader, triggers }
  const workers = [{ name: 'a', prompt: [5], processLogits, grammar }]
  const { left } = await saved(
    runWorkers(options({ ...all, workers, capacity: undefined, stopTokens: undefined })),
    9,
  )
  const given = { ...all, workers: { a: { processLogits, grammar } } }
  expect(await restored(given)).toEqual(left)
  const refusal = (more: Partial<RestoreOptions>) => message(restored({ ...given, ...more }))
  const missing =
    /^HOGWILD_INVALID_ARGUMENT: expected options\.(.*) to be that of the saved run, which its file cannot hold, received undefined$/
  const nameOf = async (more: Partial<RestoreOptions>) => missing.exec(await refusal(more))?.[1]
  expect(await nameOf({ turnEnds: undefined })).toBe('turnEnds')
  expect(await nameOf({ turnHeader: undefined })).toBe('turnHeader')
  expect(await nameOf({ cache: undefined })).toBe('cache')
  expect(await nameOf({ workers: { a: { grammar } } })).toBe('workers.a.processLogits')
  expect(await nameOf({ workers: { a: { processLogits } } })).toBe('workers.a.grammar')
  expect(await refusal({ triggers: [] })).toMatch(
    /options\.triggers to be those of the saved run, \[\{"text":"zq","limit":2\}\]/,
  )
  expect(await refusal({ triggers: [{ ...triggers[0]!, limit: 3 }] })).toMatch(/limit\\":3/)
  expect(await refusal({ tokenizer: undefined })).toMatch(/INVALID_ARGUMENT/)
  expect(await refusal({ workers: { a: { processLogits, grammar: other } } })).toMatch(
    /workers\.a\.grammar to be that of the saved run, received one that does not allow its text/,
  )
  expect(await refusal({ workers: { ...given.workers, b: {} } })).toMatch(/by the names a/)
  expect(await message(restored({ ...given, park: 3 as never }))).toMatch(/options\.park/)
  expect(await message(restored({ ...given, turns: 3 } as never))).toMatch(/no "turns"/)
  expect(cache.stats.freePages).toBe(cache.stats.pages)

  await saved(runWorkers(options()), 9)
  for (const [name, value] of Object.entries({ ...all, triggers: undefined })) {
    if (value === undefined) continue
    expect(await message(restored({ [name]: value }))).toMatch(
      new RegExp(`expected options\\.${name} to be absent: the saved run had none`),
    )
  }
  await cache.close()
})

test('a tokenizer that gives another text is refused', async () => {
  const path = temporaryFolder()
  const known = JSON.parse(readFileSync(join(demoModelPath, 'tokenizer.json'), 'utf8'))
  const { vocab } = known.model
  const [one, two] = ['e', 'a'].map((text) => Object.keys(vocab).find((key) => key === text)!)
  ;[vocab[one!], vocab[two!]] = [vocab[two!], vocab[one!]]
  writeFileSync(join(path, 'tokenizer.json'), JSON.stringify(known))
  await using other = await loadTokenizer(path)
  const prompt = await tokenizer.encode('a', { addSpecialTokens: false })
  const workers = [{ name: 'a', prompt }]
  const { left } = await saved(runWorkers(options({ tokenizer, workers })), 9)
  expect(await restored({ tokenizer })).toEqual(left)
  expect(await message(restored({ tokenizer: other }))).toMatch(
    /options\.tokenizer to be that of the saved run, received "one that gives another text of 'a'"/,
  )
})

test('work that a worker waits for begins anew, with what was said of it', async () => {
  let calls = 0
  const tool = () => () => {
    calls++
    return new Promise<number[]>((resolve) => setTimeout(() => resolve([30, 31]), 5))
  }
  const run = runWorkers(options())
  const iterator = run[Symbol.asyncIterator]()
  for (let i = 0; i < 6; i++) await iterator.next()
  run.park('b', () => new Promise(() => {}), { data: { tool: 'search', query: 'x' } })
  await run.save(file())
  await run.close()

  expect(await message(restored())).toMatch(
    /expected options\.park to be a function that gives the work that 'b' waits for/,
  )
  expect(await message(restored({ park: () => 3 as never }))).toMatch(/result of options\.park/)
  const asked: unknown[] = []
  const left = await restored({
    park: (worker, data) => {
      asked.push([worker, data])
      return tool()
    },
  })
  expect(asked).toEqual([['b', { tool: 'search', query: 'x' }]])
  expect(calls).toBe(1)
  const parked = { data: { tool: 'search', query: 'x' } }
  expect(left).toContainEqual({ type: 'pause', worker: 'b', step: expect.any(Number), parked })
  const given = left.flatMap((event) =>
    event.type === 'token' && event.worker === 'b' && event.forced ? [event.token] : [],
  )
  expect(given.slice(-2)).toEqual([30, 31])
  const failure = new Error('the tool is broken')
  await expect(restored({ park: () => () => Promise.reject(failure) })).rejects.toBe(failure)
})

// ---- when -----------------------------------------------------------------------------------------

test('a run is saved between its first event and its last', async () => {
  const run = runWorkers(options())
  expect(await codeOf(() => run.save(file()))).toBe('HOGWILD_INVALID_ARGUMENT')
  const iterator = run[Symbol.asyncIterator]()
  await iterator.next()
  expect(await codeOf(() => run.save(file(), { data: () => 1 }))).toBe('HOGWILD_INVALID_ARGUMENT')
  expect(await codeOf(() => run.save(3 as never))).toBe('HOGWILD_INVALID_ARGUMENT')
  expect(await message(run.save(join(folder, 'no', 'such')))).toMatch(/^HOGWILD_NOT_WRITTEN/)
  const signal = AbortSignal.abort(new Error('mine'))
  expect(await codeOf(() => run.save(file(), { signal }))).toBe('HOGWILD_ABORTED')
  const stop = () => {
    throw new Error('of onProgress')
  }
  await expect(run.save(file(), { onProgress: stop })).rejects.toThrow('of onProgress')
  expect(readdirSync(folder)).toEqual([])

  // The run goes on, and its last events can be saved while the consumer has not taken them.
  let last: WorkerEvent[] = []
  for await (const event of run) {
    if (event.type === 'stop' && last.length === 0) {
      await run.save(file())
      last = await restored()
    }
    if (event.type !== 'end') continue
    expect(timeless([event])).toEqual(last.slice(-1))
    expect(await codeOf(() => run.save(file()))).toBe('HOGWILD_CLOSED')
  }
  expect(await codeOf(() => run.save(file()))).toBe('HOGWILD_CLOSED')
})

test.each(['close', 'leave'])(
  'a run whose consumer does %s in mid-save is written whole',
  async (how) => {
    const run = runWorkers(options())
    let saving: Promise<number> | undefined
    let progress = 0
    for await (const event of run) {
      if (event.type !== 'step' || event.step < 3) continue
      const began = new Promise<void>((resolve) => {
        saving = run.save(file(), { onProgress: () => [progress++, resolve()] })
      })
      await began
      if (how === 'leave') break
      await run.close()
    }
    expect(progress).toBeGreaterThan(0)
    expect(await saving).toBe(readFileSync(file()).length)
    expect((await restored()).at(-1)).toMatchObject({ type: 'end' })
  },
)

test('closing the model ends a save, and what was there stays', async () => {
  const own = await loadModel(demoModelPath, { device: 'cpu', threads: 1 })
  const run = runWorkers(options({ model: own }))
  const iterator = run[Symbol.asyncIterator]()
  await iterator.next()
  writeFileSync(file(), 'before')
  const code = await new Promise((resolve) => {
    run
      .save(file(), { onProgress: () => void own.close() })
      .then(resolve, ({ code }) => resolve(code))
  })
  expect(['HOGWILD_ABORTED', 'HOGWILD_CLOSED']).toContain(code)
  expect(readFileSync(file(), 'utf8')).toBe('before')
  expect(readdirSync(folder)).toEqual(['team.run'])
  await run.close()
})

test('runs on the same pool wait for a save, and write what they write', async () => {
  const alone = await rest(runWorkers(options({ maxTokens: 30 })))
  const other = rest(runWorkers(options({ maxTokens: 30 })))
  const run = runWorkers(options())
  for await (const event of run) {
    if (event.type === 'step') await run.save(file())
  }
  expect(await other).toEqual(alone)
})

// ---- pages ----------------------------------------------------------------------------------------

test('a restored run has its budget, its peak, and gives all back', async () => {
  const scheduler = createScheduler({ model, capacity: 1024 })
  const prompt = new Random(1).tokens(300, 60)
  const { left } = await saved(runWorkers(options({ scheduler, prompt })), 12)
  expect(left.at(-1)).toMatchObject({ type: 'end', usage: { peakPages: 7 } })
  const { run } = await restoreRun(file(), { model, scheduler })
  expect(scheduler.metrics.pages).toMatchObject({ used: 7, reserved: 16 })
  expect(Object.keys(run.blocks.workers)).toEqual(['a', 'b'])
  expect(run.workers.map(({ state }) => state)).toEqual(['active', 'active'])
  await run.close()
  expect(scheduler.metrics.groups.running).toBe(0)
  expect(await restored({ scheduler })).toEqual(left)
  const small = createScheduler({ model, capacity: 512 })
  expect(await message(restored({ scheduler: small }))).toMatch(/^HOGWILD_INVALID_ARGUMENT.*512/)
})

test('where pages are lent, a run comes back once there are enough', async () => {
  const prompt = new Random(1).tokens(300, 60)
  const { left } = await saved(runWorkers(options({ prompt, capacity: 512 })), 12)
  const scheduler = createScheduler({ model, capacity: 512, admission: 'park' })
  const holder = runWorkers(options({ scheduler, prompt, capacity: 512 }))
  const iterator = holder[Symbol.asyncIterator]()
  await iterator.next()
  let isBack = false
  const back = restored({ scheduler }).finally(() => {
    isBack = true
  })
  const controller = new AbortController()
  setTimeout(() => controller.abort(), 20)
  const aborted = restored({ scheduler, signal: controller.signal })
  expect(await message(aborted)).toMatch(/^HOGWILD_ABORTED/)
  expect(isBack).toBe(false)
  await holder.close()
  expect(await back).toEqual(left)
})

test('blocks that were the user’s are the user’s again', async () => {
  const cache = model.createCache({ capacity: 2048 })
  const common = cache.createBlock()
  await model.prefill(common, new Random(2).tokens(300, 60), { sampler: null })
  const { left } = await saved(runWorkers(options({ cache, common, capacity: 192 })), 12)
  expect(left.at(-1)).toMatchObject({ type: 'end', usage: { peakPages: 2 } })
  const { length } = common
  common.close()
  expect(cache.stats.freePages).toBe(cache.stats.pages)
  const { run } = await restoreRun(file(), { model, cache })
  const again = run.blocks.common!
  expect(await rest(run)).toEqual(left)
  expect(again.length).toBe(length)
  again.close()
  expect(cache.stats.freePages).toBe(cache.stats.pages)
  await cache.close()
})

// ---- other files ----------------------------------------------------------------------------------

interface Header {
  kind: string
  cache: unknown
  // biome-ignore lint/suspicious/noExplicitAny: whatever a file says
  data: any
}

function headerOf(bytes: Buffer): Header {
  return JSON.parse(bytes.toString('utf8', 40, 40 + Number(bytes.readBigUInt64LE(16))))
}

/** The file with another header, and a hash that fits. */
function withHeader(bytes: Buffer, header: unknown): Buffer {
  const [before, index] = [16, 24].map((at) => Number(bytes.readBigUInt64LE(at))) as [
    number,
    number,
  ]
  const json = Buffer.from(JSON.stringify(header))
  const prefix = Buffer.from(bytes.subarray(0, 40))
  prefix.writeBigUInt64LE(BigInt(json.length), 16)
  const indexBegin = 40 + before
  const head = Buffer.concat([prefix, json, bytes.subarray(indexBegin, indexBegin + index)])
  const hash = createHash('sha256').update(head).digest()
  return Buffer.concat([head, hash, bytes.subarray(indexBegin + index + 32)])
}

test('files of another kind, version or model are refused', async () => {
  await saved(runWorkers(options()), 9)
  const good = readFileSync(file())
  const cache = model.createCache({ capacity: 1024 })
  expect(await message(cache.import(file()))).toMatch(
    /^HOGWILD_INVALID_SESSION: .* holds a run: restoreRun reads it: expected "blocks"$/,
  )
  await cache.export([cache.createBlock()], file('some.blocks'))
  expect(await message(restored({}, file('some.blocks')))).toMatch(
    /^HOGWILD_INVALID_SESSION: .* holds blocks: cache.import reads them: expected "run"$/,
  )
  await cache.close()
  const header = headerOf(good)
  const refusal = (bytes: Buffer) => {
    writeFileSync(file('bad'), bytes)
    return message(restored({}, file('bad')))
  }
  const changed = (data: object) =>
    refusal(withHeader(good, { ...header, data: { ...header.data, ...data } }))
  expect(await changed({ version: 2 })).toMatch(
    /^HOGWILD_UNSUPPORTED: .* holds a run of version 2: this build reads version 1$/,
  )
  expect(await changed({ run: 3 })).toMatch(/holds a run that cannot go on: expected the run/)
  const { owned } = header.data.run
  expect(await changed({ run: { ...header.data.run, owned: [...owned, true] } })).toMatch(
    /INVALID_SESSION.*expected owned to be 3 values/,
  )
  for (const length of [0, 30, 100, good.length - 40, good.length - 1]) {
    expect(await refusal(good.subarray(0, length))).toMatch(/^HOGWILD_INVALID_SESSION/)
  }
  const flipped = Buffer.from(good)
  flipped[good.length - 60]! ^= 1
  expect(await refusal(flipped)).toMatch(/keys and values have another SHA-256/)
  expect(await refusal(withHeader(good, header))).toBe('done')

  await using other = await loadModel(writeModel({ vocabSize: 68 }), { device: 'cpu', threads: 1 })
  expect(await message(restoreRun(file(), { model: other }))).toMatch(
    /^HOGWILD_INVALID_SESSION: .* is of another model/,
  )
  expect(existsSync(file())).toBe(true)
})

/** Something else in some place of the JSON. */
function spoil(json: unknown, random: Random): unknown {
  const values = [
    null,
    -1,
    0,
    1,
    67,
    68,
    2 ** 31,
    1e300,
    '',
    'a',
    'active',
    [],
    {},
    true,
    [3],
    { block: 0 },
  ]
  if (typeof json !== 'object' || json === null || random.chance(0.02)) return random.pick(values)
  const keys = Object.keys(json)
  if (keys.length === 0) return random.pick(values)
  const key = random.pick(keys)
  if (random.chance(0.05)) {
    const { [key]: _, ...others } = json as Record<string, unknown>
    return Array.isArray(json) ? Object.values(others) : others
  }
  const changed = spoil((json as Record<string, unknown>)[key], random)
  return Array.isArray(json)
    ? json.map((item, i) => (`${i}` === key ? changed : item))
    : { ...json, [key]: changed }
}

test('whatever a file says of a run: an error of ours, or a run that ends', async () => {
  const triggers = [{ text: 'e', action: () => {} }]
  const workers = [
    { name: 'a', prompt: [5], header: [3, 4], stop: ['th'], logprobs: true, logitBias: { 3: 1 } },
    { name: 'b', prompt: [6], sampler: { seed: 1 } },
  ]
  const run = runWorkers(options({ tokenizer, triggers, workers, sharedHeader: [2] }))
  const iterator = run[Symbol.asyncIterator]()
  for (let i = 0; i < 9; i++) await iterator.next()
  run.pause('b')
  run.inject('a', [7, 8])
  run.append([9, 10])
  run.join({ name: 'c', prompt: [3], header: [4] })
  await run.save(file())
  await run.close()
  const good = readFileSync(file())
  const header = headerOf(good)
  const random = new Random(77)
  const outcomes: Record<string, number> = {}
  for (let i = 0; i < 250; i++) {
    const data = { ...header.data, run: spoil(header.data.run, random) }
    if (random.chance(0.3)) data.run = spoil(data.run, random)
    writeFileSync(file('bad'), withHeader(good, { ...header, data }))
    const play = async () => {
      const restoring = { model, tokenizer, triggers, park: () => () => Promise.resolve([1]) }
      const { run } = await restoreRun(file('bad'), restoring)
      const resume = () => {
        for (const { name, state } of run.workers) if (state === 'paused') run.resume(name)
      }
      resume()
      let events = 0
      for await (const event of run) {
        if (++events > 300) break
        if (event.type !== 'end') resume()
      }
    }
    const code = (await message(play())).replace(/:.*/s, '')
    outcomes[code] = (outcomes[code] ?? 0) + 1
    expect(schedulerOf(model).metrics.groups).toEqual({ waiting: 0, running: 0 })
  }
  const { done = 0, HOGWILD_INVALID_SESSION: refused = 0, ...others } = outcomes
  expect(done).toBeGreaterThan(10)
  expect(refused).toBeGreaterThan(100)
  const coded = Object.keys(others).filter((code) => !/^HOGWILD_(?!INTERNAL)/.test(code))
  expect(coded).toEqual([])
})

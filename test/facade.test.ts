// What the classes of lib/ promise beside their numbers: options by name, closing, samplers and memory.

import os, { totalmem } from 'node:os'
import { join } from 'node:path'
import {
  type Cache,
  createCache,
  createDevice,
  type LoadModelOptions,
  type LoadProgress,
  loadModel,
  type Model,
  ropeFrequencies,
  runWorkers,
  Sampler,
  viewOf,
  type Warning,
} from '../lib'
import { codeOf } from './fixtures'

const demo = join(__dirname, '../models/demo')
let model: Model
let cache: Cache

beforeAll(async () => {
  model = await loadModel(demo, { threads: 1 })
  cache = model.createCache({ capacity: 4096 })
})
afterAll(() => model.close())

const shape = { layers: 1, kvHeads: 1, headDim: 8, device: 'cpu' } as const
const rope = ropeFrequencies({ type: 'default', theta: 10_000, rotaryDim: 8 })
/** Options with one key more. */
const with_ = <T extends object>(options: T, key: string): T => ({ ...options, [key]: 1 })

describe('an option that does not exist is refused by its name', () => {
  const alice = { name: 'Alice', prompt: [1] }
  const run = { model, prompt: [1], workers: [alice] }
  const view = () => ({ blocks: [cache.createBlock()] })
  test.each<[string, () => unknown]>([
    ['loadModel', () => loadModel(demo, with_({}, 'dtpye'))],
    ['createDevice', () => createDevice(with_({}, 'dtpye'))],
    ['createCache', () => createCache(with_({ ...shape, rope }, 'dtpye'))],
    ['its rope', () => createCache({ ...shape, rope: with_(rope, 'dtpye') })],
    ['model.createCache', () => model.createCache(with_({}, 'dtpye'))],
    ['Sampler', () => new Sampler(with_({}, 'dtpye'))],
    ['step', () => model.step([{ view: view(), tokens: [1] }], with_({}, 'dtpye'))],
    ['its worker', () => model.step([with_({ view: view(), tokens: [1] }, 'dtpye')])],
    ['its view', () => model.step([{ view: with_(view(), 'dtpye'), tokens: [1] }])],
    ['prefill', () => model.prefill(cache.createBlock(), [1], with_({}, 'dtpye'))],
    ['appendFrom', () => cache.createBlock().appendFrom(cache.createBlock(), with_({}, 'dtpye'))],
    ['beginPass', () => cache.beginPass([with_({ view: view(), tokens: 1 }, 'dtpye')])],
    ['runWorkers', () => runWorkers(with_({ ...run, model }, 'dtpye'))],
    ['its worker', () => runWorkers({ ...run, model, workers: [with_(alice, 'dtpye')] })],
    [
      'its sampler',
      () => runWorkers({ ...run, model, workers: [{ ...alice, sampler: with_({}, 'dtpye') }] }),
    ],
    ['run.stop', () => runWorkers({ ...run, model }).stop('Alice', with_({}, 'dtpye'))],
    [
      'viewOf',
      () => viewOf('combined', { common: 1, workers: [{ own: 2 }] }, 0, with_({}, 'dtpye')),
    ],
    [
      'its blocks',
      () => viewOf('combined', with_({ common: 1, workers: [{ own: 2 }] }, 'dtpye'), 0),
    ],
  ])('%s', async (_, call) => {
    const refused = async () => call()
    await expect(refused()).rejects.toThrow(/"dtpye"; it knows \w+/)
    expect(await codeOf(refused)).toBe('HOGWILD_INVALID_ARGUMENT')
  })
})

test('a proxy of a block or an object with its prototype is no block', async () => {
  const block = cache.createBlock()
  for (const fake of [
    new Proxy(block, {}),
    Object.create(block),
    Object.create(Object.getPrototypeOf(block)),
  ]) {
    expect(await codeOf(() => model.prefill(fake, [1]))).toBe('HOGWILD_INVALID_ARGUMENT')
    expect(await codeOf(() => block.appendFrom(fake))).toBe('HOGWILD_INVALID_ARGUMENT')
  }
})

describe('one sampler in two steps at once', () => {
  const step = (own: Cache, sampler: Sampler) =>
    model.step([{ view: { blocks: [own.createBlock()] }, tokens: new Array(500).fill(1), sampler }])

  test.each([
    ['of two caches', () => model.createCache({ capacity: 1024 })],
    ['of one cache', () => cache],
  ])('%s is refused, and draws once', async (_, second) => {
    const sampler = new Sampler({ seed: 1 })
    const first = step(cache, sampler)
    expect(await codeOf(() => step(second(), sampler))).toBe('HOGWILD_BUSY')
    await first
    expect(sampler.draws).toBe(1n)
    await step(second(), sampler)
    expect(sampler.draws).toBe(2n)
  })

  test('of two models is refused', async () => {
    const other = await loadModel(demo, { threads: 1 })
    const sampler = new Sampler({ seed: 1 })
    const first = step(cache, sampler)
    const there = other.createCache({ capacity: 64 }).createBlock()
    expect(await codeOf(() => other.prefill(there, [1], { sampler }))).toBe('HOGWILD_BUSY')
    await first
    await other.prefill(there, [1], { sampler })
    await other.close()
  })

  test('is free again after a step that failed', async () => {
    const [sampler, busy] = [new Sampler({ seed: 1 }), new Sampler({ seed: 2 })]
    const blocks = [cache.createBlock(), cache.createBlock()]
    const first = step(cache, busy)
    const both = blocks.map((block, i) => ({
      view: { blocks: [block] },
      tokens: [1],
      sampler: i === 0 ? sampler : busy,
    }))
    expect(await codeOf(() => model.step(both))).toBe('HOGWILD_BUSY')
    await first
    const signal = AbortSignal.abort()
    expect(await codeOf(() => model.step(both, { signal }))).toBe('HOGWILD_ABORTED')
    await model.step(both)
    expect([sampler.draws, busy.draws]).toEqual([1n, 2n])
  })
})

describe('closing', () => {
  test('a model closes its caches', async () => {
    const device = createDevice({ type: 'cpu', threads: 1 })
    const own = await loadModel(demo, { device })
    const caches = [own.createCache({ capacity: 64 }), own.createCache({ capacity: 64 })]
    const block = caches[0]?.createBlock()
    expect(caches.map(({ closed }) => closed)).toEqual([false, false])
    await caches[1]?.close()
    await own.close()
    expect([own.closed, ...caches.map(({ closed }) => closed)]).toEqual([true, true, true])
    expect(await codeOf(() => block?.length)).toBe('HOGWILD_CLOSED')
    expect(await codeOf(() => own.createCache())).toBe('HOGWILD_CLOSED')
    device.close()
  })

  test('a device closes what is on it', async () => {
    const device = createDevice({ type: 'cpu', threads: 1 })
    const own = await loadModel(demo, { device })
    const caches = [own.createCache({ capacity: 64 }), createCache({ ...shape, rope, device })]
    device.close()
    expect([own.closed, ...caches.map(({ closed }) => closed)]).toEqual([true, true, true])
    await Promise.all([own.close(), ...caches.map((one) => one.close())])
  })
})

describe('weights larger than memory', () => {
  const load = (options: LoadModelOptions) =>
    loadModel(demo, { device: 'cpu', threads: 1, ...options })

  afterEach(() => jest.restoreAllMocks())

  test('are refused with the numbers before they are read', async () => {
    jest.spyOn(os, 'freemem').mockReturnValue(100_000)
    const told: LoadProgress[] = []
    const onProgress = (progress: LoadProgress) => told.push(progress)
    for (const options of [{ mapped: false }, { dtype: 'f32' }] as const) {
      const loading = () => load({ ...options, onProgress })
      await expect(loading()).rejects.toThrow(
        /weights take [\d.]+ [kM]B, and 100 kB of memory are free/,
      )
      expect(await codeOf(loading)).toBe('HOGWILD_OUT_OF_MEMORY')
    }
    expect(told).toEqual([])
  })

  test('but pages of files that do not fit are only warned of', async () => {
    jest.spyOn(os, 'freemem').mockReturnValue(100_000)
    const warnings: Warning[] = []
    await using loaded = await load({ onWarning: (warning) => warnings.push(warning) })
    expect(loaded.closed).toBe(false)
    expect(warnings.map(({ code }) => code)).toEqual(['HOGWILD_LOW_MEMORY'])
  })

  test('the limit of a cgroup counts', async () => {
    jest.spyOn(process, 'constrainedMemory').mockReturnValue(1_000_000)
    expect(await codeOf(() => load({ mapped: false }))).toBe('HOGWILD_OUT_OF_MEMORY')
  })
})

describe('a cache larger than memory', () => {
  const bytesPerToken = 2 * 8 * 4 // keys and values, headDim, f32

  test('is refused where the machine cannot hold it, with what it can hold', async () => {
    const capacity = Math.ceil(totalmem() / bytesPerToken) + 1
    const create = () => createCache({ ...shape, rope, capacity })
    expect(create).toThrow(/a cache of \d+ tokens takes .* [GTP]B.*a capacity of \d+/)
    expect(await codeOf(create)).toBe('HOGWILD_OUT_OF_MEMORY')
    expect(await codeOf(() => model.createCache({ capacity: 2 ** 40 }))).toBe(
      'HOGWILD_OUT_OF_MEMORY',
    )
  })

  test('is warned of where it exceeds what is free', async () => {
    const free = jest.spyOn(os, 'freemem').mockReturnValue(100_000)
    const warnings: Warning[] = []
    const onWarning = (warning: Warning) => warnings.push(warning)
    const small = createCache({ ...shape, rope, capacity: 1024, onWarning })
    expect(warnings).toEqual([])
    const large = createCache({ ...shape, rope, capacity: 8192, onWarning })
    expect(warnings).toEqual([
      {
        code: 'HOGWILD_LOW_MEMORY',
        message: expect.stringMatching(/8192 tokens.* are free/),
      },
    ])
    free.mockRestore()
    await Promise.all([small.close(), large.close()])
  })
})

// What the binding answers where arguments do not fit, handles are closed or busy, and JavaScript interferes.
// binding.test.ts has the arguments that are wrong in themselves.

import { HogwildError } from '../lib/errors'
import {
  type BlockHandle,
  type CacheHandle,
  type DeviceHandle,
  type ModelHandle,
  type NativeAttendOptions,
  type NativeBinding,
  type NativeStepWorker,
  native,
  type PassHandle,
} from '../lib/native'

type Arguments<Name extends keyof NativeBinding> = NativeBinding[Name] extends (
  ...args: infer A
) => unknown
  ? A
  : never

const { attendOptions, cacheShape, random, randomModel, stepWorker } =
  require('./lifetime/random-model.cjs') as {
    attendOptions(scale: number, wantLse: boolean): NativeAttendOptions
    cacheShape(config: unknown, capacity: number): Arguments<'createCache'>[1]
    random(seed: number): () => number
    randomModel(): {
      config: Arguments<'createModel'>[1]
      tensors: Arguments<'createModel'>[2]
      remove(): void
    }
    stepWorker(
      view: BlockHandle[],
      tokens: number[],
      rest?: Partial<NativeStepWorker>,
    ): NativeStepWorker
  }

const { config, tensors, remove } = randomModel()
const kvSize = config.kvHeads * config.headDim
const qSize = config.queryHeads * config.headDim

let device: DeviceHandle
let model: ModelHandle
let cache: CacheHandle
let a: BlockHandle // tokens 1 2 3
let b: BlockHandle // tokens 4 5

beforeAll(async () => {
  device = native.createDevice({ type: 'cpu', index: 0, threads: 2, simd: '', profile: true })
  model = await native.createModel(device, config, tensors, null, null, null, true)
  cache = newCache()
  a = native.createBlock(cache)
  b = native.createBlock(cache)
  await native.step(model, cache, [stepWorker([a], [1, 2, 3]), stepWorker([b], [4, 5])], null)
})

afterAll(() => {
  native.deviceClose(device)
  remove()
})

function newCache(): CacheHandle {
  return native.createCache(device, cacheShape(config, 1024))
}

/** Fields of one entry of a view. */
function entry({ at = -1, lag = 0, temperature = 1, bias = 0 } = {}): Float64Array {
  return Float64Array.of(at, lag, temperature, bias)
}

function passWorker(target: BlockHandle, nTokens = 2) {
  return { view: [target], fields: Float64Array.of(0, 0, 1, 0), target, nTokens }
}

/** A pass of two tokens on a cache of its own. */
function newPass(): PassHandle {
  const own = newCache()
  return native.beginPass(own, [passWorker(native.createBlock(own))])
}

function floats(length: number, seed = 1): Float32Array {
  const next = random(seed)
  return Float32Array.from({ length }, () => next() - 0.5)
}

/** The code with which a call throws or rejects, 'done', or the error itself where it has no code. */
async function outcome(call: () => unknown): Promise<unknown> {
  try {
    await call()
    return 'done'
  } catch (error) {
    return (error as { code?: unknown }).code ?? error
  }
}

/** What a call must not change when it is refused. */
function snapshot(): unknown {
  const { peakPages: _, ...stats } = native.cacheStats(cache)
  const block = (handle: BlockHandle) => [
    Array.from(native.blockTokens(handle)),
    native.blockSegments(handle),
    native.blockRead(handle, 1),
  ]
  return [stats, block(a), block(b)]
}

test('addresses of device memory are refused where there is no CUDA device', async () => {
  const memory = { dtype: 'f32' as const, stream: 0n }
  const pass = newPass()
  const append = native.passAppendDevice(pass, 1, { k: 16n, v: 16n, ...memory })
  await expect(append).rejects.toMatchObject({ code: 'HOGWILD_UNSUPPORTED' })
  const queries = { q: 16n, out: 16n, lse: 0n, sinks: 0n, ...memory }
  const scores = { scale: 1, window: null, softcap: null }
  const attend = native.passAttendDevice(pass, 1, queries, config.queryHeads, scores)
  await expect(attend).rejects.toMatchObject({ code: 'HOGWILD_UNSUPPORTED' })
})

test('lengths and ranges that do not fit are refused, and nothing changes', async () => {
  const { ops } = native
  const pass = newPass()
  const matrix = (n: number) => ({ data: new Uint8Array(n), format: 'f32' as const, bias: null })
  const sampler = stepWorker([a], [1]).sampler!
  const row = { ...sampler, seen: new Int32Array(0), counts: new Int32Array(0) }
  const step = (...workers: NativeStepWorker[]) => native.step(model, cache, workers, null)
  const refused: Record<string, () => unknown> = {
    'no workers': () => step(),
    'no tokens': () => step(stepWorker([a], [])),
    'empty view': () => step({ ...stepWorker([a], [1]), view: [] }),
    'target not in view': () => step({ ...stepWorker([a], [1]), target: b }),
    'fields of one entry of two': () => step(stepWorker([a, b], [1], { fields: entry() })),
    'fields of no entry': () => step(stepWorker([a], [1], { fields: new Float64Array(0) })),
    'a start below none': () => step(stepWorker([a], [1], { fields: entry({ at: -2 }) })),
    'a start of 0.5': () => step(stepWorker([a], [1], { fields: entry({ at: 0.5 }) })),
    'a start of -0.5': () => step(stepWorker([a], [1], { fields: entry({ at: -0.5 }) })),
    'a start beyond 2^24': () => step(stepWorker([a], [1], { fields: entry({ at: 2 ** 24 + 1 }) })),
    'a start of NaN': () => step(stepWorker([a], [1], { fields: entry({ at: NaN }) })),
    'a last token beyond 2^24': () =>
      step(stepWorker([a], [1], { fields: entry({ at: 2 ** 24 }) })),
    'a lag of 2': () => step(stepWorker([a], [1], { fields: entry({ lag: 2 }) })),
    'a lag of NaN': () => step(stepWorker([a], [1], { fields: entry({ lag: NaN }) })),
    'a temperature of 0': () => step(stepWorker([a], [1], { fields: entry({ temperature: 0 }) })),
    'a temperature of 1e300': () =>
      step(stepWorker([a], [1], { fields: entry({ temperature: 1e300 }) })),
    'a temperature of NaN': () =>
      step(stepWorker([a], [1], { fields: entry({ temperature: NaN }) })),
    'bias NaN': () => step(stepWorker([a], [1], { fields: entry({ bias: NaN }) })),
    'bias Infinity': () => step(stepWorker([a], [1], { fields: entry({ bias: Infinity }) })),
    'token too large': () => step(stepWorker([a], [config.vocabSize])),
    'token negative': () => step(stepWorker([a], [-1])),
    'forbidden too large': () =>
      step(stepWorker([a], [1], { sampler: { ...sampler, forbidden: Int32Array.of(1e6) } })),
    'block of another cache': () => step(stepWorker([native.createBlock(newCache())], [1])),
    'no pass workers': () => native.beginPass(cache, []),
    'insert behind the end': () => native.blockInsert(a, 4, b),
    'truncate to more': () => native.blockTruncate(a, 4),
    'forget behind the end': () => native.blockForget(a, 0, 4),
    'forget backwards': () => native.blockForget(a, 2, 1),
    'append from another cache': () => native.blockAppendFrom(a, native.createBlock(newCache())),
    'read a layer too many': () => native.blockRead(a, config.layers.length),
    'append to a layer too many': () =>
      native.passAppend(pass, config.layers.length, floats(2 * kvSize), floats(2 * kvSize)),
    'k too short': () => native.passAppend(pass, 0, floats(2 * kvSize - 1), floats(2 * kvSize)),
    'v too long': () => native.passAppend(pass, 0, floats(2 * kvSize), floats(2 * kvSize + 1)),
    'q too short': () =>
      native.passAttend(pass, 0, floats(qSize), config.queryHeads, attendOptions(1, false)),
    'query heads not a multiple': () =>
      native.passAttend(pass, 0, floats(2 * 3 * config.headDim), 3, attendOptions(1, false)),
    'embedding id': () => ops.embedding(device, Int32Array.of(3), new Uint8Array(48), 'f32', 4, 1),
    'embedding table': () =>
      ops.embedding(device, Int32Array.of(0), new Uint8Array(47), 'f32', 4, 1),
    'norm rows': () => ops.rmsNorm(device, floats(15), floats(8), 1e-5),
    'norm without weight': () => ops.rmsNorm(device, floats(15), floats(0), 1e-5),
    'matmul rows': () => ops.matmul(device, floats(9), 2, [matrix(48)]),
    'no matrix': () => ops.matmul(device, floats(8), 2, []),
    'four matrices': () => ops.matmul(device, floats(8), 2, Array(4).fill(matrix(48))),
    'matrix not in rows': () => ops.matmul(device, floats(8), 2, [matrix(40)]),
    'empty matrix': () => ops.matmul(device, floats(8), 2, [matrix(0)]),
    'matmul bias': () => ops.matmul(device, floats(8), 2, [{ ...matrix(48), bias: floats(2) }]),
    'gate and up': () => ops.gatedActivation(device, floats(8), floats(7), 'silu'),
    'logits rows': () => ops.sample(device, floats(9), 8, [row]),
    'sample forbidden': () =>
      ops.sample(device, floats(8), 8, [{ ...row, forbidden: Int32Array.of(8) }]),
    'sample seen': () => ops.sample(device, floats(8), 8, [{ ...row, seen: Int32Array.of(-1) }]),
  }
  const before = snapshot()
  const codes: Record<string, unknown> = {}
  for (const [name, call] of Object.entries(refused)) codes[name] = await outcome(call)
  const expected = Object.keys(refused).map((name) => [name, 'HOGWILD_INVALID_ARGUMENT'])
  expect(codes).toEqual(Object.fromEntries(expected))
  expect(await outcome(() => step(stepWorker([a], [1]), stepWorker([b, a], [1])))).toBe(
    'HOGWILD_WRITE_CONFLICT',
  )
  const tooMany = new Array(1100).fill(1)
  expect(await outcome(() => step(stepWorker([a], tooMany)))).toBe('HOGWILD_OUT_OF_PAGES')
  for (const nTokens of [1100, 2 ** 52]) {
    expect(await outcome(() => native.beginPass(cache, [passWorker(a, nTokens)]))).toBe(
      'HOGWILD_OUT_OF_PAGES',
    )
  }
  expect(await outcome(() => native.createCache(device, cacheShape(config, 2 ** 52)))).toMatch(
    /HOGWILD_(OUT_OF_MEMORY|INVALID_ARGUMENT)/,
  )
  expect(snapshot()).toEqual(before)
})

// ---- closed, busy ---------------------------------------------------------------------------------

test('closed handles answer HOGWILD_CLOSED, and closing again does nothing', async () => {
  const own = newCache()
  const block = native.createBlock(own)
  const other = native.createBlock(own)
  native.blockClose(block)
  native.blockClose(block)
  const ownModel = await native.createModel(device, config, tensors, null, null, null, true)
  const pass = native.beginPass(own, [passWorker(other)])
  native.passAbort(pass)
  native.passAbort(pass)
  const onBlock: (() => unknown)[] = [
    () => native.blockLength(block),
    () => native.blockTokens(block),
    () => native.blockSegments(block),
    () => native.blockAppendFrom(block, other),
    () => native.blockAppendFrom(other, block),
    () => native.blockInsert(other, 0, block),
    () => native.blockTruncate(block, 0),
    () => native.blockForget(block, 0, 0),
    () => native.blockClear(block),
    () => native.blockFork(block),
    () => native.blockCompact(block),
    () => native.blockRead(block, 0),
    () => native.beginPass(own, [passWorker(block)]),
    () => native.step(model, own, [stepWorker([block, other], [1])], null),
    () => native.passCommit(pass),
    () => native.passAppend(pass, 0, floats(2 * kvSize), floats(2 * kvSize)),
    () => native.passAttend(pass, 0, floats(2 * qSize), config.queryHeads, attendOptions(1, false)),
  ]
  for (const call of onBlock) expect([await outcome(call), call]).toEqual(['HOGWILD_CLOSED', call])

  native.modelClose(ownModel)
  native.modelClose(ownModel)
  const step = () => native.step(ownModel, own, [stepWorker([other], [1])], null)
  expect(await outcome(step)).toBe('HOGWILD_CLOSED')
  expect(await outcome(() => native.modelWeightBytes(ownModel))).toBe('HOGWILD_CLOSED')

  const open = native.beginPass(own, [passWorker(other)])
  native.cacheClose(own)
  native.cacheClose(own)
  const onCache: (() => unknown)[] = [
    () => native.cacheStats(own),
    () => native.createBlock(own),
    () => native.blockLength(other),
    () => native.step(model, own, [stepWorker([other], [1])], null),
    () => native.beginPass(own, [passWorker(other)]),
    () => native.passAppend(open, 0, floats(2 * kvSize), floats(2 * kvSize)),
    () => native.passCommit(open),
  ]
  for (const call of onCache) expect([await outcome(call), call]).toEqual(['HOGWILD_CLOSED', call])
  native.passAbort(open)

  const ownDevice = native.createDevice({
    type: 'cpu',
    index: 0,
    threads: 1,
    simd: '',
    profile: false,
  })
  const onIt = native.createCache(ownDevice, cacheShape(config, 64))
  const itsBlock = native.createBlock(onIt)
  native.deviceClose(ownDevice)
  native.deviceClose(ownDevice)
  const onDevice: (() => unknown)[] = [
    () => native.deviceInfo(ownDevice),
    () => native.deviceReadBandwidth(ownDevice, 1 << 20),
    () => native.createCache(ownDevice, cacheShape(config, 64)),
    () => native.createModel(ownDevice, config, tensors, null, null, null, true),
    () => native.createBlock(onIt),
    () => native.blockCompact(itsBlock),
    () => native.ops.rmsNorm(ownDevice, floats(8), floats(8), 1),
  ]
  for (const call of onDevice) expect([await outcome(call), call]).toEqual(['HOGWILD_CLOSED', call])
  native.blockClose(itsBlock)
  native.cacheClose(onIt)
})

test('a model and a cache of different devices do not mix', async () => {
  const other = native.createDevice({ type: 'cpu', index: 0, threads: 1, simd: '', profile: false })
  const itsCache = native.createCache(other, cacheShape(config, 64))
  const block = native.createBlock(itsCache)
  expect(await outcome(() => native.step(model, itsCache, [stepWorker([block], [1])], null))).toBe(
    'HOGWILD_INVALID_ARGUMENT',
  )
  native.deviceClose(other)
})

test('while a step, pass or compaction uses a cache, all that would change it is refused', async () => {
  const own = newCache()
  const block = native.createBlock(own)
  const other = native.createBlock(own)
  const step = (tokens: number[]) => native.step(model, own, [stepWorker([block], tokens)], null)
  await step([1, 2, 3])
  const refused: (() => unknown)[] = [
    () => native.createBlock(own),
    () => native.blockSegments(block),
    () => native.blockAppendFrom(other, block),
    () => native.blockInsert(other, 0, block),
    () => native.blockTruncate(block, 0),
    () => native.blockForget(other, 0, 0),
    () => native.blockClear(other),
    () => native.blockFork(block),
    () => native.blockCompact(other),
    () => native.blockRead(block, 0),
    () => native.beginPass(own, [passWorker(other)]),
    () => step([9]),
  ]
  const check = async (length: number) => {
    for (const call of refused) expect([await outcome(call), call]).toEqual(['HOGWILD_BUSY', call])
    expect(native.blockLength(block)).toBe(length)
    expect(native.blockTokens(block).length).toBe(length)
    expect(native.cacheStats(own).pages).toBe(16)
  }

  // The checks below come before a result can be delivered: they await nothing but settled promises.
  const running = step([4])
  expect(await outcome(() => native.blockClear(block))).toBe('HOGWILD_BUSY')
  expect(await outcome(() => native.ops.rmsNorm(device, floats(8), floats(8), 1))).toBe(
    'HOGWILD_BUSY',
  )
  await check(3)
  await running
  expect(native.blockLength(block)).toBe(4)

  const pass = native.beginPass(own, [passWorker(block)])
  await check(4)
  // Another cache is free, for steps too.
  expect(await outcome(() => native.step(model, cache, [stepWorker([a], [1])], null))).toBe('done')
  native.blockTruncate(a, 3)
  native.passAbort(pass)
  expect(native.blockLength(block)).toBe(4)

  const compacting = native.blockCompact(block)
  await check(4)
  await compacting
  native.blockClear(block)
})

test('steps on two caches give the same', async () => {
  const caches = [newCache(), newCache()]
  const results = await Promise.all(
    caches.map((own) =>
      native.step(
        model,
        own,
        [stepWorker([native.createBlock(own)], [1, 2, 3], { logits: 'last' })],
        null,
      ),
    ),
  )
  expect(results[0]).toEqual(results[1])
  expect(results[0]!.extras[0]!.logits!.length).toBe(config.vocabSize)
})

test('short steps of other caches come between the pieces of a long one', async () => {
  const long = native.createCache(device, cacheShape(config, 8192))
  const other = newCache()
  const block = native.createBlock(other)
  const order: string[] = []
  const tokens = Array.from({ length: 6000 }, (_, i) => i % config.vocabSize)
  const prefilling = native
    .step(model, long, [stepWorker([native.createBlock(long)], tokens)], null)
    .then(({ seconds }) => {
      order.push('long')
      return seconds
    })
  for (let i = 0; i < 3; i++) {
    const { seconds } = await native.step(model, other, [stepWorker([block], [i])], null)
    expect(seconds).toBeGreaterThan(0)
    order.push(`short ${i}`)
  }
  expect(await prefilling).toBeGreaterThan(0)
  expect(order).toEqual(['short 0', 'short 1', 'short 2', 'long'])
})

// ---- passes ---------------------------------------------------------------------------------------

test('calls of a pass run in order, may be many, and must end before the commit', async () => {
  const own = newCache()
  const block = native.createBlock(own)
  const pass = native.beginPass(own, [passWorker(block)])
  const calls: Promise<unknown>[] = []
  for (let layer = 0; layer < config.layers.length; layer++) {
    const [k, v, q] = [floats(2 * kvSize, layer), floats(2 * kvSize, layer + 9), floats(2 * qSize)]
    calls.push(native.passAppend(pass, layer, k, v))
    calls.push(native.passAttend(pass, layer, q, config.queryHeads, attendOptions(0.25, layer > 0)))
  }
  expect(await outcome(() => native.passCommit(pass))).toBe('HOGWILD_BUSY')
  const attended = (await Promise.all(calls)) as { out: Float32Array; lse: Float32Array | null }[]
  expect(attended[1]!.lse).toBeNull()
  expect(attended[3]!.lse!.length).toBe(2 * config.queryHeads)
  // The first token sees only itself, so its output is its own value, for every head of the group.
  const value = floats(kvSize, 9)
  const group = config.queryHeads / config.kvHeads
  for (let head = 0; head < config.queryHeads; head++) {
    const at = Math.floor(head / group) * config.headDim
    const out = attended[1]!.out.subarray(head * config.headDim, (head + 1) * config.headDim)
    expect(Array.from(out)).toEqual(Array.from(value.subarray(at, at + config.headDim)))
  }
  expect(native.blockLength(block)).toBe(0)
  native.passCommit(pass)
  expect(Array.from(native.blockTokens(block))).toEqual([-1, -1])
  expect(await outcome(() => native.passCommit(pass))).toBe('HOGWILD_CLOSED')
})

test('an abort while calls of the pass are under way takes effect when they have ended', async () => {
  const own = newCache()
  const block = native.createBlock(own)
  const free = native.cacheStats(own).freePages
  const pass = native.beginPass(own, [passWorker(block)])
  const call = native.passAppend(pass, 0, floats(2 * kvSize), floats(2 * kvSize))
  native.passAbort(pass)
  expect(await outcome(() => native.createBlock(own))).toBe('HOGWILD_BUSY')
  expect(await outcome(() => call)).toBe('done')
  native.createBlock(own)
  expect(native.cacheStats(own).freePages).toBe(free)
})

// ---- arguments that change under the call ---------------------------------------------------------

test('arguments are copied: changing or transferring them afterwards has no effect', async () => {
  const run = async (spoil: (array: Int32Array | Float32Array | Float64Array) => void) => {
    const own = newCache()
    const block = native.createBlock(own)
    const worker = stepWorker([block], [1, 2, 3, 4], {
      logits: 'all',
      fields: entry({ bias: 0.5 }),
    })
    const stepping = native.step(model, own, [worker], null)
    spoil(worker.tokens)
    spoil(worker.fields!)
    const logits = (await stepping).extras[0]!.logits!
    const pass = native.beginPass(own, [passWorker(block)])
    const [k, v, q] = [floats(2 * kvSize, 1), floats(2 * kvSize, 2), floats(2 * qSize, 3)]
    const calls = [
      native.passAppend(pass, 0, k, v),
      native.passAttend(pass, 0, q, config.queryHeads, attendOptions(1, true)),
    ]
    for (const array of [k, v, q]) spoil(array)
    const [, attended] = await Promise.all(calls)
    native.passAbort(pass)
    return { logits, attended }
  }
  const expected = await run(() => {})
  expect(await run((array) => array.fill(7))).toEqual(expected)
  const transfer = (array: Int32Array | Float32Array | Float64Array) =>
    structuredClone(array, { transfer: [array.buffer as ArrayBuffer] })
  expect(await run(transfer)).toEqual(expected)
})

test('JavaScript that runs while arguments are read can close what they name', async () => {
  const own = newCache()
  const block = native.createBlock(own)
  const worker = stepWorker([block], [1])
  const closing = Object.defineProperty({ ...worker }, 'logprob', {
    get: () => {
      native.blockClose(block)
      return false
    },
  })
  expect(await outcome(() => native.step(model, own, [closing], null))).toBe('HOGWILD_CLOSED')

  const stepping = Object.defineProperty({ ...passWorker(native.createBlock(own)) }, 'nTokens', {
    get: () => {
      void native.step(model, own, [stepWorker([native.createBlock(own)], [1])], null)
      return 1
    },
  })
  expect(await outcome(() => native.beginPass(own, [stepping]))).toBe('HOGWILD_BUSY')

  const thrown = new Error('from a getter')
  const throwing = new Proxy(worker, {
    get: () => {
      throw thrown
    },
  })
  expect(await outcome(() => native.step(model, own, [throwing], null))).toBe(thrown)
  expect(await outcome(() => native.beginPass(own, [throwing as never]))).toBe(thrown)
})

test('errors are of the registered class, with the message for people', () => {
  try {
    native.createDevice({ type: 'tpu' as 'cpu', index: 0, threads: 1, simd: '', profile: false })
    throw new Error('not refused')
  } catch (error) {
    expect(error).toBeInstanceOf(HogwildError)
    expect((error as Error).message).toBe("options.type: expected cpu or cuda, received 'tpu'")
  }
})

// ---- sampling -------------------------------------------------------------------------------------

test('the repetition penalty applies to every token in view: new ones and those of others too', async () => {
  const own = newCache()
  const [common, mine, theirs] = [1, 2, 3].map(() => native.createBlock(own)) as BlockHandle[]
  const ids = (first: number) => Array.from({ length: 12 }, (_, i) => first + i)
  await native.step(model, own, [stepWorker([common!], ids(10))], null)
  const greedy = stepWorker([common!], [1]).sampler!
  // A penalty below 1 prefers what it applies to: such ids come first, while their logits are positive.
  const sample = async (fields: Float64Array | null, forbidden: number[]) => {
    const sampler = { ...greedy, repetitionPenalty: 1e-6, forbidden: Int32Array.from(forbidden) }
    const view = [common!, theirs!, mine!]
    const workers = [
      stepWorker(view, ids(40), { fields, logits: 'last', sampler }),
      stepWorker([common!, theirs!], ids(70)),
    ]
    const { tokens, extras } = await native.step(model, own, workers, null)
    native.blockClear(mine!)
    native.blockClear(theirs!)
    return { token: tokens[0]!, logits: extras[0]!.logits! }
  }
  const cases = [
    { fields: null, seen: [...ids(10), ...ids(40), ...ids(70)] },
    // A hidden block is not seen.
    {
      fields: Float64Array.of(...entry({ bias: -Infinity }), ...entry(), ...entry()),
      seen: [...ids(40), ...ids(70)],
    },
    // What others write late is not there.
    {
      fields: Float64Array.of(...entry(), ...entry({ lag: 1 }), ...entry()),
      seen: [...ids(10), ...ids(40)],
    },
  ]
  for (const { fields, seen } of cases) {
    const { logits } = await sample(fields, [])
    const order = seen.filter((id) => logits[id]! > 0).sort((x, y) => logits[y]! - logits[x]!)
    for (let first = 10; first <= 70; first += 30) {
      const preferred = ids(first).some((id) => order.includes(id))
      expect(preferred).toBe(seen.includes(first))
    }
    for (let k = 0; k < order.length; k++) {
      expect((await sample(fields, order.slice(0, k))).token).toBe(order[k])
    }
    expect(seen).not.toContain((await sample(fields, order)).token)
  }
})

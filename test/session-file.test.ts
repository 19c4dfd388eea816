// Files of blocks: what is exported and imported is the same blocks, and goes on as they would have; equal blocks give
// equal files; whatever else a file holds is refused by a code, and nothing of it stays.

import { createHash } from 'node:crypto'
import { chmodSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { open } from 'node:fs/promises'
import { join } from 'node:path'
import {
  type Block,
  type Cache,
  type CacheDtype,
  createCache,
  loadModel,
  type Model,
  ropeFrequencies,
} from '../lib'
import { writeSessionFile } from '../lib/session-file'
import { codeOf, expectSameBits, Random, temporaryFolder, writeModel } from './fixtures'

const tiny = {
  seed: 1,
  layers: 2,
  hiddenSize: 16,
  intermediateSize: 16,
  vocabSize: 50,
  queryHeads: 4,
  kvHeads: 2,
  headDim: 8,
}

let model: Model
let folder: string
const caches: Cache[] = []

beforeAll(async () => {
  model = await loadModel(writeModel(tiny), { device: 'cpu', threads: 1 })
})

beforeEach(() => {
  folder = temporaryFolder()
})

afterEach(async () => {
  for (const cache of caches.splice(0)) await cache.close()
})

afterAll(() => model.close())

function openCache(options: Parameters<Model['createCache']>[0] = {}, from = model): Cache {
  const cache = from.createCache({ capacity: 4096, ...options })
  caches.push(cache)
  return cache
}

const file = (name = 'blocks') => join(folder, name)

/** A prompt, a fork of it that goes on, a block with holes, an empty one. */
async function fill(cache: Cache): Promise<Block[]> {
  const random = new Random(3)
  const tokens = (n: number) => random.tokens(n, tiny.vocabSize)
  const prompt = cache.createBlock()
  await model.prefill(prompt, tokens(150))
  const fork = prompt.fork()
  await model.prefill(fork, tokens(3))
  const other = cache.createBlock()
  await model.prefill(other, tokens(70))
  other.forget(5, 66)
  other.appendFrom(prompt)
  return [prompt, fork, other, cache.createBlock()]
}

function contents(block: Block) {
  const layers = Array.from({ length: block.cache.shape.layers }, (_, layer) => block.read(layer))
  return { tokens: block.tokens(), segments: block.segments, layers }
}

const sha = (path: string) => createHash('sha256').update(readFileSync(path)).digest('hex')

// ---- the same blocks ------------------------------------------------------------------------------

const DTYPES: CacheDtype[] = ['f32', 'f16', 'bf16', 'int8', { keys: 'bf16', values: 'int8' }]

test.each(DTYPES)('blocks of a cache of %j come back to the bit, and go on so', async (dtype) => {
  const [one, other] = [openCache({ dtype }), openCache({ dtype })]
  const blocks = await fill(one)
  const first = other.createBlock() // takes other pages, and is there to the end
  await model.prefill(first, [1, 2, 3])
  const length = await one.export(blocks, file(), { data: { names: ['a', 'b'] } })
  expect(readFileSync(file())).toHaveLength(length)
  const free = other.stats.freePages
  const imported = await other.import(file())
  expect(imported.data).toEqual({ names: ['a', 'b'] })
  expect(imported.blocks.map(contents)).toEqual(blocks.map(contents))
  expect(free - other.stats.freePages).toBe(one.stats.pages - one.stats.freePages)
  expect(first.length).toBe(3)

  const step = async (list: readonly Block[]) => {
    const [prompt, fork, third, fourth] = list as [Block, Block, Block, Block]
    const workers = [
      { view: { blocks: [prompt, fork, third] }, tokens: [7, 8], logits: 'all' as const },
      { view: { blocks: [fork, prompt, fourth] }, tokens: [9], logits: 'all' as const },
      { view: { blocks: [fork] }, tokens: [4], logits: 'all' as const },
    ]
    return (await model.step(workers)).map(({ logits }) => logits as Float32Array)
  }
  for (let i = 0; i < 3; i++) {
    const [expected, found] = [await step(blocks), await step(imported.blocks)]
    expected.forEach((logits, worker) => {
      expectSameBits(found[worker]!, logits, `step ${i}, worker ${worker}`)
    })
  }
  expect(imported.blocks.map(({ segments }) => segments)).toEqual(
    blocks.map(({ segments }) => segments),
  )
})

test('equal blocks give equal files, wherever they lie', async () => {
  const [one, other] = [openCache(), openCache()]
  const blocks = await fill(one)
  await one.export(blocks, file('one'))
  await model.prefill(other.createBlock(), [1, 2, 3])
  const { blocks: imported } = await other.import(file('one'))
  await other.export(imported, file('other'))
  expect(sha(file('other'))).toBe(sha(file('one')))
  await other.export([...imported].reverse(), file('reversed'))
  expect(sha(file('reversed'))).not.toBe(sha(file('one')))
  const { data } = await other.import(file('one'))
  expect(data).toBeNull()
})

test('an engine with a model of its own names it', async () => {
  const rope = ropeFrequencies({ type: 'default', theta: 10_000, rotaryDim: 8 })
  const open = (options: object = {}) => {
    const shape = { layers: 1, kvHeads: 2, headDim: 8, capacity: 256, rope, device: 'cpu' as const }
    const cache = createCache({ ...shape, model: 'mine', ...options })
    caches.push(cache)
    return cache
  }
  const one = open()
  const block = one.createBlock()
  const pass = one.beginPass([{ view: { blocks: [block] }, tokens: 70 }])
  const random = new Random(5)
  const floats = () => random.floats(70 * 16)
  await pass.append(0, floats(), floats())
  pass.commit()
  await one.export([block], file())
  const { blocks } = await open().import(file())
  expect(blocks.map(contents)).toEqual([contents(block)])
  const message = (options: object) =>
    open(options)
      .import(file())
      .then(
        () => '',
        (error: Error & { code: string }) => `${error.code} ${error.message}`,
      )
  expect(await message({ model: 'yours' })).toMatch(
    /^HOGWILD_INVALID_SESSION .*another model: model is "mine", this cache has "yours"$/,
  )
  expect(await message({ model: undefined })).toMatch(/this cache has null$/)
  expect(await message({ layers: 2 })).toMatch(/another cache: layers is 1, this cache has 2$/)
  expect(await message({ kvHeads: 1 })).toMatch(/kvHeads is 2/)
  expect(await message({ headDim: 16 })).toMatch(/headDim is 8/)
  expect(await message({ dtype: 'bf16' })).toMatch(/keys is "f32", this cache has "bf16"$/)
  expect(await message({ dtype: { keys: 'f32', values: 'int8' } })).toMatch(/values is "f32"/)
  const slower = ropeFrequencies({ type: 'default', theta: 10_001, rotaryDim: 8 })
  expect(await message({ rope: slower })).toMatch(/another cache: ropes is/)
  expect(await message({ rope: [null] })).toMatch(/ropes is/)
  expect(await message({ rope: { ...rope, attentionFactor: 1.5 } })).toMatch(/ropes is/)
})

test('a model is told by its fingerprint', async () => {
  const one = openCache()
  await one.export(await fill(one), file())
  const load = (options: object) =>
    loadModel(writeModel({ ...tiny, ...options }), { device: 'cpu', threads: 1 })
  {
    await using same = await load({})
    expect(await same.fingerprint()).toBe(await model.fingerprint())
    expect(await same.fingerprint()).toMatch(/^[0-9a-f]{64}$/)
    await using cache = same.createCache()
    expect((await cache.import(file())).blocks).toHaveLength(4)
  }
  for (const options of [{ seed: 2 }, { intermediateSize: 8 }]) {
    await using another = await load(options)
    expect(await another.fingerprint()).not.toBe(await model.fingerprint())
    await using cache = another.createCache()
    await expect(cache.import(file())).rejects.toMatchObject({
      code: 'HOGWILD_INVALID_SESSION',
      message: expect.stringContaining('of another model'),
    })
    expect(cache.stats.freePages).toBe(cache.stats.pages)
  }
})

// ---- other files ----------------------------------------------------------------------------------

test('damaged, foreign and cut files are refused, and nothing stays', async () => {
  const one = openCache()
  await one.export(await fill(one), file())
  const good = readFileSync(file())
  const [header, index] = [16, 24].map((at) => Number(good.readBigUInt64LE(at))) as [number, number]
  const dataBegin = 40 + header + index + 32
  const cache = openCache()
  const refusal = async (bytes: Uint8Array): Promise<string> => {
    writeFileSync(file('bad'), bytes)
    const found = await cache.import(file('bad')).then(
      ({ blocks }) => {
        for (const block of blocks) block.close()
        return 'imported'
      },
      (error: Error & { code: string }) => `${error.code}: ${error.message}`,
    )
    expect(cache.stats.freePages).toBe(cache.stats.pages)
    return found
  }
  const changed = (at: number, change = 0x40) => {
    const bytes = Buffer.from(good)
    bytes[at]! ^= change
    return bytes
  }

  expect(await refusal(Buffer.alloc(0))).toMatch(/INVALID_SESSION.*is empty/)
  expect(await refusal(Buffer.from('{"a": 1}'))).toMatch(/begins with the bytes 7b2261223a20317d/)
  for (const length of [
    5,
    8,
    39,
    40,
    100,
    dataBegin - 1,
    dataBegin,
    dataBegin + 1,
    good.length - 1,
  ]) {
    expect(await refusal(good.subarray(0, length))).toMatch(/^HOGWILD_INVALID_SESSION: /)
  }
  expect(await refusal(Buffer.concat([good, Buffer.alloc(1)]))).toMatch(
    new RegExp(`has ${good.length + 1} bytes: expected ${good.length}`),
  )
  expect(await refusal(changed(8))).toMatch(
    /^HOGWILD_UNSUPPORTED: .*has version 65: this build reads version 1$/,
  )
  expect(await refusal(Buffer.from(good).fill(Buffer.from([1, 2, 3, 4]), 12, 16))).toMatch(
    /byte order mark/,
  )
  for (const at of [16, 22, 24, 30, 32, 38]) expect(await refusal(changed(at))).toMatch(/expected/)
  for (const at of [40, 40 + header - 1, 40 + header, dataBegin - 33, dataBegin - 1]) {
    expect(await refusal(changed(at, 1))).toMatch(/header and index have another SHA-256/)
  }
  for (const at of [dataBegin, good.length - 33, good.length - 32, good.length - 1]) {
    expect(await refusal(changed(at, 1))).toMatch(/keys and values have another SHA-256/)
  }
  expect(await refusal(good)).toBe('imported')
})

/** A file with another header or index, its hash made anew. */
function rewritten(good: Buffer, change: { header?: string; index?: Buffer }): Buffer {
  const [header, index] = [16, 24].map((at) => Number(good.readBigUInt64LE(at))) as [number, number]
  const json = Buffer.from(change.header ?? good.toString('utf8', 40, 40 + header))
  const newIndex = change.index ?? good.subarray(40 + header, 40 + header + index)
  const prefix = Buffer.from(good.subarray(0, 40))
  prefix.writeBigUInt64LE(BigInt(json.length), 16)
  prefix.writeBigUInt64LE(BigInt(newIndex.length), 24)
  const head = Buffer.concat([prefix, json, newIndex])
  const hash = createHash('sha256').update(head).digest()
  return Buffer.concat([head, hash, good.subarray(40 + header + index + 32)])
}

test('files whose hashes are right and whose parts are not are refused as well', async () => {
  const one = openCache()
  await one.export(await fill(one), file())
  const good = readFileSync(file())
  const header = JSON.parse(good.toString('utf8', 40, 40 + Number(good.readBigUInt64LE(16))))
  const begin = 40 + Number(good.readBigUInt64LE(16))
  const index = Buffer.from(good.subarray(begin, begin + Number(good.readBigUInt64LE(24))))
  const cache = openCache()
  const refusal = async (bytes: Buffer) => {
    writeFileSync(file('bad'), bytes)
    const code = await codeOf(async () => {
      for (const block of (await cache.import(file('bad'))).blocks) block.close()
    })
    expect(cache.stats.freePages).toBe(cache.stats.pages)
    return code
  }
  for (const text of [
    '',
    '{',
    'null',
    '[]',
    '5',
    '{}',
    '"\ud800"',
    JSON.stringify({ ...header, kind: 'session' }),
  ]) {
    expect(await refusal(rewritten(good, { header: text }))).toBe('HOGWILD_INVALID_SESSION')
  }
  for (const kind of ['x', 5, null, '__proto__', {}]) {
    const text = JSON.stringify({ ...header, kind })
    expect(await refusal(rewritten(good, { header: text }))).toBe('HOGWILD_INVALID_SESSION')
  }
  for (const cacheFacts of [null, [], 'x', {}, { ...header.cache, ropes: 5 }]) {
    const text = JSON.stringify({ ...header, cache: cacheFacts })
    expect(await refusal(rewritten(good, { header: text }))).toBe('HOGWILD_INVALID_SESSION')
  }
  for (const length of [0, 8, 15, 16, 100, index.length - 8, index.length - 1]) {
    const cut = index.subarray(0, length)
    expect(await refusal(rewritten(good, { index: cut }))).toBe('HOGWILD_INVALID_SESSION')
  }
  // An index of fewer pages than there are data for.
  const small = openCache()
  const block = small.createBlock()
  await model.prefill(block, [1])
  await small.export([block], file('small'))
  const other = readFileSync(file('small'))
  const otherBegin = 40 + Number(other.readBigUInt64LE(16))
  const otherIndex = other.subarray(otherBegin, otherBegin + Number(other.readBigUInt64LE(24)))
  expect(await refusal(rewritten(good, { index: Buffer.from(otherIndex) }))).toBe(
    'HOGWILD_INVALID_SESSION',
  )
  expect(await refusal(rewritten(good, {}))).toBe('nothing was thrown')
})

test('random damage: refused, or the same blocks', async () => {
  const one = openCache()
  const blocks = await fill(one)
  await one.export(blocks, file())
  const good = readFileSync(file())
  const random = new Random(7)
  const cache = openCache()
  for (let i = 0; i < 60; i++) {
    const bytes = Buffer.from(good)
    for (let n = random.int(1, 3); n > 0; n--) {
      const at = random.int(0, bytes.length - 1)
      bytes[at] = random.int(0, 255)
    }
    const cut = random.int(0, 3) === 0 ? random.int(0, bytes.length) : bytes.length
    writeFileSync(file('bad'), bytes.subarray(0, cut))
    const code = await codeOf(async () => {
      const { blocks: imported } = await cache.import(file('bad'))
      for (const block of imported) block.close()
    })
    const unchanged = cut === good.length && bytes.equals(good)
    if (unchanged) expect(code).toBe('nothing was thrown')
    else expect(['HOGWILD_INVALID_SESSION', 'HOGWILD_UNSUPPORTED']).toContain(code)
    expect(cache.stats.freePages).toBe(cache.stats.pages)
  }
})

test('what is no file is refused', async () => {
  const cache = openCache()
  mkdirSync(file('folder'))
  for (const path of [file('none'), file('folder'), '/dev/null', '/dev/zero']) {
    expect(await codeOf(() => cache.import(path))).toBe('HOGWILD_INVALID_SESSION')
  }
  for (const path of [file('none/blocks'), file('folder'), '/dev/null/x']) {
    await expect(cache.export([], path)).rejects.toMatchObject({
      code: 'HOGWILD_NOT_WRITTEN',
      cause: expect.objectContaining({ syscall: expect.any(String) }),
    })
  }
  expect(readdirSync(folder)).toEqual(['folder'])
})

// ---- all or nothing -------------------------------------------------------------------------------

test('a cache that is too small takes nothing', async () => {
  const one = openCache()
  await one.export(await fill(one), file())
  const small = openCache({ capacity: 128 })
  expect(await codeOf(() => small.import(file()))).toBe('HOGWILD_OUT_OF_PAGES')
  expect(small.stats.freePages).toBe(2)
  await model.prefill(small.createBlock(), [1])
})

/** A block of some pieces of 4 MiB. */
async function large(cache: Cache): Promise<Block> {
  const block = cache.createBlock()
  const pass = cache.beginPass([{ view: { blocks: [block] }, tokens: 2048 }])
  const floats = new Float32Array(2048 * 2 * 256).fill(0.5)
  for (let layer = 0; layer < 3; layer++) await pass.append(layer, floats, floats)
  pass.commit()
  return block
}

function openLarge(): Cache {
  const rope = ropeFrequencies({ type: 'default', theta: 10_000, rotaryDim: 8 })
  const cache = createCache({
    layers: 3,
    kvHeads: 2,
    headDim: 256,
    capacity: 4096,
    rope,
    device: 'cpu',
  })
  caches.push(cache)
  return cache
}

test('progress is told piece by piece; a signal ends an export and an import', async () => {
  const cache = openLarge()
  const block = await large(cache)
  const told: number[] = []
  const total = 3 * 2048 * 2 * 2 * 256 * 4
  const onProgress = (progress: { bytes: number; totalBytes: number }) => {
    told.push(progress.bytes)
    expect(progress.totalBytes).toBe(total)
  }
  await cache.export([block], file(), { onProgress })
  expect(told.length).toBeGreaterThan(4)
  expect(told.at(-1)).toBe(total)
  const before = sha(file())
  const written = told.splice(0)
  const { blocks } = await cache.import(file(), { onProgress })
  expect(told).toEqual(written)
  blocks[0]!.close()

  const { freePages } = cache.stats
  const reason = new Error('enough')
  for (const act of ['export', 'import'] as const) {
    for (const stopAt of [0, 1, 3]) {
      const abort = new AbortController()
      if (stopAt === 0) abort.abort(reason)
      let pieces = 0
      const options = {
        signal: abort.signal,
        onProgress: () => {
          if (++pieces === stopAt) abort.abort(reason)
        },
      }
      const call =
        act === 'export' ? cache.export([block], file(), options) : cache.import(file(), options)
      await expect(call).rejects.toMatchObject({ code: 'HOGWILD_ABORTED', cause: reason })
      expect(cache.stats.freePages).toBe(freePages)
    }
    const mine = new Error('mine')
    const options = {
      onProgress: () => {
        throw mine
      },
    }
    const call =
      act === 'export' ? cache.export([block], file(), options) : cache.import(file(), options)
    await expect(call).rejects.toBe(mine)
    expect(cache.stats.freePages).toBe(freePages)
  }
  // What was there is still there, and nothing else.
  expect(readdirSync(folder)).toEqual(['blocks'])
  expect(sha(file())).toBe(before)
  block.truncate(5) // the cache is free again
})

test('the cache is busy meanwhile, and closing it ends the work', async () => {
  const cache = openLarge()
  const block = await large(cache)
  const exporting = cache.export([block], file())
  expect(await codeOf(() => block.clear())).toBe('HOGWILD_BUSY')
  expect(await codeOf(() => cache.export([block], file('second')))).toBe('HOGWILD_BUSY')
  expect(block.length).toBe(2048)
  await exporting
  for (const act of ['export', 'import'] as const) {
    const again = openLarge()
    const own = await large(again)
    let closing: Promise<void> | undefined
    const onProgress = () => {
      closing ??= again.close()
    }
    const call =
      act === 'export'
        ? again.export([own], file(), { onProgress })
        : again.import(file(), { onProgress })
    expect(['HOGWILD_ABORTED', 'HOGWILD_CLOSED']).toContain(await codeOf(() => call))
    await closing
    expect(await codeOf(() => again.import(file()))).toBe('HOGWILD_CLOSED')
  }
  expect(readdirSync(folder)).toEqual(['blocks'])
})

test('wrong arguments', async () => {
  const [one, other] = [openCache(), openCache()]
  const block = one.createBlock()
  const circle: { self?: unknown } = {}
  circle.self = circle
  const calls: (() => Promise<unknown>)[] = [
    () => one.export([block, block], file()),
    () => one.export([other.createBlock()], file()),
    () => one.export({} as never, file()),
    () => one.export([{} as never], file()),
    () => one.export([block], 5 as never),
    () => one.export([block], 'a\0b'),
    () => one.export([block], file(), { data: circle }),
    () => one.export([block], file(), { data: () => 1 }),
    () => one.export([block], file(), { data: 5n }),
    () => one.export([block], file(), { signal: 5 as never }),
    () => one.export([block], file(), { onProgress: 5 as never }),
    () => one.export([block], file(), { dta: 1 } as never),
    () => one.import(5 as never),
    () => one.import(file(), { data: 1 } as never),
    () => one.import(file(), { signal: {} as never }),
  ]
  for (const call of calls) expect(await codeOf(call)).toBe('HOGWILD_INVALID_ARGUMENT')
  const closed = one.createBlock()
  closed.close()
  expect(await codeOf(() => one.export([closed], file()))).toBe('HOGWILD_CLOSED')
  expect(readdirSync(folder)).toEqual([])
})

test('where the folder cannot be written to, nothing is lost', async () => {
  if (process.getuid?.() === 0) return // root may write anywhere
  const one = openCache()
  mkdirSync(file('locked'))
  chmodSync(file('locked'), 0o500)
  expect(await codeOf(async () => one.export(await fill(one), file('locked/blocks')))).toBe(
    'HOGWILD_NOT_WRITTEN',
  )
})

// ---- on the disk ----------------------------------------------------------------------------------

describe('a file goes to the disk while it is written', () => {
  const PIECE = 4 * 2 ** 20
  /** `flushed` is called where the system is asked for it. */
  async function write(flushed: () => void, isDurable?: boolean) {
    const handle = await open(__filename, 'r')
    const calls = jest.spyOn(Object.getPrototypeOf(handle), 'datasync')
    await handle.close()
    calls.mockImplementation(async () => flushed())
    const pieces = new Array<number>(20).fill(PIECE)
    const read: number[] = []
    const contents = {
      header: null,
      index: new Uint8Array(0),
      pieces,
      readPiece: (piece: number) => {
        read.push(piece)
        return Promise.resolve(new Uint8Array(PIECE).fill(piece))
      },
    }
    try {
      const length = await writeSessionFile(file(), contents, { isDurable })
      return { length, read, flushes: calls.mock.calls.length }
    } finally {
      calls.mockRestore()
    }
  }

  test('and is whole', async () => {
    let begun = 0
    const { length, read, flushes } = await write(() => begun++)
    expect(read).toHaveLength(20)
    expect(flushes).toBe(2)
    expect(begun).toBe(2)
    const bytes = readFileSync(file())
    expect(bytes).toHaveLength(length)
    for (const piece of read) expect(bytes.at(length - 32 - (20 - piece) * PIECE)).toBe(piece)
  })

  test('what the disk refuses is not lost', async () => {
    const error = Object.assign(new Error('EIO: i/o error'), { syscall: 'fdatasync' })
    const writing = write(() => {
      throw error
    })
    await expect(writing).rejects.toMatchObject({ code: 'HOGWILD_NOT_WRITTEN', cause: error })
    expect(readdirSync(folder)).toEqual([])
  })

  test('unless it need not survive the system', async () => {
    expect((await write(() => {}, false)).flushes).toBe(0)
  })
})

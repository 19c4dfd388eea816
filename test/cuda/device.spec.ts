// The CUDA device from end to end: whole models, the cache's operations and the errors, beside the CPU device
// and the oracle. On a GPU, or on the emulated card of cuda/simt: the same kernels, launched by the same code.

import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import {
  type AttendOptions,
  type Block,
  type CacheDtype,
  createCache,
  createDevice,
  type Device,
  type Dtype,
  loadModel,
  loadTokenizer,
  type Model,
  type Pass,
  probe,
  ropeFrequencies,
  runWorkers,
  Sampler,
  type StepOutput,
} from '../../lib'
import { type MemoryHandle, native } from '../../lib/native'
import {
  codeOf,
  decode,
  difference,
  encode,
  oracleFolder,
  oracleModels,
  Random,
  rounded,
  temporaryFolder,
} from '../fixtures'
import { expectSameChoices } from '../oracle'

const demoFolder = join(__dirname, '..', '..', 'models', 'demo')

// RoPE of 8 to 32 pairs turns the first part of a head.
const rope = ropeFrequencies({ type: 'default', theta: 10000, rotaryDim: 24 })

let cuda: Device
let cpu: Device

beforeAll(() => {
  cuda = createDevice({ type: 'cuda' })
  cpu = createDevice({ type: 'cpu', threads: 1 })
  process.stdout.write(`on ${cuda.info.name}\n`)
})

afterAll(() => {
  cuda.close()
  cpu.close()
})

test('it is found, and chosen by itself', () => {
  const found = probe().cuda
  expect(found).toMatchObject({ compiled: true, reason: '' })
  expect(found.cards[0]?.computeCapability).toBeGreaterThanOrEqual(8)
  using device = createDevice()
  expect(device.info).toMatchObject({ type: 'cuda', index: 0, name: found.cards[0]?.name })
  expect(device.whyNotCuda).toBe('')
  expect(() => createDevice({ type: 'cuda', index: 99 })).toThrow(/there is no GPU 99/)
  expect(() => createDevice({ type: 'cuda', threads: 2 })).toThrow(/without threads/)
  expect([cpu.info.deterministic, cuda.info.deterministic]).toEqual([true, false])
})

test('deterministic: the same bits alone, beside other workers and beside a prefill', async () => {
  using device = createDevice({ type: 'cuda', deterministic: true })
  expect(device.info.deterministic).toBe(true)
  const model = await loadModel(demoFolder, { device })
  await using cache = model.createCache({ capacity: 2048, dtype: 'bf16' })
  const random = new Random(21)
  const [common, notes, ...own] = Array.from({ length: 6 }, () => cache.createBlock()) as [
    Block,
    Block,
    ...Block[],
  ]
  await model.prefill(common, random.tokens(600, 60))
  for (const block of [notes, ...own]) await model.prefill(block, random.tokens(40, 60))
  // Each sees the notes elsewhere, so that the step comes across its segments in another order.
  const worker = (i: number, n: number) => ({
    view: { blocks: i % 2 === 0 ? [common, notes, own[i]!] : [notes, common, own[i]!] },
    tokens: Array.from({ length: n }, (_, k) => (7 * i + k) % 60),
    logits: 'last' as const,
  })
  const companies = [
    [worker(0, 1)],
    [worker(3, 1), worker(1, 1), worker(2, 1), worker(0, 1)],
    [worker(1, 90), worker(0, 1), worker(2, 1)],
    [worker(0, 1), worker(3, 20)],
  ]
  const rows: Buffer[] = []
  for (let repeat = 0; repeat < 2; repeat++) {
    for (const company of companies) {
      const out = await model.step(company)
      const me = company.findIndex(({ view }) => view.blocks.includes(own[0]!))
      const { logits } = out[me] as StepOutput
      rows.push(Buffer.from((logits as Float32Array).slice().buffer))
      for (const block of own) block.truncate(40)
    }
  }
  for (const row of rows) expect(row.equals(rows[0]!)).toBe(true)

  // However a prompt is cut.
  const prompt = random.tokens(200, 60)
  const ends: Float32Array[] = []
  for (const cuts of [[200], [70, 130], [199, 1]]) {
    const block = cache.createBlock()
    let at = 0
    for (const n of cuts) {
      const { logits } = await model.prefill(block, prompt.slice(at, at + n), { logits: 'last' })
      at += n
      if (at === 200) ends.push(logits as Float32Array)
    }
  }
  expect(ends[1]).toEqual(ends[0])
  expect(ends[2]).toEqual(ends[0])
  await model.close()
})

test.each<CacheDtype>(['bf16', 'f16', 'f32', 'int8', { keys: 'int8', values: 'f16' }])(
  'blocks in %j go to the other device through a file, to the bit',
  async (dtype) => {
    const folder = temporaryFolder()
    const open = (device: Device) =>
      createCache({ layers: 2, kvHeads: 2, headDim: 40, capacity: 1024, rope, dtype, device })
    const random = new Random(12)
    const contents = (block: Block) => [
      block.tokens(),
      block.segments,
      block.read(0),
      block.read(1),
    ]
    for (const [from, to] of [
      [cuda, cpu],
      [cpu, cuda],
    ] as const) {
      await using source = open(from)
      await using target = open(to)
      const [block, other] = [source.createBlock(), source.createBlock()]
      for (const [written, tokens] of [
        [block, 100],
        [other, 30],
      ] as const) {
        const pass = source.beginPass([{ view: { blocks: [written] }, tokens }])
        for (let layer = 0; layer < 2; layer++) {
          await pass.append(layer, random.floats(tokens * 80), random.floats(tokens * 80))
        }
        pass.commit()
      }
      block.forget(10, 70)
      other.appendFrom(block)
      await source.export([block, other], join(folder, 'there'))
      const { blocks } = await target.import(join(folder, 'there'))
      expect(blocks.map(contents)).toEqual([block, other].map(contents))
      await target.export(blocks, join(folder, 'back'))
      const [there, back] = ['there', 'back'].map((name) => readFileSync(join(folder, name)))
      expect(back!.equals(there!)).toBe(true)
    }
  },
)

// f32 weights are rounded to bf16 when they are uploaded.
test.each(oracleModels)(
  'the oracle, %s: the argmax wherever the margin exceeds twice the error',
  async (name) => {
    const model = await loadModel(oracleFolder(name), { device: cuda })
    await expectSameChoices(model, name)
    await model.close()
  },
)

// A draw at the boundary of two tokens may fall to the other side: none of these does.
test('equal logits and seeds give the tokens of the CPU, with all that a sampler has', () => {
  const [vocab, draws] = [5000, 120]
  const random = new Random(31)
  const logits = random.floats(draws * vocab, 3)
  const some = (n: number) => Int32Array.from(random.tokens(n, vocab))
  const rows = Array.from({ length: draws }, (_, i) => {
    const seen = Int32Array.from(new Set(some(random.pick([0, 3, 600]))))
    return {
      temperature: random.pick([0, 0.7, 2]),
      topK: random.pick([0, 0, 1, 40, 3000]),
      topP: random.pick([1, 1, 0.3, 0.95]),
      minP: random.pick([0, 0, 0.05]),
      repetitionPenalty: random.pick([1, 1, 1.3, 0.8]),
      presencePenalty: random.pick([0, 0, 1.7, -0.4]),
      frequencyPenalty: random.pick([0, 0, 0.3, -0.2]),
      scope: 'view' as const,
      lastN: 0,
      forbidden: some(random.pick([0, 0, 50])),
      seed: 77n,
      draw: BigInt(i),
      seen,
      counts: Int32Array.from(random.tokens(seen.length, 9), (n) => n + 1),
    }
  })
  const [there, here] = [cpu, cuda].map((device) =>
    native.ops.sample(device.handle, logits, vocab, rows),
  )
  expect([...here!.tokens]).toEqual([...there!.tokens])
  expect(difference(here!.logprobs, there!.logprobs).max).toBeLessThan(1e-4)
})

const PENALTIES = { presencePenalty: 0.7, frequencyPenalty: 0.4, scope: 'own', lastN: 5 } as const

describe('the demo model', () => {
  const models: Model[] = []
  let prompt: (words: string) => number[]
  let stop: number[]

  beforeAll(async () => {
    for (const device of [cpu, cuda]) models.push(await loadModel(demoFolder, { device }))
    const tokenizer = await loadTokenizer(demoFolder)
    const encode = (text: string) => tokenizer.encodeSync(text, { addSpecialTokens: false })
    prompt = (words) =>
      encode(
        `<s>${words
          .split(' ')
          .map((word, i) => `${String.fromCharCode(65 + i)}:${[...word].reverse().join('')}\n`)
          .join('')}`,
      )
    stop = encode('</s>')
  })
  afterAll(() => Promise.all(models.map((model) => model.close())))

  /** Tokens of each worker, in order. */
  async function write(model: Model, words: string, names: string[], share: boolean) {
    const tokenizer = await loadTokenizer(demoFolder)
    const written = new Map<string, number[]>(names.map((name) => [name, []]))
    const run = runWorkers({
      model,
      prompt: prompt(words),
      workers: names.map((name) => ({
        name,
        prompt: tokenizer.encodeSync(name, { addSpecialTokens: false }),
      })),
      layout: 'contiguous',
      share,
      stopTokens: stop,
      maxTokens: 60,
      capacity: 2048,
    })
    for await (const event of run) {
      if (event.type === 'token') written.get(event.worker)?.push(event.token)
    }
    return Object.fromEntries(written)
  }

  test.each([
    ['many hands make light work', ['Alice', 'Bob', 'Carol', 'Dave'], true],
    ['see at once what is done already', ['Alice', 'Bob'], true],
    ['one alone', ['Alice'], true],
    ['nobody sees me', ['Alice', 'Bob', 'Carol'], false],
  ])('%s: each worker writes what it writes on the CPU', async (words, names, share) => {
    const [onCpu, onCuda] = await Promise.all(
      models.map((model) => write(model, words, names, share)),
    )
    expect(Object.values(onCpu ?? {}).flat().length).toBeGreaterThan(8)
    expect(onCuda).toEqual(onCpu)
  })

  test('fork, insert, forget, truncate and compact: the logits of the CPU in bf16', async () => {
    const rows = await Promise.all(
      models.map(async (model) => {
        const cache = model.createCache({ capacity: 2048, dtype: 'bf16' })
        const random = new Random(3)
        const common = cache.createBlock()
        const own = cache.createBlock()
        const logits: Float32Array[] = []
        const step = async (n: number) => {
          const tokens = random.tokens(n, 60)
          const out = await model.step([
            { view: { blocks: [{ block: common, bias: 0.25 }, own] }, tokens, logits: 'last' },
          ])
          logits.push(out[0]?.logits as Float32Array)
        }
        await model.prefill(common, random.tokens(150, 60))
        await step(3)
        const fork = common.fork()
        common.insert(31, own)
        await step(1)
        common.forget(3, 20)
        await step(70)
        own.truncate(60)
        const { tokensMoved } = await common.compact()
        expect(tokensMoved).toBeGreaterThan(0)
        await step(1)
        common.clear()
        common.appendFrom(fork)
        await step(1)
        await cache.close()
        return logits
      }),
    )
    rows[0]?.forEach((row, i) => {
      const { max } = difference(rows[1]?.[i] ?? new Float32Array(), row)
      expect(max).toBeLessThan(0.6)
    })
  })

  test('greedy and sampled tokens with their log-probabilities', async () => {
    const draws = await Promise.all(
      models.map(async (model) => {
        const cache = model.createCache({ capacity: 2048 })
        const block = cache.createBlock()
        await model.prefill(block, prompt('sample me'))
        const out: StepOutput[] = []
        for (let seed = 0; seed < 12; seed++) {
          const fork = block.fork()
          const [output] = await model.step([
            {
              view: { blocks: [fork] },
              tokens: stop,
              logprob: true,
              sampler: new Sampler(
                seed % 3 === 0
                  ? { temperature: 0 }
                  : {
                      ...{ temperature: 1.5, topK: 20, topP: 0.9, seed },
                      ...(seed % 3 === 1 ? PENALTIES : {}),
                    },
              ),
            },
          ])
          out.push(output as StepOutput)
        }
        await cache.close()
        return out
      }),
    )
    const same = draws[0]?.filter((drawn, i) => drawn.token === draws[1]?.[i]?.token).length
    expect(same).toBeGreaterThanOrEqual(11) // a draw may fall to the other side of a boundary
    draws[0]?.forEach((drawn, i) => {
      const other = draws[1]?.[i]
      if (other !== undefined && other.token === drawn.token) {
        expect(Math.abs((other.logprob ?? 0) - (drawn.logprob ?? 0))).toBeLessThan(0.3)
      }
    })
  })

  test('an aborted step and a refused one leave the cache as it was', async () => {
    const model = models[1] as Model
    const cache = model.createCache({ capacity: 128 })
    const block = cache.createBlock()
    await model.prefill(block, [1, 2, 3])
    const before = block.read(0)
    const controller = new AbortController()
    const step = model.step([{ view: { blocks: [block] }, tokens: [1], logits: 'last' }], {
      signal: controller.signal,
    })
    controller.abort()
    expect(await codeOf(() => step)).toBe('HOGWILD_ABORTED')
    expect(
      await codeOf(() => model.step([{ view: { blocks: [block] }, tokens: Array(200).fill(1) }])),
    ).toBe('HOGWILD_OUT_OF_PAGES')
    expect(block.length).toBe(3)
    expect(block.read(0)).toEqual(before)
    await cache.close()
  })
})

describe("an engine's own layers", () => {
  test('append and attend: what the CPU gives for the same bf16 cache', async () => {
    const random = new Random(11)
    const shape = { layers: 1, kvHeads: 2, headDim: 72, capacity: 1024, dtype: 'bf16' as const }
    const queryHeads = 6
    const lengths = [70, 1, 5]
    const data = lengths.map((n) => ({
      n,
      k: random.floats(n * 2 * 72),
      v: random.floats(n * 2 * 72),
      q: random.floats(n * queryHeads * 72),
    }))
    const found = await Promise.all(
      [cpu, cuda].map(async (device) => {
        const cache = createCache({ ...shape, rope, device })
        const block = cache.createBlock()
        const all = []
        for (const { n, k, v, q } of data) {
          const pass = cache.beginPass([{ view: { blocks: [block] }, tokens: n }])
          await pass.append(0, k, v)
          all.push(await pass.attend(0, q, { lse: true }))
          pass.commit()
        }
        await cache.close()
        return all
      }),
    )
    found[0]?.forEach(({ out, lse }, i) => {
      const other = found[1]?.[i]
      expect(difference(other?.out ?? [], out).max).toBeLessThan(0.03)
      expect(difference(other?.lse ?? [], lse ?? []).max).toBeLessThan(0.03)
    })
  })
})

// What differs between the devices: the CPU multiplies int8 and f32 with more digits than the 16 bits of the GPU.
describe('what the CPU attends, in every format', () => {
  const formats = ['f32', 'f16', 'bf16', 'int8'] as const
  const dtypes: CacheDtype[] = formats.flatMap((keys) =>
    formats.map((values) => ({ keys, values })),
  )
  const options: [string, AttendOptions][] = [
    ['nothing more', {}],
    ['a window', { window: 20 }],
    ['a soft cap', { softcap: 1.5 }],
    ['sinks', { sinks: Float32Array.of(0.5, -1, 3, -Infinity, 0, 2) }],
    ['all of them', { window: 40, softcap: 20, sinks: Float32Array.of(1, 1, 0, 0, 2, 2) }],
  ]
  test.each(options)('%s', async (_, attend) => {
    for (const dtype of dtypes) {
      const random = new Random(21)
      const [k, v, q] = [random.floats(40 * 80), random.floats(40 * 80), random.floats(40 * 240)]
      const found = await Promise.all(
        [cpu, cuda].map(async (device) => {
          const cache = createCache({
            ...{ layers: 1, kvHeads: 2, headDim: 40, capacity: 1024, rope, dtype, device },
          })
          const [common, own] = [cache.createBlock(), cache.createBlock()]
          const all = []
          for (const [block, n] of [
            [common, 40],
            [own, 5],
          ] as const) {
            const view = {
              blocks: [{ block: common, temperature: 1.5, bias: 0.5 }, own],
              writeTo: block,
            }
            const pass = cache.beginPass([{ view, tokens: n }])
            await pass.append(0, k.subarray(0, n * 80), v.subarray(0, n * 80))
            all.push(await pass.attend(0, q.subarray(0, n * 240), { ...attend, lse: true }))
            pass.commit()
          }
          await cache.close()
          return all
        }),
      )
      found[0]?.forEach(({ out, lse }, i) => {
        const other = found[1]?.[i]
        expect(difference(other?.out ?? [], out).max).toBeLessThan(0.04)
        const rows = [lse ?? [], other?.lse ?? []].map((row) =>
          Float32Array.from(row).filter(Number.isFinite),
        )
        expect(difference(rows[1] ?? [], rows[0] ?? []).max).toBeLessThan(0.04)
      })
    }
  })
})

describe("an engine's layers in device memory", () => {
  const shape = { layers: 1, kvHeads: 2, headDim: 64, capacity: 1024, dtype: 'bf16' as const }
  const queryHeads = 6
  const tokens = 70
  const random = new Random(12)
  const k = random.floats(tokens * 2 * 64)
  const v = random.floats(tokens * 2 * 64)
  const q = random.floats(tokens * queryHeads * 64)

  /** A pass whose `attend` gives `out` and `lse` for k, v, q; `use` gets it and what belongs to it. */
  async function withPass<T>(device: Device, use: (pass: Pass) => Promise<T>): Promise<T> {
    const cache = createCache({ ...shape, rope, device })
    const block = cache.createBlock()
    const pass = cache.beginPass([{ view: { blocks: [block] }, tokens }])
    try {
      return await use(pass)
    } finally {
      pass.abort()
      await cache.close()
    }
  }
  const memory = (values: ArrayLike<number>, dtype: Dtype) =>
    native.ops.deviceMemory(cuda.handle, encode(values, dtype))
  const zeros = (n: number) => native.ops.deviceMemory(cuda.handle, new Uint8Array(n))
  const floatsOf = (array: { memory: MemoryHandle }, dtype: Dtype = 'f32') =>
    decode(native.ops.readMemory(array.memory), dtype)

  test.each([
    ['f32', undefined],
    ['f32', 0n],
    ['f32', 1n],
    ['bf16', 0n],
    ['f16', undefined],
  ] as const)('%s on stream %s: what comes through the host', async (dtype, stream) => {
    // The same values for both ways, so that only the way differs.
    const values = [k, v, q].map((array) => Float32Array.from(rounded(array, dtype)))
    const scores = { window: 30, softcap: 9 }
    const sinks = random.floats(queryHeads)
    const host = await withPass(cuda, async (pass) => {
      await pass.append(0, values[0] as Float32Array, values[1] as Float32Array)
      return pass.attend(0, values[2] as Float32Array, { lse: true, sinks, ...scores })
    })
    const [outBytes, lseBytes] = [q.length * (dtype === 'f32' ? 4 : 2), tokens * queryHeads * 4]
    const [keys, newValues, queries] = values.map((array) => memory(array, dtype))
    const sinkMemory = memory(sinks, 'f32')
    const out = zeros(outBytes)
    const lse = zeros(lseBytes)
    await withPass(cuda, async (pass) => {
      const caller = { dtype, stream }
      await pass.appendDevice(0, {
        k: keys?.address ?? 0n,
        v: newValues?.address ?? 0n,
        ...caller,
      })
      await pass.attendDevice(
        0,
        {
          q: queries?.address ?? 0n,
          out: out.address,
          lse: lse.address,
          sinks: sinkMemory.address,
          ...caller,
        },
        { queryHeads, ...scores },
      )
    })
    expect(difference(floatsOf(lse), host.lse ?? []).max).toBe(0)
    const expected = rounded(host.out, dtype)
    expect(difference(floatsOf(out, dtype), expected).max).toBe(0)
  })

  test('what cannot be used is refused, and the pass goes on', async () => {
    const keys = memory(k, 'f32')
    const queries = memory(q, 'f32')
    const out = zeros(q.length * 4)
    const short = zeros(1024)
    await withPass(cuda, async (pass) => {
      const append = (buffers: object) =>
        pass.appendDevice(0, { k: keys.address, v: keys.address, ...buffers })
      const attend = (buffers: object) =>
        pass.attendDevice(0, { q: queries.address, out: out.address, ...buffers }, { queryHeads })
      await expect(append({ stream: 2n })).rejects.toThrow(/per-thread default stream/)
      await expect(append({ k: 0n })).rejects.toThrow(/buffers.k: expected/)
      await expect(append({ k: keys.address + 4n })).rejects.toThrow(/buffers.k: expected/)
      await expect(append({ v: 1n << 40n })).rejects.toThrow(/buffers.v: expected .* device memory/)
      await expect(append({ dtype: 'int8' })).rejects.toThrow(/buffers.dtype/)
      await append({})
      await expect(attend({ out: queries.address })).rejects.toThrow(/memory of their own/)
      await expect(attend({ out: queries.address + 256n })).rejects.toThrow(/memory of their own/)
      await expect(attend({ lse: out.address })).rejects.toThrow(/memory of their own/)
      await expect(attend({ out: short.address })).rejects.toThrow(/buffers.out: expected/)
      await expect(attend({ sinks: 1n << 40n })).rejects.toThrow(/buffers.sinks: expected/)
      await expect(attend({ sinks: out.address })).rejects.toThrow(/memory of their own/)
      await attend({})
    })
    expect(floatsOf(out).some((value) => value !== 0)).toBe(true)
  })

  test('another device refuses addresses', async () => {
    await withPass(cpu, async (pass) => {
      const append = pass.appendDevice(0, { k: 16n, v: 16n })
      expect(await codeOf(() => append)).toBe('HOGWILD_UNSUPPORTED')
    })
  })
})

describe('caches', () => {
  test('by default a cache is bf16', async () => {
    const options = { layers: 1, kvHeads: 1, headDim: 64, rope, device: cuda }
    const cache = createCache(options)
    expect(cache.shape.dtype).toBe('bf16')
    await cache.close()
  })

  test('more memory than there is: the sizes are in the message', () => {
    const options = { layers: 64, kvHeads: 8, headDim: 128, rope, device: cuda }
    expect(() => createCache({ ...options, capacity: 2 ** 26 })).toThrow(
      /a cache of 67108864 tokens takes \d+ bytes: the GPU has \d+ in all/,
    )
  })
})

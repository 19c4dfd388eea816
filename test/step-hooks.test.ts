// The hooks of a step: what changes logits on their way to a token, embeddings in, hidden states and attention mass out,
// and samplers that are saved.

import { join } from 'node:path'
import {
  type Block,
  type Cache,
  createDevice,
  generate,
  type LogitBias,
  type LogitsInfo,
  loadModel,
  type Model,
  type ProcessLogits,
  Sampler,
  type SamplerOptions,
  type SamplerState,
  type StepOutput,
  type StepWorker,
} from '../lib'
import {
  type NativeLogitsEdit,
  type NativeStepResults,
  type NativeStepWorker,
  native,
} from '../lib/native'
import { GREEDY } from '../lib/sampler'
import {
  codeOf,
  expectClose,
  expectSameBits,
  loadReference,
  Random,
  type Twin,
  twin,
  viewOfTwins,
  writeModel,
} from './fixtures'
import { argmax, linear, logSoftmax } from './reference'

const vocab = 53
const folder = writeModel({ vocabSize: vocab, seed: 70 })
let model: Model
let cache: Cache

beforeAll(async () => {
  model = await loadModel(folder, { device: 'cpu', threads: 2 })
  cache = model.createCache({ capacity: 8192, dtype: 'f32' })
})

afterAll(async () => {
  await model.close()
})

const fresh = () => ({ blocks: [cache.createBlock()] })
const one = async (worker: Partial<StepWorker>, in_ = model): Promise<StepOutput> => {
  const [output] = await in_.step([{ view: fresh(), tokens: [1, 2, 3], ...worker }])
  return output!
}

/** Fails unless the call leaves blocks, pages and the sampler as they were. */
async function leavesNoTrace(block: Block, sampler: Sampler, call: () => Promise<unknown>) {
  const state = () => [block.length, [...block.tokens()], sampler.draws, sampler.state]
  const before = state()
  const { freePages } = cache.stats
  const error = await call().then(
    () => undefined,
    (thrown: unknown) => thrown,
  )
  expect(error).toBeDefined()
  expect(state()).toEqual(before)
  // Blocks of earlier tests may give theirs back meanwhile.
  expect(cache.stats.freePages).toBeGreaterThanOrEqual(freePages)
  return error as Error
}

// ---- logits ---------------------------------------------------------------------------------------

describe('the logits that a token is chosen from', () => {
  it.each(Array.from({ length: 30 }, (_, i) => 500 + i))(
    'bias, processor, then all that the sampler does: seed %i',
    async (seed) => {
      const random = new Random(seed)
      const options: SamplerOptions = {
        temperature: random.pick([0, 0.7, 1.5]),
        topK: random.pick([0, 5, 20]),
        topP: random.pick([1, 0.8]),
        minP: random.pick([0, 0.05]),
        repetitionPenalty: random.pick([1, 1.4]),
        presencePenalty: random.pick([0, 0.6]),
        frequencyPenalty: random.pick([0, 0.3]),
        forbidden: random.chance(0.5) ? random.tokens(3, vocab) : [],
        seed,
      }
      const tokens = random.tokens(6, 12)
      const bias = new Map(random.tokens(5, vocab).map((id) => [id, random.normal() * 4]))
      const banned = random.int(0, vocab - 1)
      bias.set(banned, -Infinity)
      const noise = random.floats(vocab, 2)
      const hasProcessor = random.chance(0.7)
      let got: Float32Array | undefined
      const processLogits: ProcessLogits = (logits) => {
        got = logits.slice()
        for (let id = 0; id < vocab; id++) logits[id]! += noise[id]!
      }
      const sampler = new Sampler(options)
      const output = await one({
        tokens,
        sampler,
        logits: 'last',
        logprob: true,
        topLogprobs: 4,
        logitBias: random.chance(0.5) ? bias : Object.fromEntries(bias),
        ...(hasProcessor && { processLogits }),
      })

      const biased = output.logits!.slice()
      for (const [id, value] of bias) biased[id]! += Math.fround(value)
      if (hasProcessor) expectSameBits(got!, biased, `seed ${seed}`)
      const edited = hasProcessor ? biased.map((logit, id) => logit + noise[id]!) : biased
      const counts = new Map<number, number>()
      for (const id of tokens) counts.set(id, (counts.get(id) ?? 0) + 1)
      const row = {
        ...new Sampler(options).next(),
        seen: Int32Array.from(counts.keys()),
        counts: Int32Array.from(counts.values()),
      }
      const expected = native.ops.sample(model.device.handle, edited, vocab, [row]).tokens[0]
      expect([seed, output.token]).toEqual([seed, expected])
      expect(output.token).not.toBe(banned)
      // Log-probabilities are the model's own.
      const raw = logSoftmax(output.logits!)
      expect(output.logprob).toBeCloseTo(raw[output.token!]!, 5)
      const order = [...raw.keys()].sort((a, b) => raw[b]! - raw[a]! || a - b).slice(0, 4)
      expect(output.topLogprobs!.map(({ token }) => token)).toEqual(order)
      output.topLogprobs!.forEach(({ logprob }, i) => {
        expect(logprob).toBeCloseTo(raw[order[i]!]!, 5)
      })
    },
  )

  it('of one worker are nobody else’s business, and stay with the model where nobody asks', async () => {
    const random = new Random(71)
    const worker = (): StepWorker => ({
      view: fresh(),
      tokens: random.tokens(4, vocab),
      logits: 'all',
    })
    const workers = [worker(), worker(), worker()]
    const alone = await model.step(workers.map((part) => ({ ...part, view: fresh() })))
    const infos: LogitsInfo[] = []
    const hooked: StepWorker[] = workers.map((part) => ({ ...part, view: fresh() }))
    hooked[1]!.processLogits = (logits, info) => {
      infos.push(info)
      logits.fill(-Infinity)
      logits[17] = 0
    }
    hooked[2]!.logitBias = { 3: 1000 }
    const together = await model.step(hooked)
    together.forEach(({ logits }, i) => {
      expectSameBits(logits!, alone[i]!.logits!, `worker ${i}`)
    })
    expect(together.map(({ token }) => token)).toEqual([alone[0]!.token, 17, 3])
    expect(infos).toHaveLength(1)
    expect(infos[0]).toMatchObject({ worker: 1, block: hooked[1]!.view.blocks[0] })
    expect([...infos[0]!.tokens]).toEqual(hooked[1]!.tokens)
  })

  it('are given once, after the last of many tokens, of more workers than one piece has', async () => {
    let calls = 0
    const tokens = new Random(72).tokens(1300, vocab)
    const long = await one({ tokens, logits: 'last' })
    const output = await one({
      tokens,
      processLogits: (logits) => {
        calls++
        expectSameBits(logits, long.logits!, 'the last')
      },
    })
    expect([calls, output.token]).toEqual([1, long.token])
    await using large = model.createCache({ capacity: 150 * 64 })
    const many = await model.step(
      Array.from({ length: 150 }, (_, i) => ({
        view: { blocks: [large.createBlock()] },
        tokens: [i % vocab],
        processLogits: (logits: Float32Array) =>
          void logits.fill(-Infinity).fill(0, i % vocab, (i % vocab) + 1),
      })),
    )
    expect(many.map(({ token }) => token)).toEqual(many.map((_, i) => i % vocab))
  })

  const view = { blocks: [] as Block[] }
  beforeEach(async () => {
    view.blocks = [cache.createBlock()]
    await model.prefill(view.blocks[0]!, [5, 6, 7])
  })
  const failing = (worker: Partial<StepWorker>) => {
    const sampler = new Sampler({ seed: 3 })
    return leavesNoTrace(view.blocks[0]!, sampler, () =>
      model.step([
        { view: fresh(), tokens: [9], sampler: null },
        { view, tokens: [8], sampler, ...worker },
      ]),
    )
  }

  it('a processor that throws ends the step as if it had never been', async () => {
    const thrown = new TypeError('mine')
    const throwing = () => {
      throw thrown
    }
    expect(await failing({ processLogits: throwing })).toBe(thrown)
    expect((await one({ view, tokens: [8] })).token).toBeDefined()
  })

  const bad: [string, ProcessLogits, RegExp][] = [
    [
      'NaN',
      (logits) => void logits.fill(Number.NaN, 7, 8),
      /workers\[1\]: processLogits .*token 7 .*NaN/,
    ],
    ['+Infinity', (logits) => void logits.fill(Infinity, 0, 1), /token 0 .*Infinity/],
    ['nothing', (logits) => void logits.fill(-Infinity), /left no token/],
    ['a promise', async () => {}, /workers\[1\]\.processLogits.*promise/],
    ['a promise that fails', async () => Promise.reject(new Error('late')), /promise/],
    [
      'no memory',
      (logits) => void structuredClone(logits, { transfer: [logits.buffer as ArrayBuffer] }),
      /gave the memory/,
    ],
    [
      'no memory, and a length that lies',
      (logits) => {
        structuredClone(logits, { transfer: [logits.buffer as ArrayBuffer] })
        Object.defineProperty(logits, 'length', { value: vocab })
      },
      /expected 53 logits, received 0/,
    ],
  ]
  it.each(bad)('a processor that leaves %s is refused', async (_, processLogits, message) => {
    const error = await failing({ processLogits })
    expect(error).toMatchObject({ code: 'HOGWILD_INVALID_ARGUMENT' })
    expect(error.message).toMatch(message)
  })

  it('what the sampler refuses then leaves no trace either', async () => {
    const only = (logits: Float32Array) => void logits.fill(-Infinity, 1)
    const sampler = new Sampler({ forbidden: [0], seed: 1 })
    const error = await leavesNoTrace(view.blocks[0]!, sampler, () =>
      model.step([{ view, tokens: [8], sampler, processLogits: only }]),
    )
    expect(error).toMatchObject({ code: 'HOGWILD_INVALID_ARGUMENT' })
    expect(error.message).toMatch(/forbidden/)
    const bias = Object.fromEntries(Array.from({ length: vocab }, (_, id) => [id, -Infinity]))
    expect((await failing({ logitBias: bias })).message).toMatch(/logitBias left no token/)
  })

  it('the cache is busy while a processor works, and it may end the step', async () => {
    const codes: Promise<string>[] = []
    const block = view.blocks[0]!
    await one({
      view,
      tokens: [8],
      processLogits: () => {
        codes.push(codeOf(() => block.truncate(0)))
        codes.push(codeOf(() => model.step([{ view: fresh(), tokens: [1] }])))
      },
    })
    expect(await Promise.all(codes)).toEqual(['HOGWILD_BUSY', 'HOGWILD_BUSY'])
    const { length } = block
    const abort = new AbortController()
    const aborted = model.step(
      [{ view, tokens: [8], processLogits: () => abort.abort('enough') }],
      {
        signal: abort.signal,
      },
    )
    await expect(aborted).rejects.toMatchObject({ code: 'HOGWILD_ABORTED', cause: 'enough' })
    expect(block.length).toBe(length)
    block.truncate(1) // no longer busy
  })

  it('closing the model or its device from within ends it', async () => {
    for (const what of ['model', 'device', 'cache'] as const) {
      const device = createDevice({ type: 'cpu', threads: 1 })
      const own = await loadModel(folder, { device })
      const itsCache = own.createCache({ capacity: 64 })
      let closing: Promise<void> | undefined
      const step = own.step([
        {
          view: { blocks: [itsCache.createBlock()] },
          tokens: [1],
          processLogits: () => {
            if (what === 'device') device.close()
            else closing = (what === 'model' ? own : itsCache).close()
          },
        },
      ])
      const code = await codeOf(() => step)
      expect([what, code]).toEqual([what, expect.stringMatching(/HOGWILD_(ABORTED|CLOSED)/)])
      await closing
      await own.close()
      device.close()
    }
  })

  const refused: [string, object, RegExp][] = [
    ['logitBias 5', { logitBias: 5 }, /logitBias to be an object/],
    ['logitBias null', { logitBias: null }, /logitBias to be an object/],
    ['an id beyond the vocabulary', { logitBias: { 53: 1 } }, /token id of .*\[0, 52\]/],
    ['an id that is no number', { logitBias: { a: 1 } }, /token id of .*logitBias/],
    ['an id 01', { logitBias: { '01': 1 } }, /token id of .*logitBias/],
    ['a Map with an id 1.5', { logitBias: new Map([[1.5, 1]]) }, /token id of .*logitBias/],
    ['NaN', { logitBias: { 1: Number.NaN } }, /logitBias\[1\] to be a finite number/],
    ['Infinity', { logitBias: { 1: Infinity } }, /logitBias\[1\]/],
    ['beyond float32', { logitBias: { 1: 1e39 } }, /logitBias\[1\]/],
    ['beyond float32 below', { logitBias: { 1: -1e39 } }, /logitBias\[1\]/],
    ['a string', { logitBias: { 1: '2' } }, /logitBias\[1\]/],
    ['processLogits {}', { processLogits: {} }, /processLogits to be a function/],
    ['grammar {}', { grammar: {} }, /grammar to be a GrammarMatcher/],
    ['grammar null', { grammar: null }, /grammar to be a GrammarMatcher/],
    ['hidden 1', { hidden: 1 }, /hidden to be true or false/],
    ['attentionMass 0', { attentionMass: 0 }, /attentionMass to be true or false/],
    [
      'no sampler for a bias',
      { sampler: null, logitBias: {} },
      /sampler to be a Sampler.*logitBias/,
    ],
    ['no sampler for a processor', { sampler: null, processLogits: () => {} }, /processLogits/],
    ['another key', { logitsBias: {} }, /has no "logitsBias"/],
  ]
  it.each(refused)('refuses %s', async (_, worker, message) => {
    const error = await failing(worker as Partial<StepWorker>)
    expect(error).toMatchObject({ code: 'HOGWILD_INVALID_ARGUMENT' })
    expect(error.message).toMatch(message)
  })

  it('reads a bias once, whatever it is', async () => {
    class Strange extends Map<number, number> {
      override forEach(): never {
        throw new Error('not asked')
      }
      override get size(): never {
        throw new Error('not asked')
      }
    }
    expect((await one({ logitBias: new Strange([[4, 1e6]]) })).token).toBe(4)
    const throwing = {
      get 3(): number {
        throw new Error('mine')
      },
    }
    const revoked = Proxy.revocable({}, {})
    revoked.revoke()
    for (const logitBias of [throwing, revoked.proxy] as LogitBias[]) {
      expect(await codeOf(() => one({ logitBias }))).toBe('HOGWILD_INVALID_ARGUMENT')
    }
  })

  it('a held step that is forgotten gives the cache back', async () => {
    await using own = model.createCache({ capacity: 64 })
    const block = own.createBlock()
    const handles = await hold(own, { ...nativeWorker(block), held: 'with-logits' })
    if (!('step' in handles)) throw new Error('it did not wait')
    expect(handles.logits[0]).toHaveLength(vocab)
    expect(() => block.clear()).toThrow(expect.objectContaining({ code: 'HOGWILD_BUSY' }))
    await native.abortStep(handles.step)
    block.clear()
    expect(own.stats.freePages).toBe(1)
    for (const again of [
      () => native.abortStep(handles.step),
      () => native.finishStep(handles.step, [], null),
    ]) {
      expect(await codeOf(again)).toBe('HOGWILD_CLOSED')
    }
  })
})

describe('edits that are brought while the step computes', () => {
  const only = 7
  const allowed = new Int32Array(Math.ceil(vocab / 32))
  allowed[0] = 1 << only
  const edits = [{ logits: null, allowed }]

  it('are what it chooses from, without waiting', async () => {
    await using own = model.createCache({ capacity: 256 })
    const worker = () => ({ ...nativeWorker(own.createBlock()), held: 'yes' as const })
    const waited = await hold(own, worker())
    if (!('step' in waited)) throw new Error('it did not wait')
    const later = (await native.finishStep(waited.step, edits, null)) as NativeStepResults
    expect([...later.tokens]).toEqual([only])
    const brought = native.createEdits()
    native.bringEdits(brought, edits)
    expect(await hold(own, worker(), brought)).toEqual(later)
    // Once.
    expect(await hold(own, worker(), brought)).toHaveProperty('step')
  })

  it('are those of the first stage: at the next one it waits', async () => {
    await using own = model.createCache({ capacity: 256 })
    const worker = (tokens: number[]) => ({
      ...nativeWorker(own.createBlock()),
      tokens: Int32Array.from(tokens),
      drafts: tokens.length - 1,
      held: 'yes' as const,
      sampler: GREEDY,
    })
    const bring = (list: NativeLogitsEdit[]) => {
      const brought = native.createEdits()
      native.bringEdits(brought, list)
      return brought
    }
    const state = await hold(own, worker([1, only]), bring(edits))
    expect(state).toMatchObject({ stage: 1, waiting: [true] })
    if (!('step' in state)) throw new Error('it did not wait')
    const { kept, tokens } = (await native.finishStep(state.step, edits, null)) as NativeStepResults
    expect([kept[0], ...tokens]).toEqual([1, only, only])
  })

  it('are refused as those of a step that waits, and the cache is as before', async () => {
    await using own = model.createCache({ capacity: 64 })
    const block = own.createBlock()
    const wrong: NativeLogitsEdit[][] = [
      [],
      [edits[0]!, edits[0]!],
      [{ logits: new Float32Array(vocab + 1), allowed: null }],
      [{ logits: null, allowed: new Int32Array(allowed.length) }],
    ]
    for (const list of wrong) {
      const brought = native.createEdits()
      native.bringEdits(brought, list)
      const worker = { ...nativeWorker(block), held: 'yes' as const }
      expect(await codeOf(() => hold(own, worker, brought))).toBe('HOGWILD_INVALID_ARGUMENT')
      expect([block.length, own.stats.freePages]).toEqual([0, 1])
    }
  })
})

function nativeWorker(block: Block): NativeStepWorker {
  return {
    view: [block.handle],
    fields: null,
    target: block.handle,
    tokens: Int32Array.of(1),
    logits: 'none',
    sampler: new Sampler({ seed: 1 }).next(),
    logprob: false,
    topLogprobs: 0,
  }
}

async function hold(own: Cache, worker: NativeStepWorker, edits = native.createEdits()) {
  return await native.holdStep(modelHandle(model), own.open(), [worker], null, edits)
}

/** As `step` uses it. */
function modelHandle(of: Model) {
  let handle: Parameters<typeof native.step>[0] | undefined
  const spy = jest.spyOn(native, 'step').mockImplementation((given) => {
    handle = given
    throw new Error('stopped')
  })
  of.step([{ view: fresh(), tokens: [1] }]).catch(() => {})
  spy.mockRestore()
  return handle!
}

test('generate takes the hooks, for the first token too', async () => {
  const calls: number[] = []
  const answer = generate({
    model,
    prompt: new Random(75).tokens(600, vocab),
    maxTokens: 5,
    stopTokens: [],
    logitBias: { 11: 1000, 12: 1000 },
    processLogits: (logits, { tokens }) => {
      calls.push(tokens.length)
      logits[calls.length % 2 === 0 ? 11 : 12]! -= 500
    },
  })
  expect((await answer.result).tokens).toEqual([11, 12, 11, 12, 11])
  expect(calls).toEqual([88, 1, 1, 1, 1])
  const thrown = new Error('mine')
  const failed = generate({
    model,
    prompt: [1],
    processLogits: () => {
      throw thrown
    },
  })
  await expect(failed.result).rejects.toBe(thrown)
  const bad = { model, prompt: [1], logitBias: { 99: 1 } }
  expect(() => generate(bad)).toThrow(/token id of options.logitBias/)
})

// ---- hidden states and embeddings -----------------------------------------------------------------

describe('hidden states', () => {
  it('are what the logits are made of, and change nothing', async () => {
    const { weights } = loadReference(folder) as unknown as { weights: Map<string, Float64Array> }
    const head = weights.get('lm_head.weight')!
    const tokens = new Random(76).tokens(700, vocab)
    const plain = await one({ tokens, logits: 'last' })
    const [first, output] = await model.step([
      { view: fresh(), tokens: [3], hidden: true, sampler: null },
      { view: fresh(), tokens, hidden: true, logits: 'last' },
    ])
    expectSameBits(output!.logits!, plain.logits!, 'logits')
    expect(output!.token).toBe(plain.token)
    expect(output!.hidden).toHaveLength(model.config.hiddenSize)
    expectClose(linear(head, Float64Array.from(output!.hidden!)), plain.logits!, 2e-4, 'hidden')
    // Alone, and with nothing else wanted.
    const single = await one({ tokens: [3], hidden: true, sampler: null })
    expectSameBits(first!.hidden!, single.hidden!, 'alone')
    expect(single).toMatchObject({ token: undefined, logits: undefined })
    expect(plain.hidden).toBeUndefined()
    const long = await one({ tokens, hidden: true, sampler: null })
    expectSameBits(long.hidden!, output!.hidden!, 'long')
  })
})

describe('embeddings', () => {
  const tableOf = (path: string) =>
    Float32Array.from(
      (loadReference(path) as unknown as { weights: Map<string, Float64Array> }).weights.get(
        'model.embed_tokens.weight',
      )!,
    )
  const embed = (of: Model, path: string, ids: readonly number[]) => {
    const { hiddenSize, embeddingScale } = of.config
    const table = tableOf(path)
    const scale = Math.fround(embeddingScale)
    return Float32Array.from({ length: ids.length * hiddenSize }, (_, i) => {
      const id = ids[Math.floor(i / hiddenSize)]!
      return Math.fround(table[id * hiddenSize + (i % hiddenSize)]! * scale)
    })
  }

  it.each([
    ['llama', folder],
    ['gemma', family('gemma')],
    ['granite', family('granite')],
  ])('of the table are its ids, to the bit: %s', async (_, path) => {
    const own = await loadModel(path, { device: 'cpu', threads: 2 })
    const dtype = 'f32'
    const itsCache = own.createCache({ capacity: 4096, dtype })
    const random = new Random(77)
    for (const lengths of [[3], [1, 5], [700], [300, 400]]) {
      const inputs = lengths.map((length) => random.tokens(length, own.config.vocabSize))
      const blocks = inputs.map(() => [itsCache.createBlock(), itsCache.createBlock()])
      const views = (side: number) =>
        blocks.map((_, i) => ({
          blocks: [...blocks.map((pair) => pair[side]!), blocks[i]![side]!],
          writeTo: blocks[i]![side]!,
        }))
      const wanted = { logits: 'last', hidden: true } as const
      const expected = await own.step(
        inputs.map((tokens, i) => ({ view: views(0)[i]!, tokens, ...wanted })),
      )
      const actual = await own.step(
        inputs.map((tokens, i) => {
          const view = views(1)[i]!
          // The second worker brings ids.
          if (i === 1) return { view, tokens, ...wanted }
          return { view, embeddings: embed(own, path, tokens), ...wanted }
        }),
      )
      actual.forEach((output, i) => {
        expectSameBits(output.logits!, expected[i]!.logits!, `${lengths}, worker ${i}`)
        expectSameBits(output.hidden!, expected[i]!.hidden!, `${lengths}, worker ${i}`)
        expect(output.token).toBe(expected[i]!.token)
        const ids = i === 1 ? inputs[i]! : inputs[i]!.map(() => -1)
        expect([...blocks[i]![1]!.tokens()]).toEqual(ids)
      })
      for (const block of blocks.flat()) block.close()
    }
    await own.close()
  })

  it('count for no penalty', async () => {
    const view = fresh()
    const embeddings = embed(model, folder, [4, 5])
    const [output] = await model.step([
      {
        view,
        embeddings,
        logits: 'last',
        sampler: new Sampler({ temperature: 0, presencePenalty: 50 }),
      },
    ])
    expect(output!.token).toBe(argmax(output!.logits!))
    const sampler = new Sampler({ temperature: 0, presencePenalty: 50 })
    const ids = Array.from({ length: vocab - 1 }, (_, i) => i)
    const [next] = await model.step([{ view, tokens: ids, sampler }])
    expect(next!.token).toBe(vocab - 1) // the only one that was not seen
  })

  const size = 24
  it.each<[string, object, RegExp]>([
    ['none', { embeddings: new Float32Array(0) }, /embeddings to be a Float32Array.*at least one/],
    [
      'a part of one',
      { embeddings: new Float32Array(size + 1) },
      /embeddings to be a Float32Array/,
    ],
    ['doubles', { embeddings: new Float64Array(size) }, /embeddings to be a Float32Array/],
    ['a list', { embeddings: [1] }, /embeddings to be a Float32Array/],
    ['NaN', { embeddings: new Float32Array(size).fill(Number.NaN) }, /finite numbers/],
    [
      'ids beside',
      { embeddings: new Float32Array(size), tokens: [1] },
      /either tokens or embeddings/,
    ],
    ['neither', {}, /tokens to be/],
  ])('refuses %s', async (_, input, message) => {
    const block = cache.createBlock()
    const worker = { view: { blocks: [block] }, ...input } as unknown as StepWorker
    const error: Error = await model.step([worker]).then(
      () => new Error('not refused'),
      (thrown) => thrown,
    )
    expect(error).toMatchObject({ code: 'HOGWILD_INVALID_ARGUMENT' })
    expect(error.message).toMatch(message)
    expect(block.length).toBe(0)
  })
})

// ---- attention mass -------------------------------------------------------------------------------

function family(name: string): string {
  return join(__dirname, 'fixtures', 'families', name)
}

describe('attention mass', () => {
  const sum = (values: ArrayLike<number>) => Array.from(values).reduce((a, b) => a + b, 0)

  it.each([
    ['llama', folder, 1],
    ['qwen3', writeModel({ family: 'qwen3', queryHeads: 5, kvHeads: 1, layers: 3, seed: 78 }), 1],
    ['windows', family('gemma3_text'), 1],
    ['soft caps', family('gemma2_caps'), 1],
    ['sinks', family('gpt_oss'), undefined],
  ])('is the reference’s: %s', async (name, path, total) => {
    const own = await loadModel(path, { device: 'cpu', threads: 2 })
    const reference = loadReference(path)
    const itsCache = own.createCache({ capacity: 4096, dtype: 'f32' })
    const random = new Random(79)
    const twins: Twin[] = Array.from({ length: 4 }, () => twin(itsCache))
    const { queryHeads, layers } = own.config
    for (let round = 0; round < 6; round++) {
      // The longest: more than one chunk of rows.
      const longest = round === 5 && name === 'llama' ? 530 : 9
      const workers = random
        .shuffle(twins)
        .slice(0, random.int(1, 3))
        .map((writeTo, i) => {
          const isBiased = random.chance(0.6)
          return {
            view: random
              .shuffle([...twins, random.pick(twins)])
              .map((each) =>
                isBiased ? { twin: each, bias: random.pick([0, -1, 0.5]) } : { twin: each },
              ),
            writeTo,
            tokens: random.tokens(i === 0 ? longest : random.int(1, 9), own.config.vocabSize),
          }
        })
      if (round % 2 === 1) {
        const { view, writeTo } = workers[0]!
        const hidden = view.findIndex((each) => each.twin !== writeTo)
        view[hidden] = { twin: view[hidden]!.twin, bias: -Infinity }
      }
      const asked = workers.map(() => random.chance(0.8))
      const outputs = await own.step(
        workers.map((worker, i) => ({
          view: viewOfTwins(worker),
          tokens: worker.tokens,
          attentionMass: asked[i]!,
          sampler: null,
        })),
      )
      const expected = workers.map(({ view }) => new Float64Array(view.length))
      reference.listen = (worker, query, place, weight) => {
        const { view, tokens } = workers[worker]!
        if (query !== tokens.length - 1) return
        let end = 0
        const entry = view.findIndex(({ twin: each }) => {
          end += each.expected.length
          return place < end
        })
        expected[worker]![entry]! += weight / (queryHeads * layers.length)
      }
      reference.step(
        workers.map(({ view, writeTo, tokens }) => ({
          view: view.map(({ twin: { expected: block }, ...fields }) => ({ block, ...fields })),
          target: writeTo.expected,
          tokens,
        })),
      )
      outputs.forEach(({ attentionMass }, i) => {
        expect(attentionMass !== undefined).toBe(asked[i])
        if (attentionMass === undefined) return
        expectClose(attentionMass, expected[i]!, 5e-4, `${name}, round ${round}, worker ${i}`)
        if (total !== undefined) expect(Math.abs(sum(attentionMass) - total)).toBeLessThan(1e-3)
        else expect(sum(attentionMass)).toBeLessThan(1)
      })
    }
    await own.close()
  })

  it('changes no bit of anything else', async () => {
    const random = new Random(80)
    const [prompt, a, b] = [0, 1, 2].map(() => cache.createBlock())
    await model.prefill(prompt!, random.tokens(200, vocab))
    const step = async (attentionMass: boolean) => {
      const [c, d] = [a!.fork(), b!.fork()]
      const outputs = await model.step([
        { view: { blocks: [prompt!, d, c] }, tokens: [3, 4], logits: 'all', attentionMass },
        { view: { blocks: [prompt!, c, d] }, tokens: [5], logits: 'all' },
      ])
      return { outputs, kept: c.read(1) }
    }
    const [plain, listened] = [await step(false), await step(true)]
    plain.outputs.forEach(({ logits, token }, i) => {
      expectSameBits(listened.outputs[i]!.logits!, logits!, `worker ${i}`)
      expect(listened.outputs[i]!.token).toBe(token)
    })
    expect(listened.kept).toEqual(plain.kept)
  })
})

// ---- samplers -------------------------------------------------------------------------------------

describe('the state of a sampler', () => {
  const options: SamplerOptions = {
    temperature: 1.3,
    topK: 30,
    topP: 0.95,
    minP: 0.01,
    repetitionPenalty: 1.1,
    presencePenalty: 0.2,
    frequencyPenalty: -0.1,
    scope: 'own',
    lastN: 9,
    forbidden: [4, 5],
    seed: 2n ** 64n - 1n,
  }

  it.each([options, {}, { temperature: 0 }, { seed: 7 }])(
    'is JSON, and goes on with the same tokens: %#',
    async (given) => {
      const sampler = new Sampler(given)
      const write = async (by: Sampler, block: Block, count: number, last: number) => {
        const tokens = [last]
        for (let i = 0; i < count; i++) {
          const [output] = await model.step([
            { view: { blocks: [block] }, tokens: tokens.slice(-1), sampler: by },
          ])
          tokens.push(output!.token!)
        }
        return tokens
      }
      const block = cache.createBlock()
      const begun = await write(sampler, block, 7, 1)
      const saved = JSON.stringify(sampler.state)
      const fork = block.fork()
      const rest = await write(sampler, block, 12, begun.at(-1)!)
      const restored = Sampler.restore(JSON.parse(saved) as SamplerState)
      expect(restored.seed).toBe(sampler.seed)
      expect(restored.draws).toBe(7n)
      expect(JSON.stringify(restored.state)).toBe(saved)
      expect(await write(restored, fork, 12, begun.at(-1)!)).toEqual(rest)
      expect(restored.state).toEqual(sampler.state)
    },
  )

  const state = (): Record<string, unknown> & { options: Record<string, unknown> } =>
    JSON.parse(JSON.stringify(new Sampler(options).state))

  it('of another version is refused by it', async () => {
    const later = { version: 2, whatever: true } as unknown as SamplerState
    expect(await codeOf(() => Sampler.restore(later))).toBe('HOGWILD_UNSUPPORTED')
    expect(() => Sampler.restore(later)).toThrow(/version 2.*reads version 1/)
  })

  it('that is damaged is refused, part by part', async () => {
    const damaged: unknown[] = [null, undefined, 5, 'x', [], {}, { version: '1' }, { version: 0 }]
    for (const key of Object.keys(state())) {
      const { [key]: _, ...without } = state()
      damaged.push(without, { ...state(), [key]: {} }, { ...state(), [key]: null })
    }
    for (const key of Object.keys(state().options)) {
      const { [key]: _, ...without } = state().options
      damaged.push({ ...state(), options: without })
      for (const value of ['x', {}, -1000, Number.NaN, null]) {
        damaged.push({ ...state(), options: { ...state().options, [key]: value } })
      }
    }
    damaged.push({ ...state(), more: 1 })
    damaged.push({ ...state(), options: { ...state().options, seed: 4 } })
    for (const count of [
      5,
      '-1',
      '1.5',
      '',
      ' 1',
      '01',
      '18446744073709551616',
      '1e3',
      '9'.repeat(99),
    ]) {
      damaged.push({ ...state(), seed: count }, { ...state(), draws: count })
    }
    for (const each of damaged) {
      const code = await codeOf(() => Sampler.restore(each as SamplerState))
      expect([each, code]).toEqual([each, 'HOGWILD_INVALID_ARGUMENT'])
    }
    expect(Sampler.restore(state() as unknown as SamplerState).state).toEqual(state())
  })
})

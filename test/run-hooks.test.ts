// The hooks of a step in a run: each worker's own, and nobody else's business.

import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import {
  createGrammar,
  generate,
  loadModel,
  loadTokenizer,
  type Model,
  type ProcessLogits,
  type RunOptions,
  runWorkers,
  type TokenEvent,
  type Tokenizer,
  type TokenOptions,
  type WorkerEvent,
  type WorkerSpec,
} from '../lib'
import { native } from '../lib/native'
import type { StepMessage } from '../lib/workers/channels'
import { codeOf, Random, temporaryFolder, writeModel } from './fixtures'

let tokenizer: Tokenizer
let model: Model
let end: number

beforeAll(async () => {
  const folder = temporaryFolder()
  const fixture = require('./fixtures/tokenizers/qwen2.json')
  writeFileSync(join(folder, 'tokenizer.json'), JSON.stringify(fixture.tokenizer))
  tokenizer = await loadTokenizer(folder)
  end = tokenizer.tokenId('<|end|>')!
  const options = { vocabSize: tokenizer.size, seed: 300 }
  model = await loadModel(writeModel(options), { device: 'cpu', threads: 2 })
})
afterAll(async () => {
  await model.close()
  await tokenizer.close()
})
afterEach(() => jest.restoreAllMocks())

async function collect(run: AsyncIterable<WorkerEvent>): Promise<WorkerEvent[]> {
  const events: WorkerEvent[] = []
  for await (const event of run) events.push(event)
  return events
}

const isToken = (event: WorkerEvent): event is TokenEvent => event.type === 'token'
const tokenEvents = (events: readonly WorkerEvent[], worker = 'a') =>
  events.filter(isToken).filter((event) => event.worker === worker)
const sampledBy = (events: readonly WorkerEvent[], worker = 'a') =>
  tokenEvents(events, worker).filter(({ forced }) => !forced)
const reasonOf = (events: readonly WorkerEvent[], worker = 'a') =>
  events.flatMap((event) =>
    event.type === 'stop' && event.worker === worker ? [event.reason] : [],
  )[0]
/** Events without times, which nobody can foresee. */
const timeless = (events: readonly WorkerEvent[]) =>
  events.map((event) => ('milliseconds' in event ? { ...event, milliseconds: 0 } : event))

const run = (workers: readonly WorkerSpec[], options: Partial<RunOptions> = {}) =>
  runWorkers({
    model,
    prompt: [],
    stopTokens: [],
    maxTokens: 12,
    capacity: 4096,
    workers,
    ...options,
  })

/** A processor that adds the same noise to the logits of each token. */
function noise(seed: number, calls: number[] = []): ProcessLogits {
  const values = new Random(seed).floats(tokenizer.size, 2)
  return (logits, { worker }) => {
    calls.push(worker)
    for (let id = 0; id < logits.length; id++) logits[id]! += values[id]!
  }
}

// ---- what they do -----------------------------------------------------------------------------------

test.each(Array.from({ length: 12 }, (_, i) => 310 + i))(
  'one worker alone gets the tokens and log-probabilities of generate: seed %i',
  async (seed) => {
    const random = new Random(seed)
    const prompt = random.tokens(4, tokenizer.size)
    const bias = random.tokens(6, tokenizer.size).map((id) => [id, 4 * random.normal()] as const)
    const options: TokenOptions = {
      sampler: { temperature: random.pick([0, 1.2]), seed },
      ...(random.chance(0.6) && { logitBias: new Map([...bias, [bias[0]![0], -Infinity]]) }),
      ...(random.chance(0.6) && { processLogits: noise(seed) }),
      ...(random.chance(0.5) && {
        grammar: await createGrammar({
          tokenizer,
          stopTokens: [end],
          ebnf: 'root ::= [a-z ]{1,6}',
        }),
      }),
      logprobs: random.chance(0.7),
      topLogprobs: random.pick([0, 3]),
    }
    const written = []
    const generation = generate({ model, prompt, stopTokens: [], maxTokens: 12, ...options })
    for await (const { token, logprob, topLogprobs } of generation) {
      written.push({ token, logprob, topLogprobs })
    }
    const events = await collect(run([{ name: 'a', prompt, ...options }]))
    const sampled = sampledBy(events).map(({ token, logprob, topLogprobs }) => {
      return { token, logprob, topLogprobs }
    })
    expect(sampled).toEqual(written)
    expect(reasonOf(events)).toBe((await generation.result).reason)
    expect(sampled.every(({ logprob }) => (logprob !== undefined) === options.logprobs)).toBe(true)
    const top = options.topLogprobs === 0 ? undefined : 3
    expect(sampled.every(({ topLogprobs }) => topLogprobs?.length === top)).toBe(true)
    const given = tokenEvents(events).filter(({ forced }) => forced)
    expect(given).toHaveLength(4)
    for (const event of given) expect(event).not.toHaveProperty('logprob')
  },
)

test('a processor is called once for each sampled token, with the worker’s place in the run', async () => {
  const calls: [number, number[]][] = []
  const processLogits: ProcessLogits = (_, { worker, tokens }) => {
    calls.push([worker, [...tokens]])
  }
  const workers = [
    { name: 'a', prompt: [1], maxTokens: 2 },
    { name: 'b', prompt: [2, 3], maxTokens: 5, processLogits },
  ]
  const running = run(workers)
  const events: WorkerEvent[] = []
  for await (const event of running) {
    events.push(event)
    if (event.type === 'step' && event.step === 2) running.inject('b', [7, 8])
  }
  const [t1, t2, t3, t4] = sampledBy(events, 'b').map(({ token }) => token)
  // Its last token enters its block without another one.
  expect(calls).toEqual([
    [1, [2, 3]],
    [1, [t1]],
    [1, [t2]],
    [1, [7, 8, t3]],
    [1, [t4]],
  ])
})

test('a run without hooks is computed as before, and beside hooks that change nothing to the bit', async () => {
  const plain = [
    { name: 'a', prompt: [1, 2], sampler: { temperature: 1.3, seed: 5 } },
    { name: 'b', prompt: [3], sampler: { temperature: 1.3, seed: 6 } },
  ]
  const hold = jest.spyOn(native, 'holdStep')
  const without = await collect(run(plain))
  expect(hold).not.toHaveBeenCalled()
  const idle: TokenOptions = { logitBias: { 4: 0 }, processLogits: () => {} }
  const beside = await collect(run([plain[0]!, { ...plain[1]!, ...idle }]))
  expect(hold).toHaveBeenCalled()
  expect(timeless(beside)).toEqual(timeless(without))
  expect(sampledBy(without)).toHaveLength(12)
})

// ---- grammars ---------------------------------------------------------------------------------------

const SCHEMAS = [
  {
    type: 'object',
    properties: { name: { type: 'string', maxLength: 8 }, done: { type: 'boolean' } },
    required: ['name', 'done'],
  },
  { type: 'array', items: { type: 'integer', minimum: 0, maximum: 99 }, minItems: 1, maxItems: 3 },
  { type: 'object', properties: { kind: { enum: ['plan', 'call'] } }, required: ['kind'] },
]

test.each([320, 321, 322])(
  'three workers of one run write JSON of a schema each, whatever is given in between: seed %i',
  async (seed) => {
    const workers = await Promise.all(
      SCHEMAS.map(async (jsonSchema, i) => ({
        name: 'abc'[i]!,
        prompt: new Random(seed + i).tokens(3, 200),
        sampler: { temperature: 1.5, seed: 10 * seed + i },
        grammar: await createGrammar({ tokenizer, stopTokens: [end], jsonSchema }),
      })),
    )
    const [first, ...others] = workers
    const running = run([first!], {
      tokenizer,
      maxTokens: 400,
      turnEnds: (ids) => ids.length === 5,
      turnHeader: () => tokenizer.encodeSync('{ "x'),
    })
    const events: WorkerEvent[] = []
    for await (const event of running) {
      events.push(event)
      if (event.type !== 'step') continue
      if (event.step === 0) for (const worker of others) running.join(worker)
      if (event.step === 3) running.inject('a', tokenizer.encodeSync('no JSON ]'))
    }
    expect(events.some(({ type }) => type === 'turn')).toBe(true)
    const texts = workers.map(({ name }) => {
      expect(reasonOf(events, name)).toBe('stop-token')
      const ids = sampledBy(events, name).map(({ token }) => token)
      expect(ids.pop()).toBe(end)
      return tokenizer.decode(ids)
    })
    const [object, list, choice] = texts.map((text) => JSON.parse(text))
    expect(Object.keys(object)).toEqual(['name', 'done'])
    expect([...object.name].length).toBeLessThanOrEqual(8)
    expect(typeof object.done).toBe('boolean')
    expect(list.length).toBeGreaterThan(0)
    expect(list.every((item: unknown) => Number.isInteger(item))).toBe(true)
    expect(['plan', 'call']).toContain(choice.kind)
  },
)

test('one grammar serves several workers, and a text that maxTokens ends is incomplete', async () => {
  const grammar = await createGrammar({ tokenizer, stopTokens: [end], ebnf: 'root ::= "a"{20}' })
  const worker = (name: string) => ({ name, prompt: [1], grammar, maxTokens: 3 })
  const events = await collect(run([worker('a'), worker('b')], { tokenizer }))
  for (const name of ['a', 'b']) {
    expect(reasonOf(events, name)).toBe('max-tokens')
    const ids = sampledBy(events, name).map(({ token }) => token)
    expect(tokenizer.decode(ids)).toMatch(/^a{3,}$/)
  }
})

test('a grammar’s stop token ends a text of generate that has no stop tokens', async () => {
  const grammar = await createGrammar({ tokenizer, stopTokens: [end], ebnf: 'root ::= "yes"' })
  const { text, reason } = await generate({
    model,
    tokenizer,
    prompt: [1],
    stopTokens: [],
    grammar,
  }).result
  expect([text, reason]).toEqual(['yes', 'stop-token'])
})

// ---- what fails -------------------------------------------------------------------------------------

/** What is thrown, and the events before it. */
async function failing(running: AsyncIterable<WorkerEvent>) {
  const events: WorkerEvent[] = []
  try {
    for await (const event of running) events.push(event)
  } catch (error) {
    return { error, events }
  }
  throw new Error('nothing was thrown')
}

const own = new TypeError('a fault of the user’s')
const FAULTS: [string, ProcessLogits, unknown][] = [
  [
    'throws',
    () => {
      throw own
    },
    own,
  ],
  [
    'throws nothing at all',
    () => {
      throw undefined
    },
    undefined,
  ],
  ['leaves NaN', (logits) => void logits.fill(NaN), /processLogits/],
  ['leaves no token', (logits) => void logits.fill(-Infinity), /processLogits/],
  ['returns a promise', () => Promise.resolve(), /processLogits of 'bad'/],
  [
    'gives the memory away',
    (logits) => void structuredClone(0, { transfer: [logits.buffer as ArrayBuffer] }),
    /processLogits of 'bad' gave the memory/,
  ],
]

test.each(FAULTS)(
  'a processor that %s ends its run, and no other one on the model',
  async (_, fault, thrown) => {
    await using cache = model.createCache({ capacity: 8192 })
    const grammar = await createGrammar({
      tokenizer,
      stopTokens: [end],
      ebnf: 'root ::= [a-z]{30}',
    })
    const calls: number[] = []
    const good = (): RunOptions => ({
      model,
      prompt: [9],
      stopTokens: [],
      maxTokens: 8,
      workers: [
        { name: 'a', prompt: [1], sampler: { temperature: 1, seed: 1 } },
        { name: 'b', prompt: [2], processLogits: noise(7, calls), logprobs: true },
        { name: 'c', prompt: [3], sampler: { temperature: 1, seed: 3 }, grammar, topLogprobs: 2 },
      ],
    })
    const alone = await collect(runWorkers({ ...good(), cache }))
    const callsAlone = calls.splice(0)

    let token = 0
    let faults = 0
    const processLogits: ProcessLogits = (logits, info) => {
      if (++token < 4) return
      faults++
      return fault(logits, info)
    }
    const bad = runWorkers({
      ...{ model, cache, keepBlocks: true, prompt: [9], stopTokens: [], maxTokens: 8 },
      workers: [
        { name: 'other', prompt: [5, 6] },
        { name: 'bad', prompt: [4], processLogits },
      ],
    })
    const steps: StepMessage[] = []
    const listener = (message: unknown) => void steps.push(message as StepMessage)
    subscribe('hogwild:step', listener)
    const [before, { error, events }, after] = await Promise.all([
      collect(runWorkers({ ...good(), cache, priority: 1 })),
      failing(bad),
      collect(runWorkers({ ...good(), cache, priority: -1 })),
    ])
    unsubscribe('hogwild:step', listener)

    if (thrown instanceof RegExp) {
      expect(error).toMatchObject({ code: 'HOGWILD_INVALID_ARGUMENT' })
      expect((error as Error).message).toMatch(thrown)
    } else expect(error).toBe(thrown)
    expect([token, faults]).toEqual([4, 1])
    // They were in one step with it, and write what they write alone; their processors saw each token once.
    expect(Math.max(...steps.map(({ groups }) => groups))).toBe(3)
    expect(timeless(before)).toEqual(timeless(alone))
    expect(timeless(after)).toEqual(timeless(alone))
    expect(calls).toHaveLength(2 * callsAlone.length)
    // Its blocks are as they were before the step that failed.
    const { workers } = bad.blocks
    for (const name of ['other', 'bad']) {
      const written = tokenEvents(events, name).map((event) => event.token)
      expect(written.length).toBeGreaterThan(2)
      expect([...workers[name]!.own.tokens()]).toEqual(written)
    }
  },
)

test.each<[string, object, RegExp]>([
  ['logitBias', { logitBias: { 5: NaN } }, /options\.workers\[0\]\.logitBias/],
  ['logitBias of an unknown id', { logitBias: { 99999: 1 } }, /options\.workers\[0\]\.logitBias/],
  ['processLogits', { processLogits: 1 }, /options\.workers\[0\]\.processLogits/],
  ['grammar', { grammar: {} }, /options\.workers\[0\]\.grammar to be a Grammar/],
  ['logprobs', { logprobs: 1 }, /options\.workers\[0\]\.logprobs/],
  ['topLogprobs', { topLogprobs: 1025 }, /options\.workers\[0\]\.topLogprobs/],
])('refuses a bad %s', async (_, options, message) => {
  const start = () => run([{ name: 'a', prompt: [1], ...options }])
  expect(start).toThrow(message)
  expect(await codeOf(start)).toBe('HOGWILD_INVALID_ARGUMENT')
})

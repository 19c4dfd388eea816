// generate(): one worker alone, as text and tokens, to each of its ends.

import {
  demoModelPath,
  type GenerateOptions,
  generate,
  loadModel,
  loadTokenizer,
  type Model,
  type Tokenizer,
} from '../lib'
import { findToolCalls } from '../lib/chat/tool-calls'
import { codeOf, writeModel } from './fixtures'
import { byteLevelFolder } from './tokenizer-fixtures'

let model: Model
let tokenizer: Tokenizer
const prompt = '<s>A:ynam\nB:sdnah\nC:ekam\n'

beforeAll(async () => {
  model = await loadModel(demoModelPath, { device: 'cpu', threads: 1 })
  tokenizer = await loadTokenizer(demoModelPath)
})

afterAll(async () => {
  await model.close()
  await tokenizer.close()
})

const start = (options: Partial<GenerateOptions> = {}) =>
  generate({ model, tokenizer, prompt, maxTokens: 20, stopTokens: [], ...options })

async function read(options: Partial<GenerateOptions> = {}) {
  const answer = start(options)
  const tokens = []
  for await (const token of answer) tokens.push(token)
  return { tokens, result: await answer.result }
}

/** What the loop of model.step gives. */
async function byHand(count: number) {
  await using cache = model.createCache({ capacity: 256 })
  const view = { blocks: [cache.createBlock()] }
  let tokens = await tokenizer.encode(prompt)
  const chosen = []
  for (let i = 0; i < count; i++) {
    const [output] = await model.step([{ view, tokens, logprob: true, topLogprobs: 3 }])
    chosen.push(output!)
    tokens = [output!.token!]
  }
  return chosen
}

test('tokens, log-probabilities and text are those of a loop of steps', async () => {
  const expected = await byHand(20)
  const { tokens, result } = await read({ logprobs: true, topLogprobs: 3 })
  expect(tokens.map(({ token }) => token)).toEqual(expected.map(({ token }) => token))
  expect(tokens.map(({ logprob }) => logprob)).toEqual(expected.map(({ logprob }) => logprob))
  expect(tokens.map(({ topLogprobs }) => topLogprobs)).toEqual(
    expected.map(({ topLogprobs }) => topLogprobs),
  )
  const ids = expected.map(({ token }) => token!)
  expect(result).toEqual({
    text: tokenizer.decode(ids, { skipSpecialTokens: true }),
    tokens: ids,
    reason: 'max-tokens',
    usage: {
      promptTokens: (await tokenizer.encode(prompt)).length,
      reusedTokens: 0,
      completionTokens: 20,
    },
    toolCalls: [],
  })
  expect(tokens.map(({ text }) => text).join('')).toBe(result.text)
})

test('the result comes without a consumer of the tokens, and token ids need no tokenizer', async () => {
  const { tokens } = (await read()).result
  const ids = await tokenizer.encode(prompt)
  const answer = generate({ model, prompt: ids, maxTokens: 20, stopTokens: [] })
  expect(await answer.result).toMatchObject({ text: '', tokens, reason: 'max-tokens' })
})

test('stop tokens and stop strings end the text', async () => {
  const { tokens, text } = (await read()).result
  const at = tokens.findIndex((token, i) => i > 2 && !tokens.slice(0, i).includes(token))
  const stopped = await read({ stopTokens: [tokens[at]!] })
  expect(stopped.result).toMatchObject({ reason: 'stop-token', tokens: tokens.slice(0, at) })
  expect(stopped.tokens.at(-1)?.token).toBe(tokens[at])
  const stop = text.slice(4, 7)
  const byString = await read({ stop: [stop] })
  expect(byString.result.reason).toBe('stop-string')
  expect(byString.result.text).toBe(text.slice(0, text.indexOf(stop)))
  for (const { tokens, result } of [stopped, byString]) {
    expect(tokens.map(({ text }) => text).join('')).toBe(result.text)
  }
})

test('a seed gives the same text again', async () => {
  const sampler = { temperature: 2, seed: 5 }
  const one = (await read({ sampler })).result.tokens
  expect((await read({ sampler })).result.tokens).toEqual(one)
  expect((await read({ sampler: { temperature: 2, seed: 6 } })).result.tokens).not.toEqual(one)
})

test('whoever leaves the loop stops it', async () => {
  const answer = start({ maxTokens: 4000 })
  for await (const _ of answer) break
  const { reason, tokens } = await answer.result
  expect(reason).toBe('stopped')
  expect(tokens.length).toBeGreaterThan(0)
  expect(tokens.length).toBeLessThan(4000)
  const closed = start({ maxTokens: 4000 })
  await closed.close()
  expect((await closed.result).reason).toBe('stopped')
})

test('a signal aborts with its reason; what onPrefill throws ends it', async () => {
  const controller = new AbortController()
  const reason = new Error('enough')
  const answer = start({ signal: controller.signal, maxTokens: 4000 })
  controller.abort(reason)
  await expect(answer.result).rejects.toMatchObject({ code: 'HOGWILD_ABORTED', cause: reason })
  await expect(answer[Symbol.asyncIterator]().next()).rejects.toMatchObject({ cause: reason })
  const failing = start({
    onPrefill() {
      throw reason
    },
  })
  await expect(failing.result).rejects.toBe(reason)
})

test('a long prompt is told piece by piece, and computed as at once', async () => {
  const folder = writeModel({ vocabSize: 53 })
  await using other = await loadModel(folder, { device: 'cpu', threads: 1, onWarning: () => {} })
  const long = Array.from({ length: 1100 }, (_, i) => i % 53)
  const seen: number[] = []
  const onPrefill = ({ tokens }: { tokens: number }) => seen.push(tokens)
  const { tokens } = await generate({
    ...{ model: other, prompt: long, maxTokens: 3, stopTokens: [], onPrefill },
  }).result
  expect(seen).toEqual([512, 1024, 1100])
  await using cache = other.createCache({ capacity: 2048 })
  expect((await other.prefill(cache.createBlock(), long)).token).toBe(tokens[0])
})

test('arguments that make no sense are refused by name', async () => {
  const bad: [Record<string, unknown>, RegExp][] = [
    [{ prompt: undefined }, /either a prompt or messages/],
    [{ messages: [] }, /either a prompt or messages/],
    [{ tokenizer: undefined }, /options.tokenizer/],
    [{ prompt: [] }, /options.prompt/],
    [{ prompt: [1e6] }, /options.prompt/],
    [{ maxTokens: 0 }, /options.maxTokens/],
    [{ topLogprobs: 1025 }, /options.topLogprobs/],
    [{ stop: [''] }, /options.stop/],
    [{ temperature: 1 }, /temperature/],
  ]
  for (const [change, message] of bad) {
    expect(() => start(change)).toThrow(message)
    expect(await codeOf(() => start(change))).toBe('HOGWILD_INVALID_ARGUMENT')
  }
  await expect(start({ prompt: '' }).result).rejects.toThrow(/at least one token|options.prompt/)
})

test('tool calls of the published forms', () => {
  const call = { name: 'weather', arguments: { city: 'Oslo' } }
  const json = JSON.stringify(call)
  expect(findToolCalls(`Let me see.\n<tool_call>\n${json}\n</tool_call>`)).toEqual([call])
  const two = `<tool_call>${json}</tool_call><tool_call>{"name":"time"}</tool_call>`
  expect(findToolCalls(two)).toEqual([call, { name: 'time', arguments: {} }])
  expect(findToolCalls(`[TOOL_CALLS] [${json}]`)).toEqual([call])
  expect(findToolCalls(` [${json}, ${json}]`)).toEqual([call, call])
  expect(findToolCalls('{"name": "weather", "parameters": {"city": "Oslo"}}')).toEqual([call])
  expect(findToolCalls('{"name": "weather", "arguments": "{\\"city\\": \\"Oslo\\"}"}')).toEqual([
    call,
  ])
  for (const text of [
    '',
    'Oslo',
    '<tool_call>{</tool_call>',
    '{"name": 5}',
    '[1, null]',
    '"x"',
    `{"name":"a","arguments":[1]}`,
  ]) {
    expect(findToolCalls(text)).toEqual([])
  }
})

test('ids without a token are chosen only where they end the text', async () => {
  // A head of 300 rows over 258 tokens.
  await using padded = await loadModel(writeModel({ vocabSize: 300, seed: 3 }), { device: 'cpu' })
  await using bytes = await loadTokenizer(byteLevelFolder())
  const missing = Array.from({ length: 42 }, (_, i) => 258 + i)
  expect(bytes.missingIds(300)).toEqual(missing)
  expect(bytes.missingIds(258)).toEqual([])
  const write = async (options: Partial<GenerateOptions>) =>
    (await generate({ model: padded, prompt: [1, 2, 3], maxTokens: 60, ...options }).result).tokens
  const isMissing = (id: number) => id >= 258
  for (const sampler of [undefined, { temperature: 1, seed: 1, forbidden: [5] }]) {
    const free = await write({ sampler, stopTokens: [] })
    expect(free.some(isMissing)).toBe(true)
    const forbidden = [...(sampler?.forbidden ?? []), ...missing]
    const expected = await write({
      sampler: { temperature: 0, ...sampler, forbidden },
      stopTokens: [],
    })
    expect(await write({ sampler, tokenizer: bytes, stopTokens: [] })).toEqual(expected)
  }
  const free = await write({ stopTokens: [] })
  const at = free.findIndex(isMissing)
  const ended = await write({ tokenizer: bytes, stopTokens: [free[at] as number] })
  expect(ended).toEqual(free.slice(0, at))
})

// examples/server: many clients on one model, each answered as if it were alone, in the form of OpenAI's API.

import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import { once } from 'node:events'
import { writeFileSync } from 'node:fs'
import type { Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import {
  collaborate,
  loadModel,
  loadTokenizer,
  type Model,
  runWorkers,
  type Scheduler,
  type Tokenizer,
} from '../lib'
import type { StepMessage } from '../lib/workers/channels'
import { loadExample } from './examples'
import { writeModel } from './fixtures'
import { CHAT_TEMPLATE, type Script, writeScriptedModel } from './scripted-model'
import { byteLevelTokenizer } from './tokenizer-fixtures'

interface ServerOptions {
  model: Model
  tokenizer: Tokenizer
  name: string
  capacity?: number
  maxTokens?: number
}
const { createChatServer } = loadExample<{
  createChatServer: (options: ServerOptions) => { server: Server; scheduler: Scheduler }
}>('server/server.mjs')

interface Choice {
  index: number
  worker?: string
  message: { role: string; content: string }
  delta: { role?: string; content?: string }
  logprobs: { content: { token: string; logprob: number }[] } | null
  finish_reason: string | null
}
interface Answer {
  choices: Choice[]
  usage: { prompt_tokens: number; completion_tokens: number; total_tokens: number }
}

const closing: (() => unknown)[] = []
afterAll(async () => {
  for (const close of closing.splice(0).reverse()) await close()
})

interface Client {
  url: string
  model: Model
  tokenizer: Tokenizer
  scheduler: Scheduler
  post: (body: object, signal?: AbortSignal) => Promise<Response>
  ask: (body: object) => Promise<Answer>
}

/** A server on a model's folder, and what asks it. */
async function serve(path: string, options: Partial<ServerOptions> = {}): Promise<Client> {
  const model = await loadModel(path, { threads: 1, onWarning: () => {} })
  const tokenizer = await loadTokenizer(path)
  const { server, scheduler } = createChatServer({ model, tokenizer, name: 'tiny', ...options })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  closing.push(
    () => tokenizer.close(),
    () => model.close(),
    () => server.closeAllConnections(),
    () => server.close(),
  )
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  const post = (body: object, signal?: AbortSignal) => {
    const whole = { model: 'tiny', ...body }
    const request = { method: 'POST', body: JSON.stringify(whole), signal: signal ?? null }
    return fetch(`${url}/v1/chat/completions`, request)
  }
  const ask = async (body: object) => {
    const response = await post(body)
    expect([response.status, response.headers.get('content-type')]).toEqual([
      200,
      'application/json; charset=utf-8',
    ])
    return (await response.json()) as Answer
  }
  return { url, model, tokenizer, scheduler, post, ask }
}

/** Of server-sent events: what each one brings. */
async function eventsOf(response: Response): Promise<string[]> {
  expect([response.status, response.headers.get('content-type')]).toEqual([
    200,
    'text/event-stream',
  ])
  const events = (await response.text()).split('\n\n')
  expect(events.pop()).toBe('')
  return events.map((event) => /^data: (.*)$/.exec(event)?.[1] as string)
}

/** The chunks of a stream put together. */
async function assembled(response: Response): Promise<Answer> {
  const events = await eventsOf(response)
  expect(events.pop()).toBe('[DONE]')
  const answer = { choices: [] as Choice[], usage: undefined as unknown }
  for (const { choices, usage } of events.map((event) => JSON.parse(event) as Answer)) {
    answer.usage = usage ?? answer.usage
    for (const { index, worker, delta, logprobs, finish_reason } of choices) {
      answer.choices[index] ??= {
        index,
        worker,
        message: { role: delta.role, content: '' },
        logprobs: { content: [] },
      } as unknown as Choice
      const choice = answer.choices[index]
      expect(choice.finish_reason ?? null).toBe(null)
      choice.message.content += delta.content ?? ''
      choice.logprobs!.content.push(...(logprobs?.content ?? []))
      choice.finish_reason = finish_reason
    }
  }
  return answer as Answer
}

/** With one token for each byte: prompts are long, so the model is small. */
function randomModel(seed: number): string {
  const path = writeModel({
    ...{ seed, family: 'qwen3', vocabSize: 258, maxPositions: 8192 },
    ...{ layers: 1, hiddenSize: 16, intermediateSize: 16, queryHeads: 2, kvHeads: 1 },
  })
  writeFileSync(join(path, 'tokenizer.json'), JSON.stringify(byteLevelTokenizer()))
  const settings = { eos_token: '<|end|>', chat_template: CHAT_TEMPLATE }
  writeFileSync(join(path, 'tokenizer_config.json'), JSON.stringify(settings))
  return path
}

const user = (content: unknown) => [{ role: 'user', content }]

describe('64 clients with 4 workers each', () => {
  interface Expected {
    choices: { worker: string; content: string; logprobs: number[]; reason: string }[]
    usage: { promptTokens: number; completionTokens: number }
  }

  const lengthOf = (seed: number) => 20 + (seed % 20)

  /** What the workers of one request write where nobody else is there. */
  async function alone({ model, tokenizer }: Client, seed: number): Promise<Expected> {
    const problem = `What is ${seed}?`
    const team = await collaborate({ tokenizer, problem, workers: 4, layout: 'contiguous' })
    const workers = team.run.workers.map((worker, i) => ({
      ...worker,
      sampler: { temperature: 0.9, topP: 0.95, seed: seed + i },
      logprobs: true,
    }))
    const run = runWorkers({ model, ...team.run, workers, maxTokens: lengthOf(seed) })
    const choices = team.names.map((worker) => ({
      worker,
      content: '',
      logprobs: [] as number[],
      reason: '',
    }))
    for await (const event of run) {
      if (event.type === 'end') return { choices, usage: event.usage }
      if (event.type !== 'token' && event.type !== 'stop') continue
      const choice = choices.find(({ worker }) => worker === event.worker)!
      choice.content += event.text ?? ''
      if (event.type === 'stop') choice.reason = event.reason === 'max-tokens' ? 'length' : 'stop'
      else if (!event.forced && event.token !== 257) choice.logprobs.push(event.logprob!)
    }
    throw new Error('the run has no end')
  }

  test('all are answered, each as if it were alone, in steps of many', async () => {
    const client = await serve(randomModel(1), { capacity: 80_000 })
    const { post, scheduler } = client
    let mostGroups = 0
    let mostWaiting = 0
    const listener = (message: unknown) => {
      mostGroups = Math.max(mostGroups, (message as StepMessage).groups)
      mostWaiting = Math.max(mostWaiting, scheduler.metrics.groups.waiting)
    }
    subscribe('hogwild:step', listener)
    const seeds = Array.from({ length: 64 }, (_, i) => i + 1)
    const answers = await Promise.all(
      seeds.map(async (seed) => {
        const stream = seed % 2 === 0
        const response = await post({
          messages: user(`What is ${seed}?`),
          workers: 4,
          max_tokens: lengthOf(seed),
          ...{ temperature: 0.9, top_p: 0.95, seed, logprobs: true, stream },
          ...(stream && { stream_options: { include_usage: true } }),
        })
        return stream ? await assembled(response) : ((await response.json()) as Answer)
      }),
    )
    unsubscribe('hogwild:step', listener)
    for (const [i, { choices, usage }] of answers.entries()) {
      const expected = await alone(client, seeds[i]!)
      expect(
        choices.map(({ worker, message, logprobs, finish_reason }) => ({
          worker,
          content: message.content,
          logprobs: logprobs?.content.map(({ logprob }) => logprob),
          reason: finish_reason,
        })),
      ).toEqual(expected.choices)
      const { promptTokens, completionTokens } = expected.usage
      expect(usage).toEqual({
        prompt_tokens: promptTokens,
        completion_tokens: completionTokens,
        total_tokens: promptTokens + completionTokens,
      })
    }
    expect(mostGroups).toBeGreaterThan(10)
    expect(mostWaiting).toBeGreaterThan(0)
    const { groups, pages } = scheduler.metrics
    expect([groups, pages]).toMatchObject([
      { waiting: 0, running: 0 },
      { used: 0, reserved: 0 },
    ])
  })
})

describe('a client that goes away', () => {
  test.each([true, false])('gives its pages back (streaming: %s)', async (stream) => {
    const { post, ask, scheduler } = await serve(randomModel(2), { capacity: 8192 })
    const abort = new AbortController()
    const messages = user('x'.repeat(300))
    const body = { messages, max_tokens: 7000, stream, seed: 1 }
    const begun = new Promise<void>((resolve) => {
      const listener = () => {
        if (scheduler.metrics.tokens < 20) return
        unsubscribe('hogwild:step', listener)
        resolve()
      }
      subscribe('hogwild:step', listener)
    })
    const gone = post(body, abort.signal).then((response) => response.text())
    const expected = expect(gone).rejects.toThrow(/abort/i)
    await begun
    expect(scheduler.metrics.groups).toEqual({ waiting: 0, running: 1 })
    // Another one waits for its pages; a third one waits and goes away.
    const second = ask({ messages, max_tokens: 2000, temperature: 0 })
    const third = expect(post(body, abort.signal)).rejects.toThrow(/abort/i)
    while (scheduler.metrics.groups.waiting < 2) await new Promise(setImmediate)
    abort.abort()
    await Promise.all([expected, third])
    while (scheduler.metrics.groups.waiting > 0) await new Promise(setImmediate)
    expect(scheduler.metrics.groups.running).toBe(1)
    expect((await second).choices[0]?.finish_reason).toMatch(/stop|length/)
    while (scheduler.metrics.groups.running > 0) await new Promise(setImmediate)
    expect(scheduler.metrics.pages).toMatchObject({ used: 0, reserved: 0 })
  })
})

describe('on a text that is known beforehand', () => {
  const TEXT: Script['follows'] = { '\n': 'a', a: 'b', b: 'c', c: 'd', d: 'é', é: '<|end|>' }
  const scripted = (follows = TEXT) => serve(writeScriptedModel({ follows }))
  const messages = [
    { role: 'developer', content: 'Be short.' },
    {
      role: 'user',
      content: [
        { type: 'text', text: 'a' },
        { type: 'text', text: 'b' },
      ],
    },
  ]

  test('whole', async () => {
    const { ask, tokenizer } = await scripted()
    const answer = await ask({ messages, temperature: 0, logprobs: true, top_logprobs: 1 })
    const token = (text: string) => ({
      token: text,
      logprob: expect.any(Number),
      bytes: [...Buffer.from(text)],
    })
    const prompt = await tokenizer.encodeChat([
      { role: 'system', content: 'Be short.' },
      { role: 'user', content: 'ab' },
    ])
    expect(answer).toEqual({
      id: expect.stringMatching(/^chatcmpl-/),
      object: 'chat.completion',
      created: expect.any(Number),
      model: 'tiny',
      choices: [
        {
          index: 0,
          message: { role: 'assistant', content: 'abcdé', refusal: null },
          logprobs: {
            content: [...'abcdé'].map((text) => ({ ...token(text), top_logprobs: [token(text)] })),
            refusal: null,
          },
          finish_reason: 'stop',
        },
      ],
      usage: {
        prompt_tokens: prompt.length,
        completion_tokens: 6,
        total_tokens: prompt.length + 6,
      },
    })
  })

  test('as it is written', async () => {
    const { post } = await scripted()
    const body = { messages, temperature: 0, stream: true, max_completion_tokens: 3, n: 2 }
    const events = await eventsOf(await post({ ...body, stream_options: { include_usage: true } }))
    expect(events.pop()).toBe('[DONE]')
    const choice = (index: number, delta: object, finish_reason: string | null = null) => [
      { index, delta, logprobs: null, finish_reason },
    ]
    const both = (delta: object) => [choice(0, delta), choice(1, delta)]
    const texts = ['a', 'b', 'c'].flatMap((content) => both({ content }))
    const expected = [
      ...both({ role: 'assistant', content: '' }),
      ...texts.slice(0, -1),
      choice(0, {}, 'length'),
      ...texts.slice(-1),
      choice(1, {}, 'length'),
    ]
    const chunks = events.map((event) => JSON.parse(event))
    const { id, created } = chunks[0]
    const head = { id, created, object: 'chat.completion.chunk', model: 'tiny' }
    const { usage, ...last } = chunks.pop()
    expect(chunks).toEqual(expected.map((choices) => ({ ...head, choices, usage: null })))
    expect(last).toEqual({ ...head, choices: [] })
    expect(usage).toMatchObject({ completion_tokens: 6 })
    const plain = (await eventsOf(await post(body))).slice(0, -1).map((event) => JSON.parse(event))
    expect(plain).toHaveLength(expected.length)
    expect(plain.every((chunk) => !('usage' in chunk))).toBe(true)
  })

  test('stop strings, across tokens; limits; texts apart', async () => {
    const { ask } = await scripted()
    const asked = async (body: object) =>
      (await ask({ messages, temperature: 0, ...body })).choices.map(
        ({ message, finish_reason }) => `${message.content} ${finish_reason}`,
      )
    expect(await asked({ stop: 'cd' })).toEqual(['ab stop'])
    expect(await asked({ stop: ['x', 'b'], n: 3 })).toEqual(['a stop', 'a stop', 'a stop'])
    expect(await asked({ stop: null, max_tokens: 4 })).toEqual(['abcd length'])
    expect(await asked({ max_tokens: 6 })).toEqual(['abcdé stop'])
  })

  test('the first answer of a team ends its work', async () => {
    const { ask } = await scripted({ e: '\\boxed{', l: 'l', '\\boxed{': '4', '4': '}', '}': 'z' })
    const { choices } = await ask({ messages, workers: 2, temperature: 0, max_tokens: 50 })
    expect(choices.map(({ worker, finish_reason }) => [worker, finish_reason])).toEqual([
      ['Alice', 'stop'],
      ['Bob', 'stop'],
    ])
    expect(choices[0]?.message.content).toMatch(/Alice here.*\\boxed\{4\}z?$/)
    expect(choices[1]?.message.content).toMatch(/Bob here\. I will?l{1,5}$/)
  })
})

describe('what cannot be answered', () => {
  const good = { messages: user('a') }
  let client: Client
  beforeAll(async () => {
    client = await serve(writeScriptedModel({ follows: {} }))
  })
  const refused = async (status: number, response: Response) => {
    const { error } = (await response.json()) as { error: Record<string, unknown> }
    expect([response.status, Object.keys(error)]).toEqual([
      status,
      ['message', 'type', 'param', 'code'],
    ])
    expect(error.type).toBe('invalid_request_error')
    return error
  }

  test.each<[object, RegExp, string]>([
    [{ messages: undefined }, /must provide 'messages'/, 'messages'],
    [{ model: null, ...good }, /must provide 'model'/, 'model'],
    [{ messages: [] }, /at least one message/, 'messages'],
    [{ messages: 'a' }, /at least one message/, 'messages'],
    [{ messages: ['a'] }, /role' must be one of system/, 'messages[0].role'],
    [{ messages: [{ role: 'tool', content: '' }] }, /must be one of/, 'messages[0].role'],
    [{ messages: user(5) }, /must be text/, 'messages[0].content'],
    [{ messages: user([{ type: 'image_url' }]) }, /must be text/, 'messages[0].content'],
    [{ messages: [{ ...user('a')[0], name: 'x' }] }, /unknown field/, 'messages[0].name'],
    [{ ...good, tools: [] }, /unknown field 'tools'; there are: model, messages/, 'tools'],
    [{ ...good, temperature: 2.5 }, /number from 0 to 2/, 'temperature'],
    [{ ...good, temperature: '1' }, /number from 0 to 2/, 'temperature'],
    [{ ...good, top_p: 0 }, /above 0, at most 1/, 'top_p'],
    [{ ...good, top_p: '1' }, /above 0, at most 1/, 'top_p'],
    [{ ...good, max_tokens: 0 }, /integer from 1/, 'max_tokens'],
    [{ ...good, max_tokens: 1.5 }, /integer from 1/, 'max_tokens'],
    [{ ...good, n: 17 }, /integer from 1 to 16/, 'n'],
    [{ ...good, workers: 0 }, /integer from 1 to 16/, 'workers'],
    [{ ...good, workers: 2, n: 2 }, /see nothing of each other/, 'n'],
    [{ ...good, seed: 2 ** 60 }, /integer from/, 'seed'],
    [{ ...good, stop: [''] }, /none of them empty/, 'stop'],
    [{ ...good, stop: ['a', 'b', 'c', 'd', 'e'] }, /at most 4/, 'stop'],
    [{ ...good, stream: 'yes' }, /true or false/, 'stream'],
    [{ ...good, stream_options: { x: true } }, /include_usage/, 'stream_options'],
    [{ ...good, logprobs: 1 }, /true or false/, 'logprobs'],
    [{ ...good, top_logprobs: 2 }, /needs 'logprobs'/, 'top_logprobs'],
    [{ ...good, logprobs: true, top_logprobs: 21 }, /from 0 to 20/, 'top_logprobs'],
    [{ ...good, presence_penalty: 3 }, /from -2 to 2/, 'presence_penalty'],
  ])('400: %j', async (body, message, param) => {
    const error = await refused(400, await client.post(body))
    expect(error).toMatchObject({ message: expect.stringMatching(message), param, code: null })
    expect(client.scheduler.metrics).toMatchObject({ steps: 0, groups: { waiting: 0, running: 0 } })
  })

  test('other bodies, paths, methods and models', async () => {
    const send = (path: string, request: RequestInit) => fetch(client.url + path, request)
    const completions = '/v1/chat/completions'
    for (const body of ['', '{', '[]', 'null', '5']) {
      const error = await refused(400, await send(completions, { method: 'POST', body }))
      expect(error.message).toBe('the body is no JSON object')
    }
    const unknown = await refused(404, await client.post({ ...good, model: 'other' }))
    expect(unknown).toMatchObject({
      message: "the model 'other' is not here; 'tiny' is",
      code: 'model_not_found',
    })
    for (const [path, method] of [
      ['/', 'GET'],
      [completions, 'GET'],
      ['/v1/models', 'POST'],
    ] as const) {
      const error = await refused(404, await send(path, { method }))
      expect(error.message).toBe(
        `no ${method} ${path}; there are POST /v1/chat/completions and GET /v1/models`,
      )
    }
    const models = (await (await send('/v1/models?limit=1', {})).json()) as { data: object[] }
    expect(models.data).toMatchObject([{ id: 'tiny', object: 'model' }])
    const large = await send(completions, { method: 'POST', body: 'x'.repeat(2 ** 24 + 1) })
    expect((await refused(413, large)).message).toMatch(/more than 16777216 bytes/)
  })

  test('more than there is room for', async () => {
    const small = await serve(writeScriptedModel({ follows: {} }), { capacity: 640 })
    for (const body of [{ max_tokens: 700 }, { messages: user('x'.repeat(640)) }, { n: 16 }]) {
      const response = await small.post({ ...good, max_tokens: 100, ...body })
      const error = await refused(400, response)
      expect(error).toMatchObject({ code: 'context_length_exceeded', param: 'messages' })
      expect(error.message).toMatch(/room for 640 tokens in pages of 64/)
    }
    const fitting = await small.ask({ ...good, max_tokens: 100, n: 2, stop: '\u0000' })
    expect(fitting.choices).toHaveLength(2)
  })

  test('a model without a chat template', async () => {
    const plain = await serve(writeScriptedModel({ follows: {}, chatTemplate: null }))
    const error = await refused(400, await plain.post(good))
    expect(error.message).toBe('this model has no chat template')
    expect((await plain.ask({ ...good, workers: 2, max_tokens: 2 })).choices).toHaveLength(2)
  })

  test('a failure of the server, told as one', async () => {
    const logged = jest.spyOn(console, 'error').mockImplementation(() => {})
    const failing = await serve(writeScriptedModel({ follows: { a: 'a', '\n': 'a' } }))
    const step = failing.model.timedStep.bind(failing.model)
    let left = 4
    jest.spyOn(failing.model, 'timedStep').mockImplementation(async (...given) => {
      if (left-- === 0) throw new Error('mine')
      return await step(...given)
    })
    const events = await eventsOf(await failing.post({ ...good, stream: true }))
    const failure = { message: 'the server could not answer', type: 'server_error' }
    expect(JSON.parse(events.pop() as string)).toEqual({
      error: { ...failure, param: null, code: null },
    })
    expect(events.length).toBeGreaterThan(2)
    left = 0
    const response = await failing.post(good)
    expect([response.status, await response.json()]).toMatchObject([500, { error: failure }])
    expect(logged).toHaveBeenCalledTimes(2)
    expect(failing.scheduler.metrics.groups).toEqual({ waiting: 0, running: 0 })
    jest.restoreAllMocks()
  })
})

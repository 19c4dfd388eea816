// What a client asks for: the body of a request, checked, and the options of the run that answers it.

import { collaborate } from 'hogwild'

/** What a client is told, in the form of OpenAI's API. */
export class RequestError extends Error {
  constructor(status, message, { type = 'invalid_request_error', param = null, code = null } = {}) {
    super(message)
    this.status = status
    this.details = { message, type, param, code }
  }
}

const integer = (least, most) => ({
  expected: `an integer from ${least} to ${most}`,
  fits: (value) => Number.isSafeInteger(value) && value >= least && value <= most,
})
const number = (least, most) => ({
  expected: `a number from ${least} to ${most}`,
  fits: (value) => typeof value === 'number' && value >= least && value <= most,
})
const boolean = { expected: 'true or false', fits: (value) => typeof value === 'boolean' }
const string = { expected: 'a string', fits: (value) => typeof value === 'string' }
const isObject = (value) => typeof value === 'object' && value !== null && !Array.isArray(value)
const isStop = (value) => typeof value === 'string' && value !== ''

/** The fields of a request; all others are refused, since a client would rely on what nobody does. */
const FIELDS = {
  model: string,
  messages: {
    expected: 'an array of at least one message',
    fits: (value) => Array.isArray(value) && value.length > 0,
  },
  max_tokens: integer(1, 2 ** 24),
  max_completion_tokens: integer(1, 2 ** 24),
  n: integer(1, 16),
  workers: integer(1, 16),
  temperature: number(0, 2),
  top_p: {
    expected: 'a number above 0, at most 1',
    fits: (value) => number(0, 1).fits(value) && value > 0,
  },
  presence_penalty: number(-2, 2),
  frequency_penalty: number(-2, 2),
  seed: integer(Number.MIN_SAFE_INTEGER, Number.MAX_SAFE_INTEGER),
  stop: {
    expected: 'a string or an array of at most 4 strings, none of them empty',
    fits: (value) => [value].flat().length <= 4 && [value].flat().every(isStop),
  },
  logprobs: boolean,
  top_logprobs: integer(0, 20),
  stream: boolean,
  stream_options: {
    expected: '{ "include_usage": true or false }',
    fits: (value) =>
      isObject(value) &&
      Object.entries(value).every(([key, one]) => key === 'include_usage' && boolean.fits(one)),
  },
  user: string,
}

const ROLES = ['system', 'developer', 'user', 'assistant']

/** Fields that are null are absent. Throws RequestError. */
export function readRequest(body, modelName) {
  const given = Object.entries(parse(body)).filter(([, value]) => value !== null)
  for (const [param, value] of given) check(param, value)
  const request = Object.fromEntries(given)
  for (const param of ['model', 'messages']) {
    if (request[param] === undefined) throw invalid(param, `you must provide '${param}'`)
  }
  if (request.model !== modelName) {
    throw new RequestError(404, `the model '${request.model}' is not here; '${modelName}' is`, {
      param: 'model',
      code: 'model_not_found',
    })
  }
  const { n = 1, workers = 1, logprobs = false, top_logprobs: topLogprobs = 0 } = request
  if (n > 1 && workers > 1) {
    throw invalid('n', "'n' texts see nothing of each other, 'workers' do: ask for one of them")
  }
  if (topLogprobs > 0 && !logprobs) throw invalid('top_logprobs', "it needs 'logprobs': true")
  return { ...request, n, workers, logprobs, topLogprobs, messages: readMessages(request.messages) }
}

function parse(body) {
  try {
    const value = JSON.parse(body)
    if (isObject(value)) return value
  } catch {
    // told below
  }
  throw new RequestError(400, 'the body is no JSON object')
}

function check(param, value) {
  if (!Object.hasOwn(FIELDS, param)) {
    const known = Object.keys(FIELDS).join(', ')
    throw invalid(param, `unknown field '${param}'; there are: ${known}`)
  }
  const { expected, fits } = FIELDS[param]
  if (!fits(value)) throw invalid(param, `'${param}' must be ${expected}`)
}

function invalid(param, message) {
  return new RequestError(400, message, { param })
}

/** Of strings, or of parts that are text. */
function readMessages(messages) {
  return messages.map((message, i) => {
    const { role, content, ...others } = isObject(message) ? message : {}
    if (!ROLES.includes(role)) {
      throw invalid(
        `messages[${i}].role`,
        `'messages[${i}].role' must be one of ${ROLES.join(', ')}`,
      )
    }
    const [other] = Object.keys(others)
    if (other !== undefined) {
      throw invalid(`messages[${i}].${other}`, `unknown field 'messages[${i}].${other}'`)
    }
    const parts = Array.isArray(content) ? content : [{ type: 'text', text: content }]
    if (!parts.every((part) => part?.type === 'text' && typeof part.text === 'string')) {
      throw invalid(`messages[${i}].content`, `'messages[${i}].content' must be text`)
    }
    // What OpenAI's newer models call a developer is a system to all templates.
    const known = role === 'developer' ? 'system' : role
    return { role: known, content: parts.map(({ text }) => text).join('') }
  })
}

/** A block's tokens are in pages of so many; what is left of its last page nobody else can use. */
const PAGE = 64
const inPages = (tokens) => Math.ceil(tokens / PAGE) * PAGE

/**
 * The options of the run that answers a request, and its team where workers see each other. Where there is no room for
 * the request it throws RequestError.
 */
export async function planRun(request, { model, tokenizer, maxTokens: most, capacity }, signal) {
  const { messages, workers } = request
  const problem = problemOf(messages)
  const team =
    workers > 1
      ? await collaborate({ tokenizer, problem, workers, layout: 'contiguous', signal })
      : undefined
  const { prompt, workers: specs, ...rest } = team?.run ?? (await alone(request, tokenizer, signal))
  const maxTokens = request.max_completion_tokens ?? request.max_tokens ?? most
  const tokens = specs.map((spec) => (spec.header?.length ?? 0) + spec.prompt.length + maxTokens)
  const written = team === undefined ? Math.max(...tokens) : tokens.reduce((a, b) => a + b)
  const room = Math.min(capacity, model.config.maxPositions ?? capacity)
  // Besides its text a worker has a header: two blocks.
  const budget =
    inPages(prompt.length) + tokens.reduce((sum, each) => sum + inPages(each) + PAGE, 0)
  if (prompt.length + written > room || budget > capacity) {
    const asked = `${prompt.length} tokens of prompt and ${specs.length} x ${maxTokens} to be written`
    const message = `there is room for ${room} tokens in pages of ${PAGE}, and none for ${asked}`
    throw new RequestError(400, message, { param: 'messages', code: 'context_length_exceeded' })
  }
  const options = {
    ...rest,
    model,
    prompt,
    maxTokens,
    capacity: budget,
    signal,
    stop: [request.stop ?? []].flat(),
    stopTokens: [...model.config.eosTokenIds, ...tokenizer.eosTokenIds].filter(
      (id) => id < model.config.vocabSize,
    ),
    workers: specs.map((spec, i) => ({ ...spec, ...tokenOptions(request, i) })),
  }
  return { team, options }
}

/** Texts that see nothing of each other: what comes behind the conversation. */
async function alone({ messages, n }, tokenizer, signal) {
  const ids = await tokenizer.encodeChat(messages, { signal })
  const workers = Array.from({ length: n }, (_, i) => ({ name: `${i}`, prompt: ids.slice(-1) }))
  return { tokenizer, layout: 'contiguous', share: false, prompt: ids.slice(0, -1), workers }
}

/** A team solves one problem: of more than one message, who says what. */
function problemOf(messages) {
  if (messages.length === 1) return messages[0].content
  return messages.map(({ role, content }) => `${role}: ${content}`).join('\n\n')
}

function tokenOptions(request, index) {
  const { temperature = 1, top_p: topP = 1, seed, logprobs, topLogprobs } = request
  const { presence_penalty: presencePenalty, frequency_penalty: frequencyPenalty } = request
  const own = seed === undefined ? undefined : BigInt.asUintN(64, BigInt(seed) + BigInt(index))
  const penalties = { presencePenalty, frequencyPenalty, scope: 'own' }
  return { sampler: { temperature, topP, seed: own, ...penalties }, logprobs, topLogprobs }
}

// What a run tells a client: the pieces of its texts as they come, and the two forms in which they are sent.

import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { Transcript } from 'hogwild'

const LENGTH = ['max-tokens', 'out-of-pages']

/**
 * Of each event what a client is told: a piece of a choice's text with its log-probabilities, the reason why it ended, or
 * the usage of all. A choice is the text of one worker.
 */
async function* pieces(run, { team, options }, tokenizer) {
  const transcript = team && new Transcript(team)
  const stopTokens = new Set(options.stopTokens)
  const names = run.workers.map(({ name }) => name)
  let hasAnswer = false
  for await (const event of run) {
    transcript?.push(event)
    // The first answer ends the work of a team.
    if (!hasAnswer && transcript?.answer !== undefined) {
      hasAnswer = true
      for (const name of names) run.stop(name)
    }
    const index = names.indexOf(event.worker)
    if (event.type === 'token') {
      // Without a team what is given is the end of the prompt.
      if (event.forced && team === undefined) continue
      const logprob = stopTokens.has(event.token) ? undefined : logprobOf(event, tokenizer)
      yield { index, text: event.text, logprob }
    } else if (event.type === 'stop') {
      const reason = LENGTH.includes(event.reason) ? 'length' : 'stop'
      yield { index, text: event.text ?? '', reason }
    } else if (event.type === 'end') {
      const { promptTokens, completionTokens } = event.usage
      const total = promptTokens + completionTokens
      const usage = { prompt_tokens: promptTokens, completion_tokens: completionTokens }
      yield { usage: { ...usage, total_tokens: total } }
    }
  }
}

function logprobOf({ token, logprob, topLogprobs }, tokenizer) {
  if (logprob === undefined) return undefined
  const told = (id, value) => {
    const text = tokenizer.decode([id])
    // A token may be a part of a character.
    const bytes = text.includes('\ufffd') ? null : [...Buffer.from(text)]
    return { token: text, logprob: value, bytes }
  }
  const top = topLogprobs?.map((each) => told(each.token, each.logprob)) ?? []
  return { ...told(token, logprob), top_logprobs: top }
}

/** Sends a run's texts as they grow, as server-sent events, or whole. */
export async function reply(response, run, plan, request, { tokenizer, name }, signal) {
  const { workers } = plan.options
  const head = {
    id: `chatcmpl-${randomUUID()}`,
    created: Math.floor(Date.now() / 1000),
    model: name,
  }
  const texts = pieces(run, plan, tokenizer)
  const worker = (index) => (plan.team === undefined ? {} : { worker: workers[index].name })
  const send = request.stream ? sendStream : sendWhole
  await send(response, texts, { head, request, worker, count: workers.length, signal })
}

async function sendWhole(response, texts, { head, request, worker, count }) {
  const choices = Array.from({ length: count }, (_, index) => ({
    index,
    ...worker(index),
    message: { role: 'assistant', content: '', refusal: null },
    logprobs: request.logprobs ? { content: [], refusal: null } : null,
    finish_reason: null,
  }))
  let usage
  for await (const piece of texts) {
    usage = piece.usage
    if (piece.index === undefined) continue
    const choice = choices[piece.index]
    choice.message.content += piece.text
    if (piece.logprob !== undefined) choice.logprobs.content.push(piece.logprob)
    if (piece.reason !== undefined) choice.finish_reason = piece.reason
  }
  sendJson(response, 200, { ...head, object: 'chat.completion', choices, usage })
}

async function sendStream(response, texts, { head, request, worker, count, signal }) {
  const asksUsage = request.stream_options?.include_usage === true
  const chunk = { ...head, object: 'chat.completion.chunk', ...(asksUsage && { usage: null }) }
  const send = async (data) => {
    if (!response.headersSent) {
      response.writeHead(200, { 'content-type': 'text/event-stream', 'cache-control': 'no-cache' })
    }
    // Who reads slowly holds up his own run.
    if (!response.write(`data: ${data}\n\n`)) await once(response, 'drain', { signal })
  }
  const sendChoice = async (index, delta, logprob, reason = null) => {
    const logprobs = logprob === undefined ? null : { content: [logprob], refusal: null }
    const choice = { index, ...worker(index), delta, logprobs, finish_reason: reason }
    await send(JSON.stringify({ ...chunk, choices: [choice] }))
  }
  let hasBegun = false
  for await (const { index, text, logprob, reason, usage } of texts) {
    // The first piece shows that the run has begun: what was wrong with the request is told before.
    for (let i = 0; i < count && !hasBegun; i++) {
      await sendChoice(i, { role: 'assistant', content: '' })
    }
    hasBegun = true
    if (text || logprob !== undefined) await sendChoice(index, { content: text }, logprob)
    if (reason !== undefined) await sendChoice(index, {}, undefined, reason)
    if (usage && asksUsage) await send(JSON.stringify({ ...chunk, choices: [], usage }))
  }
  await send('[DONE]')
  response.end()
}

export function sendJson(response, status, value) {
  const text = JSON.stringify(value)
  response.writeHead(status, {
    'content-type': 'application/json; charset=utf-8',
    'content-length': Buffer.byteLength(text),
  })
  response.end(text)
}

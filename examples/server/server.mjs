// A server for clients of OpenAI's chat completions. All of them share the steps of one model, each answered as if it were
// alone. Fields of requests: request.mjs; docs/groups.md, "A server".
//
//   node examples/server/server.mjs MODEL [PORT]
//
//   curl -N http://127.0.0.1:8080/v1/chat/completions -d '{ "model": "MODEL", "workers": 3, "stream": true,
//     "messages": [{ "role": "user", "content": "What is 1 + 2 + … + 100?" }] }'
//
// It asks nobody who he is: let it listen to your own machine, or stand behind a proxy that does.

import { once } from 'node:events'
import { createServer } from 'node:http'
import { createScheduler, loadModel, loadTokenizer, runWorkers } from 'hogwild'
import { reply, sendJson } from './reply.mjs'
import { planRun, RequestError, readRequest } from './request.mjs'

/** Bytes of a request's body. */
const MOST_BYTES = 16 * 2 ** 20
/** Codes of what is wrong with a request, and not with the server. */
const OF_REQUEST = ['HOGWILD_INVALID_ARGUMENT', 'HOGWILD_UNSUPPORTED', 'HOGWILD_TIMEOUT']

/**
 * `name`: what requests call the model. `capacity`: tokens of the pool that requests share; those that find no room
 * in it wait. `maxTokens`: of a text whose request does not say.
 */
export function createChatServer(options) {
  const { model, tokenizer, name, capacity = 65_536, maxTokens = 512 } = options
  const scheduler = createScheduler({ model, capacity, prefixes: {} })
  const context = { model, tokenizer, name, capacity, maxTokens, scheduler }
  const server = createServer((request, response) => {
    const abort = new AbortController()
    // Also when the client is gone: then nobody reads what would be written.
    response.on('close', () => abort.abort())
    answer(request, response, context, abort.signal).catch((error) => {
      if (!abort.signal.aborted) refuse(response, error)
    })
  })
  return { server, scheduler }
}

async function answer(request, response, context, signal) {
  const [pathname] = request.url.split('?')
  if (pathname === '/v1/models' && request.method === 'GET') {
    const model = { id: context.name, object: 'model', created: 0, owned_by: 'hogwild' }
    sendJson(response, 200, { object: 'list', data: [model] })
  } else if (pathname === '/v1/chat/completions' && request.method === 'POST') {
    await complete(await bodyOf(request), response, context, signal)
  } else {
    const known = 'POST /v1/chat/completions and GET /v1/models'
    throw new RequestError(404, `no ${request.method} ${pathname}; there are ${known}`, {
      code: 'unknown_url',
    })
  }
}

async function bodyOf(request) {
  const pieces = []
  let bytes = 0
  for await (const piece of request) {
    bytes += piece.length
    if (bytes > MOST_BYTES)
      throw new RequestError(413, `the body has more than ${MOST_BYTES} bytes`)
    pieces.push(piece)
  }
  return Buffer.concat(pieces).toString()
}

async function complete(body, response, context, signal) {
  const request = readRequest(body, context.name)
  const plan = await planRun(request, context, signal)
  const run = runWorkers({ ...plan.options, scheduler: context.scheduler })
  try {
    await reply(response, run, plan, request, context, signal)
  } finally {
    await run.close()
  }
}

function refuse(response, error) {
  const ofRequest = OF_REQUEST.includes(error.code) ? new RequestError(400, error.message) : error
  const { status, details } = ofRequest instanceof RequestError ? ofRequest : failure(error)
  if (response.headersSent) response.end(`data: ${JSON.stringify({ error: details })}\n\n`)
  else sendJson(response, status, { error: details })
}

function failure(error) {
  console.error(error)
  return new RequestError(500, 'the server could not answer', { type: 'server_error' })
}

async function main([path, port = '8080']) {
  if (path === undefined) throw new Error('usage: node server.mjs MODEL [PORT]')
  const [model, tokenizer] = await Promise.all([loadModel(path), loadTokenizer(path)])
  const { server, scheduler } = createChatServer({ model, tokenizer, name: path })
  const close = async () => {
    server.close()
    server.closeAllConnections()
    await scheduler.close()
    await model.close()
    await tokenizer.close()
  }
  try {
    await once(server.listen(Number(port), '127.0.0.1'), 'listening')
  } catch (error) {
    await close()
    throw error
  }
  process.once('SIGINT', close)
  const url = `http://127.0.0.1:${server.address().port}/v1`
  const messages = [{ role: 'user', content: 'What is 1 + 2 + … + 100?' }]
  const body = JSON.stringify({ model: path, workers: 3, stream: true, messages })
  console.log(`${path} listens on ${url}`)
  console.log(`try: curl -N ${url}/chat/completions -d '${body.replaceAll("'", "'\\''")}'`)
}

if (process.argv[1]?.endsWith('server.mjs')) {
  main(process.argv.slice(2)).catch((error) => {
    console.error(error.message)
    process.exitCode = 1
  })
}

// Calls of one moment that a tool takes together (LLM-Tool Compiler, arXiv 2405.17438).

import { onAbort, throwIfAborted } from '../abort-signal'
import { HogwildError } from '../errors'
import { checkArray, checkSignal, invalid } from '../validate'

/**
 * Answers calls: one result for each, in their order. `signal` is aborted when nobody waits for any of them any
 * more.
 */
export type MergedTool<Call, Result> = (
  calls: readonly Call[],
  signal: AbortSignal,
) => PromiseLike<readonly Result[]>

interface Waiting<Call, Result> {
  call: Call
  signal: AbortSignal | undefined
  resolve: (result: Result) => void
  reject: (error: unknown) => void
}

/**
 * Makes a function of one call out of a tool that takes several: calls of one moment, until the event loop comes round and
 * so before the next step begins, are handed over together, in their order. For workers that `WorkerRun.park` has
 * waiting, also those of different runs:
 *
 *     const search = mergeCalls((queries: readonly string[], signal) => index.searchAll(queries, signal))
 *     run.park('Alice', async (signal) => tokenizer.encode(await search('Ada Lovelace', signal)))
 *     run.park('Bob', async (signal) => tokenizer.encode(await search('Alan Turing', signal)))
 *
 * A call rejects with what the tool throws, with HOGWILD_INVALID_ARGUMENT where it gives another number of results, and with
 * HOGWILD_ABORTED once its signal is aborted; those that were aborted before are not handed over. Throws
 * HOGWILD_INVALID_ARGUMENT.
 */
export function mergeCalls<Call, Result>(
  tool: MergedTool<Call, Result>,
): (call: Call, signal?: AbortSignal) => Promise<Result> {
  if (typeof tool !== 'function') throw invalid('tool', 'a function', tool)
  let waiting: Waiting<Call, Result>[] = []
  const handOver = () => {
    const calls = waiting.filter(({ signal }) => !signal?.aborted)
    waiting = []
    if (calls.length > 0) void answer(tool, calls)
  }
  return async (call, signal) => {
    checkSignal(signal, 'signal')
    throwIfAborted(signal)
    let forget = () => {}
    try {
      return await new Promise<Result>((resolve, reject) => {
        if (waiting.length === 0) setImmediate(handOver)
        waiting.push({ call, signal, resolve, reject })
        forget = onAbort(signal, () =>
          reject(new HogwildError('nobody waits for the call any more', 'HOGWILD_ABORTED')),
        )
      })
    } finally {
      forget()
    }
  }
}

async function answer<Call, Result>(
  tool: MergedTool<Call, Result>,
  waiting: readonly Waiting<Call, Result>[],
): Promise<void> {
  const abort = new AbortController()
  let left = waiting.length
  const forget = waiting.map(({ signal }) =>
    onAbort(signal, () => {
      if (--left === 0) abort.abort()
    }),
  )
  try {
    const calls = waiting.map(({ call }) => call)
    const results = checkArray(await tool(calls, abort.signal), 'what the tool gives')
    if (results.length !== waiting.length) {
      throw invalid('what the tool gives', `${waiting.length} results`, results)
    }
    for (const [i, { resolve }] of waiting.entries()) resolve(results[i] as Result)
  } catch (error) {
    for (const { reject } of waiting) reject(error)
  } finally {
    for (const one of forget) one()
  }
}

// The thread that works on texts: tokenizers and templates of strangers may take for ever, so they run where
// they can be stopped. `text-thread.ts` is the other end.

import { parentPort, workerData } from 'node:worker_threads'
import type { ChatRequest } from '../chat/chat'
import { HogwildError, type HogwildErrorCode } from '../errors'
import { type EngineSource, type LoadedTokens, TextEngine } from './text-engine'
import { buffersOf } from './token-table'

/** What a thread begins with; `sendTokens`: whether the tokens are wanted. */
export type WorkerInput = EngineSource & { sendTokens: boolean }

/** A long text comes in several parts before its request. */
export type WorkerRequest =
  | { type: 'part'; text: string }
  | { type: 'encode'; addSpecialTokens: boolean; plainText: boolean }
  | { type: 'chat'; request: ChatRequest; answerPrefix: string }
  | { type: 'encodeChat'; request: ChatRequest; answerPrefix: string }

export type WorkerAnswer =
  | { type: 'ready'; loaded: LoadedTokens | undefined }
  | { type: 'ids'; ids: Int32Array }
  | { type: 'text'; text: string }
  | { type: 'error'; message: string; code: HogwildErrorCode }

// Always there in a thread.
const port = parentPort as NonNullable<typeof parentPort>

function answer(message: WorkerAnswer, transfer: ArrayBuffer[] = []): void {
  port.postMessage(message, transfer)
}

function answerError(error: unknown): void {
  const { message, code } = error as { message: string; code?: HogwildErrorCode }
  const known = error instanceof HogwildError ? (code as HogwildErrorCode) : 'HOGWILD_INTERNAL'
  answer({ type: 'error', message, code: known })
}

function load(input: WorkerInput): TextEngine {
  const engine = new TextEngine(input)
  const loaded = input.sendTokens ? engine.loaded() : undefined
  answer({ type: 'ready', loaded }, loaded && buffersOf(loaded.tokens))
  return engine
}

let text = ''

function serve(engine: TextEngine, request: WorkerRequest): void {
  switch (request.type) {
    case 'part':
      text += request.text
      return
    case 'encode': {
      const { addSpecialTokens, plainText } = request
      const whole = text
      text = ''
      answerIds(engine.encode(whole, addSpecialTokens, plainText))
      return
    }
    case 'chat':
      answer({ type: 'text', text: engine.chat(request.request, request.answerPrefix) })
      return
    case 'encodeChat':
      answerIds(engine.encodeChat(request.request, request.answerPrefix))
      return
  }
}

function answerIds(list: readonly number[]): void {
  const ids = Int32Array.from(list)
  answer({ type: 'ids', ids }, [ids.buffer])
}

try {
  const engine = load(workerData as WorkerInput)
  port.on('message', (request: WorkerRequest) => {
    try {
      serve(engine, request)
    } catch (error) {
      answerError(error)
    }
  })
} catch (error) {
  answerError(error)
}

// This end of the thread that works on texts: a queue of requests, one at a time, each with a deadline.

import { join } from 'node:path'
import { setImmediate as nextTick } from 'node:timers/promises'
import { Worker } from 'node:worker_threads'
import { throwIfAborted } from '../abort-signal'
import { HogwildError } from '../errors'
import { type EngineSource, type LoadedTokens, vocabularyBytes } from './text-engine'
import type { WorkerAnswer, WorkerInput, WorkerRequest } from './text-worker'

/** For reading a tokenizer.json and its templates: time that only a hostile one takes. */
const LOAD_TIMEOUT_MS = 120_000

// The thread's memory, in MiB, for a vocabulary of `bytes`: the largest real ones take half of it.
function heapLimit(bytes: number): number {
  return 512 + Math.ceil((16 * bytes) / 2 ** 20)
}

/** Characters sent, and ids copied, without giving way to other work. */
const PART = 2 ** 15

// Tests run this file from its source, but a thread needs JavaScript.
const ENTRY = __filename.endsWith('.ts')
  ? join(__dirname, '../../dist/tokenizer/text-worker.js')
  : join(__dirname, 'text-worker.js')

export interface RequestOptions {
  timeoutMs: number
  signal: AbortSignal | undefined
}

interface Job {
  /** Sent before the request, in parts. */
  text: string
  request: WorkerRequest
  timeoutMs: number
  resolve(answer: WorkerAnswer): void
  reject(error: HogwildError): void
}

/**
 * A thread that starts when it is needed, also after it was stopped at a deadline. It keeps no process from
 * ending unless a request waits for it.
 */
export class TextThread {
  readonly #source: EngineSource
  readonly #queue: Job[] = []
  #worker: Worker | undefined
  #isReady = false
  #current: Job | undefined
  #timer: NodeJS.Timeout | undefined
  #closed = false

  constructor(source: EngineSource) {
    this.#source = source
  }

  /** Starts the thread and takes what it has read. Throws HOGWILD_INVALID_MODEL, HOGWILD_TIMEOUT. */
  async load(signal: AbortSignal | undefined): Promise<LoadedTokens> {
    // The request is the start itself: nothing is sent.
    const answer = await this.#enqueue('', { type: 'part', text: '' }, { timeoutMs: 0, signal })
    const { loaded } = answer as Extract<WorkerAnswer, { type: 'ready' }>
    return loaded as LoadedTokens
  }

  async text(request: WorkerRequest, options: RequestOptions): Promise<string> {
    const answer = await this.#enqueue('', request, options)
    return (answer as Extract<WorkerAnswer, { type: 'text' }>).text
  }

  async ids(text: string, request: WorkerRequest, options: RequestOptions): Promise<number[]> {
    const answer = await this.#enqueue(text, request, options)
    const { ids } = answer as Extract<WorkerAnswer, { type: 'ids' }>
    const list: number[] = []
    for (let start = 0; start < ids.length; start += PART) {
      if (start > 0) await nextTick()
      for (const id of ids.subarray(start, start + PART)) list.push(id)
    }
    return list
  }

  /** Ends the thread; requests that wait are refused with HOGWILD_CLOSED. Idempotent. */
  async close(): Promise<void> {
    this.#closed = true
    const waiting = this.#queue.splice(0)
    for (const job of waiting) job.reject(closed())
    await this.#stop(closed())
  }

  async #enqueue(
    text: string,
    request: WorkerRequest,
    { timeoutMs, signal }: RequestOptions,
  ): Promise<WorkerAnswer> {
    throwIfAborted(signal)
    if (this.#closed) throw closed()
    let abort = () => {}
    try {
      return await new Promise<WorkerAnswer>((resolve, reject) => {
        const job = { text, request, timeoutMs, resolve, reject }
        abort = () => this.#abort(job, signal)
        signal?.addEventListener('abort', abort)
        this.#queue.push(job)
        this.#next()
      })
    } finally {
      signal?.removeEventListener('abort', abort)
    }
  }

  #abort(job: Job, signal: AbortSignal | undefined): void {
    const error = new HogwildError('aborted by the signal', 'HOGWILD_ABORTED', {
      cause: signal?.reason,
    })
    if (job === this.#current) {
      void this.#stop(error)
      return
    }
    this.#queue.splice(this.#queue.indexOf(job), 1)
    job.reject(error)
  }

  #next(): void {
    if (this.#current !== undefined) return
    const job = this.#queue.shift()
    this.#current = job
    if (job === undefined) {
      this.#worker?.unref()
      return
    }
    try {
      this.#worker ??= this.#start(job.timeoutMs === 0)
      this.#worker.ref()
      if (this.#isReady) void this.#send(job)
    } catch (cause) {
      const message = `no thread for texts: ${(cause as Error).message}`
      this.#settle((one) =>
        one.reject(new HogwildError(message, 'HOGWILD_OUT_OF_MEMORY', { cause })),
      )
    }
  }

  #start(sendTokens: boolean): Worker {
    const worker = new Worker(ENTRY, {
      workerData: { ...this.#source, sendTokens } satisfies WorkerInput,
      resourceLimits: { maxOldGenerationSizeMb: heapLimit(vocabularyBytes(this.#source)) },
    })
    this.#isReady = false
    this.#deadline(LOAD_TIMEOUT_MS, `${this.#source.path} took longer than`)
    // A worker that was stopped may still have something to say.
    const ifCurrent =
      <T extends unknown[]>(react: (...values: T) => void) =>
      (...values: T) => {
        if (worker === this.#worker) react(...values)
      }
    worker.on(
      'message',
      ifCurrent((answer: WorkerAnswer) => this.#take(answer)),
    )
    worker.on(
      'error',
      ifCurrent((error: Error) => void this.#stop(failure(error))),
    )
    worker.on(
      'exit',
      ifCurrent(() => void this.#stop(failure(new Error('it has ended')))),
    )
    return worker
  }

  #take(answer: WorkerAnswer): void {
    if (answer.type === 'error') {
      const error = new HogwildError(answer.message, answer.code)
      // A thread that could not read its tokenizer is of no use.
      if (this.#isReady) this.#settle((job) => job.reject(error))
      else void this.#stop(error)
      return
    }
    if (answer.type === 'ready') {
      this.#isReady = true
      clearTimeout(this.#timer)
      const job = this.#current
      if (job !== undefined && job.timeoutMs > 0) {
        void this.#send(job)
        return
      }
    }
    this.#settle((job) => job.resolve(answer))
  }

  /** Posting copies, so a long text goes in parts, between which other work has its turn. */
  async #send({ text, request, timeoutMs }: Job): Promise<void> {
    const worker = this.#worker
    this.#deadline(timeoutMs, 'the text took longer than')
    try {
      for (let start = 0; start < text.length; start += PART) {
        if (start > 0) await nextTick()
        if (worker !== this.#worker) return
        const part: WorkerRequest = { type: 'part', text: text.slice(start, start + PART) }
        worker?.postMessage(part)
      }
      worker?.postMessage(request)
    } catch (cause) {
      // What cannot be copied: functions, symbols, objects that refuse to be read.
      const message = `messages and variables must be plain data: ${(cause as Error).message}`
      this.#settle((job) =>
        job.reject(new HogwildError(message, 'HOGWILD_INVALID_ARGUMENT', { cause })),
      )
    }
  }

  #deadline(milliseconds: number, what: string): void {
    clearTimeout(this.#timer)
    this.#timer = setTimeout(() => {
      void this.#stop(new HogwildError(`${what} ${milliseconds} ms`, 'HOGWILD_TIMEOUT'))
    }, milliseconds)
  }

  #settle(answer: (job: Job) => void): void {
    clearTimeout(this.#timer)
    const job = this.#current
    this.#current = undefined
    if (job !== undefined) answer(job)
    this.#next()
  }

  /** Ends the thread. The request under way fails; the next one starts another thread. */
  async #stop(error: HogwildError): Promise<void> {
    const worker = this.#worker
    this.#worker = undefined
    this.#settle((job) => job.reject(error))
    await worker?.terminate()
  }
}

function closed(): HogwildError {
  return new HogwildError('the tokenizer is closed', 'HOGWILD_CLOSED')
}

function failure(cause: Error): HogwildError {
  return (cause as NodeJS.ErrnoException).code === 'ERR_WORKER_OUT_OF_MEMORY'
    ? new HogwildError('the text takes too much memory', 'HOGWILD_OUT_OF_MEMORY', { cause })
    : new HogwildError(`the thread for texts failed: ${cause.message}`, 'HOGWILD_INTERNAL', {
        cause,
      })
}

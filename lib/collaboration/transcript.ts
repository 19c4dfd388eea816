// What the workers of a collaboration have written, from the events of their run.

import {
  checkArray,
  checkInteger,
  checkOneOf,
  checkOptions,
  checkString,
  checkTokens,
  invalid,
  optionKeys,
} from '../validate'
import type { TokenEvent, WorkerEvent } from '../workers/events'
import { findAnswer } from './answer'
import type { Collaboration } from './collaboration'

/** What workers had written at one moment, as plain data: enough to go on from there in another cache. */
export interface Snapshot {
  /** Steps that had ended. */
  steps: number
  /** Tokens that the worker had sampled that had sampled most. */
  tokens: number
  /** Tokens of finished paragraphs, in the common block behind the prompt. */
  record: number[]
  /** In worker order. */
  workers: SnapshotWorker[]
  /** The first final answer that a worker had given. */
  answer?: GivenAnswer | undefined
}

/** A worker's part of a snapshot. */
export interface SnapshotWorker {
  /** Of the worker. */
  name: string
  /** The tokens in its own block. */
  tokens: number[]
  /** The last final answer that it had given. */
  answer?: string | undefined
}

/** A final answer in the text of a worker. */
export interface GivenAnswer {
  /** Its name. */
  worker: string
  /** What stood between the opening and the closing of `texts.answer`. */
  answer: string
}

/** A worker was asked whether it does redundant work. */
export interface Check {
  /** Its name. */
  worker: string
  /** The step in which the question entered its block. */
  step: number
  /** Undefined while it has not said, or where it says something else. */
  redundant: boolean | undefined
}

const SNAPSHOT_KEYS = optionKeys<Snapshot>()({
  steps: true,
  tokens: true,
  record: true,
  workers: true,
  answer: true,
})
const WORKER_KEYS = optionKeys<SnapshotWorker>()({ name: true, tokens: true, answer: true })

/** Characters behind a check within which its answer is looked for. */
const MAX_CHECK_ANSWER = 24

/** One worker's part. */
interface Part {
  own: number[]
  sampled: number
  text: string
  answer: string | undefined
  /** Text of the forced tokens since the last sampled one, and the step of the last of them. */
  forced: { text: string; step: number }
  /** The last check and the text behind it. */
  check: { check: Check; text: string } | undefined
}

/**
 * Follows a run: give it every event, in order.
 *
 *     const transcript = new Transcript(team)
 *     for await (const event of run) {
 *       transcript.push(event)
 *       if (transcript.answer !== undefined) break
 *     }
 */
export class Transcript {
  /** All checks so far, in the order of their steps. */
  readonly checks: readonly Check[]
  readonly #collaboration: Collaboration
  readonly #parts: Map<string, Part>
  readonly #checks: Check[] = []
  readonly #record: number[] = []
  #steps = 0
  #answer: GivenAnswer | undefined

  /** `collaboration`: whose run is followed. */
  constructor(collaboration: Collaboration) {
    this.#collaboration = collaboration
    this.#parts = new Map(collaboration.names.map((name) => [name, emptyPart()]))
    this.checks = this.#checks
  }

  /** The first final answer that a worker has given. */
  get answer(): GivenAnswer | undefined {
    return this.#answer
  }

  /** Tokens that the worker has sampled that has sampled most. */
  get tokens(): number {
    return Math.max(...Array.from(this.#parts.values(), ({ sampled }) => sampled))
  }

  /** The last final answer of one worker. Throws HOGWILD_INVALID_ARGUMENT for another name than the workers'. */
  answerOf(worker: string): string | undefined {
    return this.#part(checkOneOf(worker, 'worker', [...this.#parts.keys()])).answer
  }

  /** Takes the next event. */
  push(event: WorkerEvent): void {
    switch (event.type) {
      case 'join':
        this.#part(event.worker)
        return
      case 'token':
        this.#write(event)
        return
      case 'turn': {
        const part = this.#part(event.worker)
        for (const token of part.own) this.#record.push(token)
        part.own = []
        return
      }
      case 'stop':
        this.#addText(event.worker, event.text ?? '')
        return
      case 'step':
        this.#steps = event.step + 1
        return
      default:
        return
    }
  }

  /** The state now: ask for it behind a `step` event, where all workers are equally far. */
  snapshot(): Snapshot {
    return {
      steps: this.#steps,
      tokens: this.tokens,
      record: [...this.#record],
      workers: Array.from(this.#parts, ([name, { own, answer }]) => ({
        name,
        tokens: [...own],
        ...(answer !== undefined && { answer }),
      })),
      ...(this.#answer && { answer: { ...this.#answer } }),
    }
  }

  /** Of one that joins late, a new one. */
  #part(worker: string): Part {
    const part = this.#parts.get(worker) ?? emptyPart()
    this.#parts.set(worker, part)
    return part
  }

  #write({ worker, step, token, text, forced }: TokenEvent): void {
    const part = this.#part(worker)
    part.own.push(token)
    if (forced) {
      part.forced = { text: part.forced.text + text, step }
    } else {
      part.sampled++
      this.#followCheck(part, worker, text)
    }
    this.#addText(worker, text)
  }

  /** A sampled token's text may be an answer to the question before it. */
  #followCheck(part: Part, worker: string, text: string): void {
    const { forced } = part
    part.forced = { text: '', step: 0 }
    if (forced.text !== '' && forced.text.endsWith(this.#collaboration.texts.check)) {
      const check: Check = { worker, step: forced.step, redundant: undefined }
      this.#checks.push(check)
      part.check = { check, text: '' }
    }
    if (part.check === undefined) return
    part.check.text += text
    const [, word] = /^\W*(yes|no)\b/i.exec(part.check.text) ?? []
    part.check.check.redundant = word === undefined ? undefined : word.toLowerCase() === 'yes'
    if (part.check.text.length > MAX_CHECK_ANSWER) part.check = undefined
  }

  #addText(worker: string, text: string): void {
    const part = this.#part(worker)
    const format = this.#collaboration.texts.answer
    part.text += text
    // Only what brings a closing's last character can complete an answer.
    if (!text.includes(format.closing.at(-1) as string)) return
    const answer = findAnswer(part.text, format)
    if (answer === undefined) return
    part.answer = answer
    this.#answer ??= { worker, answer }
  }
}

/** A copy of a snapshot that may come from a file. Throws HOGWILD_INVALID_ARGUMENT. */
export function checkSnapshot(value: Snapshot, name: string): Snapshot {
  const snapshot = checkOptions(value, name, SNAPSHOT_KEYS)
  const workers = checkArray(snapshot.workers, `${name}.workers`).map((one, i) => {
    const where = `${name}.workers[${i}]`
    const worker = checkOptions(one as SnapshotWorker, where, WORKER_KEYS)
    return {
      name: checkString(worker.name, `${where}.name`),
      tokens: checkIds(worker.tokens, `${where}.tokens`),
      answer: checkAnswer(worker.answer, `${where}.answer`),
    }
  })
  if (workers.length === 0) throw invalid(`${name}.workers`, 'at least one worker', workers)
  const { answer } = snapshot
  return {
    steps: checkInteger(snapshot.steps, `${name}.steps`, 0),
    tokens: checkInteger(snapshot.tokens, `${name}.tokens`, 0),
    record: checkIds(snapshot.record, `${name}.record`),
    workers,
    answer: answer && {
      worker: checkString(answer.worker, `${name}.answer.worker`),
      answer: checkString(answer.answer, `${name}.answer.answer`),
    },
  }
}

function checkIds(value: unknown, name: string): number[] {
  return Array.from(checkTokens(value, name, 2 ** 31 - 1))
}

function checkAnswer(value: unknown, name: string): string | undefined {
  return value === undefined ? undefined : checkString(value, name)
}

function emptyPart(): Part {
  return {
    own: [],
    sampled: 0,
    text: '',
    answer: undefined,
    forced: { text: '', step: 0 },
    check: undefined,
  }
}

// One cell: a run, looked at after each budget of steps.

import { createHash } from 'node:crypto'
import {
  type Model,
  type RunUsage,
  runWorkers,
  type Tokenizer,
  type WorkerEvent,
  type WorkerRun,
} from '../index'
import { checkNumber, checkObject, checkOptions } from '../validate'
import type { Cell } from './cells'
import {
  type CheckedExperiment,
  itemName,
  type LoadedExperiment,
  lateMessages,
  promptOf,
  sha256,
} from './definition'
import type { Grade, LateMessage, Outcome } from './item'
import { type Attempt, SCHEMES, vote } from './schemes'

/** A cell at one of the budgets. */
export interface Point {
  /** In sequential steps. */
  budget: number
  /** Steps that were taken: fewer where all workers had stopped before. */
  steps: number
  /** Sampled tokens of all workers. */
  tokens: number
  /** null: none. */
  answer: string | null
  /** Whether the finisher extracted it. */
  early: boolean
  /** In [0, 1]. */
  score: number
  metrics?: Record<string, number>
  /** Of each worker, where the experiment keeps them. */
  texts?: Record<string, string>
}

/** What a cell gave. The same on every machine that computes the same logits. */
export interface CellNumbers extends Cell {
  /** Of the item. */
  id: string
  /** SHA-256 of the token ids of the common prompt: of template, texts, chat template and tokenizer. */
  prompt: string
  points: Point[]
  usage: Pick<RunUsage, 'promptTokens' | 'completionTokens'> & { peakPages: number | null }
}

export interface CellPlace {
  model: Model
  tokenizer: Tokenizer
  /** Path of a trace; undefined: none. */
  trace?: string | undefined
  signal?: AbortSignal | undefined
}

export async function runCell(
  loaded: LoadedExperiment,
  cell: Cell,
  { model, tokenizer, trace, signal }: CellPlace,
): Promise<CellNumbers> {
  const { experiment, items } = loaded
  const item = items[cell.item] as LoadedExperiment['items'][number]
  const { workers, share } = cell
  const attempt = await SCHEMES[cell.scheme]({
    ...{ model, tokenizer, experiment, item, workers, share, signal },
    problem: promptOf(experiment, item, cell.item),
    layout: cell.layout ?? 'contiguous',
  })
  await using run = runWorkers({
    model,
    tokenizer,
    ...attempt.run,
    workers: attempt.run.workers.map((worker) => ({
      ...worker,
      sampler: samplerOf(experiment, cell, worker.name),
    })),
    capacity: experiment.capacity,
    trace,
    signal,
  })
  const observer = new Observer(loaded, cell, attempt)
  const late = new LateTexts(run, attempt, tokenizer, lateMessages(experiment, item, cell.item))
  let usage: RunUsage | undefined
  for await (const event of run) {
    observer.take(event)
    late.take(event)
    if (event.type === 'token' || event.type === 'stop') {
      if (attempt.given(event.worker) !== undefined) {
        for (const name of share ? attempt.names : [event.worker]) run.stop(name)
      }
    }
    if (event.type === 'step') {
      if (await observer.look()) late.append(event.step + 1)
      else for (const name of attempt.names) run.stop(name)
    }
    if (event.type === 'end') usage = event.usage
  }
  const { promptTokens, completionTokens, peakPages = null } = usage as RunUsage
  return {
    ...cell,
    id: itemName(item, cell.item),
    prompt: tokensHash(attempt.run.prompt),
    points: await observer.finish(),
    usage: { promptTokens, completionTokens, peakPages },
  }
}

/** Draws depend on seed, item and worker alone, so that settings are compared on the same ones. */
function samplerOf({ sampler }: CheckedExperiment, { seed, item }: Cell, worker: string) {
  if (sampler === undefined) return undefined
  const own = Number.parseInt(sha256(JSON.stringify([seed, item, worker])).slice(0, 12), 16)
  return { ...sampler, seed: own }
}

function tokensHash(ids: ArrayLike<number>): string {
  return createHash('sha256')
    .update(new Uint8Array(Int32Array.from(ids).buffer))
    .digest('hex')
}

/** Messages that come into the common block while workers write. */
class LateTexts {
  /** Tokens that no event has told of yet. */
  readonly #appended: number[][] = []

  constructor(
    private readonly run: WorkerRun,
    private readonly attempt: Attempt,
    private readonly tokenizer: Tokenizer,
    /** Earlier ones first. */
    private readonly messages: LateMessage[],
  ) {}

  take(event: WorkerEvent): void {
    if (event.type === 'append') this.attempt.appended(this.#appended.shift() as number[])
  }

  /** What is due behind so many steps, while somebody is there to read it. Special tokens that are written out in it are text. */
  append(steps: number): void {
    if (this.run.workers.every(({ state }) => state === 'stopped')) return
    while (this.messages[0] !== undefined && this.messages[0].step <= steps) {
      const { text } = this.messages.shift() as LateMessage
      const options = { addSpecialTokens: false, specialTokens: 'text' } as const
      const tokens = this.tokenizer.encodeSync(text, options)
      this.#appended.push(tokens)
      this.run.append(tokens)
    }
  }
}

/** Follows a run and notes its outcome at each budget. */
class Observer {
  readonly #budgets: number[]
  readonly #texts: Map<string, string>
  readonly #points: Point[] = []
  #steps = 0
  #tokens = 0

  constructor(
    private readonly loaded: LoadedExperiment,
    private readonly cell: Cell,
    private readonly attempt: Attempt,
  ) {
    this.#budgets = [...loaded.experiment.budgets]
    this.#texts = new Map(attempt.names.map((name) => [name, '']))
  }

  take(event: WorkerEvent): void {
    this.attempt.take(event)
    if (event.type === 'step') this.#steps = event.step + 1
    if (event.type === 'token' && !event.forced) this.#tokens++
    if (event.type === 'token' || event.type === 'stop') {
      const text = this.#texts.get(event.worker) as string
      this.#texts.set(event.worker, text + (event.text ?? ''))
    }
  }

  /** Notes the outcome where a budget is used up; false: it was the last. Between two steps. */
  async look(): Promise<boolean> {
    if (this.#budgets[0] === this.#steps) await this.#note([this.#budgets.shift() as number])
    return this.#budgets.length > 0
  }

  /** Behind the end: what larger budgets would have given as well. */
  async finish(): Promise<Point[]> {
    if (this.#budgets.length > 0) await this.#note(this.#budgets)
    return this.#points
  }

  async #note(budgets: readonly number[]): Promise<void> {
    const { experiment, items, grader } = this.loaded
    const item = items[this.cell.item] as LoadedExperiment['items'][number]
    const { answer, early } = vote(await this.attempt.answers())
    const texts = Object.fromEntries(this.#texts)
    const outcome: Outcome = { answer, early, texts, steps: this.#steps, tokens: this.#tokens }
    const grade = checkGrade(await grader(outcome, item, item[experiment.expected]))
    for (const budget of budgets) {
      const { steps, tokens } = outcome
      this.#points.push({
        ...{ budget, steps, tokens, answer: answer ?? null, early },
        ...grade,
        ...(experiment.keepTexts && { texts }),
      })
    }
  }
}

/** Throws HOGWILD_INVALID_ARGUMENT for what is no score in [0, 1]. */
function checkGrade(grade: Grade): Pick<Point, 'score' | 'metrics'> {
  if (typeof grade !== 'object') return { score: checkScore(grade) }
  const { score, metrics } = checkOptions(grade, 'the grade', ['score', 'metrics'])
  if (metrics === undefined) return { score: checkScore(score) }
  const numbers = Object.entries(checkObject(metrics, 'metrics')).map(([name, value]) => [
    name,
    checkNumber(value, `metrics.${name}`, 'a finite number', Number.isFinite),
  ])
  return { score: checkScore(score), metrics: Object.fromEntries(numbers) }
}

function checkScore(score: boolean | number): number {
  if (typeof score === 'boolean') return score ? 1 : 0
  return checkNumber(
    score,
    'the score',
    'true, false or a number in [0, 1]',
    (x) => x >= 0 && x <= 1,
  )
}

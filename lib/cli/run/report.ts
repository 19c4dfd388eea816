// What `hogwild run` tells of a run: what workers write, and the answers, given and extracted.

import { errorCode } from '../../errors'
import {
  type Block,
  type Collaboration,
  type EndEvent,
  extractAnswer,
  type Model,
  type Tokenizer,
  Transcript,
  type WorkerEvent,
  type WorkerRun,
} from '../../index'
import { escapeUnsafe } from '../../printable'
import { colors, print, printJson } from '../terminal'
import { LinePrinter } from './line-printer'

export interface ReportOptions {
  json: boolean
  /** Tokens of a worker at which an early answer is asked for, in ascending order. */
  budgets: readonly number[]
  /** Tokens of an early answer; 0: none is extracted. */
  finishTokens: number
}

/** An answer, as a line of JSON. */
interface Answer {
  type: 'answer'
  step: number
  /** Who gave it, or whose text it was taken from where workers do not see one another. */
  worker?: string
  /** The budget after which it was asked for. */
  budget?: number
  /** Whether it was extracted, as no worker had given one. */
  early: boolean
  answer: string | null
}

export class RunReport {
  readonly #transcript: Transcript
  readonly #printer: LinePrinter
  readonly #budgets: number[]
  readonly #answered = new Set<string>()

  constructor(
    private readonly model: Model,
    private readonly team: Collaboration,
    private readonly run: WorkerRun,
    private readonly options: ReportOptions,
  ) {
    this.#transcript = new Transcript(team)
    this.#printer = new LinePrinter(team.names)
    this.#budgets = [...options.budgets]
  }

  async take(event: WorkerEvent): Promise<void> {
    this.#transcript.push(event)
    if (event.type === 'end') await this.#finish(event.steps, undefined)
    this.#show(event)
    if (event.type === 'token' || event.type === 'stop') this.#takeAnswer(event.worker, event.step)
    if (event.type === 'step') await this.#takeBudgets(event.step)
  }

  #show(event: WorkerEvent): void {
    const printer = this.#printer
    if (this.options.json) printJson(event)
    else if (event.type === 'token') printer.write(event.worker, event.text)
    else if (event.type === 'stop') {
      printer.write(event.worker, event.text ?? '')
      printer.flush(event.worker)
      printer.remark(event.worker, `stopped: ${event.reason}`)
    } else if (event.type === 'end') {
      print(colors.dim(summaryOf(event)))
    }
  }

  /** An answer ends the work of all who see it. */
  #takeAnswer(worker: string, step: number): void {
    const answer = this.#transcript.answerOf(worker)
    if (answer === undefined || this.#answered.has(worker)) return
    this.#answered.add(worker)
    this.#tell({ type: 'answer', step, worker, early: false, answer })
    for (const name of this.team.share ? this.team.names : [worker]) this.run.stop(name)
  }

  async #takeBudgets(step: number): Promise<void> {
    for (;;) {
      const [budget] = this.#budgets
      if (budget === undefined || this.#transcript.tokens < budget) return
      this.#budgets.shift()
      await this.#finish(step, budget)
    }
  }

  /** Asks for what is the answer so far, where nobody has given one. */
  async #finish(step: number, budget: number | undefined): Promise<void> {
    for (const worker of this.team.share ? [undefined] : this.team.names) {
      const isGiven =
        worker === undefined ? this.#transcript.answer !== undefined : this.#answered.has(worker)
      if (isGiven || this.options.finishTokens === 0) continue
      const answer = await this.#extract(worker)
      this.#tell({
        type: 'answer',
        step,
        ...(worker !== undefined && { worker }),
        ...(budget !== undefined && { budget }),
        early: true,
        answer: answer ?? null,
      })
    }
  }

  /** Behind what is in the cache, of which nothing is computed again. */
  async #extract(worker: string | undefined): Promise<string | undefined> {
    const { texts, run } = this.team
    const tokenizer = run.tokenizer as Tokenizer
    const blocks = this.#seenBy(worker)
    const how = { suffix: texts.finisher, answer: texts.answer }
    try {
      const maxTokens = this.options.finishTokens
      const { answer } = await extractAnswer({
        model: this.model,
        tokenizer,
        blocks,
        ...how,
        maxTokens,
      })
      return answer
    } catch (error) {
      // A full cache gives no answer; the run goes on.
      if (errorCode(error) === 'HOGWILD_OUT_OF_PAGES') return undefined
      throw error
    }
  }

  /** All that was written or, of a worker that sees nobody else, what it sees. */
  #seenBy(name: string | undefined): Block[] {
    const { common, shared, workers } = this.run.blocks
    const worker = name === undefined ? undefined : workers[name]
    const blocks = worker
      ? [worker.common, worker.header, worker.own]
      : [common, shared, ...Object.values(workers).map(({ own }) => own)]
    return blocks.filter((block) => block !== undefined)
  }

  #tell(answer: Answer): void {
    if (this.options.json) {
      printJson(answer)
      return
    }
    if (answer.worker !== undefined && !answer.early) this.#printer.flush(answer.worker)
    const text = answer.answer === null ? 'no answer yet' : `answer: ${escapeUnsafe(answer.answer)}`
    const when = answer.budget === undefined ? '' : ` after ${answer.budget} tokens`
    const line = answer.early ? `early${when}, ${text}` : text
    if (answer.worker === undefined) print(colors.bold(line))
    else this.#printer.remark(answer.worker, line)
  }
}

function summaryOf({ steps, tokens, milliseconds, usage }: EndEvent): string {
  const seconds = `${(milliseconds / 1e3).toFixed(1)} s`
  if (usage.speculation === undefined) return `${tokens} tokens in ${steps} steps, ${seconds}`
  const { passes, drafted, accepted } = usage.speculation
  const share = drafted === 0 ? '' : ` (${Math.round((100 * accepted) / drafted)} %)`
  const guesses = `${accepted} of ${drafted} guesses were right${share}`
  return `${tokens} tokens in ${steps} steps of ${passes} passes, ${seconds}; ${guesses}`
}

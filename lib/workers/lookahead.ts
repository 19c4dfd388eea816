// Drafts of a group. All its workers go on together: the drafts of a step stand for its next lock steps, each as a whole.
// None stands for a lock step behind one in which something happens (a stop, the end of a turn, a trigger), as what comes
// behind it is another group.

import type { StepOutput } from '../model'
import { countDrafts, Drafter, type Speculation, type SpeculationUsage } from '../speculation'
import type { Worker } from './worker'

/** What a group knows of its workers' texts. */
export interface Foresight {
  /** The ids of the worker's view, with its pending tokens. */
  tokensOf(worker: Worker): Int32Array
  /** How many of the drafts may follow the worker's pending tokens before something happens. */
  quietDrafts(worker: Worker, drafts: Int32Array): number
}

export class Lookahead {
  readonly usage: SpeculationUsage = { passes: 0, drafted: 0, accepted: 0 }
  readonly #speculation: Speculation
  readonly #vocabSize: number
  readonly #foresight: Foresight
  readonly #drafters = new Map<Worker, Drafter>()
  /** Of the next step. */
  #planned: readonly Int32Array[] | undefined

  constructor(speculation: Speculation, vocabSize: number, foresight: Foresight) {
    this.#speculation = speculation
    this.#vocabSize = vocabSize
    this.#foresight = foresight
  }

  /** As many drafts for each of the workers that take part in the next step; asked again before it, the same. */
  plan(workers: readonly Worker[]): readonly Int32Array[] {
    this.#planned ??= this.#plan(workers)
    return this.#planned
  }

  /** There is no room for the drafts: the step is tried without. false: there are none. */
  drop(): boolean {
    const any = this.#planned?.some(({ length }) => length > 0) ?? false
    this.#planned = this.#planned?.map(() => new Int32Array(0))
    return any
  }

  /** The next step is another one. */
  forget(): void {
    this.#planned = undefined
  }

  /** The step of these workers is done. */
  stepped(workers: readonly Worker[], outputs: readonly StepOutput[]): void {
    this.usage.passes++
    workers.forEach((worker, i) => {
      const output = outputs[i] as StepOutput
      this.#drafters.get(worker)?.learn(output)
      countDrafts(this.usage, output)
    })
    this.forget()
  }

  #plan(workers: readonly Worker[]): Int32Array[] {
    let count = this.#speculation.tokens
    if (workers.some(({ state }) => state.name !== 'active')) count = 0
    const drafts = workers.map((worker) => {
      if (count === 0) return new Int32Array(0)
      const own = this.#drafterOf(worker).draft(this.#foresight.tokensOf(worker), count)
      count = this.#foresight.quietDrafts(worker, own)
      return own
    })
    return drafts.map((own) => own.subarray(0, count))
  }

  #drafterOf(worker: Worker): Drafter {
    const known = this.#drafters.get(worker)
    if (known !== undefined) return known
    const drafter = new Drafter(this.#speculation, worker.name, this.#vocabSize)
    this.#drafters.set(worker, drafter)
    return drafter
  }
}

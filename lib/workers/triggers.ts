// Calls that text sets off: strings in what a worker writes, looked for across tokens.

export interface TriggerMatch {
  worker: string
  /** The string that was found. */
  text: string
  /** How often the trigger has been set off in the run, this time included. */
  count: number
  /** Branches on the way to the worker (`WorkerSpec.from`): 0 for one that branches off nobody. */
  depth: number
}

export interface Trigger {
  /** Looked for in the text of each worker's sampled tokens, across tokens. */
  text: string
  /** The workers whose text is looked at; default: all. */
  workers?: readonly string[] | undefined
  /** Most calls in a run; default: no bound. */
  limit?: number | undefined
  /** Most branches on the way to a worker that may set it off: 0 for those that branch off nobody; default: no bound. */
  depth?: number | undefined
  /**
   * Called when the step has ended in which the string came to be: controls called here take effect before the next
   * one. What it throws ends the run.
   */
  action: (match: TriggerMatch) => void
}

/** The triggers of one run. */
export class Triggers {
  readonly #triggers: readonly Trigger[]
  readonly #counts: number[]
  /** By trigger and worker: the end of the text in which a match may have begun. */
  readonly #tails = new Map<string, string>()
  readonly #depthOf: (worker: string) => number

  constructor(triggers: readonly Trigger[], depthOf: (worker: string) => number = () => 0) {
    this.#triggers = triggers
    this.#depthOf = depthOf
    this.#counts = triggers.map(() => 0)
  }

  /** A worker has written this text. Where it was given and not sampled it ends what has begun. */
  look(worker: string, text: string, isGiven: boolean): void {
    for (const [i, { text: wanted, workers }] of this.#triggers.entries()) {
      if (workers?.includes(worker) === false) continue
      const key = `${i} ${worker}`
      if (isGiven) {
        this.#tails.delete(key)
        continue
      }
      let rest = (this.#tails.get(key) ?? '') + text
      for (let at = rest.indexOf(wanted); at >= 0; at = rest.indexOf(wanted)) {
        rest = rest.slice(at + wanted.length)
        this.#call(i, worker)
      }
      this.#tails.set(key, rest.slice(Math.max(0, rest.length - wanted.length + 1)))
    }
  }

  #call(i: number, worker: string): void {
    const trigger = this.#triggers[i] as Trigger
    const { text, limit = Number.POSITIVE_INFINITY, action } = trigger
    const depth = this.#depthOf(worker)
    const count = (this.#counts[i] as number) + 1
    if (count > limit || depth > (trigger.depth ?? depth)) return
    this.#counts[i] = count
    action({ worker, text, count, depth })
  }
}

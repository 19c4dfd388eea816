// Calls that text sets off: strings in what a worker writes, looked for across tokens.

/** What set a trigger off. */
export interface TriggerMatch {
  /** Whose text it was. */
  worker: string
  /** The string that was found. */
  text: string
  /** How often the trigger has been set off in the run, this time included. */
  count: number
  /** Branches on the way to the worker (`WorkerSpec.from`): 0 for one that branches off nobody. */
  depth: number
}

/** A call that text sets off. */
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

/** How far the triggers of a run are, as plain data. */
export interface TriggersState {
  /** Calls so far, of each. */
  counts: readonly number[]
  /** By trigger and worker: the end of the text in which a match may have begun. */
  tails: readonly (readonly [string, string])[]
}

/** Text that a token brings. `isGiven`: it was given and not sampled. */
export interface Piece {
  text: string
  isGiven: boolean
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

  get state(): TriggersState {
    return { counts: [...this.#counts], tails: [...this.#tails] }
  }

  /** `counts` has one for each. */
  restore({ counts, tails }: TriggersState): void {
    this.#counts.splice(0, this.#counts.length, ...counts)
    for (const [key, tail] of tails) this.#tails.set(key, tail)
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

  /** The first of these steps whose text would set off a trigger; how many there are, if none would. */
  firstMatch(worker: string, steps: readonly (readonly Piece[])[]): number {
    const firsts = this.#triggers.map(({ text: wanted, workers }, i) => {
      if (workers?.includes(worker) === false) return -1
      let tail = this.#tails.get(`${i} ${worker}`) ?? ''
      return steps.findIndex((pieces) =>
        pieces.some(({ text, isGiven }) => {
          tail = isGiven ? '' : tail + text
          return tail.includes(wanted)
        }),
      )
    })
    return Math.min(steps.length, ...firsts.filter((first) => first >= 0))
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

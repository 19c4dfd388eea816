// Finds stop strings in text that comes in pieces.

/** One stop string and how much of it the text so far ends with (Knuth-Morris-Pratt). */
interface Candidate {
  stop: string
  /** borders[n]: the longest proper prefix of stop[0..n) that is also its suffix. */
  borders: Int32Array
  matched: number
}

/**
 * Passes text on up to a stop string. Text that may turn out to be the beginning of one is held back until that
 * is decided. Where several stop strings are found, the one that is complete first counts. Linear in the text.
 */
export class StopMatcher {
  #candidates: Candidate[]
  #held = ''
  #found = false

  /** `stops`: none of them empty. */
  constructor(stops: readonly string[]) {
    this.#candidates = stops.map((stop) => ({ stop, borders: bordersOf(stop), matched: 0 }))
  }

  /** One of its own for what may come next. */
  fork(): StopMatcher {
    const fork = new StopMatcher([])
    fork.#candidates = this.#candidates.map((candidate) => ({ ...candidate }))
    fork.#held = this.#held
    fork.#found = this.#found
    return fork
  }

  /** Whether a stop string was complete. Nothing is passed on from there. */
  get found(): boolean {
    return this.#found
  }

  /** The text that is decided by this piece. */
  push(piece: string): string {
    if (this.#found) return ''
    const text = this.#held + piece
    for (let i = this.#held.length; i < text.length; i++) {
      const length = this.#advance(text[i] as string)
      if (length === 0) continue
      this.#found = true
      this.#held = ''
      return text.slice(0, i + 1 - length)
    }
    const undecided = Math.max(0, ...this.#candidates.map(({ matched }) => matched))
    this.#held = text.slice(text.length - undecided)
    return text.slice(0, text.length - undecided)
  }

  /** The text held back, which no stop string can follow any more. What is pushed later begins anew. */
  end(): string {
    const text = this.#held
    this.#held = ''
    for (const candidate of this.#candidates) candidate.matched = 0
    return text
  }

  /** The length of the longest stop string that this character completes, or 0. */
  #advance(character: string): number {
    let longest = 0
    for (const candidate of this.#candidates) {
      const { stop, borders } = candidate
      let n = candidate.matched
      while (n > 0 && stop[n] !== character) n = borders[n] as number
      if (stop[n] === character) n++
      candidate.matched = n
      if (n === stop.length) longest = Math.max(longest, n)
    }
    return longest
  }
}

function bordersOf(stop: string): Int32Array {
  const borders = new Int32Array(stop.length + 1)
  for (let i = 1; i < stop.length; i++) {
    let n = borders[i] as number
    while (n > 0 && stop[n] !== stop[i]) n = borders[n] as number
    borders[i + 1] = stop[n] === stop[i] ? n + 1 : 0
  }
  return borders
}

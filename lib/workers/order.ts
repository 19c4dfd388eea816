// Which of the groups that wait begin next.

import { checkInteger, checkNumber, checkOptions, invalid, optionKeys } from '../validate'

/** A group that waits for pages or for its turn, or that has begun. */
export interface QueuedGroup {
  /** Tokens of the common block, to be computed. */
  readonly prompt: Int32Array
  /** How many workers it begins with. */
  readonly workers: number
  /** Tokens that each of them may write; Infinity: no bound but its pages. */
  readonly maxTokens: number
  /** Its budget. */
  readonly pages: number
  /** `RunOptions.priority`. */
  readonly priority: number
}

/** An order of admission. Without state of its own, so that schedulers may share one. */
export interface OrderPolicy {
  /** For messages and metrics. */
  readonly name: string
  /**
   * The groups that may begin now, the first first. `waiting` is in order of arrival; a group that is chosen and finds no
   * pages holds up those behind it, so that nobody waits for ever.
   */
  choose(waiting: readonly QueuedGroup[], running: readonly QueuedGroup[]): readonly QueuedGroup[]
}

/**
 * First come, first served, those of a higher priority before the others. A group joins the steps of those under way as
 * soon as it has its pages, and leaves them when it ends (iteration-level scheduling: Orca, Yu et al., OSDI 2022).
 */
export function firstCome(): OrderPolicy {
  return { name: 'first-come', choose: (waiting) => byPriority(waiting) }
}

/** Options of `multiBin`. */
export interface MultiBinOptions {
  /** Tokens that a group will write, or anything that grows with them. */
  predictLength: (group: QueuedGroup) => number
  /** Bins, k, at least 1. */
  bins: number
  /** Groups of a batch, B, at least 1. */
  batch: number
  /** Predictions below and above count as these. */
  shortest: number
  /** See `shortest`. */
  longest: number
}

const MULTI_BIN_KEYS = optionKeys<MultiBinOptions>()({
  predictLength: true,
  bins: true,
  batch: true,
  shortest: true,
  longest: true,
})

/**
 * Multi-bin batching (Guldogan et al., "Multi-Bin Batching for Increasing LLM Inference Throughput", arXiv 2412.04504):
 * groups of about the same length begin together, B at a time, and the next ones begin when all of them have ended. For
 * devices and layouts that want batches of one shape; where groups may come and go between steps, `firstCome` wastes
 * nothing.
 *
 * A batch takes as long as its longest group. Of lengths spread evenly over [a, b], cut into k bins of one width, B of one
 * bin take on average
 *
 *     E[T_k] = (a + b) / 2 + (b - a) / (2 k) * (B - 1) / (B + 1)
 *
 * and the throughput B / E[T_k] grows with k towards 2 B / (a + b), that of a batch in which nobody waits for another.
 * The paper waits for a full bin; here, where no bin is full, the bin of whoever has waited longest begins, so that the
 * last groups of a day do not wait for the next day.
 *
 * Throws HOGWILD_INVALID_ARGUMENT.
 */
export function multiBin(options: MultiBinOptions): OrderPolicy {
  options = checkOptions(options, 'options', MULTI_BIN_KEYS)
  const { predictLength } = options
  if (typeof predictLength !== 'function') {
    throw invalid('options.predictLength', 'a function', predictLength)
  }
  const bins = checkInteger(options.bins, 'options.bins', 1)
  const batch = checkInteger(options.batch, 'options.batch', 1)
  const finite = (x: number) => Number.isFinite(x)
  const shortest = checkNumber(options.shortest, 'options.shortest', 'a finite number', finite)
  const longest = checkNumber(
    options.longest,
    'options.longest',
    'a finite number above options.shortest',
    (x) => finite(x) && x > shortest,
  )
  const binOf = (group: QueuedGroup): number => {
    const length = checkNumber(
      predictLength(group),
      'the result of predictLength',
      'a finite number',
      finite,
    )
    const place = Math.floor(((length - shortest) / (longest - shortest)) * bins)
    return Math.min(Math.max(place, 0), bins - 1)
  }
  return {
    name: 'multi-bin',
    choose(waiting, running) {
      if (running.length > 0) return []
      const filled = new Map<number, QueuedGroup[]>()
      for (const group of byPriority(waiting)) {
        const bin = binOf(group)
        const groups = filled.get(bin) ?? []
        filled.set(bin, [...groups, group])
        if (groups.length + 1 === batch) return [...groups, group]
      }
      const [oldest = []] = filled.values()
      return oldest
    },
  }
}

/** Stable: equal ones stay in order of arrival. */
function byPriority(groups: readonly QueuedGroup[]): QueuedGroup[] {
  return [...groups].sort((one, other) => other.priority - one.priority)
}

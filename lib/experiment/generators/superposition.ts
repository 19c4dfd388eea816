// Prompts whose examples mix several tasks, for the question which of them a model goes on with (task superposition,
// arXiv 2410.05603).

import { random, sample } from '../random'

const TASKS = {
  copy: (word: string) => word,
  reverse: (word: string) => [...word].reverse().join(''),
  upper: (word: string) => word.toUpperCase(),
  first: (word: string) => word.slice(0, 1),
  length: (word: string) => String(word.length),
} as const

export type TaskName = keyof typeof TASKS
export const TASK_NAMES = Object.keys(TASKS) as TaskName[]

export interface SuperpositionOptions {
  /** Items. */
  count: number
  seed: number
  /** Examples in a prompt. */
  examples: number
  /** Weights of the tasks; each gets its share of the examples, rounded by largest remainders. */
  mixture: Readonly<Partial<Record<TaskName, number>>>
}

export interface SuperpositionItem {
  [field: string]: unknown
  id: string
  /** A line 'word -> output' for each example, in random order. */
  examples: string
  /** The word whose output is asked for. */
  query: string
  /** The output of each task. */
  answer: Record<string, string>
}

const WORDS = [
  ...['anchor', 'basket', 'candle', 'dragon', 'engine', 'forest', 'garden', 'hammer', 'island'],
  ...['jacket', 'kitten', 'lemon', 'marble', 'needle', 'oyster', 'planet', 'quiver', 'ribbon'],
  ...['saddle', 'timber', 'uncle', 'velvet', 'window', 'yellow', 'bridge', 'copper', 'desert'],
]
export const MAX_EXAMPLES = WORDS.length - 1

/** How many of `total` each weight gets: rounded down, the rest to the largest remainders, earlier ones first. */
export function apportion(weights: readonly number[], total: number): number[] {
  const sum = weights.reduce((a, b) => a + b, 0)
  const exact = weights.map((weight) => (weight / sum) * total)
  const counts = exact.map(Math.floor)
  const rest = total - counts.reduce((a, b) => a + b, 0)
  const byRemainder = exact
    .map((share, i) => ({ i, remainder: share - (counts[i] as number) }))
    .sort((one, other) => other.remainder - one.remainder || one.i - other.i)
  for (const { i } of byRemainder.slice(0, rest)) counts[i] = (counts[i] as number) + 1
  return counts
}

/** The same items for the same options, on every machine. */
export function superpositionItems(options: SuperpositionOptions): SuperpositionItem[] {
  const { count, seed, examples, mixture } = options
  const next = random(seed)
  const tasks = Object.keys(mixture) as TaskName[]
  const counts = apportion(
    tasks.map((task) => mixture[task] ?? 0),
    examples,
  )
  const plan = tasks.flatMap((task, i) => new Array<TaskName>(counts[i] as number).fill(task))
  return Array.from({ length: count }, (_, index) => {
    const [query = '', ...words] = sample(WORDS, examples + 1, next)
    const order = sample(plan, plan.length, next)
    return {
      id: `superposition-${seed}-${index}`,
      examples: words
        .map((word, i) => `${word} -> ${TASKS[order[i] as TaskName](word)}`)
        .join('\n'),
      query,
      answer: Object.fromEntries(tasks.map((task) => [task, TASKS[task](query)])),
    }
  })
}

// The same list by one, two and four workers, and by four that do not see each other.

import { median } from '../median'
import { formatTable } from '../table'
import { type DemoTask, score, WORKER_NAMES } from './task'
import { type DemoModel, type FinishedTask, finishTask } from './team'

export interface RaceRun {
  workers: number
  shared: boolean
  /** Until every worker had halted. */
  steps: number
  /** Until every item had an answer; null if one never got it. */
  steps_until_answered: number | null
  tokens: number
  done_twice: number
  undone: number
  right: number
  items: number
  /** Median of five runs. */
  milliseconds: number
}

const ENTRIES = [
  { workers: 1, shared: true },
  { workers: 2, shared: true },
  { workers: 4, shared: true },
  { workers: 4, shared: false },
]

// Greedy decoding writes the same tokens each time; only the time varies.
const ROUNDS = 5

export async function race(demo: DemoModel, task: DemoTask): Promise<RaceRun[]> {
  // A first run, not counted, brings the weights into the processor's caches.
  await finishTask(demo, task, WORKER_NAMES, true)
  const entries = ENTRIES.map((entry) => ({ ...entry, results: [] as FinishedTask[] }))
  for (let round = 0; round < ROUNDS; round++) {
    for (const { workers, shared, results } of entries) {
      results.push(await finishTask(demo, task, WORKER_NAMES.slice(0, workers), shared))
    }
  }
  return entries.map(({ workers, shared, results }) => {
    const result = score(task, results[0]?.blocks ?? new Map())
    return {
      workers,
      shared,
      steps: result.steps,
      steps_until_answered: result.answeredIn ?? null,
      tokens: result.tokens,
      done_twice: result.twice,
      undone: result.undone,
      right: result.right,
      items: result.items,
      milliseconds: Number(median(results.map(({ milliseconds }) => milliseconds)).toFixed(1)),
    }
  })
}

/** A table and what it says. */
export function formatRace(runs: readonly RaceRun[]): { table: string[]; summary: string[] } {
  const header = [
    'workers',
    'shared',
    'steps',
    'tokens',
    'done twice',
    'undone',
    'right',
    'wall time',
  ]
  const rows = runs.map((run) => [
    String(run.workers),
    run.workers === 1 ? '-' : run.shared ? 'yes' : 'no',
    String(run.steps),
    String(run.tokens),
    String(run.done_twice),
    String(run.undone),
    `${run.right}/${run.items}`,
    `${run.milliseconds.toFixed(0)} ms`,
  ])
  const stepsOf = (workers: number, shared: boolean) =>
    runs.find((run) => run.workers === workers && run.shared === shared)?.steps ?? Number.NaN
  const ratio = (stepsOf(1, true) / stepsOf(4, true)).toFixed(1)
  const summary = [
    'steps: until all workers had stopped, one token of each worker per step',
    `4 workers need ${ratio} times fewer steps than one: each sees what the others write`,
  ]
  return { table: formatTable(header, rows), summary }
}

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

interface Column {
  title: string
  cell: (run: RaceRun) => string
  /** Whether it stands also where there is little room. */
  isKey?: boolean
  /** Whether it is of this machine. */
  isMeasured?: boolean
}

const COLUMNS: readonly Column[] = [
  { title: 'workers', cell: (run) => String(run.workers), isKey: true },
  {
    title: 'shared',
    cell: (run) => (run.workers === 1 ? '-' : run.shared ? 'yes' : 'no'),
    isKey: true,
  },
  { title: 'steps', cell: (run) => String(run.steps), isKey: true },
  { title: 'tokens', cell: (run) => String(run.tokens) },
  { title: 'done twice', cell: (run) => String(run.done_twice) },
  { title: 'undone', cell: (run) => String(run.undone) },
  { title: 'right', cell: (run) => `${run.right}/${run.items}`, isKey: true },
  {
    title: 'wall time',
    cell: (run) => `${run.milliseconds.toFixed(0)} ms`,
    isKey: true,
    isMeasured: true,
  },
]

/** A table of at most `width` columns, where that is possible, and what it says; `measured`: what is of this machine too. */
export function formatRace(
  runs: readonly RaceRun[],
  width: number,
  measured = true,
): { table: string[]; summary: string[] } {
  const tableOf = (columns: readonly Column[]) =>
    formatTable(
      columns.map(({ title }) => title),
      runs.map((run) => columns.map(({ cell }) => cell(run))),
    )
  const columns = COLUMNS.filter(({ isMeasured }) => measured || !isMeasured)
  const whole = tableOf(columns)
  const fits = whole.every((line) => line.length <= width)
  const stepsOf = (workers: number, shared: boolean) =>
    runs.find((run) => run.workers === workers && run.shared === shared)?.steps ?? Number.NaN
  const ratio = (stepsOf(1, true) / stepsOf(4, true)).toFixed(1)
  const summary = [
    'steps: until all workers had stopped, one token of each worker per step',
    `4 workers need ${ratio} times fewer steps than one: each sees what the others write`,
  ]
  return { table: fits ? whole : tableOf(columns.filter(({ isKey }) => isKey)), summary }
}

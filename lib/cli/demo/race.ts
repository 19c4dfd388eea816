// The same list by one, two and four workers, and by four that do not see each other.

import { formatTable } from '../table'
import { type DemoTask, score, WORKER_NAMES } from './task'
import { type DemoModel, finishTask } from './team'

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
  milliseconds: number
}

const ENTRIES = [
  { workers: 1, shared: true },
  { workers: 2, shared: true },
  { workers: 4, shared: true },
  { workers: 4, shared: false },
]

export async function race(demo: DemoModel, task: DemoTask): Promise<RaceRun[]> {
  // A first run, not counted, brings the weights into the processor's caches.
  await finishTask(demo, task, WORKER_NAMES, true)
  const runs: RaceRun[] = []
  for (const { workers, shared } of ENTRIES) {
    const names = WORKER_NAMES.slice(0, workers)
    const { blocks, milliseconds } = await finishTask(demo, task, names, shared)
    const result = score(task, blocks)
    runs.push({
      workers,
      shared,
      steps: result.steps,
      steps_until_answered: result.answeredIn ?? null,
      tokens: result.tokens,
      done_twice: result.twice,
      undone: result.undone,
      right: result.right,
      items: result.items,
      milliseconds: Number(milliseconds.toFixed(1)),
    })
  }
  return runs
}

export function formatRace(runs: readonly RaceRun[]): string[] {
  const header = [
    'workers',
    'shared',
    'steps until all stopped',
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
  return formatTable(header, rows)
}

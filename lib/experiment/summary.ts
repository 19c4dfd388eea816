// What the cells of an experiment say together: a row for each setting and budget.

import type { Setting } from './cells'
import { listSettings } from './cells'
import { formatCsv } from './csv'
import type { CellResult, Results } from './results-file'
import type { Point } from './run-cell'
import { mean, wilson } from './statistics'

/** A setting at a budget: means over the items, of each of which the seeds are averaged first. */
export interface SummaryRow extends Setting {
  /** In sequential steps. */
  budget: number
  items: number
  /** Mean score, and its 95 % Wilson interval for that many items. */
  accuracy: number
  low: number
  high: number
  /** Share of the cells in which a worker had given an answer. */
  answered: number
  steps: number
  tokens: number
  /** Means of what graders gave beside the score, over the cells that have it. */
  metrics: Record<string, number>
}

/** The same cells give the same rows, to the bit, in whichever order they were computed. */
export function summarise({ head, cells }: Results): SummaryRow[] {
  const inOrder = [...cells].sort((one, other) => one.cell - other.cell)
  return listSettings(head.definition).flatMap((setting) => {
    const own = inOrder.filter((cell) => isOf(cell, setting))
    return head.definition.budgets.flatMap((budget, at) =>
      own.length === 0 ? [] : [rowOf(setting, budget, own, (cell) => cell.points[at] as Point)],
    )
  })
}

function isOf(cell: CellResult, setting: Setting): boolean {
  const keys = Object.keys(setting) as (keyof Setting)[]
  return keys.every((key) => cell[key] === setting[key])
}

function rowOf(
  setting: Setting,
  budget: number,
  cells: readonly CellResult[],
  pointOf: (cell: CellResult) => Point,
): SummaryRow {
  const byItem = new Map<number, Point[]>()
  for (const cell of cells) {
    const points = byItem.get(cell.item) ?? []
    points.push(pointOf(cell))
    byItem.set(cell.item, points)
  }
  const perItem = (value: (point: Point) => number) =>
    mean([...byItem.values()].map((points) => mean(points.map(value))))
  const accuracy = perItem(({ score }) => score)
  const items = byItem.size
  return {
    ...setting,
    ...{ budget, items, accuracy, ...wilson(accuracy, items) },
    answered: perItem(({ answer, early }) => (answer !== null && !early ? 1 : 0)),
    steps: perItem(({ steps }) => steps),
    tokens: perItem(({ tokens }) => tokens),
    metrics: meansOf(cells.map((cell) => pointOf(cell).metrics ?? {})),
  }
}

function meansOf(metrics: readonly Record<string, number>[]): Record<string, number> {
  const names = [...new Set(metrics.flatMap((each) => Object.keys(each)))]
  return Object.fromEntries(
    names.map((name) => {
      const values = metrics.flatMap((each) => (name in each ? [each[name] as number] : []))
      return [name, mean(values)]
    }),
  )
}

const COLUMNS = [
  ...['model', 'scheme', 'layout', 'workers', 'share', 'budget', 'items'],
  ...['accuracy', 'low', 'high', 'answered', 'steps', 'tokens'],
] as const

/** As CSV; metrics are the last columns. */
export function summaryCsv(rows: readonly SummaryRow[]): string {
  const metrics = metricNames(rows)
  const lines = rows.map((row) => [
    ...COLUMNS.map((column) => row[column as keyof SummaryRow]),
    ...metrics.map((name) => row.metrics[name]),
  ])
  return formatCsv([[...COLUMNS, ...metrics], ...lines])
}

export function metricNames(rows: readonly SummaryRow[]): string[] {
  return [...new Set(rows.flatMap(({ metrics }) => Object.keys(metrics)))]
}

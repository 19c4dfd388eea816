// Budget curves: accuracy, and tokens of all workers, against sequential steps.

import { linePlot, roundUp } from '../../plots/lines'
import { fileName, type Plot, type Series } from '../../plots/plot'
import type { SummaryRow } from '../summary'
import {
  allSeries,
  type Dimension,
  describePanel,
  firstVarying,
  panelsOf,
  placesOf,
} from './series'

export interface CurveOptions {
  /** Of the experiment. */
  name: string
  /** What colours tell apart; default: the first of workers, layout, scheme and model in which settings differ. */
  by?: Dimension | undefined
}

/** For each panel a plot of either kind. */
export function curvePlots(summary: readonly SummaryRow[], { name, by }: CurveOptions): Plot[] {
  const places = placesOf(summary)
  const dimension = by ?? firstVarying(places, ['workers', 'layout', 'scheme', 'model'])
  const colors = allSeries(places, dimension)
  const budgets = places.map(({ budget }) => budget)
  const x = {
    ...{ field: 'budget', title: 'sequential steps', labels: 'number' as const },
    domain: [0, Math.max(...budgets)] as const,
  }
  const most = roundUp(Math.max(1, ...places.map(({ tokens }) => tokens)))
  return panelsOf(places, dimension).flatMap(({ values, rows }) => {
    const series = seriesOf(rows, colors)
    const items = Math.max(...rows.map((row) => row.items))
    const common = { x, series, subtitle: [[name, ...describePanel(values)].join(' · ')] }
    return [
      linePlot({
        ...common,
        name: fileName('accuracy', ...values),
        title: 'Accuracy against sequential steps',
        y: {
          ...{ field: 'accuracy', title: `accuracy, with 95 % intervals (${items} items)` },
          ...{ labels: 'percent', domain: [0, 1] },
        },
        interval: 'band',
        rows: rows.map(({ series, budget, accuracy, low, high }) => ({
          ...{ series, budget, accuracy, low, high },
        })),
      }),
      linePlot({
        ...common,
        name: fileName('tokens', ...values),
        title: 'Tokens against sequential steps',
        y: { field: 'tokens', title: 'tokens of all workers', labels: 'number', domain: [0, most] },
        rows: rows.map(({ series, budget, tokens }) => ({ series, budget, tokens })),
      }),
    ]
  })
}

/** Those that are there. */
export function seriesOf(rows: readonly { series: string }[], all: readonly Series[]): Series[] {
  return all.filter(({ name }) => rows.some(({ series }) => series === name))
}

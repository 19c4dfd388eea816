// How many times fewer sequential steps a team needs than one worker, until its answers are nearly as good.

import { linePlot, roundUp } from '../../plots/lines'
import { fileName, type Plot } from '../../plots/plot'
import { listSettings, type Setting } from '../cells'
import type { CellResult, Results } from '../results-file'
import { type Interval, mean, resampled } from '../statistics'
import { summarise } from '../summary'
import { seriesOf } from './curves'
import {
  allSeries,
  type Dimension,
  describePanel,
  firstVarying,
  panelsOf,
  placesOf,
} from './series'

/** The share of one worker's last accuracy that counts as nearly as good. */
const SHARE = 0.9

/** An item at a budget. */
interface Sample {
  score: number
  steps: number
}

/** Of each item, by its index, a sample for each budget; the seeds are averaged. */
type Samples = ReadonlyMap<number, readonly Sample[]>

/** Of a team. */
export interface SpeedUp extends Setting, Interval {
  /** Over one worker of the same model and scheme; 0: the team does not get there. */
  speedUp: number
  /** Items that both have been given. */
  items: number
}

/**
 * The speed-up of each team for which there is a worker alone to compare with, and its 95 % interval: percentiles of it over
 * items drawn with replacement, the same items for both.
 */
export function speedUps({ head, cells }: Results): SpeedUp[] {
  const settings = listSettings(head.definition)
  const samples = new Map(settings.map((setting) => [setting, samplesOf(cells, setting)]))
  return settings.flatMap((setting) => {
    const alone = settings.find(
      ({ workers, model, scheme }) =>
        workers === 1 && model === setting.model && scheme === setting.scheme,
    )
    if (alone === undefined || setting.workers === 1) return []
    const [own, base] = [samples.get(setting), samples.get(alone)] as [Samples, Samples]
    const both = [...own.keys()].filter((item) => base.has(item)).sort((a, b) => a - b)
    const of = (samples: Samples) => both.map((item) => samples.get(item) as readonly Sample[])
    const [ofOne, ofTeam] = [of(base), of(own)]
    const ratio = (places: readonly number[]) => ratioOf(ofOne, ofTeam, places)
    const speedUp = ratio([...both.keys()])
    // (not a number: there is no item, or one worker gets nothing right)
    if (Number.isNaN(speedUp)) return []
    return [{ ...setting, speedUp, items: both.length, ...resampled(both.length, ratio) }]
  })
}

function samplesOf(cells: readonly CellResult[], setting: Setting): Samples {
  const keys = Object.keys(setting) as (keyof Setting)[]
  const own = cells
    .filter((cell) => keys.every((key) => cell[key] === setting[key]))
    .sort((one, other) => one.cell - other.cell)
  const items = [...new Set(own.map(({ item }) => item))]
  return new Map(
    items.map((item) => [
      item,
      curveOf(own.filter((cell) => cell.item === item).map(({ points }) => points)),
    ]),
  )
}

/** At each budget the mean of the lists at `places`, default all; a place may come twice. */
function curveOf(
  lists: readonly (readonly Sample[])[],
  places: readonly number[] = [...lists.keys()],
): Sample[] {
  return (lists[0] ?? []).map((_, at) => {
    let [score, steps] = [0, 0]
    for (const place of places) {
      const sample = lists[place]?.[at] as Sample
      score += sample.score
      steps += sample.steps
    }
    return { score: score / places.length, steps: steps / places.length }
  })
}

/** Of the items at `places`. NaN where one worker gets nothing right, 0 where the team does not get there. */
function ratioOf(
  ofOne: readonly (readonly Sample[])[],
  ofTeam: readonly (readonly Sample[])[],
  places: readonly number[],
): number {
  const alone = curveOf(ofOne, places)
  const target = SHARE * (alone.at(-1)?.score ?? 0)
  if (target === 0) return Number.NaN
  return stepsTo(target, alone) / stepsTo(target, curveOf(ofTeam, places))
}

/** Steps at which a score is first reached, on straight lines between budgets; Infinity: never. */
function stepsTo(score: number, curve: readonly Sample[]): number {
  let before: Sample = { score: 0, steps: 0 }
  for (const point of curve) {
    if (point.score >= score) {
      const part = (score - before.score) / (point.score - before.score)
      return before.steps + part * (point.steps - before.steps)
    }
    before = point
  }
  return Number.POSITIVE_INFINITY
}

export interface SpeedUpOptions {
  /** What colours tell apart; default: the first of layout, scheme and model in which settings differ. */
  by?: Exclude<Dimension, 'workers'> | undefined
}

/** A plot for each panel, of the teams that get there; none where there is no worker alone to compare with. */
export function speedUpPlots(results: Results, { by }: SpeedUpOptions): Plot[] {
  // Names and colours are those of all teams, also of the ones that do not get there.
  const all = placesOf(speedUps(results))
  const teams = all.filter(({ speedUp }) => speedUp > 0)
  if (teams.length === 0) return []
  const dimension = by ?? firstVarying(all, ['layout', 'scheme', 'model'])
  const colors = allSeries(all, dimension)
  const counts = [...new Set([1, ...teams.map(({ workers }) => workers)])].sort((a, b) => a - b)
  const most = counts.at(-1) as number
  const guide = guideOf(results, counts)
  const high = roundUp(Math.max(most, ...teams.map(({ high }) => high)))
  // The number of workers is the axis: no panel is of one of them.
  return panelsOf(
    teams.map((team) => ({ ...team, workers: 2, count: team.workers })),
    dimension,
  ).map(({ values, rows }) => {
    const series = seriesOf(rows, colors)
    const ofTeams = rows.map(({ series, count, speedUp, low, high }) => ({
      ...{ series, workers: count, speedup: speedUp, low, high },
    }))
    const ofOne = series.map(({ name }) => ({
      ...{ series: name, workers: 1, speedup: 1, low: 1, high: 1 },
    }))
    return linePlot({
      name: fileName('speedup', ...values),
      title: 'Speed-up over one worker',
      subtitle: [[results.head.name, ...describePanel(values)].join(' · ')],
      x: {
        field: 'workers',
        title: 'workers',
        domain: [1, most],
        values: counts,
        labels: 'number',
      },
      y: {
        ...{ field: 'speedup', labels: 'number', domain: [0, high] },
        title: `times fewer steps, to ${100 * SHARE} % of one worker's accuracy`,
      },
      ...{ series, guide, interval: 'whiskers' },
      rows: [...ofOne, ...ofTeams],
    })
  })
}

/**
 * Each worker does its part; or, where a grader says what is possible for an item (a critical path limits it), the mean of
 * its metric `ideal`.
 */
function guideOf(results: Results, counts: readonly number[]) {
  const rows = summarise(results)
  const points = counts.map((count) => {
    const ideals = rows.flatMap(({ workers, metrics }) =>
      workers === count && metrics.ideal !== undefined ? [metrics.ideal] : [],
    )
    return { x: count, y: ideals.length > 0 ? mean(ideals) : count }
  })
  return { name: 'ideal', points }
}

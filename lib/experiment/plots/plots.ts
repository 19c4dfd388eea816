// The plots of an experiment.

import type { Plot } from '../../plots/plot'
import type { Results } from '../results-file'
import { summarise } from '../summary'
import { curvePlots } from './curves'
import type { Dimension } from './series'
import { speedUpPlots } from './speedup'

export interface PlotOptions {
  /** What colours tell apart; default: the first of workers, layout, scheme and model in which settings differ. */
  by?: Dimension | undefined
}

/**
 * Accuracy and tokens against sequential steps and, where one worker alone was run too, the speed-up against workers. The
 * same results give the same plots.
 */
export function experimentPlots(results: Results, { by }: PlotOptions = {}): Plot[] {
  return [
    ...curvePlots(summarise(results), { name: results.head.name, by }),
    ...speedUpPlots(results, { by: by === 'workers' ? undefined : by }),
  ]
}

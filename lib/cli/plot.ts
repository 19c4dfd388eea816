// `hogwild experiment plot` and `hogwild bench plot`: pictures of results that are on disk.

import { stat } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { HogwildError } from '../errors'
import { experimentPlots } from '../experiment/plots/plots'
import type { Dimension } from '../experiment/plots/series'
import { type Results, readResults } from '../experiment/results-file'
import { benchmarkPlots, readBenchmarks } from '../plots/benchmarks'
import type { Plot } from '../plots/plot'
import { type WritePlotsOptions, writePlots } from '../plots/write'
import { escapeUnsafe } from '../printable'
import { colors, print, printJson } from './terminal'

export interface PlotCommandOptions extends WritePlotsOptions {
  out?: string
  json?: boolean
}

export async function plotExperiment(
  path: string,
  { by, ...options }: PlotCommandOptions & { by?: Dimension },
): Promise<void> {
  const file = (await isFolder(path)) ? join(path, 'results.jsonl') : path
  const results = await readResults(file)
  if (results.cells.length === 0) {
    throw new HogwildError(`${file} has no finished cells`, 'HOGWILD_INVALID_ARGUMENT')
  }
  await draw(experimentPlots(results, { by }), options.out ?? join(dirname(file), 'plots'), options)
  const { cells, head } = results
  if (!options.json && cells.length < head.cells) {
    print(colors.dim(`of ${cells.length} of ${head.cells} cells: the others have not been run`))
  }
}

export async function plotBenchmarks(
  paths: readonly string[],
  options: PlotCommandOptions,
): Promise<void> {
  const benchmarks = await readBenchmarks(paths)
  const beside = join(dirname(benchmarks[0]?.path as string), 'plots')
  await draw(benchmarks.flatMap(benchmarkPlots), options.out ?? beside, options)
}

async function draw(
  plots: readonly Plot[],
  out: string,
  { png, json }: PlotCommandOptions,
): Promise<void> {
  const drawings = await writePlots(plots, out, { png })
  if (json) printJson({ out, drawings })
  else print(escapeUnsafe(placeOf(drawings, out)))
}

function placeOf(drawings: readonly string[], folder: string): string {
  const { length } = drawings.filter((name) => name.endsWith('.svg'))
  return `${length === 1 ? '1 plot is' : `${length} plots are`} in ${folder}`
}

/**
 * The plots of results that have just been written, in OUT/plots, and where they are. Without the packages that draw their
 * data is there, which is said.
 */
export async function plotResults(results: Results, out: string): Promise<string> {
  const folder = join(out, 'plots')
  try {
    const drawings = await writePlots(experimentPlots(results), folder)
    return placeOf(drawings, folder)
  } catch (error) {
    if ((error as HogwildError).code !== 'HOGWILD_UNSUPPORTED') throw error
    return `the data of plots, as .csv and .vl.json, are in ${folder}; ${(error as Error).message}`
  }
}

async function isFolder(path: string): Promise<boolean> {
  return (await stat(path).catch(() => undefined))?.isDirectory() ?? false
}

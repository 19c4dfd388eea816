// `hogwild experiment`: runs the cells of an experiment and tells what they say (docs/experiments.md).

import type { Shard } from '../experiment/cells'
import { loadExperiment } from '../experiment/definition'
import type { Results } from '../experiment/results-file'
import { mergeResults, runExperiment, writeSummary } from '../experiment/run'
import { metricNames, type SummaryRow } from '../experiment/summary'
import type { DeviceName } from '../index'
import { escapeUnsafe } from '../printable'
import { onEnd } from './clean-up'
import { findWithProgress, loadWithProgress } from './model'
import { packageVersion } from './package'
import { plotResults } from './plot'
import { type ShowProgress, withProgress } from './progress'
import { formatTable } from './table'
import { colors, print, printJson } from './terminal'

export interface ExperimentCommandOptions {
  out?: string
  shard?: Shard
  traces?: boolean
  device: DeviceName
  threads?: number
  quiet?: boolean
  json?: boolean
}

export async function runExperimentFile(
  path: string,
  options: ExperimentCommandOptions,
): Promise<void> {
  const { shard, traces, device, threads, quiet, json } = options
  const loaded = await loadExperiment(path)
  const out = options.out ?? path.replace(/\.[^./\\]+$/, '.results')
  const silence = { quiet: quiet ?? false, json: json ?? false }
  const label = shard === undefined ? 'experiment' : `shard ${shard.index}/${shard.count}`
  const forget = onEnd(() => {
    if (quiet || json) return
    const lineBreak = process.stderr.isTTY ? '\n' : ''
    process.stderr.write(
      `${lineBreak}${label}: cut. Finished cells are in ${escapeUnsafe(out)}; the same command goes on\n`,
    )
  })
  const results = await withProgress(label, 'cells', quiet || json, (show: ShowProgress) =>
    runExperiment(loaded, {
      ...{ out, shard, traces, version: packageVersion, onProgress: show },
      findModel: (model) => findWithProgress(model, silence),
      loadModel: (model, { dtype, ignoreFields }) =>
        loadWithProgress(model, device, {
          ...{ dtype, ignoreField: [...ignoreFields], ...silence },
          ...(threads !== undefined && { threads }),
        }),
    }),
  ).finally(forget)
  if (shard === undefined) await tell(results, out, false, json)
  else if (json) printJson({ shard, cells: results.cells.length, of: results.head.cells, out })
  else {
    const { cells } = results
    print(`${label}: ${cells.length} of ${results.head.cells} cells, in ${escapeUnsafe(out)}`)
  }
}

export async function mergeExperiment(
  paths: readonly string[],
  { out, json }: { out: string; json?: boolean },
): Promise<void> {
  await tell(await mergeResults(paths), out, true, json)
}

async function tell(
  results: Results,
  out: string,
  whole: boolean,
  json: boolean | undefined,
): Promise<void> {
  const rows = await writeSummary(results, out, whole)
  const plots = await plotResults(results, out)
  if (json) {
    printJson(rows)
    return
  }
  for (const line of formatTable(HEADER.concat(metricNames(rows)), cellsOf(rows))) {
    print(escapeUnsafe(line))
  }
  const { length } = results.cells
  const count = `${length} cell${length === 1 ? '' : 's'}`
  print(colors.dim(`95 %: Wilson interval of accuracy over items · ${count}`))
  print(colors.dim(`results.jsonl, summary.csv and summary.json are in ${escapeUnsafe(out)}`))
  print(colors.dim(escapeUnsafe(plots)))
}

const HEADER = [
  ...['model', 'scheme', 'layout', 'workers', 'budget', 'accuracy', '95 %'],
  ...['answered', 'steps', 'tokens'],
]

function cellsOf(rows: readonly SummaryRow[]): string[][] {
  const metrics = metricNames(rows)
  const percent = (share: number) => (100 * share).toFixed(1)
  return rows.map((row) => [
    ...[row.model, row.scheme, row.layout ?? 'not shared', `${row.workers}`, `${row.budget}`],
    ...[`${percent(row.accuracy)} %`, `${percent(row.low)} – ${percent(row.high)}`],
    ...[`${percent(row.answered)} %`, row.steps.toFixed(1), row.tokens.toFixed(1)],
    ...metrics.map((name) => row.metrics[name]?.toFixed(3) ?? ''),
  ])
}

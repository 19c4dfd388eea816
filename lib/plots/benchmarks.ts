// The plots of benchmarks: of `hogwild bench --json`, bench:peers, bench:attention, and of what a GPU has measured.

import { readdir, stat } from 'node:fs/promises'
import { basename, extname, join } from 'node:path'
import { HogwildError } from '../errors'
import { readInput, readJsonInput } from '../experiment/files'
import { checkArray, checkInteger, checkNumber, checkObject, checkString } from '../validate'
import { barPlot } from './bars'
import { linePlot, roundUp } from './lines'
import { fileName, type Plot, type Series } from './plot'
import { color, workerColors } from './theme'

type Fields = Record<string, unknown>

/** A file of results. */
export interface Benchmark {
  path: string
  /** Of its plots. */
  name: string
  kind: keyof typeof KINDS
  /** The report, or the lines of one. */
  reports: Fields[]
}

const KINDS = { peers: peersPlots, attention: attentionPlots, bench: benchPlots, gpu: gpuPlots }

/** Throws HOGWILD_INVALID_ARGUMENT for what lacks a figure that is drawn. */
export function benchmarkPlots(benchmark: Benchmark): Plot[] {
  return KINDS[benchmark.kind](benchmark)
}

/**
 * The results in files; of a folder, all that cards have measured (.jsonl of `scripts/gpu.sh`). Throws
 * HOGWILD_INVALID_ARGUMENT for other files, and for a folder without any or that is not there: nothing that was not measured is drawn.
 */
export async function readBenchmarks(paths: readonly string[]): Promise<Benchmark[]> {
  const files: string[] = []
  for (const path of paths) files.push(...(await filesOf(path)))
  return await Promise.all(files.map(readBenchmark))
}

async function filesOf(path: string): Promise<string[]> {
  const found = await stat(path).catch(() => undefined)
  const isFile = found === undefined ? extname(path) !== '' : !found.isDirectory()
  if (isFile) return [path]
  const all = found === undefined ? [] : await readdir(path)
  const names = all.filter((name) => name.endsWith('.jsonl')).sort()
  if (names.length > 0) return names.map((name) => join(path, name))
  throw nothing(
    `${path} has no results of a GPU (.jsonl of scripts/gpu.sh): none has been measured`,
  )
}

async function readBenchmark(path: string): Promise<Benchmark> {
  const name = basename(path, extname(path))
  if (extname(path) === '.jsonl') {
    const lines = (await readInput(path)).trim().split('\n')
    const reports = lines.map((line, i) => parseLine(line, `${path}, line ${i + 1}`))
    if (reports.some(({ part }) => part !== undefined)) return { path, name, kind: 'gpu', reports }
    throw unknownKind(path)
  }
  const report = checkObject(await readJsonInput(path), path)
  const [run] = checkArray(report.runs ?? [], `runs of ${path}`) as Fields[]
  const has = (field: string) => run?.[field] !== undefined
  if (report.formats !== undefined) return { path, name, kind: 'peers', reports: [report] }
  if (has('cached_tokens')) return { path, name, kind: 'attention', reports: [report] }
  if (has('read_share')) return { path, name, kind: 'bench', reports: [report] }
  throw unknownKind(path)
}

function parseLine(line: string, name: string): Fields {
  try {
    return checkObject(JSON.parse(line), name)
  } catch (cause) {
    const message = `${name}: expected an object in JSON`
    throw new HogwildError(message, 'HOGWILD_INVALID_ARGUMENT', { cause })
  }
}

function nothing(what: string): HogwildError {
  return new HogwildError(`${what}; there is nothing to draw`, 'HOGWILD_INVALID_ARGUMENT')
}

function unknownKind(path: string): HogwildError {
  const message = `${path} is none of the results that are drawn: those of \`hogwild bench --json\`, bench:peers, bench:attention, and the lines of scripts/gpu.sh`
  return new HogwildError(message, 'HOGWILD_INVALID_ARGUMENT')
}

const percent = (share: number) => `${Math.round(100 * share)} %`
/** The end of an axis of shares; what processors keep in their caches is read faster than memory. */
const wholeShare = (shares: readonly number[]) => roundUp(Math.max(1, ...shares))
const workersName = (count: number) => (count === 1 ? '1 worker' : `${count} workers`)

/** Reads what a report must have. */
interface Reader {
  text(key: string): string
  /** At least 1. */
  integer(key: string): number
  /** At least 0. */
  number(key: string): number
  object(key: string): Reader
  list(key: string): Reader[]
}

function fields(report: Fields, path: string): Reader {
  const nameOf = (key: string) => `"${key}" of ${path}`
  return {
    text: (key: string) => checkString(report[key], nameOf(key)),
    integer: (key: string) => checkInteger(report[key], nameOf(key), 1),
    number: (key: string) =>
      checkNumber(report[key], nameOf(key), 'a number of at least 0', (value) => value >= 0),
    object: (key: string) => fields(checkObject(report[key], nameOf(key)), path),
    list: (key: string) =>
      checkArray(report[key], nameOf(key)).map((one) =>
        fields(checkObject(one, nameOf(key)), path),
      ),
  }
}

const OURS: Series = { name: 'hogwild', color: color('blue') }
const THEIRS: Series = { name: 'node-llama-cpp', color: color('gray') }

/** Tokens per second of both engines. */
function peersPlots({ path, name, reports }: Benchmark): Plot[] {
  const report = fields(reports[0] as Fields, path)
  const formats = report.list('formats')
  const rows = formats.flatMap((format) => {
    const runs = format.list('runs')
    const counts = [...new Set(runs.map((run) => run.integer('workers')))]
    return counts.flatMap((count) => {
      const group = formats.length === 1 ? workersName(count) : `${format.text('format')}, ${count}`
      const [ours, theirs] = [fastest(runs, true, count), fastest(runs, false, count)]
      if (ours === undefined || theirs === undefined) return []
      const ratio = (ours.value / theirs.value).toFixed(1)
      return [
        { group, series: OURS.name, ...ours, label: `${ours.value.toFixed(0)}, ${ratio} x theirs` },
        { group, series: THEIRS.name, ...theirs, label: theirs.value.toFixed(0) },
      ]
    })
  })
  if (rows.length === 0) throw nothing(`${path} has no runs of both engines`)
  return [
    barPlot({
      ...{ name, title: 'Decoding beside node-llama-cpp', rows, whiskers: true, labels: 'number' },
      subtitle: [
        report.text('model'),
        `${report.object('machine').text('processor')}, ${report.integer('threads')} threads`,
      ],
      valueTitle: 'tokens per second, median with least and most',
      groupTitle: formats.length === 1 ? '' : 'format, workers',
      most: roundUp(Math.max(...rows.map(({ high }) => high))),
      series: [OURS, THEIRS],
    }),
  ]
}

/** Of the runs of an engine, with whichever of its settings; undefined: there is none. */
function fastest(runs: readonly Reader[], isOurs: boolean, count: number) {
  return runs
    .filter((run) => (run.text('engine') === OURS.name) === isOurs)
    .filter((run) => run.integer('workers') === count)
    .map((run) => run.object('decode_tokens_per_s'))
    .map((rate) => ({
      ...{ value: rate.number('median'), low: rate.number('min'), high: rate.number('max') },
    }))
    .sort((one, other) => other.value - one.value)[0]
}

/** Tokens per second, and the share of the bandwidth, with each number of workers. */
function benchPlots({ path, name, reports }: Benchmark): Plot[] {
  const report = fields(reports[0] as Fields, path)
  const runs = report.list('runs')
  const common = {
    subtitle: [
      `${report.text('model')}, ${report.text('dtype')}`,
      report.text('device') === 'cpu'
        ? `${report.text('device_name')}, ${report.integer('threads')} threads`
        : report.text('device_name'),
    ],
    ...{ groupTitle: '', series: [OURS] },
  }
  const rowsOf = (key: string, labelOf: (value: number) => string) =>
    runs.map((run) => ({
      ...{ group: workersName(run.integer('workers')), series: OURS.name },
      ...{ value: run.number(key), label: labelOf(run.number(key)) },
    }))
  const shares = rowsOf('read_share', percent)
  const rates = rowsOf('decode_tokens_per_s', (rate) => rate.toFixed(0))
  return [
    barPlot({
      ...common,
      ...{ name: `${name}.tokens`, title: 'Decoding', valueTitle: 'tokens per second' },
      ...{
        labels: 'number',
        most: roundUp(Math.max(...rates.map(({ value }) => value))),
        rows: rates,
      },
    }),
    barPlot({
      ...common,
      ...{ name: `${name}.bandwidth`, title: 'Share of the read bandwidth in a step' },
      valueTitle: `share of ${report.number('read_gb_per_s')} GB/s, measured in the same run`,
      ...{ labels: 'percent', most: wholeShare(shares.map(({ value }) => value)), rows: shares },
    }),
  ]
}

/** The share of a bandwidth against cached tokens, a plot for each shape of attention. */
interface Shares {
  name: string
  subtitle: readonly string[]
  /** Of the axis. */
  title: string
  runs: readonly { shape: string; tokens: number; workers: number; share: number }[]
  goal?: number
}

function sharePlots({ name, subtitle, title, runs, goal }: Shares): Plot[] {
  const counts = [...new Set(runs.map(({ workers }) => workers))].sort((a, b) => a - b)
  const colors = workerColors(counts)
  const most = wholeShare(runs.map(({ share }) => share))
  return [...new Set(runs.map(({ shape }) => shape))].map((shape) => {
    const own = runs.filter((run) => run.shape === shape)
    const tokens = [...new Set(own.map((run) => run.tokens))].sort((a, b) => a - b)
    const ends = [tokens[0] as number, tokens.at(-1) as number] as const
    return linePlot({
      ...{ name: `${name}.${fileName(shape)}`, title: 'Share of the bandwidth in attention' },
      subtitle: [shape, ...subtitle],
      x: {
        ...{ field: 'tokens', title: 'cached tokens', domain: ends },
        ...{ values: tokens, labels: 'binary', doubling: true },
      },
      y: { field: 'share', title, labels: 'percent', domain: [0, most] as const },
      series: counts
        .filter((count) => own.some(({ workers }) => workers === count))
        .map((count) => ({ name: workersName(count), color: colors.get(count) as string })),
      rows: own.map(({ workers, tokens, share }) => ({
        ...{ series: workersName(workers), tokens, share },
      })),
      ...(goal !== undefined && {
        guide: { name: 'goal', points: ends.map((x) => ({ x, y: goal })) },
      }),
    })
  })
}

function attentionPlots({ path, name, reports }: Benchmark): Plot[] {
  const report = fields(reports[0] as Fields, path)
  return sharePlots({
    name,
    subtitle: [`${report.text('dtype')} cache, ${report.integer('threads')} threads`],
    title: 'share of the read bandwidth',
    runs: report.list('runs').map((run) => ({
      shape: run.text('shape'),
      ...{ tokens: run.integer('cached_tokens'), workers: run.integer('workers') },
      share: run.number('read_share'),
    })),
  })
}

/** Goals of docs/performance.md. */
const GOALS = { copyShare: 0.9, stepOverBytes: 1.1 }

/** Of one card; of stages that were run again, the later lines. */
function gpuPlots({ path, name, reports }: Benchmark): Plot[] {
  const card = reports.findLast(({ stage }) => stage === 'card')
  const subtitle = [fields(card ?? {}, path).text('card')]
  const measured = (part: string, figure: string, keys: readonly string[]) => {
    const lines = reports.filter((line) => line.part === part && line[figure] !== undefined)
    const latest = new Map(
      lines.map((line) => [JSON.stringify(keys.map((key) => line[key])), line]),
    )
    return [...latest.values()].map((line) => fields(line, path))
  }
  const attention = measured('attention', 'us', ['heads', 'head_dim', 'tokens', 'workers'])
  const steps = measured('steps', 'ms', ['model', 'tokens', 'workers'])
  if (attention.length + steps.length === 0) {
    throw nothing(`${path} has no measured attention and no measured steps`)
  }
  return [
    ...sharePlots({
      ...{ name: `${name}.attention`, subtitle, title: 'share of the copy bandwidth' },
      goal: GOALS.copyShare,
      runs: attention.map((line) => ({
        shape: `${line.text('heads')} heads of ${line.integer('head_dim')}`,
        ...{ tokens: line.integer('tokens'), workers: line.integer('workers') },
        share: line.number('copy_share'),
      })),
    }),
    ...(steps.length > 0 ? [stepsPlot(`${name}.steps`, subtitle, steps)] : []),
  ]
}

function stepsPlot(name: string, subtitle: readonly string[], steps: readonly Reader[]): Plot {
  const rows = steps.map((line) => {
    const value = line.number('time_over_bytes_at_copy_bandwidth')
    const where = `${line.text('model')}, ${line.integer('tokens')}, ${line.integer('workers')}`
    return { group: where, series: OURS.name, value, label: `${value.toFixed(2)} x` }
  })
  return barPlot({
    ...{ name, subtitle, title: 'Whole decode steps', rows, series: [OURS], labels: 'number' },
    valueTitle: 'time / (bytes / copy bandwidth); the line: the goal',
    groupTitle: 'model, cached tokens, workers',
    goal: GOALS.stepOverBytes,
    most: roundUp(Math.max(GOALS.stepOverBytes, ...rows.map(({ value }) => value))),
  })
}

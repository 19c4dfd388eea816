// `hogwild bench`: workers share a prompt and each generates into its own block.

import { cpus } from 'node:os'
import { parseDevice } from '../device-name'
import {
  type CacheDtype,
  createDevice,
  type Device,
  type DeviceName,
  type Model,
  type OpProfile,
  viewOf,
} from '../index'
import { escapeUnsafe } from '../printable'
import { withRandomLlama } from './bench/random-llama'
import { median } from './median'
import { findWithProgress, loadWithProgress, type ModelOptions } from './model'
import { packageVersion } from './package'
import { pageSizeOf } from './page-size'
import { type ShowProgress, withProgress } from './progress'
import { formatTable } from './table'
import { print, printJson } from './terminal'

export interface BenchOptions extends ModelOptions {
  model?: string
  workers: number[]
  prompt: number
  generate: number
  repeat: number
  device: DeviceName
  cacheDtype?: CacheDtype
  profile?: boolean
}

interface Sample {
  prefillSeconds: number
  stepSeconds: number[]
  /** Of the cache: keys and values of all layers. */
  bytesPerToken: number
  cacheDtype: CacheDtype
  /** Of the steps; empty where no profile is wanted. */
  ops: OpProfile[]
}

type Report = Awaited<ReturnType<typeof measure>>

interface BenchRun {
  workers: number
  prefill_tokens_per_s: number
  decode_tokens_per_s: number
  step_ms: number
  /** Weights and the keys and values that any worker sees, each counted once, per second of a step. */
  gb_per_s: number
  /** Time of a step over that of one worker; null where one worker was not measured. */
  step_over_one: number | null
  /** gb_per_s over read_gb_per_s. */
  read_share: number
  profile?: OpShare[]
}

/** What an op takes of a step. */
interface OpShare {
  op: string
  calls_per_step: number
  ms_per_step: number
  /** Of the time of a step. */
  share: number
  gb_per_s: number
  read_share: number
}

/** Larger than the caches of processors, about the size of the random model. */
const BANDWIDTH_BUFFER = 256 * 2 ** 20
const RANDOM_MODEL = 'random Llama of 135 M parameters'

export async function bench(options: BenchOptions): Promise<void> {
  const report =
    options.model === undefined
      ? await withRandomLlama((folder) => benchFolder(folder, options))
      : await benchFolder(await findWithProgress(options.model, options), options)
  if (options.json) printJson(report)
  else printReport(report)
}

async function benchFolder(folder: string, options: BenchOptions) {
  const { threads, profile, quiet, json } = options
  using device = createDevice({ ...parseDevice(options.device), threads, profile })
  await using model = await loadWithProgress(folder, device, options)
  return await withProgress('measuring', 'runs', quiet || json, (show) =>
    measure(model, device, options, show),
  )
}

async function measure(model: Model, device: Device, options: BenchOptions, show: ShowProgress) {
  const { workers: counts, prompt, generate, repeat } = options
  const samples = new Map<number, Sample[]>(counts.map((count) => [count, []]))
  // The first run, not counted, brings the weights into memory.
  await generateTogether(model, 1, { ...options, generate: 4, profile: false })
  const bandwidths = [await device.readBandwidth(BANDWIDTH_BUFFER)]
  // All counts in turn, several times: a change of the machine's speed meets all of them.
  let done = 0
  for (let round = 0; round < repeat; round++) {
    for (const count of counts) {
      show(done++, repeat * counts.length)
      samples.get(count)?.push(await generateTogether(model, count, options))
    }
    bandwidths.push(await device.readBandwidth(BANDWIDTH_BUFFER))
  }
  const readBandwidth = median(bandwidths)
  const stepOf = (count: number) =>
    median((samples.get(count) ?? []).flatMap((sample) => sample.stepSeconds))
  const one = counts.includes(1) ? stepOf(1) : undefined
  const runs = [...samples].map(([workers, rounds]): BenchRun => {
    const step = stepOf(workers)
    const prefill = median(rounds.map((sample) => sample.prefillSeconds))
    // In the middle of the run, when each worker has written half of its tokens.
    const visibleTokens = prompt + (workers * generate) / 2
    const bytes = model.weightBytes + visibleTokens * (rounds[0]?.bytesPerToken ?? 0)
    const bytesPerSecond = bytes / step
    return {
      workers,
      prefill_tokens_per_s: round(prompt / prefill, 1),
      decode_tokens_per_s: round(workers / step, 1),
      step_ms: round(step * 1e3, 3),
      gb_per_s: round(bytesPerSecond / 1e9, 2),
      step_over_one: one === undefined ? null : round(step / one, 3),
      read_share: round(bytesPerSecond / readBandwidth, 3),
      ...(options.profile && { profile: profileOf(rounds, readBandwidth) }),
    }
  })
  const { type, name, simd, threads } = device.info
  return {
    runs,
    read_gb_per_s: round(readBandwidth / 1e9, 2),
    model: options.model ?? RANDOM_MODEL,
    dtype: Object.keys(model.weights).join(' + '),
    cache_dtype: samples.get(counts[0] as number)?.[0]?.cacheDtype,
    weight_bytes: model.weightBytes,
    prompt,
    generate,
    repeat,
    device: type,
    device_name: name,
    processor: cpus()[0]?.model.trim() ?? 'unknown',
    simd,
    threads,
    version: packageVersion,
    node: process.versions.node,
    date: new Date().toISOString().slice(0, 10),
  }
}

/** Ops over all steps; the last row is the time between ops: planning, and the way from JavaScript and back. */
function profileOf(samples: readonly Sample[], readBandwidth: number): OpShare[] {
  const steps = samples.flatMap((sample) => sample.stepSeconds)
  const total = sum(steps)
  const ops = samples.flatMap((sample) => sample.ops)
  const row = (op: string, calls: number, seconds: number, bytes: number): OpShare => ({
    op,
    calls_per_step: round(calls / steps.length, 1),
    ms_per_step: round((seconds / steps.length) * 1e3, 3),
    share: round(seconds / total, 4),
    gb_per_s: round(bytes / seconds / 1e9, 2),
    read_share: round(bytes / seconds / readBandwidth, 3),
  })
  const rows = [...new Set(ops.map(({ op }) => op))].map((name) => {
    const same = ops.filter(({ op }) => op === name)
    const total = (key: 'calls' | 'seconds' | 'bytes') => sum(same.map((op) => op[key]))
    return row(name, total('calls'), total('seconds'), total('bytes'))
  })
  rows.sort((one, other) => other.share - one.share)
  return [...rows, row('between ops', steps.length, total - sum(ops.map((op) => op.seconds)), 0)]
}

/** One prompt for all, then a step of all workers for each token. */
async function generateTogether(
  model: Model,
  count: number,
  { prompt: promptLength, generate: steps, profile, cacheDtype: dtype }: BenchOptions,
): Promise<Sample> {
  // Every block may end in a page that is partly empty.
  const partPages = (count + 1) * (await pageSizeOf(model))
  const cache = model.createCache({ capacity: promptLength + count * steps + partPages, dtype })
  try {
    const prompt = cache.createBlock()
    const blocks = Array.from({ length: count }, () => cache.createBlock())
    const { vocabSize } = model.config
    const tokens = Array.from({ length: promptLength }, (_, index) => (index * 7919) % vocabSize)
    const begin = performance.now()
    await model.prefill(prompt, tokens)
    const prefillSeconds = (performance.now() - begin) / 1e3
    const layout = { common: prompt, workers: blocks.map((own) => ({ own })) }
    const views = blocks.map((_, worker) => viewOf('contiguous', layout, worker))
    let last = blocks.map((_, worker) => worker % vocabSize)
    const stepSeconds: number[] = []
    if (profile) model.device.takeProfile()
    for (let step = 0; step < steps; step++) {
      const start = performance.now()
      const outputs = await model.step(
        views.map((view, worker) => ({ view: { blocks: view }, tokens: [last[worker] as number] })),
      )
      stepSeconds.push((performance.now() - start) / 1e3)
      last = outputs.map(({ token }) => token as number)
    }
    const { bytesPerPage, pageSize } = cache.stats
    const ops = profile ? model.device.takeProfile() : []
    const bytesPerToken = bytesPerPage / pageSize
    return { prefillSeconds, stepSeconds, bytesPerToken, cacheDtype: cache.shape.dtype, ops }
  } finally {
    await cache.close()
  }
}

function printReport(report: Report): void {
  print(
    `${escapeUnsafe(report.model)}, ${report.dtype}; prompt ${report.prompt}, generate ${report.generate}`,
  )
  print(`${escapeUnsafe(report.processor)}, ${report.threads} threads, ${report.simd}`)
  print(`reads ${report.read_gb_per_s} GB/s`)
  print()
  const header = [
    'workers',
    'prefill tok/s',
    'decode tok/s',
    'step ms',
    'GB/s',
    'of read',
    'step / one',
  ]
  const rows = report.runs.map((run) => [
    String(run.workers),
    run.prefill_tokens_per_s.toFixed(1),
    run.decode_tokens_per_s.toFixed(1),
    run.step_ms.toFixed(2),
    run.gb_per_s.toFixed(2),
    `${(100 * run.read_share).toFixed(0)} %`,
    run.step_over_one?.toFixed(2) ?? '-',
  ])
  for (const line of formatTable(header, rows)) print(line)
  for (const { workers, profile } of report.runs) {
    if (profile === undefined) continue
    print()
    print(`A step of ${workers === 1 ? 'one worker' : `${workers} workers`}, op by op`)
    const header = ['op', 'calls', 'ms', 'of step', 'GB/s', 'of read']
    const rows = profile.map((op) => [
      op.op,
      String(op.calls_per_step),
      op.ms_per_step.toFixed(2),
      `${(100 * op.share).toFixed(1)} %`,
      op.gb_per_s === 0 ? '-' : op.gb_per_s.toFixed(2),
      op.gb_per_s === 0 ? '-' : `${(100 * op.read_share).toFixed(0)} %`,
    ])
    for (const line of formatTable(header, rows)) print(line)
  }
}

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0)
}

function round(value: number, digits: number): number {
  return Number(value.toFixed(digits))
}

// `npm run bench:peers`: hogwild and node-llama-cpp on the same GGUF files, in alternating rounds, each measurement in a
// process of its own. Writes bench/results/peers-NAME.json and draws it in bench/results/plots, NAME that of the shape or of the
// model file.

import { execFile } from 'node:child_process'
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { basename, isAbsolute, join, relative } from 'node:path'
import { parseArgs, promisify } from 'node:util'
import { createDevice } from 'hogwild'
import { removedAfterwards } from '../../lib/cli/clean-up'
import { median } from '../../lib/cli/median'
import { formatTable } from '../../lib/cli/table'
import { benchmarkPlots, readBenchmarks } from '../../lib/plots/benchmarks'
import { writePlots } from '../../lib/plots/write'
import { machine, root, round, type Spread, spread } from '../machine'
import { installPeer, limitPeer, peerScript, peerVersion } from './peer'
import {
  BENCH_FORMATS,
  type BenchFormat,
  checkFormat,
  SHAPES,
  writeRandomGguf,
} from './random-gguf'
import type { Measurement, Task } from './task'

type Sample = Measurement & { engine: Engine; workers: number; round: number }

/**
 * Normalized mean squared error of the logits, above which the engines do not compute the same; where weights are
 * quantised, node-llama-cpp rounds activations to 8 bits.
 */
const MOST_NMSE = { plain: 1e-3, quantised: 5e-2 }
const BANDWIDTH_BUFFER = 2 ** 28

const { values } = parseArgs({
  options: {
    /** Of the random model: see SHAPES. */
    shape: { type: 'string', default: '0.6b' },
    /** Of its matrices: see BENCH_FORMATS. */
    format: { type: 'string', default: 'bf16,q8_0,q4_0,q4_k' },
    /** A GGUF file in place of a random model. */
    model: { type: 'string' },
    workers: { type: 'string', default: '1,2,4,8' },
    prompt: { type: 'string', default: '256' },
    generate: { type: 'string', default: '64' },
    threads: { type: 'string', default: '2' },
    /** avx2: neither engine uses more. */
    simd: { type: 'string' },
    rounds: { type: 'string', default: '5' },
    out: { type: 'string', default: 'bench/results' },
  },
})
const simd = values.simd === 'avx2' ? values.simd : undefined
if (values.simd !== simd) throw new Error('--simd: avx2')
// Of this process and those that it starts.
if (simd !== undefined) process.env.HOGWILD_SIMD = simd
const counts = values.workers.split(',').map(Number)
const [promptLength, generate, threads, rounds] = [
  values.prompt,
  values.generate,
  values.threads,
  values.rounds,
].map(Number) as [number, number, number, number]

/** What is measured. Flash attention is on in some cases and off in others the faster: both are run. */
const ENGINES = {
  hogwild: { script: join(__dirname, 'hogwild.js'), flashAttention: false },
  'node-llama-cpp, flash attention': {
    script: peerScript(simd),
    flashAttention: true,
  },
  'node-llama-cpp': { script: peerScript(simd), flashAttention: false },
}
type Engine = keyof typeof ENGINES
const engines = Object.keys(ENGINES) as Engine[]
const PEERS = engines.filter((engine) => engine !== 'hogwild')

/** A file that both engines run. */
interface Candidate {
  /** The format of its matrices, or the file's name. */
  format: string
  path: string
}

async function main(): Promise<void> {
  const shape = SHAPES[values.shape]
  const formats = values.format.split(',')
  const unknown = formats.find((format) => !BENCH_FORMATS.includes(format as BenchFormat))
  if (shape === undefined) throw new Error(`--shape: one of ${Object.keys(SHAPES).join(', ')}`)
  if (unknown !== undefined) throw new Error(`--format: some of ${BENCH_FORMATS.join(', ')}`)
  // Before anything is measured: a run of several formats takes long.
  if (values.model === undefined) {
    for (const format of formats as BenchFormat[]) checkFormat(shape, format)
  }
  const about = machine()
  installPeer()
  if (simd !== undefined) limitPeer()
  const folder = await mkdtemp(join(tmpdir(), 'hogwild-peers-'))
  await removedAfterwards(folder, async () => {
    const measured: Awaited<ReturnType<typeof compare>>[] = []
    const model = values.model === undefined ? shape.name : basename(values.model)
    const ofModel = values.model === undefined ? values.shape : basename(values.model, '.gguf')
    const name = simd === undefined ? ofModel : `${ofModel}-${simd}`
    const reportOf = () => ({ model, ...describe(), machine: about, formats: measured })
    // After each format: a run of several takes an hour, and may be cut.
    const finished = async (candidate: Candidate) => {
      measured.push(await compare(candidate))
      await write(name, reportOf())
    }
    if (values.model !== undefined) {
      await finished({ format: basename(values.model), path: values.model })
    } else {
      for (const format of formats as BenchFormat[]) {
        const path = join(folder, `${format}.gguf`)
        await writeRandomGguf(path, shape, format, { repeated: true })
        await finished({ format, path })
        await rm(path)
      }
    }
    print(reportOf())
  })
}

async function write(name: string, report: Report): Promise<void> {
  await mkdir(values.out, { recursive: true })
  const path = join(values.out, `peers-${name}.json`)
  await writeFile(path, `${JSON.stringify(report, null, 1)}\n`)
  const benchmarks = await readBenchmarks([path])
  await writePlots(benchmarks.flatMap(benchmarkPlots), join(values.out, 'plots'))
}

async function compare({ format, path }: Candidate) {
  process.stderr.write(`${format}\n`)
  const logitsNmse = await compareLogits(
    path,
    ['f16', 'bf16'].includes(format) ? MOST_NMSE.plain : MOST_NMSE.quantised,
  )
  const { samples, bandwidth } = await measureAll(path)
  return {
    format,
    ...evaluate(samples),
    logits_nmse: logitsNmse,
    /** Read bandwidth of the machine before the first round and after each. */
    bandwidth_gb_per_s: bandwidth,
    samples,
  }
}

async function ask<Result>(engine: Engine, task: Omit<Task, 'flashAttention'>): Promise<Result> {
  const { script, flashAttention } = ENGINES[engine]
  const { stdout } = await promisify(execFile)(
    process.execPath,
    [script, JSON.stringify({ ...task, flashAttention } satisfies Task)],
    { maxBuffer: 2 ** 26 },
  )
  return JSON.parse(stdout)
}

function promptOf(length: number): number[] {
  return Array.from({ length }, (_, index) => 259 + ((index * 7919) % 40_000))
}

/** The engines must agree on what comes next: else they would not be doing the same work. */
async function compareLogits(path: string, mostNmse: number): Promise<number> {
  const task = { path, prompt: promptOf(24), generate: 0, workers: 1, threads, answer: true }
  const ours = await ask<number[]>('hogwild', task)
  const theirs = await ask<number[]>('node-llama-cpp', task)
  const squares = (values: number[]) => values.reduce((sum, value) => sum + value * value, 0)
  const differences = ours.map((logit, token) => logit - (theirs[token] as number))
  const nmse = squares(differences) / squares(ours)
  // Written so that NaN fails too.
  if (!(nmse <= mostNmse)) throw new Error(`the engines disagree: NMSE of the logits is ${nmse}`)
  return Number(nmse.toExponential(2))
}

async function measureAll(path: string): Promise<{ samples: Sample[]; bandwidth: number[] }> {
  const samples: Sample[] = []
  const prompt = promptOf(promptLength)
  const bandwidth = [await readBandwidth()]
  for (let round = 0; round < rounds; round++) {
    for (const workers of counts) {
      // Back and forth, so that none always comes first.
      for (const engine of round % 2 === 0 ? engines : engines.toReversed()) {
        const task = { path, prompt, generate, workers, threads, answer: false }
        const measurement = await ask<Measurement>(engine, task)
        samples.push({ engine, workers, round, ...measurement })
      }
    }
    bandwidth.push(await readBandwidth())
    process.stderr.write(`round ${round + 1} of ${rounds}\n`)
  }
  return { samples, bandwidth }
}

async function readBandwidth(): Promise<number> {
  using device = createDevice({ type: 'cpu', threads })
  return round((await device.readBandwidth(BANDWIDTH_BUFFER)) / 1e9, 2)
}

interface Run {
  engine: Engine
  workers: number
  load_s: Spread
  prefill_tokens_per_s: Spread
  decode_tokens_per_s: Spread
  step_ms: Spread
  peak_memory_mb: Spread
}

function stepSeconds(sample: Sample): number {
  return sample.decodeSeconds / generate
}

function summary(engine: Engine, workers: number, samples: readonly Sample[]): Run {
  const over = (figure: (sample: Sample) => number, digits: number) =>
    spread(samples.map(figure), digits)
  return {
    engine,
    workers,
    load_s: over((sample) => sample.loadSeconds, 3),
    prefill_tokens_per_s: over((sample) => promptLength / sample.prefillSeconds, 1),
    decode_tokens_per_s: over((sample) => workers / stepSeconds(sample), 1),
    step_ms: over((sample) => stepSeconds(sample) * 1e3, 2),
    peak_memory_mb: over((sample) => sample.peakBytes / 1e6, 0),
  }
}

function evaluate(samples: readonly Sample[]) {
  const of = (engine: Engine, workers: number) =>
    samples.filter((sample) => sample.engine === engine && sample.workers === workers)
  const runs = engines.flatMap((engine) =>
    counts.map((workers) => summary(engine, workers, of(engine, workers))),
  )
  const decode = (engine: Engine, workers: number) =>
    median(of(engine, workers).map((sample) => workers / stepSeconds(sample)))
  const prefill = (engine: Engine) =>
    median(
      samples
        .filter((sample) => sample.engine === engine)
        .map((sample) => promptLength / sample.prefillSeconds),
    )
  const ourStep = (workers: number) => median(of('hogwild', workers).map(stepSeconds))
  const ours = samples.filter(({ engine }) => engine === 'hogwild')
  return {
    /** Tokens per second over those of node-llama-cpp, with whichever setting is faster there. */
    decode_ratio: Object.fromEntries(
      counts.map((workers) => [
        workers,
        round(
          decode('hogwild', workers) / Math.max(...PEERS.map((peer) => decode(peer, workers))),
          2,
        ),
      ]),
    ),
    prefill_ratio: round(prefill('hogwild') / Math.max(...PEERS.map(prefill)), 2),
    /** One worker: bytes of weights, keys and values per second over the bandwidth read in the same process. */
    read_share: round(
      median(
        of('hogwild', 1).map(
          (sample) =>
            (sample.stepBytes as number) / stepSeconds(sample) / (sample.readBandwidth as number),
        ),
      ),
      3,
    ),
    step_4_over_1: round(ourStep(4) / ourStep(1), 3),
    /** Peak memory of hogwild's process beyond weights and cache, the most of all samples. */
    memory_overhead_mb: round(
      Math.max(
        ...ours.map(
          (sample) =>
            sample.peakBytes - (sample.weightBytes as number) - (sample.cacheBytes as number),
        ),
      ) / 1e6,
      1,
    ),
    read_gb_per_s: spread(
      ours.map((sample) => (sample.readBandwidth as number) / 1e9),
      2,
    ),
    runs,
  }
}

function describe() {
  using device = createDevice({ type: 'cpu', threads })
  return {
    threads,
    simd: device.info.simd,
    prompt: promptLength,
    generate,
    rounds,
    // Paths as seen from the repository: those of a machine help nobody else.
    command: ['npm run bench:peers --', ...process.argv.slice(2)]
      .map((word) => (isAbsolute(word) ? relative(root, word) : word))
      .join(' ')
      .replace(/ --$/, ''),
    engines: {
      hogwild:
        'workers share the prompt, see each other, and step together; default cache dtype; greedy; a warm-up of the prompt and 4 steps in the same cache',
      'node-llama-cpp': {
        version: peerVersion(),
        binary: `its own prebuilt one (@node-llama-cpp/linux-x64), no GPU${simd === undefined ? '' : ', for AVX2'}`,
        how:
          'independent sequences of one context, each with the whole prompt, evaluated at once; ' +
          'LlamaContextSequence.evaluate, greedy; batchSize 512, f16 cache, flash attention on and off; a warm-up of the prompts and 4 steps in the same context',
      },
    },
  }
}

type Report = ReturnType<typeof describe> & {
  model: string
  machine: ReturnType<typeof machine>
  formats: Awaited<ReturnType<typeof compare>>[]
}

function print({ formats }: Report): void {
  const show = ({ median, min, max }: Spread) => `${median} (${min}-${max})`
  const rows = formats.flatMap(({ format, runs }) =>
    runs.map((run) => [
      format,
      run.engine,
      String(run.workers),
      show(run.prefill_tokens_per_s),
      show(run.decode_tokens_per_s),
      show(run.step_ms),
      String(run.peak_memory_mb.median),
    ]),
  )
  const header = [
    'format',
    'engine',
    'workers',
    'prefill tok/s',
    'decode tok/s',
    'step ms',
    'peak MB',
  ]
  for (const line of formatTable(header, rows)) process.stdout.write(`${line}\n`)
  for (const { format, decode_ratio, prefill_ratio, read_share, step_4_over_1 } of formats) {
    process.stdout.write(
      `${format}: ${JSON.stringify({ decode_ratio, prefill_ratio, read_share, step_4_over_1 })}\n`,
    )
  }
}

void main()

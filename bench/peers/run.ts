// `npm run bench:peers`: hogwild and node-llama-cpp on the same GGUF files, in alternating rounds, each measurement in a
// process of its own. Writes bench/results/peers-NAME.json and .svg, NAME that of the shape or of the model file.

import { execFile } from 'node:child_process'
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { basename, isAbsolute, join, relative } from 'node:path'
import { parseArgs, promisify } from 'node:util'
import { createDevice } from 'hogwild'
import { removedAfterwards } from '../../lib/cli/clean-up'
import { median } from '../../lib/cli/median'
import { formatTable } from '../../lib/cli/table'
import { machine, root, round, type Spread, spread } from '../machine'
import { barChart } from './chart'
import { installPeer, peerFolder, peerVersion } from './peer'
import {
  BENCH_FORMATS,
  type BenchFormat,
  checkFormat,
  SHAPES,
  writeRandomGguf,
} from './random-gguf'
import type { Measurement, Task } from './task'

/** What is measured. Flash attention is on in some cases and off in others the faster: both are run. */
const ENGINES = {
  hogwild: { script: join(__dirname, 'hogwild.js'), flashAttention: false },
  'node-llama-cpp, flash attention': {
    script: join(peerFolder, 'measure.mjs'),
    flashAttention: true,
  },
  'node-llama-cpp': { script: join(peerFolder, 'measure.mjs'), flashAttention: false },
}
type Engine = keyof typeof ENGINES
const engines = Object.keys(ENGINES) as Engine[]
const PEERS = engines.filter((engine) => engine !== 'hogwild')

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
    rounds: { type: 'string', default: '5' },
    out: { type: 'string', default: 'bench/results' },
  },
})
const counts = values.workers.split(',').map(Number)
const [promptLength, generate, threads, rounds] = [
  values.prompt,
  values.generate,
  values.threads,
  values.rounds,
].map(Number) as [number, number, number, number]

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
  const folder = await mkdtemp(join(tmpdir(), 'hogwild-peers-'))
  await removedAfterwards(folder, async () => {
    const measured: Awaited<ReturnType<typeof compare>>[] = []
    const model = values.model === undefined ? shape.name : basename(values.model)
    const name = values.model === undefined ? values.shape : basename(values.model, '.gguf')
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

async function write(name: string, report: Parameters<typeof chartOf>[0]): Promise<void> {
  await mkdir(values.out, { recursive: true })
  const path = join(values.out, `peers-${name}`)
  await writeFile(`${path}.json`, `${JSON.stringify(report, null, 1)}\n`)
  await writeFile(`${path}.svg`, chartOf(report))
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
        'workers share the prompt, see each other, and step together; default cache dtype; greedy',
      'node-llama-cpp': {
        version: peerVersion(),
        binary: 'its own prebuilt one (@node-llama-cpp/linux-x64), no GPU',
        how:
          'independent sequences of one context, each with the whole prompt, evaluated at once; ' +
          'LlamaContextSequence.evaluate, greedy; batchSize 512, f16 cache, flash attention on and off',
      },
    },
  }
}

type Report = ReturnType<typeof describe> & {
  model: string
  machine: ReturnType<typeof machine>
  formats: Awaited<ReturnType<typeof compare>>[]
}

/** One worker and the most workers, for each format. */
function chartOf({ model, formats, machine: { processor } }: Report): string {
  const most = Math.max(...counts)
  const groups = formats.flatMap(({ format, runs }) =>
    [...new Set([1, most])].map((workers) => {
      const of = (isOurs: boolean) =>
        runs
          .filter((run) => (run.engine === 'hogwild') === isOurs && run.workers === workers)
          .map((run) => run.decode_tokens_per_s)
          .reduce((one, other) => (one.median >= other.median ? one : other))
      return { name: `${format}, ${workers}`, own: of(true), best: of(false) }
    }),
  )
  return barChart({
    title: 'Decoding, tokens per second, by format and workers',
    subtitle: `${model}, ${threads} threads, ${processor}`,
    groups: groups.map(({ name }) => name),
    series: [
      { name: 'hogwild', color: '#2f6feb', values: groups.map(({ own }) => own) },
      { name: 'node-llama-cpp', color: '#9aa4b2', values: groups.map(({ best }) => best) },
    ],
  })
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

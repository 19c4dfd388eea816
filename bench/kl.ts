// `npm run bench:kl [-- MODEL...]`: what rounding costs, beside node-llama-cpp on the same files. Teacher-forced, the
// distribution of each next token beside that of the reference: the same weights, dequantised, in float32 with a float32
// cache. Mean Kullback-Leibler divergence KL(reference || model) in nats, and perplexities. Two parts:
//
// - small random models, one for each format: bench/results/kl-random.json
// - each MODEL, over tokens of the repository's own prose and code, with each dtype of the cache: kl-NAME.json
//
// Ends with exit code 1 where a result is not what docs/performance.md says of it.

import { spawn } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import type { Readable } from 'node:stream'
import { parseArgs } from 'node:util'
import {
  createDevice,
  type Device,
  type KvDtype,
  loadModel,
  loadTokenizer,
  type Model,
} from 'hogwild'
import { removedAfterwards } from '../lib/cli/clean-up'
import { isQuantised } from '../lib/formats'
import { machine, root } from './machine'
import { installPeer, peerFolder, peerVersion } from './peers/peer'
import { BENCH_FORMATS, type BenchFormat, type Shape, writeRandomGguf } from './peers/random-gguf'

const CACHES: readonly KvDtype[] = ['f32', 'f16', 'bf16', 'int8']
/** Prose and code in turn. */
const TEXTS = ['README.md', 'lib/model.ts', 'docs/semantics.md', 'native/cache/kv_cache.cc']
/** Tokens of a step: so many rows of logits are in memory at once. */
const PIECE = 125
const PEER = 'node-llama-cpp'

const RANDOM_SHAPE: Shape = {
  name: 'random Llama of 11 M parameters',
  layers: 4,
  hiddenSize: 512,
  intermediateSize: 1024,
  queryHeads: 8,
  kvHeads: 4,
  headDim: 64,
  vocabSize: 4096,
}
const RANDOM_TOKENS = 64
/** Where the peer's most likely token leads by more than this, ours must be the same. */
const MARGIN = 0.1

/** What must hold. Nats, and shares of the peer's. */
const MOST_KL: Record<KvDtype, number> = { f32: 2e-6, f16: 2e-6, bf16: 1e-4, int8: 2e-3 }
const MOST_OF_PEER = 1 / 30
const MOST_PERPLEXITY = 0.001

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    tokens: { type: 'string', default: '2500' },
    /** Of random models; 'none': no such models. */
    format: { type: 'string', default: BENCH_FORMATS.join(',') },
    threads: { type: 'string', default: '2' },
    simd: { type: 'string' },
    out: { type: 'string', default: 'bench/results' },
  },
})
const threads = Number(values.threads)

/** What is not as it must be. */
const faults: string[] = []

async function main(): Promise<void> {
  const formats = values.format.split(',').filter((format) => format !== 'none')
  const unknown = formats.find((format) => !BENCH_FORMATS.includes(format as BenchFormat))
  if (unknown !== undefined)
    throw new Error(`--format: none, or some of ${BENCH_FORMATS.join(', ')}`)
  const about = machine()
  installPeer()
  using device = createDevice({
    type: 'cpu',
    threads,
    ...(values.simd && { simd: values.simd as 'avx2' }),
  })
  const write = async (name: string, report: object) => {
    await mkdir(values.out, { recursive: true })
    const whole = { ...report, ...describe(device), machine: about }
    await writeFile(join(values.out, `kl-${name}.json`), `${JSON.stringify(whole, null, 1)}\n`)
  }
  if (formats.length > 0) await write('random', await ofRandom(device, formats as BenchFormat[]))
  for (const path of positionals) {
    await write(basename(path).replace(/\.gguf$/, ''), await ofModel(device, path))
  }
  for (const fault of faults) process.stderr.write(`${fault}\n`)
  if (faults.length > 0) process.exitCode = 1
}

function describe({ info }: Device) {
  return {
    simd: info.simd,
    threads: info.threads,
    peer: `${PEER} ${peerVersion()}`,
    command: `npm run bench:kl -- ${process.argv.slice(2).join(' ')}`.replace(/ -- $/, ''),
  }
}

async function ofRandom(device: Device, formats: readonly BenchFormat[]) {
  const tokens = Array.from({ length: RANDOM_TOKENS }, (_, i) => 259 + ((i * 7919) % 3800))
  const folder = await mkdtemp(join(tmpdir(), 'hogwild-kl-'))
  const runs: object[] = []
  await removedAfterwards(folder, async () => {
    for (const format of formats) {
      const path = join(folder, `${format}.gguf`)
      await writeRandomGguf(path, RANDOM_SHAPE, format, { repeated: false })
      const { ours, peer } = await compare(device, path, tokens, [undefined])
      const own = (ours[0] as Measured).figures()
      const { compared, equal } = peer.agreement
      const run = { format, mean_kl: own.mean_kl, peer_mean_kl: peer.figures().mean_kl }
      runs.push({ ...run, argmax: { margin: MARGIN, compared, equal } })
      process.stdout.write(`${JSON.stringify(runs.at(-1))}\n`)
      if (compared === 0) faults.push(`${format}: no token leads by ${MARGIN}`)
      if (isQuantised(format)) {
        if (!(run.mean_kl < run.peer_mean_kl)) faults.push(`${format}: ${JSON.stringify(run)}`)
      } else if (equal < compared) faults.push(`${format}: ${compared - equal} other tokens`)
      await rm(path)
    }
  })
  return { runs, model: RANDOM_SHAPE.name, tokens: tokens.length }
}

async function ofModel(device: Device, path: string) {
  const tokens = await readTokens(path, Number(values.tokens))
  const { ours, peer, reference, weights } = await compare(device, path, tokens, CACHES)
  const runs = ours.map((one, i) => ({ cache: CACHES[i] as KvDtype, ...one.figures() }))
  const ofPeer = { cache: 'f16', ...peer.figures() }
  const perplexity = reference.perplexity
  const report = { runs, peer_run: ofPeer, reference_perplexity: perplexity }
  process.stdout.write(`${JSON.stringify(report, null, 1)}\n`)
  for (const { cache, mean_kl, perplexity: own } of runs) {
    if (!(mean_kl <= MOST_KL[cache])) faults.push(`${cache}: KL ${mean_kl}`)
    const off = Math.abs(own / perplexity - 1)
    if (cache === 'f16' && !(off <= MOST_PERPLEXITY)) faults.push(`perplexity ${own}`)
    if (cache === 'f16' && !(mean_kl <= MOST_OF_PEER * ofPeer.mean_kl)) {
      faults.push(`KL ${mean_kl} beside ${ofPeer.mean_kl} of ${PEER}`)
    }
  }
  return { ...report, model: basename(path), weights, tokens: tokens.length, texts: TEXTS }
}

async function readTokens(path: string, count: number): Promise<number[]> {
  await using tokenizer = await loadTokenizer(path)
  const share = Math.ceil(count / TEXTS.length)
  const parts: number[][] = []
  for (const text of TEXTS) {
    const ids = await tokenizer.encode(readFileSync(join(root, text), 'utf8'), {
      addSpecialTokens: false,
    })
    if (ids.length < share) throw new Error(`${text} has only ${ids.length} of ${share} tokens`)
    parts.push(ids.slice(0, share))
  }
  return parts.flat().slice(0, count)
}

/** Reads the logits after each token of a text: [piece, V] of each piece in turn. */
type ReadLogits = (piece: readonly number[]) => Promise<Float32Array>

/** What a model's distributions are, measured against those of the reference. */
class Measured {
  readonly #kls: number[] = []
  readonly #losses: number[] = []
  /** Tokens at which this one's most likely token leads by MARGIN, and those where the other's is the same. */
  readonly agreement = { compared: 0, equal: 0 }

  /** After a token: log-probabilities of the reference and of this model, and the token that follows. */
  add(reference: Float64Array, own: Float64Array, next: number | undefined): void {
    let kl = 0
    for (let token = 0; token < reference.length; token++) {
      const logP = reference[token] as number
      kl += Math.exp(logP) * (logP - (own[token] as number))
    }
    this.#kls.push(kl)
    if (next !== undefined) this.#losses.push(-(own[next] as number))
  }

  compareChoice(own: Float64Array, other: Float64Array): void {
    const choice = argmax(own)
    const lead = own.reduce(
      (least, x, token) =>
        token === choice ? least : Math.min(least, (own[choice] as number) - x),
      Number.POSITIVE_INFINITY,
    )
    if (!(lead > MARGIN)) return
    this.agreement.compared++
    if (argmax(other) === choice) this.agreement.equal++
  }

  get perplexity(): number {
    return Math.exp(mean(this.#losses))
  }

  figures(): { mean_kl: number; max_kl: number; perplexity: number } {
    return {
      mean_kl: Number(mean(this.#kls).toPrecision(3)),
      max_kl: Number(Math.max(...this.#kls).toPrecision(3)),
      perplexity: this.perplexity,
    }
  }
}

/** Our runs with each of `caches` (undefined: the model's default), and the peer's, over the same tokens. */
async function compare(
  device: Device,
  path: string,
  tokens: readonly number[],
  caches: readonly (KvDtype | undefined)[],
) {
  await using model = await loadModel(path, { device })
  await using exact = await loadModel(path, { device, dtype: 'f32' })
  const { vocabSize } = model.config
  const readers = caches.map((cache) => readerOf(model, tokens.length, cache))
  const readReference = readerOf(exact, tokens.length, 'f32')
  const readPeer = peerReader(path, tokens, vocabSize)
  const [reference, peer] = [new Measured(), new Measured()]
  const ours = readers.map(() => new Measured())
  for (let begin = 0; begin < tokens.length; begin += PIECE) {
    const piece = tokens.slice(begin, begin + PIECE)
    const expected = await readReference(piece)
    const found: Float32Array[] = []
    for (const read of [readPeer, ...readers]) found.push(await read(piece))
    for (let i = 0; i < piece.length; i++) {
      const row = (logits: Float32Array) =>
        logProbabilities(logits.subarray(i * vocabSize, (i + 1) * vocabSize))
      const next = tokens[begin + i + 1]
      const p = row(expected)
      const [ofPeer, ...own] = found.map(row) as [Float64Array, ...Float64Array[]]
      reference.add(p, p, next)
      peer.add(p, ofPeer, next)
      peer.compareChoice(ofPeer, own[0] as Float64Array)
      ours.forEach((measured, j) => {
        measured.add(p, own[j] as Float64Array, next)
      })
    }
  }
  return { ours, peer, reference, weights: Object.keys(model.weights) }
}

/** Of a model of ours, in a cache of its own, which is closed with the model. */
function readerOf(model: Model, context: number, cache: KvDtype | undefined): ReadLogits {
  const block = model.createCache({ capacity: context, context, dtype: cache }).createBlock()
  return async (piece) => {
    const { logits } = await model.prefill(block, piece, { sampler: null, logits: 'all' })
    return logits as Float32Array
  }
}

function peerReader(path: string, tokens: readonly number[], vocabSize: number): ReadLogits {
  const script = join(peerFolder, 'logits.mjs')
  const child = spawn(process.execPath, [script, JSON.stringify({ path, tokens, threads })], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  const rows = rowsFrom(child.stdout, vocabSize)
  return async (piece) => {
    const logits = new Float32Array(piece.length * vocabSize)
    for (let i = 0; i < piece.length; i++) {
      const { done, value } = await rows.next()
      if (done) throw new Error(`${PEER} has ended early`)
      logits.set(value, i * vocabSize)
    }
    return logits
  }
}

async function* rowsFrom(stream: Readable, length: number): AsyncGenerator<Float32Array> {
  let row = new Float32Array(length)
  let filled = 0
  for await (const chunk of stream as AsyncIterable<Buffer>) {
    for (let at = 0; at < chunk.length; ) {
      const bytes = Buffer.from(row.buffer)
      const copied = chunk.copy(bytes, filled, at)
      at += copied
      filled += copied
      if (filled < bytes.length) continue
      yield row
      row = new Float32Array(length)
      filled = 0
    }
  }
}

/** In float64. */
function logProbabilities(logits: Float32Array): Float64Array {
  const most = logits.reduce((one, other) => Math.max(one, other), Number.NEGATIVE_INFINITY)
  let sum = 0
  for (const logit of logits) sum += Math.exp(logit - most)
  const logSum = most + Math.log(sum)
  return Float64Array.from(logits, (logit) => logit - logSum)
}

function argmax(values: Float64Array): number {
  return values.reduce((best, x, i) => (x > (values[best] as number) ? i : best), 0)
}

function mean(list: readonly number[]): number {
  return list.reduce((sum, x) => sum + x, 0) / list.length
}

void main()

// `npm run bench:kl -- MODEL`: what rounding costs a model. Teacher-forced over tokens of the repository's own prose and
// code, the distribution of each next token beside that of the reference: the same weights, dequantised, in float32 with a
// float32 cache. Mean Kullback-Leibler divergence KL(reference || model) in nats, and perplexities, for each dtype of
// the cache. Writes bench/results/kl-NAME.json.

import { readFileSync } from 'node:fs'
import { mkdir, writeFile } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { parseArgs } from 'node:util'
import {
  createDevice,
  type Device,
  type KvDtype,
  loadModel,
  loadTokenizer,
  type Model,
} from 'hogwild'
import { machine, root } from './machine'

const CACHES: readonly KvDtype[] = ['f32', 'f16', 'bf16', 'int8']
/** Prose and code in turn. */
const TEXTS = ['README.md', 'lib/workers/run.ts', 'docs/semantics.md', 'native/cache/kv_cache.cc']
/** Tokens of a step: so many rows of logits are in memory at once. */
const PIECE = 125

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    tokens: { type: 'string', default: '2500' },
    threads: { type: 'string' },
    simd: { type: 'string' },
    out: { type: 'string', default: 'bench/results' },
  },
})

interface Figures {
  cache: KvDtype
  /** Nats. */
  mean_kl: number
  max_kl: number
  perplexity: number
}

async function main(): Promise<void> {
  const [path] = positionals
  if (path === undefined) throw new Error('expected the path of a model')
  const about = machine()
  using device = createDevice({
    type: 'cpu',
    ...(values.threads && { threads: Number(values.threads) }),
    ...(values.simd && { simd: values.simd as 'avx2' }),
  })
  const tokens = await readTokens(path, Number(values.tokens))
  await using model = await loadModel(path, { device })
  await using exact = await loadModel(path, { device, dtype: 'f32' })
  const runs: Figures[] = []
  let perplexity = 0
  for (const cache of CACHES) {
    const { figures, reference } = await compare(exact, model, cache, tokens)
    runs.push(figures)
    perplexity = reference
  }
  const report = {
    runs,
    reference_perplexity: perplexity,
    model: basename(path),
    weights: Object.keys(model.weights),
    tokens: tokens.length,
    texts: TEXTS,
    ...describe(device),
    machine: about,
  }
  await mkdir(values.out, { recursive: true })
  const name = basename(path).replace(/\.gguf$/, '')
  await writeFile(join(values.out, `kl-${name}.json`), `${JSON.stringify(report, null, 1)}\n`)
  process.stdout.write(`${JSON.stringify({ runs, reference_perplexity: perplexity }, null, 1)}\n`)
}

function describe({ info }: Device) {
  return {
    simd: info.simd,
    threads: info.threads,
    command: `npm run bench:kl -- ${process.argv.slice(2).join(' ')}`,
  }
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

async function compare(exact: Model, model: Model, cache: KvDtype, tokens: readonly number[]) {
  const context = tokens.length
  await using exactCache = exact.createCache({ capacity: context, context, dtype: 'f32' })
  await using modelCache = model.createCache({ capacity: context, context, dtype: cache })
  const [exactBlock, block] = [exactCache.createBlock(), modelCache.createBlock()]
  const { vocabSize } = model.config
  const kls: number[] = []
  const [losses, exactLosses]: [number[], number[]] = [[], []]
  for (let begin = 0; begin < tokens.length; begin += PIECE) {
    const piece = tokens.slice(begin, begin + PIECE)
    const options = { sampler: null, logits: 'all' } as const
    const reference = (await exact.prefill(exactBlock, piece, options)).logits as Float32Array
    const own = (await model.prefill(block, piece, options)).logits as Float32Array
    for (let i = 0; i < piece.length; i++) {
      const row = (logits: Float32Array) =>
        logProbabilities(logits.subarray(i * vocabSize, (i + 1) * vocabSize))
      const [p, q] = [row(reference), row(own)]
      let kl = 0
      for (let token = 0; token < vocabSize; token++) {
        const logP = p[token] as number
        kl += Math.exp(logP) * (logP - (q[token] as number))
      }
      kls.push(kl)
      const next = tokens[begin + i + 1]
      if (next === undefined) continue
      losses.push(-(q[next] as number))
      exactLosses.push(-(p[next] as number))
    }
  }
  const mean = (list: readonly number[]) => list.reduce((sum, x) => sum + x, 0) / list.length
  const figures: Figures = {
    cache,
    mean_kl: Number(mean(kls).toPrecision(3)),
    max_kl: Number(Math.max(...kls).toPrecision(3)),
    perplexity: Math.exp(mean(losses)),
  }
  return { figures, reference: Math.exp(mean(exactLosses)) }
}

/** In float64. */
function logProbabilities(logits: Float32Array): Float64Array {
  const most = logits.reduce((one, other) => Math.max(one, other), Number.NEGATIVE_INFINITY)
  let sum = 0
  for (const logit of logits) sum += Math.exp(logit - most)
  const logSum = most + Math.log(sum)
  return Float64Array.from(logits, (logit) => logit - logSum)
}

void main()

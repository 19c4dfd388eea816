// `npm run bench:attention`: the attention op alone, on caches of 1k to 32k tokens and for 1 to 8
// workers, one new token each. Of the cached tokens 7/8 are a common prompt, the rest is what the
// workers have written; everyone sees all of it, or as much as `--window` tokens. Writes
// bench/results/attention-cpu.json.

import { mkdir, writeFile } from 'node:fs/promises'
import { parseArgs } from 'node:util'
import {
  type Block,
  type Cache,
  createCache,
  createDevice,
  type Device,
  ropeFrequencies,
} from 'hogwild'
import { median } from '../lib/cli/median'
import { formatTable } from '../lib/cli/table'
import { machine, round, type Spread, spread } from './machine'

interface Shape {
  name: string
  queryHeads: number
  kvHeads: number
  headDim: number
}
const SHAPES: readonly Shape[] = [
  { name: '9/3 heads of 64 (SmolLM2-135M)', queryHeads: 9, kvHeads: 3, headDim: 64 },
  { name: '28/4 heads of 128 (Qwen2.5-7B)', queryHeads: 28, kvHeads: 4, headDim: 128 },
]

const PAGE_TOKENS = 64
/** Layers are taken until their keys and values outgrow any cache of a processor: each comes from memory. */
const TOTAL_BYTES = 256 * 2 ** 20
const CHUNK_TOKENS = 512

const { values } = parseArgs({
  options: {
    tokens: { type: 'string', default: '1024,4096,16384,32768' },
    workers: { type: 'string', default: '1,2,4,8' },
    threads: { type: 'string' },
    window: { type: 'string' },
    rounds: { type: 'string', default: '5' },
    out: { type: 'string', default: 'bench/results' },
  },
})
const lengths = values.tokens.split(',').map(Number)
const counts = values.workers.split(',').map(Number)
const rounds = Number(values.rounds)
const window = values.window === undefined ? undefined : Number(values.window)

interface Run {
  shape: string
  cached_tokens: number
  workers: number
  /** One layer. */
  ms: Spread
  gb_per_s: number
  /** gb_per_s over the bandwidth read in the same run. */
  read_share: number
  /** Time over that of one worker on as many tokens; null where one was not measured. */
  over_one: number | null
}

async function main(): Promise<void> {
  const about = machine()
  using device = createDevice({
    type: 'cpu',
    profile: true,
    threads: values.threads === undefined ? undefined : Number(values.threads),
  })
  const bandwidths: number[] = []
  const runs: Run[] = []
  for (const shape of SHAPES) {
    for (const tokens of lengths) {
      bandwidths.push(await device.readBandwidth(TOTAL_BYTES))
      runs.push(...(await measure(device, shape, tokens, median(bandwidths))))
    }
  }
  const report = {
    runs,
    read_gb_per_s: spread(
      bandwidths.map((bandwidth) => bandwidth / 1e9),
      2,
    ),
    dtype: 'bf16',
    window: window ?? null,
    threads: device.info.threads,
    simd: device.info.simd,
    rounds,
    command: `npm run bench:attention -- ${process.argv.slice(2).join(' ')}`.replace(/ -- $/, ''),
    machine: about,
  }
  await mkdir(values.out, { recursive: true })
  await writeFile(`${values.out}/attention-cpu.json`, `${JSON.stringify(report, null, 1)}\n`)
  print(report.runs)
}

async function measure(
  device: Device,
  shape: Shape,
  tokens: number,
  readBandwidth: number,
): Promise<Run[]> {
  const { kvHeads, headDim } = shape
  const layers = Math.ceil(TOTAL_BYTES / (tokens * kvHeads * headDim * 2 * 2))
  const rope = ropeFrequencies({ type: 'default', theta: 10_000, rotaryDim: headDim })
  const written = Math.floor(tokens / 8)
  const ownTokens = (count: number) => Math.floor(written / count)
  const own = counts.flatMap((count) => Array<number>(count).fill(ownTokens(count)))
  const pages = [tokens - written, ...own].map((length) => Math.ceil(length / PAGE_TOKENS) + 1)
  const capacity = PAGE_TOKENS * pages.reduce((sum, count) => sum + count)
  await using cache = createCache({
    ...{ device, layers, kvHeads, headDim, rope, capacity },
    dtype: 'bf16',
  })
  const prompt = await filledBlock(cache, shape, tokens - written)
  const teams: Team[] = []
  for (const count of counts) {
    const blocks: Block[] = []
    while (blocks.length < count) blocks.push(await filledBlock(cache, shape, ownTokens(count)))
    teams.push({ blocks, bytes: 0, seconds: [] })
  }
  // All teams in turn, several times: a change of the machine's speed meets all of them.
  for (let round = 0; round <= rounds; round++) {
    for (const team of teams) {
      const attention = await attend(device, cache, shape, prompt, team.blocks)
      team.bytes = attention.bytes / layers
      if (round > 0) team.seconds.push(attention.seconds / layers) // the first warms up
    }
  }
  const one = teams.find(({ blocks }) => blocks.length === 1)
  return teams.map(({ blocks, bytes, seconds }): Run => {
    const time = median(seconds)
    return {
      shape: shape.name,
      cached_tokens: tokens,
      workers: blocks.length,
      ms: spread(
        seconds.map((value) => value * 1e3),
        3,
      ),
      gb_per_s: round(bytes / time / 1e9, 2),
      read_share: round(bytes / time / readBandwidth, 3),
      over_one: one === undefined ? null : round(time / median(one.seconds), 3),
    }
  })
}

/** Workers, by the blocks they have written. */
interface Team {
  blocks: Block[]
  /** Of a layer: keys and values that somebody sees, each counted once. */
  bytes: number
  /** Of a layer, round by round. */
  seconds: number[]
}

/** A block of `tokens` tokens with random keys and values in every layer. */
async function filledBlock(
  cache: Cache,
  { kvHeads, headDim }: Shape,
  tokens: number,
): Promise<Block> {
  const block = cache.createBlock()
  for (let written = 0; written < tokens; written += CHUNK_TOKENS) {
    const chunk = Math.min(CHUNK_TOKENS, tokens - written)
    using pass = cache.beginPass([{ view: { blocks: [block] }, tokens: chunk }])
    const numbers = randomNumbers(chunk * kvHeads * headDim)
    for (let layer = 0; layer < cache.shape.layers; layer++) {
      await pass.append(layer, numbers, numbers)
    }
    pass.commit()
  }
  return block
}

/** A step's attention in all layers, each worker at the end of its own block. Takes nothing into the cache. */
async function attend(
  device: Device,
  cache: Cache,
  { queryHeads, kvHeads, headDim }: Shape,
  prompt: Block,
  blocks: Block[],
) {
  const views = blocks.map((own) => [prompt, ...blocks.filter((block) => block !== own), own])
  using pass = cache.beginPass(views.map((blocks) => ({ view: { blocks }, tokens: 1 })))
  const keys = randomNumbers(blocks.length * kvHeads * headDim)
  const queries = randomNumbers(blocks.length * queryHeads * headDim)
  device.takeProfile()
  for (let layer = 0; layer < cache.shape.layers; layer++) {
    await pass.append(layer, keys, keys)
    await pass.attend(layer, queries, { window })
  }
  const attention = device.takeProfile().find(({ op }) => op === 'attention')
  if (attention === undefined) throw new Error('the device measured no attention')
  return attention
}

function randomNumbers(length: number): Float32Array {
  return Float32Array.from({ length }, () => 2 * Math.random() - 1)
}

function print(runs: readonly Run[]): void {
  const header = ['heads', 'tokens', 'workers', 'ms', 'GB/s', 'of read', 'over one']
  const rows = runs.map((run) => [
    run.shape,
    String(run.cached_tokens),
    String(run.workers),
    run.ms.median.toFixed(3),
    run.gb_per_s.toFixed(2),
    `${(100 * run.read_share).toFixed(0)} %`,
    run.over_one?.toFixed(2) ?? '-',
  ])
  for (const line of formatTable(header, rows)) process.stdout.write(`${line}\n`)
}

void main()

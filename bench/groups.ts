// `npm run bench:groups`: many groups of workers on one model. Throughput of all of them together against one after
// another, tokens compared; and how long a running group waits for its next token while a long prompt is computed
// beside it. A random Llama of the shape of SmolLM2-135M unless a model is named. Writes bench/results/groups.json.

import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import {
  createDevice,
  createScheduler,
  loadModel,
  type Model,
  type RunOptions,
  runWorkers,
} from 'hogwild'
import { machine, round, spread } from './machine'
import { withRandomLlama } from './random-llama'

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    groups: { type: 'string', default: '64' },
    workers: { type: 'string', default: '4' },
    prompt: { type: 'string', default: '64' },
    /** Tokens of each worker; each number is measured. */
    generate: { type: 'string', default: '16,64' },
    repeat: { type: 'string', default: '3' },
    long: { type: 'string', default: '16384' },
    chunk: { type: 'string', default: '128' },
    threads: { type: 'string' },
    out: { type: 'string', default: 'bench/results' },
  },
})
const [groups, workers, promptLength, repeat, long, chunk] = [
  values.groups,
  values.workers,
  values.prompt,
  values.repeat,
  values.long,
  values.chunk,
].map(Number) as [number, number, number, number, number, number]
const lengths = values.generate.split(',').map(Number)

async function main(): Promise<void> {
  const [path] = positionals
  if (path !== undefined) await bench(path)
  else await withRandomLlama(bench)
}

async function bench(path: string): Promise<void> {
  const about = machine()
  using device = createDevice({
    type: 'cpu',
    ...(values.threads && { threads: Number(values.threads) }),
  })
  await using model = await loadModel(path, { device, onWarning: () => {} })
  const rows = []
  for (const generate of lengths) rows.push(await throughput(model, generate))
  const report = {
    ...{ groups, workers, prompt: promptLength, repeat },
    throughput: rows,
    latency: await latency(model),
    model: positionals[0] ?? 'random Llama of 135 M parameters',
    dtype: Object.keys(model.weights).join(' + '),
    simd: device.info.simd,
    threads: device.info.threads,
    command: `npm run bench:groups -- ${process.argv.slice(2).join(' ')}`.trim(),
    machine: about,
  }
  await mkdir(values.out, { recursive: true })
  await writeFile(join(values.out, 'groups.json'), `${JSON.stringify(report, null, 1)}\n`)
  process.stdout.write(`${JSON.stringify(report, null, 1)}\n`)
}

/** A group of its own prompt and seeds, each worker of which writes `generate` tokens. */
function group(
  model: Model,
  number: number,
  generate: number,
  options: Partial<RunOptions> = {},
): RunOptions {
  const { vocabSize } = model.config
  const id = (i: number) => (number * 104_729 + i * 7919) % vocabSize
  return {
    model,
    prompt: Array.from({ length: promptLength }, (_, i) => id(i)),
    workers: Array.from({ length: workers }, (_, w) => ({
      name: `worker ${w}`,
      prompt: [id(promptLength + w)],
      sampler: { seed: 1000 * number + w },
    })),
    layout: 'contiguous',
    maxTokens: generate,
    stopTokens: [],
    capacity: 64 * (Math.ceil(promptLength / 64) + workers * Math.ceil((generate + 1) / 64)),
    ...options,
  }
}

async function tokensOf(options: RunOptions): Promise<string> {
  const tokens: string[] = []
  for await (const event of runWorkers(options)) {
    if (event.type === 'token') tokens.push(`${event.worker}:${event.token}`)
  }
  return tokens.join(' ')
}

/** In turn, so that a change of the machine's speed meets both. */
async function throughput(model: Model, generate: number) {
  const seconds = { together: [] as number[], apart: [] as number[] }
  const numbers = Array.from({ length: groups }, (_, number) => number)
  const expected: string[] = []
  await tokensOf(group(model, 0, generate)) // brings the weights into memory
  for (let round = 0; round < repeat; round++) {
    let begin = performance.now()
    const together = await Promise.all(
      numbers.map((number) => tokensOf(group(model, number, generate))),
    )
    seconds.together.push((performance.now() - begin) / 1e3)
    begin = performance.now()
    for (const number of numbers) {
      expected[number] = await tokensOf(group(model, number, generate))
    }
    seconds.apart.push((performance.now() - begin) / 1e3)
    const differing = numbers.filter((number) => together[number] !== expected[number])
    if (differing.length > 0) throw new Error(`groups ${differing} write otherwise than alone`)
  }
  const [together, apart] = [spread(seconds.together, 3), spread(seconds.apart, 3)]
  const tokens = groups * workers * generate
  return {
    generate,
    together_seconds: together,
    apart_seconds: apart,
    together_tokens_per_s: round(tokens / together.median, 1),
    apart_tokens_per_s: round(tokens / apart.median, 1),
    times_as_fast: round(apart.median / together.median, 2),
    same_tokens: true,
  }
}

/** A group writes while the prompt of another one is computed. */
async function latency(model: Model) {
  const capacity = 32_768
  const scheduler = createScheduler({ model, chunk, capacity: capacity + 2 * long + 1024 })
  const chunks: number[] = []
  const listener = (message: unknown) => {
    const step = message as { prefilledTokens: number; milliseconds: number }
    if (step.prefilledTokens >= chunk) chunks.push(step.milliseconds)
  }
  const writer = runWorkers(group(model, 0, 1e6, { scheduler, capacity }))
  const waits: number[] = []
  const alone: number[] = []
  let filling: Promise<unknown> | undefined
  let isFilled = false
  let last = 0
  for await (const event of writer) {
    if (event.type !== 'step') continue
    const now = performance.now()
    if (last > 0) (filling === undefined ? alone : waits).push(now - last)
    last = now
    if (event.step === 10) {
      subscribe('hogwild:step', listener)
      const prompt = Array.from({ length: long }, (_, i) => (i * 7919) % model.config.vocabSize)
      const options = { scheduler, prompt, capacity: 2 * long + 1024 }
      filling = tokensOf(group(model, 1, 1, options)).then(() => {
        isFilled = true
      })
    }
    if (isFilled) break
  }
  await filling
  unsubscribe('hogwild:step', listener)
  const [wait, step] = [spread(waits, 1), spread(chunks, 1)]
  return {
    ...{ prompt: long, chunk },
    step_ms_alone: spread(alone, 1),
    wait_ms: wait,
    step_with_chunk_ms: step,
    /** 1: nobody waits longer than a step with a chunk takes. */
    longest_wait_over_longest_step: round(wait.max / step.max, 3),
  }
}

void main()

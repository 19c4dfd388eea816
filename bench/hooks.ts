// `npm run bench:hooks -- MODEL`: what the hooks of a step cost, and what a parked worker costs the others. Three workers that
// see each other write behind a prompt; steps without and with each hook, runs without and with a parked worker, come in turn,
// several times. The grammar's are JSON strings of its schema, the worst of JSON: most tokens of the vocabulary may come
// next. Writes bench/results/hooks-NAME.json.

import { mkdir, writeFile } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { parseArgs } from 'node:util'
import {
  createGrammar,
  type Grammar,
  loadModel,
  loadTokenizer,
  type Model,
  runWorkers,
  type StepWorker,
} from 'hogwild'
import { median } from '../lib/cli/median'
import { formatTable } from '../lib/cli/table'
import { machine, round, spread } from './machine'

const WORKERS = 3
const STEPS = 24
/** Tokens that the parked worker writes before, and steps of the others since. */
const [BEFORE_PARK, WHILE_PARKED] = [8, 48]

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    /** For the grammar; default: the model's. */
    tokenizer: { type: 'string' },
    prompt: { type: 'string', default: '256' },
    rounds: { type: 'string', default: '9' },
    threads: { type: 'string' },
    out: { type: 'string', default: 'bench/results' },
  },
})

type Hooks = Omit<StepWorker, 'view' | 'tokens' | 'embeddings'>
const HOOKS: Record<string, (grammar: Grammar) => Promise<Hooks> | Hooks> = {
  none: () => ({}),
  /** Named and not asked for. */
  unused: () => ({ processLogits: undefined, grammar: undefined, hidden: false, topLogprobs: 0 }),
  logitBias: () => ({ logitBias: { 1: -Infinity, 2: 1 } }),
  processLogits: () => ({ processLogits() {} }),
  grammar: async (grammar) => ({ grammar: await grammar.matcher() }),
  logprob: () => ({ logprob: true, topLogprobs: 5 }),
  hidden: () => ({ hidden: true }),
  attentionMass: () => ({ attentionMass: true }),
}

/** Milliseconds of each step. */
async function measure(model: Model, prompt: number, hooks: () => Promise<Hooks>) {
  await using cache = model.createCache({ capacity: prompt + WORKERS * (STEPS + 64) + 64 })
  const shared = cache.createBlock()
  const blocks = Array.from({ length: WORKERS }, () => cache.createBlock())
  await model.prefill(
    shared,
    Array.from({ length: prompt }, (_, i) => i % model.config.vocabSize),
    {
      sampler: null,
    },
  )
  const workers: StepWorker[] = []
  for (const own of blocks) {
    const view = { blocks: [shared, ...blocks.filter((block) => block !== own), own] }
    workers.push({ view, tokens: [1], ...(await hooks()) })
  }
  const milliseconds: number[] = []
  for (let step = 0; step < STEPS; step++) {
    const begin = performance.now()
    const outputs = await model.step(workers)
    milliseconds.push(performance.now() - begin)
    for (const [i, { token }] of outputs.entries()) {
      const worker = workers[i] as StepWorker
      worker.tokens = [token as number]
    }
  }
  return milliseconds
}

/** Tokens per second of three workers of a run, beside whom a fourth one waits for a tool or does not. */
async function tokensPerSecond(model: Model, prompt: number, isParked: boolean): Promise<number> {
  const { vocabSize } = model.config
  const active = Array.from({ length: WORKERS }, (_, i) => ({ name: `${i}`, prompt: [i + 1] }))
  const parked = { name: 'parked', prompt: [WORKERS + 1] }
  await using run = runWorkers({
    model,
    prompt: Array.from({ length: prompt }, (_, i) => i % vocabSize),
    workers: isParked ? [...active, parked] : active,
    layout: 'contiguous',
    stopTokens: [],
  })
  let begin = 0
  for await (const event of run) {
    if (event.type !== 'step') continue
    if (event.step === BEFORE_PARK - 1) {
      if (isParked) run.park('parked', () => new Promise(() => {}))
    } else if (event.step === BEFORE_PARK) {
      begin = performance.now()
    } else if (event.step === BEFORE_PARK + WHILE_PARKED) {
      break
    }
    if (event.step >= BEFORE_PARK && event.workers !== WORKERS) throw new Error('nobody is parked')
  }
  return (WORKERS * WHILE_PARKED) / ((performance.now() - begin) / 1e3)
}

/** In turn, so that a change of the machine's speed meets both. */
async function parked(model: Model, prompt: number) {
  const rates = { without: [] as number[], with: [] as number[] }
  for (let turn = 0; turn <= Number(values.rounds); turn++) {
    for (const which of ['without', 'with'] as const) {
      const rate = await tokensPerSecond(model, prompt, which === 'with')
      if (turn > 0) rates[which].push(rate) // the first warms up
    }
  }
  const [without, beside] = [spread(rates.without, 1), spread(rates.with, 1)]
  return {
    ...{ active: WORKERS, steps: WHILE_PARKED, rounds: Number(values.rounds) },
    without_tokens_per_s: without,
    with_tokens_per_s: beside,
    with_over_without: round(beside.median / without.median, 3),
  }
}

async function main() {
  const [path] = positionals
  if (path === undefined) throw new Error('usage: npm run bench:hooks -- MODEL')
  const threads = values.threads === undefined ? undefined : Number(values.threads)
  await using model = await loadModel(path, { device: 'cpu', threads })
  await using tokenizer = await loadTokenizer(values.tokenizer ?? path)
  const compileBegin = performance.now()
  const jsonSchema = {
    type: 'array',
    items: { type: 'string', minLength: 200, maxLength: 4000 },
    minItems: 9,
    maxItems: 9,
  }
  const grammar = await createGrammar({ tokenizer, jsonSchema })
  const compileSeconds = (performance.now() - compileBegin) / 1e3
  const prompt = Number(values.prompt)
  const samples = new Map<string, number[]>(Object.keys(HOOKS).map((name) => [name, []]))
  const kinds = Object.entries(HOOKS)
  for (let turn = 0; turn <= Number(values.rounds); turn++) {
    // Each round begins with another one: what comes behind what must not matter.
    const first = turn % kinds.length
    for (const [name, hooks] of [...kinds.slice(first), ...kinds.slice(0, first)]) {
      const milliseconds = await measure(model, prompt, async () => hooks(grammar))
      if (turn > 0) samples.get(name)?.push(median(milliseconds)) // the first warms up
    }
  }
  const plain = samples.get('none') as number[]
  const runs = [...samples].map(([hook, times]) => ({
    hook,
    step_ms: spread(times, 3),
    // (of the same round: the machine's speed changes in minutes)
    over_none: round(median(times.map((time, i) => time / (plain[i] as number))), 3),
  }))
  const rows = runs.map(({ hook, step_ms, over_none }) => [
    hook,
    `${step_ms.median}`,
    `${over_none}`,
  ])
  for (const line of formatTable(['hook', 'ms per step', 'over none'], rows)) console.log(line)
  console.log(`compiling the grammar: ${round(compileSeconds, 2)} s`)
  const parking = await parked(model, prompt)
  console.log(`beside a parked worker: ${parking.with_over_without} of the tokens/s without it`)
  const name = basename(path).replace(/\.gguf$/, '')
  await mkdir(values.out, { recursive: true })
  await writeFile(
    join(values.out, `hooks-${name}.json`),
    `${JSON.stringify(
      {
        machine: machine(),
        model: name,
        workers: WORKERS,
        prompt,
        rounds: Number(values.rounds),
        simd: model.device.info.simd,
        threads: model.device.info.threads,
        command: `npm run bench:hooks -- ${process.argv.slice(2).join(' ')}`,
        compile_s: round(compileSeconds, 2),
        runs,
        parked: parking,
      },
      null,
      2,
    )}\n`,
  )
}

void main()

// `npm run bench:hooks -- MODEL`: what the hooks of a step cost. Three workers that see each other write behind a prompt;
// steps without and with each hook come in turn, several times. The grammar's are JSON strings of its schema, the
// worst of JSON: most tokens of the vocabulary may come next. Writes bench/results/hooks-NAME.json.

import { mkdir, writeFile } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { parseArgs } from 'node:util'
import {
  createGrammar,
  type Grammar,
  loadModel,
  loadTokenizer,
  type Model,
  type StepWorker,
} from 'hogwild'
import { median } from '../lib/cli/median'
import { formatTable } from '../lib/cli/table'
import { machine, round, spread } from './machine'

const WORKERS = 3
const STEPS = 24

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    prompt: { type: 'string', default: '256' },
    rounds: { type: 'string', default: '9' },
    threads: { type: 'string' },
    out: { type: 'string', default: 'bench/results' },
  },
})

type Hooks = Omit<StepWorker, 'view' | 'tokens' | 'embeddings'>
const HOOKS: Record<string, (grammar: Grammar) => Promise<Hooks> | Hooks> = {
  none: () => ({}),
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

async function main() {
  const [path] = positionals
  if (path === undefined) throw new Error('usage: npm run bench:hooks -- MODEL')
  const threads = values.threads === undefined ? undefined : Number(values.threads)
  await using model = await loadModel(path, { device: 'cpu', threads })
  await using tokenizer = await loadTokenizer(path)
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
  for (let turn = 0; turn <= Number(values.rounds); turn++) {
    for (const [name, hooks] of Object.entries(HOOKS)) {
      const milliseconds = await measure(model, prompt, async () => hooks(grammar))
      if (turn > 0) samples.get(name)?.push(median(milliseconds)) // the first warms up
    }
  }
  const plain = median(samples.get('none') as number[])
  const runs = [...samples].map(([hook, times]) => ({
    hook,
    step_ms: spread(times, 3),
    over_none: round(median(times) / plain, 3),
  }))
  const rows = runs.map(({ hook, step_ms, over_none }) => [
    hook,
    `${step_ms.median}`,
    `${over_none}`,
  ])
  for (const line of formatTable(['hook', 'ms per step', 'over none'], rows)) console.log(line)
  console.log(`compiling the grammar: ${round(compileSeconds, 2)} s`)
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
        compile_s: round(compileSeconds, 2),
        runs,
      },
      null,
      2,
    )}\n`,
  )
}

void main()

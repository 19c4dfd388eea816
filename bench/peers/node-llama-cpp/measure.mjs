// One measurement of node-llama-cpp in a process of its own; see ../hogwild.ts. An ES module beside its
// own node_modules, so not compiled with the others.

import { readFileSync } from 'node:fs'
import { getLlama, LlamaLogLevel } from 'node-llama-cpp'

/** Steps after the prompt, before the prompt and anything else is measured. */
const WARM_UP = 4
const GREEDY = { temperature: 0, yieldEogToken: true }

/** @param {import('../task').Task} task */
async function createContext({ path, prompt, generate, workers, threads, flashAttention }) {
  const llama = await getLlama({
    gpu: false,
    build: 'never',
    maxThreads: threads,
    logLevel: LlamaLogLevel.error,
  })
  const loadBegin = performance.now()
  const model = await llama.loadModel({ modelPath: path })
  const loadSeconds = (performance.now() - loadBegin) / 1e3
  // Of each sequence: a context of several has one part for each.
  const contextSize = prompt.length + generate + 1
  const context = await model.createContext({
    sequences: workers,
    contextSize,
    batchSize: Math.max(512, workers),
    threads: { ideal: threads, min: threads },
    flashAttention,
  })
  return { context, loadSeconds }
}

/** @param {import('../task').Task} task */
async function measure(task) {
  const { context, loadSeconds } = await createContext(task)
  const sequences = Array.from({ length: task.workers }, () => context.getSequence())
  const baselineBytes = peakMemory()

  /** @param {number[]} prompt @param {number} steps */
  async function run(prompt, steps) {
    const generators = sequences.map((sequence) => sequence.evaluate(prompt, GREEDY))
    const prefillBegin = performance.now()
    await generators[0].next()
    const prefillEnd = performance.now()
    await Promise.all(generators.slice(1).map((generator) => generator.next()))
    const decodeBegin = performance.now()
    // Each at its own pace; the context puts what is waiting into one batch.
    await Promise.all(
      generators.map(async (generator) => {
        for (let step = 0; step < steps; step++) await generator.next()
      }),
    )
    const end = performance.now()
    for (const generator of generators) await generator.return()
    for (const sequence of sequences) await sequence.clearHistory()
    return {
      prefillSeconds: (prefillEnd - prefillBegin) / 1e3,
      decodeSeconds: (end - decodeBegin) / 1e3,
    }
  }

  await run(task.prompt, WARM_UP)
  const times = await run(task.prompt, task.generate)
  return { loadSeconds, ...times, peakBytes: peakMemory(), baselineBytes }
}

/** @param {import('../task').Task} task */
async function answer(task) {
  const { context } = await createContext(task)
  const last = [task.prompt.at(-1), { generateNext: { logits: true } }]
  const outputs = await context
    .getSequence()
    .controlledEvaluate([...task.prompt.slice(0, -1), last])
  const logits = []
  for (const [token, logit] of outputs.at(-1).next.logits) logits[token] = logit
  return logits
}

function peakMemory() {
  const [, kilobytes] = /VmHWM:\s+(\d+) kB/.exec(readFileSync('/proc/self/status', 'utf8'))
  return Number(kilobytes) * 1024
}

const task = JSON.parse(process.argv[2])
process.stdout.write(JSON.stringify(task.answer ? await answer(task) : await measure(task)), () =>
  process.exit(0),
)

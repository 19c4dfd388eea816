// One measurement of hogwild in a process of its own; run.ts starts it and reads the line of JSON.
// node-llama-cpp/measure.mjs does the same.

import { readFileSync } from 'node:fs'
import { loadModel } from 'hogwild'
import type { Measurement, Task } from './task'

const BANDWIDTH_BUFFER = 256 * 2 ** 20
/** Steps after the prompt, before the prompt and anything else is measured. */
const WARM_UP = 4
const PAGE_TOKENS = 64

async function measure(task: Task): Promise<Measurement> {
  const { workers, prompt, generate, threads } = task
  const loadBegin = performance.now()
  await using model = await loadModel(task.path, { threads })
  const loadSeconds = (performance.now() - loadBegin) / 1e3
  const { vocabSize } = model.config
  const pages = Math.ceil(prompt.length / PAGE_TOKENS) + workers * Math.ceil(generate / PAGE_TOKENS)
  // One for both runs, as node-llama-cpp has one context: the system clears memory that is first
  // written, in a virtual machine after it has asked its host for it, and that is not timed there.
  await using cache = model.createCache({ capacity: pages * PAGE_TOKENS })
  const { bytesPerPage, pageSize, pages: poolPages } = cache.stats

  async function run(prompt: number[], steps: number) {
    const shared = cache.createBlock()
    const blocks = Array.from({ length: workers }, () => cache.createBlock())
    // Everyone sees the prompt, the others, itself.
    const views = blocks.map((own) => [shared, ...blocks.filter((block) => block !== own), own])
    const prefillBegin = performance.now()
    await model.prefill(shared, prompt)
    const decodeBegin = performance.now()
    let tokens = blocks.map((_, worker) => (worker + 3) % vocabSize)
    for (let step = 0; step < steps; step++) {
      const outputs = await model.step(
        views.map((blocks, worker) => ({ view: { blocks }, tokens: [tokens[worker] as number] })),
      )
      tokens = outputs.map(({ token }) => token as number)
    }
    const end = performance.now()
    for (const block of [shared, ...blocks]) block.close()
    return {
      prefillSeconds: (decodeBegin - prefillBegin) / 1e3,
      decodeSeconds: (end - decodeBegin) / 1e3,
    }
  }

  const baseline = peakMemory()
  await run(prompt, WARM_UP)
  const { prefillSeconds, decodeSeconds } = await run(prompt, generate)
  const peakBytes = peakMemory()
  // Half way, when each worker has written half of its tokens.
  const visible = prompt.length + (workers * generate) / 2
  return {
    loadSeconds,
    prefillSeconds,
    decodeSeconds,
    peakBytes,
    baselineBytes: baseline,
    cacheBytes: poolPages * bytesPerPage,
    weightBytes: model.weightBytes,
    stepBytes: model.weightBytes + (visible * bytesPerPage) / pageSize,
    readBandwidth: await model.device.readBandwidth(BANDWIDTH_BUFFER),
  }
}

/** [vocabulary]: the logits of the prompt's last token. */
async function answer({ path, prompt, threads }: Task): Promise<number[]> {
  await using model = await loadModel(path, { threads })
  await using cache = model.createCache({ capacity: prompt.length })
  const view = { blocks: [cache.createBlock()] }
  const [output] = await model.step([{ view, tokens: prompt, logits: 'last' }])
  return Array.from(output?.logits as Float32Array)
}

/** Most memory that this process has had, in bytes. */
function peakMemory(): number {
  const [, kilobytes] = /VmHWM:\s+(\d+) kB/.exec(readFileSync('/proc/self/status', 'utf8')) ?? []
  return Number(kilobytes) * 1024
}

async function main(): Promise<void> {
  const task = JSON.parse(process.argv[2] as string) as Task
  const result = task.answer ? await answer(task) : await measure(task)
  process.stdout.write(JSON.stringify(result))
}

void main()

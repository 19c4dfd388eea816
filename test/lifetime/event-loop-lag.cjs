// How late the event loop is while steps run: `node event-loop-lag.cjs [SECONDS]`. Prints percentiles of
// the loop's delay in milliseconds: idle; beside as many threads as the device has that do nothing but
// compute (what this machine's scheduler costs); then during decoding, prefill (with all logits, the
// largest result there is) and passes. The model has 29 M parameters in f32.
'use strict'
const { monitorEventLoopDelay } = require('node:perf_hooks')
const { setTimeout: sleep } = require('node:timers/promises')
const { Worker } = require('node:worker_threads')
const {
  attendOptions,
  cacheShape,
  loadAddon,
  randomModel,
  stepWorker,
} = require('./random-model.cjs')

// The histogram counts whole intervals between wake-ups of a timer of this many milliseconds.
const RESOLUTION = 1

async function measure(seconds, work) {
  const histogram = monitorEventLoopDelay({ resolution: RESOLUTION })
  const end = performance.now() + 1000 * seconds
  let calls = 0
  histogram.enable()
  while (performance.now() < end) {
    await work()
    calls++
  }
  histogram.disable()
  const milliseconds = (nanoseconds) => Number((nanoseconds / 1e6 - RESOLUTION).toFixed(3))
  return {
    calls,
    p50: milliseconds(histogram.percentile(50)),
    p99: milliseconds(histogram.percentile(99)),
    max: milliseconds(histogram.max),
  }
}

async function main() {
  const seconds = Number(process.argv[2] ?? 3)
  const native = loadAddon()
  const { config, tensors, remove } = randomModel({
    vocabSize: 16384,
    hiddenSize: 512,
    intermediateSize: 1536,
    layers: 8,
    queryHeads: 8,
    kvHeads: 4,
    headDim: 64,
  })
  process.on('exit', remove)
  const device = native.createDevice({
    type: 'cpu',
    index: 0,
    threads: 0,
    simd: '',
    profile: false,
  })
  const model = await native.createModel(device, config, tensors, null, null, null, true)
  const cache = native.createCache(device, cacheShape(config, 8192))
  const block = () => native.createBlock(cache)
  const prompt = block()
  const own = [block(), block(), block(), block()]
  const views = own.map((target) => [prompt, ...own.filter((other) => other !== target), target])
  await native.step(model, cache, [stepWorker([prompt], new Array(256).fill(3))], null)

  const decode = async () => {
    const workers = views.map((view) => stepWorker(view, [5], { logits: 'last' }))
    await native.step(model, cache, workers, null)
  }
  const prefill = async () => {
    const scratch = block()
    const tokens = Array.from({ length: 256 }, (_, i) => i)
    await native.step(model, cache, [stepWorker([scratch], tokens, { logits: 'all' })], null)
    native.blockClose(scratch)
  }
  const pass = async () => {
    const scratch = block()
    const worker = { view: [prompt, scratch], fields: null, target: scratch, nTokens: 128 }
    const handle = native.beginPass(cache, [worker])
    const kv = new Float32Array(128 * config.kvHeads * config.headDim)
    const q = new Float32Array(128 * config.queryHeads * config.headDim)
    for (let layer = 0; layer < config.layers.length; layer++) {
      await native.passAppend(handle, layer, kv, kv)
      await native.passAttend(handle, layer, q, config.queryHeads, attendOptions(0.125, true))
    }
    native.passAbort(handle)
    native.blockClose(scratch)
  }
  const { threads } = native.deviceInfo(device)
  const lag = { idle: await measure(seconds / 3, () => sleep(20)) }
  const spinning = Array.from({ length: threads }, () => new Worker('for (;;);', { eval: true }))
  lag.spinning = await measure(seconds / 3, () => sleep(20))
  await Promise.all(spinning.map((worker) => worker.terminate()))
  for (const [name, work] of Object.entries({ decode, prefill, pass })) {
    lag[name] = await measure(seconds / 3, work)
  }
  console.log(JSON.stringify({ unit: 'ms', threads, ...lag }))
}

void main()

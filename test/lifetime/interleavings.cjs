// Random interleavings of steps, passes, block operations, aborts, closing, garbage collection and the
// termination of worker threads: `node --expose-gc interleavings.cjs SEED COUNT`. Ends with exit code 0
// unless something crashes, hangs, fails without a code, or leaves a trace in the cache that it should not.
'use strict'
const { once } = require('node:events')
const { setImmediate: tick, setTimeout: sleep } = require('node:timers/promises')
const { Worker, isMainThread, parentPort, workerData } = require('node:worker_threads')
const {
  attendOptions,
  cacheShape,
  choices,
  loadAddon,
  random,
  randomModel,
  stepWorker,
} = require('./random-model.cjs')

const EXPECTED = new Set([
  'HOGWILD_ABORTED',
  'HOGWILD_BUSY',
  'HOGWILD_CLOSED',
  'HOGWILD_OUT_OF_PAGES',
  'HOGWILD_WRITE_CONFLICT', // a block that stands twice in the list
])
const SIZE = { hiddenSize: 128, intermediateSize: 256, layers: 3, vocabSize: 512 }

// The value, or undefined where the call was refused for one of the expected reasons.
function attempt(call) {
  try {
    return call()
  } catch (error) {
    if (!EXPECTED.has(error.code)) throw error
  }
}

function check(condition, message) {
  if (!condition) throw new Error(message)
}

/** One interleaving. `pause` lets other things happen for a moment. */
async function interleave(native, model, next) {
  const { below, pick } = choices(next)
  const tokens = (n) => Array.from({ length: n }, () => below(model.config.vocabSize))
  const { config } = model
  const pending = []
  // Every promise is awaited at the end; those that fail must say why.
  const follow = (promise) => {
    pending.push(
      promise.catch((error) => check(EXPECTED.has(error.code), `unexpected: ${error.stack}`)),
    )
  }

  const device = native.createDevice({
    type: 'cpu',
    index: 0,
    threads: 1 + below(2),
    simd: '',
    profile: false,
  })
  const loading = native.createModel(
    device,
    config,
    model.tensors,
    pick([null, null, 'bf16']),
    null,
    null,
    next() < 0.5,
  )
  if (next() < 0.05) {
    native.deviceClose(device) // while the model loads
    follow(loading)
    return pending
  }
  const handle = await loading
  const formats = ['f32', 'bf16', 'int8']
  const cache = native.createCache(device, cacheShape(config, 2048, pick(formats), pick(formats)))
  let blocks = [0, 1, 2, 3].map(() => native.createBlock(cache))
  const made = [...blocks]

  const actions = {
    step() {
      const cancel = native.createCancel()
      const [common, ...own] = blocks
      const workers = own
        .filter(() => next() < 0.7)
        .map((block) =>
          stepWorker(
            [common, ...own.filter((other) => other !== block), block],
            tokens(1 + below(200)),
            {
              logits: pick(['none', 'last', 'all']),
            },
          ),
        )
      if (workers.length === 0) return
      follow(native.step(handle, cache, workers, cancel))
      if (next() < 0.5) setImmediate(() => native.cancel(cancel))
      if (next() < 0.1) native.cancel(cancel)
    },
    pass() {
      const [common, ...own] = blocks
      const n = 1 + below(20)
      const workers = own.map((block) => ({
        view: [common, block],
        fields: null,
        target: block,
        nTokens: n,
      }))
      const pass = attempt(() => native.beginPass(cache, workers))
      if (!pass) return
      const rows = n * own.length
      for (let layer = 0; layer < config.layers.length; layer++) {
        const kv = new Float32Array(rows * config.kvHeads * config.headDim).fill(next())
        follow(native.passAppend(pass, layer, kv, kv))
        const q = new Float32Array(rows * config.queryHeads * config.headDim).fill(next())
        follow(
          native.passAttend(pass, layer, q, config.queryHeads, attendOptions(0.25, next() < 0.5)),
        )
      }
      const end = pick([native.passCommit, native.passAbort, () => {}, () => {}])
      attempt(() => end(pass)) // or leave it to the garbage collector
    },
    blocks() {
      const [a, b] = [pick(blocks), pick(blocks)]
      attempt(() => native.blockAppendFrom(a, b))
      attempt(() => native.blockTruncate(a, below(native.blockLength(a) + 1)))
      made.push(attempt(() => native.blockFork(b)) ?? a)
      if (next() < 0.3) attempt(() => native.blockClear(a))
    },
    compact: () => follow(native.blockCompact(pick(blocks))),
    closeBlock: () => native.blockClose(pick(blocks)),
    replaceBlock() {
      const block = attempt(() => native.createBlock(cache)) ?? blocks[0]
      blocks[below(blocks.length)] = block
      made.push(block)
    },
    forget() {
      blocks = blocks.slice(0, 2)
    },
    gc: () => globalThis.gc(),
    closeCache: () => native.cacheClose(cache),
    closeModel: () => native.modelClose(handle),
    closeDevice: () => native.deviceClose(device),
    tick: () => tick(),
    wait: () => sleep(below(4)),
  }
  const common = [
    'step',
    'step',
    'step',
    'pass',
    'blocks',
    'compact',
    'replaceBlock',
    'gc',
    'tick',
    'tick',
    'wait',
  ]
  const rare = ['closeBlock', 'forget', 'closeCache', 'closeModel', 'closeDevice']
  for (let i = 0; i < 12; i++) await actions[next() < 0.85 ? pick(common) : pick(rare)]()
  // Half of the time everything is left as it is, with calls under way.
  if (next() < 0.5) return pending
  await Promise.all(pending)
  for (const block of made) native.blockClose(block)
  for (let i = 0; i < 3; i++) {
    globalThis.gc() // a pass that was left open gives back what it reserved
    await tick()
  }
  const stats = attempt(() => native.cacheStats(cache))
  if (stats) check(stats.freePages === stats.pages, `${stats.pages - stats.freePages} pages lost`)
  return pending
}

async function worker() {
  const native = loadAddon()
  const next = random(workerData.seed)
  for (;;) {
    parentPort.postMessage('round')
    await interleave(native, workerData.model, next)
    if (next() < 0.1) throw new Error('on purpose')
    if (next() < 0.1) process.exit()
  }
}

async function main() {
  const [seed, count] = process.argv.slice(2).map(Number)
  const next = random(seed)
  const native = loadAddon()
  const { remove, ...model } = randomModel({ ...SIZE, seed })
  process.on('exit', remove)
  const pending = []
  let terminated = 0
  for (let i = 0; i < count; i++) {
    if (next() < 0.2) {
      // A worker thread is terminated, ends itself or throws, in the middle of whatever it does.
      const thread = new Worker(__filename, {
        workerData: { seed: Math.floor(next() * 2 ** 32), model },
        argv: [],
      })
      const isExpected = (error) => {
        if (error.message !== 'on purpose') throw error
      }
      thread.on('error', isExpected)
      // Its error may come before its message, on another port.
      await Promise.race([once(thread, 'message'), once(thread, 'exit')]).catch(isExpected)
      await sleep(Math.floor(next() * 20))
      await thread.terminate()
      terminated++
    } else {
      pending.push(...(await interleave(native, model, next)))
    }
  }
  // The process ends with calls under way, by itself or in their middle.
  if (next() < 0.5) await Promise.all(pending)
  console.log(JSON.stringify({ seed, interleavings: count, terminated }))
  if (next() < 0.5) process.exit()
}

void (isMainThread ? main() : worker())

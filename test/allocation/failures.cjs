// Lets every allocation, mapping and thread start of the addon fail, one call of the binding after the other:
// `LD_PRELOAD=shim.so HOGWILD_FAIL=FILE node --expose-gc failures.cjs MODE CACHE FIRST STRIDE [CALL...]`.
// CACHE: the format of keys and values. MODE `once`: the n-th fails; `on`: so do all behind it, until the call has settled. n runs from FIRST by STRIDE
// until a call meets no failure. Prints a line for each call and ends with exit code 0 where each failure
// gave HOGWILD_OUT_OF_MEMORY or success, left the cache as it was to the last bit, and leaked nothing.
'use strict'
const { createHash } = require('node:crypto')
const fs = require('node:fs')
const path = require('node:path')
const { setTimeout: sleep } = require('node:timers/promises')
const { functionOf, openBinding } = require('../binding/calls.cjs')
const {
  attendOptions,
  cacheShape,
  loadAddon,
  randomModel,
  stepWorker,
} = require('../lifetime/random-model.cjs')

// Pieces of memory that a call may leave behind: scratch space that grew.
const KEPT = 2

// struct control of shim.c
const WORDS = { watch: 0, countdown: 1, persist: 2, failed: 3, live: 4 }

function openControl() {
  const file = fs.openSync(process.env.HOGWILD_FAIL, 'r+')
  const buffer = Buffer.alloc(8)
  return {
    set(word, value) {
      buffer.writeBigInt64LE(BigInt(value))
      fs.writeSync(file, buffer, 0, 8, 8 * WORDS[word])
    },
    get(word) {
      fs.readSync(file, buffer, 0, 8, 8 * WORDS[word])
      return Number(buffer.readBigInt64LE())
    },
  }
}

/** Calls of the table in calls.cjs, and calls that do more: `prepare` and `undo` do not fail. */
function operations(native, binding, files) {
  const { device, model, cache, a, b, calls } = binding
  const { config, tensors } = files
  const operations = {}
  for (const [name, { args, unsupported }] of Object.entries(calls)) {
    // Arguments that nobody reads: many of them take memory.
    const run = (args) => functionOf(native, name)(...args, ...Array(8).fill(0))
    operations[name] = { prepare: args, run, unsupported }
  }
  // A call that was refused has not taken the step, and steps side by side take more scratch space than one.
  const aborted = async ([step]) => {
    try {
      await native.abortStep(step)
    } catch (error) {
      if (error.code !== 'HOGWILD_CLOSED') throw error
    }
  }
  for (const name of ['finishStep', 'abortStep']) operations[name].undo = aborted
  // A budget is the cache's until it is closed.
  const closed = ([cache, budget]) => native.closeBudget(cache, budget)
  for (const name of ['budgetStats', 'chargeBudget', 'createBlock']) operations[name].undo = closed
  const run = (name, prepare, run, undo = (blocks) => blocks.forEach(native.blockClose)) => {
    operations[name] = { prepare, run, undo }
  }
  const blocks = (n) => () => Array.from({ length: n }, () => native.createBlock(cache))
  const sampler = {
    ...stepWorker([a], [1]).sampler,
    temperature: 1,
    topK: 5,
    topP: 0.9,
    repetitionPenalty: 1.2,
    forbidden: Int32Array.of(3),
  }

  run('step: two workers', blocks(2), ([x, y]) => {
    const fields = Float64Array.of(-1, 0, 1, 0, 70, 1, 2, -1, -1, 0, 1, 0)
    const first = stepWorker([a, y, x], [1, 2, 3], {
      logits: 'all',
      fields,
      sampler,
      logprob: true,
    })
    const second = stepWorker([b, x, y], Array(70).fill(2), { logits: 'last', sampler: null })
    return native.step(model, cache, [first, second], null)
  })
  run('step: 600 tokens', blocks(1), ([x]) =>
    native.step(model, cache, [stepWorker([a, x], Array(600).fill(1))], null),
  )
  run(
    'compact: many segments',
    () => {
      const block = native.blockFork(a)
      for (let i = 0; i < 5; i++) native.blockAppendFrom(block, i % 2 ? a : b)
      return [block]
    },
    ([block]) => native.blockCompact(block),
  )
  run('pass: from begin to commit', blocks(1), async ([x]) => {
    const worker = { view: [a, x], fields: null, target: x, nTokens: 2 }
    const pass = native.beginPass(cache, [worker])
    try {
      const kv = new Float32Array(2 * config.kvHeads * config.headDim)
      const q = new Float32Array(2 * config.queryHeads * config.headDim)
      for (let layer = 0; layer < config.layers.length; layer++) {
        await native.passAppend(pass, layer, kv, kv)
        await native.passAttend(pass, layer, q, config.queryHeads, attendOptions(1, true))
      }
      native.passCommit(pass)
    } finally {
      native.passAbort(pass)
    }
  })
  run(
    'createDevice: three threads',
    () => {},
    () => native.createDevice({ type: 'cpu', index: 0, threads: 3, simd: '', profile: false }),
    () => {},
  )
  run(
    'createModel: converted',
    () => {},
    () => native.createModel(device, config, tensors, 'bf16', native.createProgress(), null, false),
    () => {},
  )
  run(
    'a cache in bf16, and a block in it',
    () => {},
    () => native.createBlock(native.createCache(device, cacheShape(config, 512, 'bf16'))),
    () => {},
  )

  // The same through the package.
  const { loadModel, runWorkers } = require('../../dist')
  const folder = path.join(__dirname, '..', 'fixtures', 'families', 'llama_bias')
  const close = ([opened]) => opened?.close()
  run(
    'loadModel: converted, with progress',
    () => [],
    async (result) => {
      const onProgress = () => {}
      result[0] = await loadModel(folder, { device: 'cpu', threads: 2, dtype: 'bf16', onProgress })
    },
    close,
  )
  run(
    'runWorkers: two workers',
    async () => [await loadModel(folder, { device: 'cpu', threads: 2 })],
    async ([model]) => {
      const workers = ['a', 'b'].map((name) => ({ name, prompt: [3], maxTokens: 2 }))
      for await (const _ of runWorkers({ model, prompt: [1, 2], workers, capacity: 256 }));
    },
    close,
  )
  return operations
}

async function main() {
  const [mode, cache, first, stride, ...wanted] = process.argv.slice(2)
  const control = openControl()
  const native = loadAddon()
  const { remove, ...files } = randomModel({
    layers: 2,
    hiddenSize: 32,
    intermediateSize: 48,
    vocabSize: 68,
  })
  process.on('exit', remove)
  const binding = await openBinding(native, files, { keys: cache })
  control.set('watch', 1)

  const hash = () => {
    const hash = createHash('sha1')
    const { peakPages: _, ...stats } = native.cacheStats(binding.cache)
    hash.update(JSON.stringify(stats))
    for (const block of [binding.a, binding.b]) {
      hash.update(JSON.stringify(native.blockSegments(block)))
      hash.update(native.blockTokens(block))
      for (let layer = 0; layer < files.config.layers.length; layer++) {
        const { k, v } = native.blockRead(block, layer)
        hash.update(k).update(v)
      }
    }
    return hash.digest('hex')
  }
  // What is left when all that nobody holds is collected, on both threads: when nothing has been given back for
  // a while, which on a busy machine may take long to begin.
  const settle = async () => {
    for (let live = Number.NaN, quiet = 0; quiet < 10; ) {
      globalThis.gc()
      await sleep(5)
      const now = control.get('live')
      quiet = now === live ? quiet + 1 : 0
      live = now
    }
    const count = (what) => fs.readdirSync(`/proc/self/${what}`).length
    return { live: control.get('live'), threads: count('task'), files: count('fd') }
  }

  const faults = []
  const all = operations(native, binding, files)
  for (const [name, { prepare, run, undo, unsupported }] of Object.entries(all)) {
    if (wanted.length > 0 && !wanted.includes(name)) continue
    const codes = {}
    let before
    let points = 0
    // (the first round has no failure: it makes room for everything that is kept)
    for (let n = 0; ; n = n === 0 ? Number(first) : n + Number(stride)) {
      const prepared = await prepare()
      const state = hash()
      control.set('failed', 0)
      control.set('persist', mode === 'on' ? 1 : 0)
      control.set('countdown', n)
      let code = 'ok'
      try {
        await run(prepared)
      } catch (error) {
        code = error?.code ?? String(error)
      }
      control.set('countdown', 0)
      const failed = control.get('failed')
      const fine = ['ok', 'HOGWILD_OUT_OF_MEMORY', unsupported && 'HOGWILD_UNSUPPORTED']
      if (!fine.includes(code)) faults.push(`${name}, ${n}: ${code}`)
      if (code !== 'ok' && hash() !== state) faults.push(`${name}, ${n}: the cache has changed`)
      await undo?.(prepared)
      if (n === 0) {
        before = await settle()
        continue
      }
      codes[code] = (codes[code] ?? 0) + 1
      if (!failed) break
      points++
    }
    const after = await settle()
    const leaked = after.live - before.live
    if (leaked > KEPT) faults.push(`${name}: ${leaked} pieces of memory leaked`)
    if (after.threads > before.threads)
      faults.push(`${name}: ${after.threads - before.threads} threads left`)
    if (after.files > before.files)
      faults.push(`${name}: ${after.files - before.files} files left open`)
    console.log(
      `${name.padEnd(34)} ${String(points).padStart(4)} failures ${JSON.stringify(codes)} live ${leaked}`,
    )
  }
  if (faults.length > 0) {
    console.error(faults.join('\n'))
    process.exit(1)
  }
}

main().catch((error) => {
  console.error(error)
  process.exit(1)
})

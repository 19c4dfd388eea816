// What happens to native memory and threads when JavaScript closes, drops, aborts, exits or is
// terminated at any moment. Each case runs in processes of its own: a crash there is an exit code here.

import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { promisify } from 'node:util'

const root = join(__dirname, '..')

/** Runs node and returns what it printed. Rejects, with its stderr, unless it ends with exit code 0. */
async function node(...args: string[]): Promise<string> {
  const run = promisify(execFile)
  const { stdout } = await run(process.execPath, ['--expose-gc', ...args], {
    cwd: root,
    timeout: 120_000,
  })
  return stdout.trim()
}

/** Runs the body of an async function with a device, a small model, a cache and a block at hand. */
function script(body: string): Promise<string> {
  return node(
    '-e',
    `const { cacheShape, loadAddon, randomModel, stepWorker } = require('./test/lifetime/random-model.cjs')
     const { setImmediate: tick, setTimeout: sleep } = require('node:timers/promises')
     const native = loadAddon()
     const { config, tensors, remove } = randomModel({ hiddenSize: 256, intermediateSize: 512, layers: 4 })
     process.on('exit', remove)
     const threads = () => require('node:fs').readdirSync('/proc/self/task').length
     const device = native.createDevice({ type: 'cpu', index: 0, threads: 2, simd: '', profile: false })
     const long = new Array(2000).fill(7)
     async function main() {
       const model = await native.createModel(device, config, tensors, null, null, null, true)
       const cache = native.createCache(device, cacheShape(config, 4096))
       const block = native.createBlock(cache)
       const step = (tokens, cancel = null) => native.step(model, cache, [stepWorker([block], tokens)], cancel)
       const outcome = (promise) => promise.then(() => 'done', (error) => error.code)
       ${body}
     }
     main()`,
  )
}

const linux = process.platform === 'linux' ? test : test.skip

test('1,000 random interleavings of steps, aborts, closing, garbage collection and terminated threads', async () => {
  const seeds = Array.from({ length: 20 }, (_, i) => i + 1)
  const failures: string[] = []
  let interleavings = 0
  const child = async () => {
    for (let seed = seeds.shift(); seed !== undefined; seed = seeds.shift()) {
      try {
        const output = await node('test/lifetime/interleavings.cjs', String(seed), '50')
        interleavings += JSON.parse(output).interleavings
      } catch (error) {
        failures.push(`seed ${seed}: ${error}`)
      }
    }
  }
  await Promise.all([child(), child()])
  expect(failures).toEqual([])
  expect(interleavings).toBe(1000)
}, 300_000)

test('the event loop goes on while steps run', async () => {
  const output = await node('test/lifetime/event-loop-lag.cjs', '3')
  console.log(`event loop delay: ${output}`)
  const { decode, prefill, pass } = JSON.parse(output)
  // The figure is for people; on a busy machine the threads compete for processors. A step on the
  // JavaScript thread would show hundreds of milliseconds.
  for (const { p50, calls } of [decode, prefill, pass]) {
    expect(calls).toBeGreaterThan(0)
    expect(p50).toBeLessThan(50)
  }
}, 60_000)

test('an idle device keeps no process alive; a step under way does', async () => {
  expect(await script(`await step([1, 2, 3]); console.log('idle')`)).toBe('idle')
  expect(await script(`step([1, 2, 3]).then(() => console.log('settled'))`)).toBe('settled')
})

test('the process exits in the middle of a step', async () => {
  expect(await script(`step(long); await tick(); console.log('exit'); process.exit()`)).toBe('exit')
})

test('cancel ends a step, waiting or under way, and leaves no trace', async () => {
  const output = await script(`
    await step([1, 2, 3])
    const before = JSON.stringify([native.cacheStats(cache).freePages, native.blockSegments(block)])
    for (const delay of [0, 1, 5]) {
      const cancel = native.createCancel()
      const running = outcome(step(long, cancel))
      await sleep(delay)
      native.cancel(cancel)
      console.log(await running)
    }
    const cancelled = native.createCancel()
    native.cancel(cancelled)
    console.log(await outcome(step([4], cancelled)))
    const after = JSON.stringify([native.cacheStats(cache).freePages, native.blockSegments(block)])
    console.log(before === after, await outcome(step([4])))`)
  expect(output.split('\n')).toEqual([...Array(4).fill('HOGWILD_ABORTED'), 'true done'])
})

test('closing the device ends what is under way and what waits', async () => {
  const output = await script(`
    const other = native.createCache(device, cacheShape(config, 4096))
    const otherBlock = native.createBlock(other)
    const running = [
      outcome(step(long)),
      outcome(native.step(model, other, [stepWorker([otherBlock], long)], null)),
      outcome(native.deviceReadBandwidth(device, 1 << 20)),
    ]
    await tick()
    native.deviceClose(device)
    native.deviceClose(device)
    console.log((await Promise.all(running)).join())
    console.log(await outcome(step([1])))`)
  expect(output.split('\n')).toEqual([
    'HOGWILD_ABORTED,HOGWILD_ABORTED,HOGWILD_ABORTED',
    'HOGWILD_CLOSED',
  ])
})

test('a step goes on when its cache, blocks and model are closed, and their memory goes with it', async () => {
  const output = await script(`
    const running = outcome(step(long))
    native.blockClose(block)
    native.cacheClose(cache)
    native.modelClose(model)
    console.log(await running, await outcome(step([1])))`)
  expect(output).toBe('done HOGWILD_CLOSED')
})

linux('making and closing a cache costs nothing on the JavaScript thread', async () => {
  // Written from end to end: memory that was never touched costs nothing to give back.
  const output = await script(`
    const tokens = 2 ** 26 / (2 * 16 * 256 * 4)
    const shape = { layers: 1, kvHeads: 16, headDim: 256, keyFormat: 'f32', valueFormat: 'f32', capacity: tokens, ropes: config.ropes[0], layerRopes: new Int32Array(1) }
    const kv = new Float32Array(tokens * 16 * 256)
    const rss = () => process.memoryUsage.rss() / 2 ** 20
    const timed = (call) => {
      const begin = performance.now()
      const result = call()
      return [result, performance.now() - begin]
    }
    const rounds = []
    for (let i = 0; i < 4; i++) {
      const [large, create] = timed(() => native.createCache(device, shape))
      const target = native.createBlock(large)
      const pass = native.beginPass(large, [{ view: [target], fields: null, target, nTokens: tokens }])
      await native.passAppend(pass, 0, kv, kv)
      native.passCommit(pass)
      const full = rss()
      const [, close] = timed(() => native.cacheClose(large))
      await native.blockCompact(block) // comes behind it
      rounds.push({ create, close, freed: full - rss() })
    }
    const least = (key) => Math.min(...rounds.map((round) => round[key]))
    console.log(JSON.stringify({ create: least('create'), close: least('close'), freed: least('freed') }))`)
  const { create, close, freed } = JSON.parse(output)
  expect(freed).toBeGreaterThan(50) // MiB
  expect(create).toBeLessThan(1)
  expect(close).toBeLessThan(1) // munmap of that much takes several milliseconds
})

test('a pass that is dropped gives its cache back', async () => {
  const output = await script(`
    const free = native.cacheStats(cache).freePages
    const busy = () => { try { native.blockClear(block); return false } catch (error) { return error.code } }
    native.beginPass(cache, [{ view: [block], fields: null, target: block, nTokens: 100 }])
    console.log(busy())
    for (let i = 0; i < 10 && busy(); i++) { await tick(); gc() }
    console.log(busy(), native.cacheStats(cache).freePages === free)`)
  expect(output.split('\n')).toEqual(['HOGWILD_BUSY', 'false true'])
})

linux(
  'thousands of devices, caches and blocks leave neither threads nor memory behind',
  async () => {
    const output = await script(`
    const before = threads()
    const round = async (n) => {
      for (let i = 0; i < n; i++) {
        const d = native.createDevice({ type: 'cpu', index: 0, threads: 2, simd: '', profile: false })
        const c = native.createCache(d, cacheShape(config, 4096))
        const blocks = [0, 1, 2, 3].map(() => native.createBlock(c))
        const pass = native.beginPass(c, [{ view: blocks, fields: null, target: blocks[3], nTokens: 64 }])
        const kv = new Float32Array(64 * config.kvHeads * config.headDim)
        const appended = native.passAppend(pass, 0, kv, kv).catch(() => {})
        if (i % 2) await appended
        native.passAbort(pass)
        if (i % 3 === 0) native.deviceClose(d) // else the garbage collector finds it
        if (i % 50 === 0) { gc(); await tick() }
      }
      for (let i = 0; i < 10; i++) { gc(); await sleep(5) }
      return process.memoryUsage.rss()
    }
    const first = await round(500)
    const last = await round(1500)
    console.log(JSON.stringify({ threads: threads() - before, grown: (last - first) / 2 ** 20 }))`)
    const { threads, grown } = JSON.parse(output)
    // Two per device; the engine may still hold the last one.
    expect(threads).toBeLessThan(5)
    expect(grown).toBeLessThan(50)
  },
  120_000,
)

linux('what a closed device has left ends with its last cache', async () => {
  const output = await script(`
    const before = threads()
    const other = native.createDevice({ type: 'cpu', index: 0, threads: 2, simd: '', profile: false })
    const itsCache = native.createCache(other, cacheShape(config, 64))
    native.createBlock(itsCache)
    native.deviceClose(other)
    await sleep(20)
    const open = threads() - before
    native.cacheClose(itsCache)
    for (let i = 0; i < 50 && threads() > before; i++) { gc(); await sleep(10) }
    console.log(open, threads() - before)`)
  expect(output).toBe('2 0')
})

test('without a registered class an error is a plain Error with a code', async () => {
  const output = await script(`
    try { native.blockLength(7) } catch (error) { console.log(error.constructor === Error, error.code) }
    native.setErrorClass(class Mine extends Error { constructor(message, code) { super(message); this.code = code } })
    try { native.blockLength(7) } catch (error) { console.log(error.constructor.name, error.code) }`)
  expect(output.split('\n')).toEqual([
    'true HOGWILD_INVALID_ARGUMENT',
    'Mine HOGWILD_INVALID_ARGUMENT',
  ])
})

test('worker threads that end in any way leave the others alone', async () => {
  const output = await script(`
    const { Worker } = require('node:worker_threads')
    const code = (end) => \`
      const { workerData, parentPort } = require('node:worker_threads')
      const { cacheShape, loadAddon, stepWorker } = require('./test/lifetime/random-model.cjs')
      const native = loadAddon()
      const device = native.createDevice({ type: 'cpu', index: 0, threads: 2, simd: '', profile: false })
      native.createModel(device, workerData.config, workerData.tensors, null, null, null, true).then((model) => {
        const cache = native.createCache(device, cacheShape(workerData.config, 4096))
        const block = native.createBlock(cache)
        native.step(model, cache, [stepWorker([block], new Array(2000).fill(7))], null)
        parentPort.postMessage('running')
        \${end}
      })\`
    for (const end of ['', 'process.exit()', 'setImmediate(() => { throw new Error("on purpose") })', '"terminate"']) {
      const worker = new Worker(code(end), { eval: true, workerData: { config, tensors } })
      worker.on('error', (error) => { if (error.message !== 'on purpose') throw error })
      // (not events.once: it would reject where the error on purpose comes before the message)
      const exited = new Promise((resolve) => worker.once('exit', resolve))
      await Promise.race([new Promise((resolve) => worker.once('message', resolve)), exited])
      if (end === '"terminate"') await worker.terminate()
      await exited
    }
    console.log(await outcome(step([1, 2, 3])))`)
  expect(output).toBe('done')
})

// Random runs whose controls are called at every moment: from each kind of event, from turnEnds and turnHeader, from a
// trigger, a warning, timers. Saves, tools, probes and texts beside the run are among them; what was saved goes on at the end,
// when all pages have to be back. `npm run test:long` plays many; test/run-controls.test.ts plays a few.
'use strict'
const { mkdtempSync, rmSync } = require('node:fs')
const { tmpdir } = require('node:os')
const path = require('node:path')
const { choices, random } = require('../lifetime/random-model.cjs')

const root = path.join(__dirname, '..', '..')
const MODEL = path.join(root, 'models', 'demo')

/** A run that takes longer than this, paused workers resumed meanwhile, hangs. */
const HANG_MS = 20_000
const TOOL_FAILS = 'the tool fails'
/** Workers that are paused for longer are resumed by the test. */
const PAUSE_MS = 30

/** What the events of one worker may follow: its state by event. */
const AFTER = {
  join: { from: ['absent'], to: 'active' },
  pause: { from: ['active'], to: 'paused' },
  resume: { from: ['paused'], to: 'active' },
  token: { from: ['active'], to: 'active' },
  turn: { from: ['active'], to: 'active' },
  stop: { from: ['active', 'paused'], to: 'stopped' },
}

/** Plays the runs of these seeds on a built package or on the sources. Resolves to what happened. */
async function play(hogwild, seeds) {
  const calls = { save: 0, restore: 0, tool: 0, probe: 0, generate: 0 }
  const report = { runs: 0, calls, events: {}, errors: {}, faults: [] }
  const tokenizer = await hogwild.loadTokenizer(MODEL)
  const folder = mkdtempSync(path.join(tmpdir(), 'hogwild-controls-'))
  try {
    for (const seed of seeds) {
      report.runs++
      await playOne(hogwild, tokenizer, seed, report, folder).catch((error) => {
        report.faults.push(`seed ${seed}: ${error.stack}`)
      })
    }
  } finally {
    rmSync(folder, { recursive: true })
  }
  return report
}

async function playOne(hogwild, tokenizer, seed, report, folder) {
  const next = random(seed)
  const { below, chance, pick, tokens } = choices(next, 68)
  const speculates = seed % 3 === 1
  const drafts = speculates && {
    speculate: { by: seed % 2 === 0 ? 'lookup' : 'jacobi', tokens: 4 },
  }
  const fault = (text) => report.faults.push(`seed ${seed}: ${text}`)

  let run
  let left = false
  const controller = new AbortController()
  /** Calls whose results come later. */
  const pending = []
  const wait = (call, then = () => {}) => {
    pending.push(
      call.then(
        (value) => then(value),
        (error) => noteError(report, fault, error),
      ),
    )
  }
  const file = path.join(folder, 'saved.run')
  let hasFile = false
  const save = () => {
    wait(run.save(file), () => {
      hasFile = true
      report.calls.save++
    })
  }
  /** Takes its time, now and then for ever, and may fail. */
  const tool = async (signal) => {
    report.calls.tool++
    if (chance(0.05)) {
      await new Promise((resolve) => onceAborted(signal, resolve))
    } else {
      await new Promise((resolve) => setTimeout(resolve, below(6)))
    }
    if (chance(0.03)) throw new Error(TOOL_FAILS)
    return tokens(3)
  }
  let scheduler
  const write = () => {
    const options = { model, scheduler, prompt: tokens(80, 1), maxTokens: 1 + below(8) }
    wait(hogwild.generate(options).result, () => report.calls.generate++)
  }
  const names = ['a', 'b', 'c', 'd'].slice(0, below(5))
  let joined = 0
  const spec = (name) => ({
    name,
    prompt: tokens(3, 1),
    maxTokens: 1 + below(10),
    sampler: { seed: seed * 100 + joined, temperature: pick([0, 1, 2]) },
    ...(chance(0.3) && { header: tokens(3) }),
    ...(chance(0.2) && { stop: ['e', 'xy'] }),
  })

  /** One control, whichever; `often`: how likely it is one that ends the run. */
  const control = () => {
    if (run === undefined || left) return
    const name = pick([...names, 'a'])
    const calls = [
      () => run.pause(name),
      () => run.resume(name),
      () => run.inject(name, tokens(3)),
      () => run.stop(name, chance(0.5) ? { append: tokens(2) } : {}),
      () => run.stop(name),
      () => {
        const newcomer = `j${joined++}`
        run.join(spec(newcomer))
        names.push(newcomer)
      },
      () => chance(0.05) && controller.abort(new Error('enough')),
      () => chance(0.05) && void run.close(),
      () => run.workers,
      () => chance(0.4) && save(),
      () => chance(0.7) && run.park(name, tool, { timeoutMs: 20, data: { name } }),
      () => chance(0.5) && run.append(tokens(3, 1)),
      () => chance(0.5) && wait(run.probe(name, tokens(3, 1)), () => report.calls.probe++),
      () => chance(0.2) && wait(run.betweenSteps(({ common }) => common?.fork().close())),
      () => scheduler && chance(0.3) && write(),
    ]
    try {
      pick(calls)()
    } catch (error) {
      noteError(report, fault, error)
    }
  }
  const maybe = (share) => {
    while (chance(share)) control()
  }

  const model = await hogwild.loadModel(MODEL, { threads: 1, onWarning: () => maybe(0.6) })
  const caches = []
  const createCache = model.createCache.bind(model)
  model.createCache = (options) => {
    caches.push(createCache(options))
    return caches.at(-1)
  }
  const layout = pick(['contiguous', 'interleaved', 'combined'])
  const longPrompt = chance(0.1)
  const hasTurns = layout !== 'contiguous' && chance(0.6)
  const turns = hasTurns && {
    turnEnds: (ids) => {
      maybe(0.2)
      return ids.length > 3
    },
    turnHeader: () => {
      maybe(0.2)
      return tokens(2)
    },
  }
  const triggers = chance(0.3) && {
    triggers: [{ text: pick(['e', 'A', 'th']), limit: 3, action: () => maybe(0.3) }],
  }
  if (chance(0.5)) {
    scheduler = hogwild.createScheduler({
      model,
      capacity: 4096,
      admission: pick(['reserve', 'park']),
      ...(chance(0.5) && { prefixes: { capacity: pick([128, 1024]) } }),
    })
  }
  run = hogwild.runWorkers({
    model,
    scheduler,
    tokenizer,
    layout,
    share: chance(0.8),
    prompt: longPrompt ? Array.from({ length: 1010 }, () => below(68)) : tokens(20),
    workers: names.map(spec),
    capacity: longPrompt ? 2048 : pick([192, 256, 512, 1024]),
    signal: controller.signal,
    ...(layout === 'combined' && chance(0.5) && { sharedHeader: tokens(3) }),
    ...(chance(0.5) && { stopTokens: tokens(2) }),
    ...turns,
    ...triggers,
    ...drafts,
  })

  const tick = () => {
    maybe(0.3)
    if (left) return
    if (chance(0.5)) setImmediate(tick)
    else setTimeout(tick, below(4))
  }
  if (chance(0.5)) tick()
  let patient = run
  const patience = setInterval(() => {
    for (const { name, state } of patient.workers) {
      if (state !== 'paused') continue
      try {
        patient.resume(name)
      } catch {} // it has ended meanwhile
    }
  }, PAUSE_MS)

  const states = new Map()
  const written = new Map()
  const leavesAfter = chance(0.2) ? below(30) : Number.POSITIVE_INFINITY
  const consume = async () => {
    let count = 0
    let last
    for await (const event of run) {
      report.events[event.type] = (report.events[event.type] ?? 0) + 1
      if (last?.type === 'end') fault('an event after the end')
      if (last !== undefined && event.type !== 'end' && event.step < last.step) {
        fault(`${event.type} of step ${event.step} after step ${last.step}`)
      }
      last = event
      const rule = AFTER[event.type]
      if (rule !== undefined) {
        const state = states.get(event.worker) ?? 'absent'
        if (!rule.from.includes(state)) fault(`${event.type} of ${event.worker}, which is ${state}`)
        states.set(event.worker, rule.to)
      }
      if (event.type === 'token') {
        written.set(event.worker, [...(written.get(event.worker) ?? []), event.token])
      }
      if (event.type === 'step' || event.type === 'end') {
        for (const { name, tokens } of run.workers) {
          const told = written.get(name) ?? []
          // Steps that came from one pass are told one after the other.
          const known = speculates && event.type === 'step' ? tokens.slice(0, told.length) : tokens
          if (known.join() !== told.join()) fault(`other tokens of ${name}`)
        }
      }
      maybe(0.3)
      if (++count > leavesAfter) break
      if (count > 2000) fault('no end in sight')
    }
    if (last?.type === 'end' && [...states.values()].some((state) => state !== 'stopped')) {
      fault('the end before all workers had stopped')
    }
  }
  const timed = async (work) => {
    let hang
    const hanging = new Promise((resolve) => {
      hang = setTimeout(() => resolve('hang'), HANG_MS)
    })
    const done = work.catch((error) => noteError(report, fault, error))
    if ((await Promise.race([done, hanging])) === 'hang') {
      fault(`hangs: ${JSON.stringify(patient.workers)}`)
    }
    clearTimeout(hang)
  }
  await timed(consume())
  left = true
  await timed(run.close())
  await timed(Promise.all(pending))
  if (run.workers.some(({ state }) => state !== 'stopped')) fault('a worker outlives its run')
  const goOn = async () => {
    const { run: restored } = await hogwild.restoreRun(file, {
      model,
      tokenizer,
      scheduler,
      park: () => tool,
      ...turns,
      ...triggers,
      ...drafts,
    })
    patient = restored
    report.calls.restore++
    if (chance(0.1)) return await restored.close()
    let last
    for await (const event of restored) last = event
    if (last?.type !== 'end') fault(`${last?.type} is the last of a restored run`)
  }
  if (hasFile) await timed(goOn())
  clearInterval(patience)
  if (scheduler !== undefined) {
    const { groups, pages } = scheduler.metrics
    if (groups.waiting + groups.running + pages.used + pages.reserved > 0) {
      fault(`somebody has not left: ${JSON.stringify({ groups, pages })}`)
    }
    await scheduler.close()
  }
  if (caches.some(({ closed }) => !closed)) fault('the cache outlives its run')
  await model.close()
}

function onceAborted(signal, then) {
  if (signal.aborted) then()
  else signal.addEventListener('abort', then)
}

function noteError(report, fault, error) {
  if (error?.message === TOOL_FAILS) {
    report.errors.ofTool = (report.errors.ofTool ?? 0) + 1
    return
  }
  const code = error?.code
  if (error?.name !== 'HogwildError' || code === 'HOGWILD_INTERNAL') fault(`${error?.stack}`)
  report.errors[code] = (report.errors[code] ?? 0) + 1
}

module.exports = { play }

if (require.main === module) {
  const [first = '1', count = '3000'] = process.argv.slice(2)
  const seeds = Array.from({ length: Number(count) }, (_, i) => Number(first) + i)
  void play(require(path.join(root, 'dist')), seeds).then((report) => {
    console.log(JSON.stringify(report))
    process.exitCode = report.faults.length > 0 ? 1 : 0
  })
}

// Runs that are saved at random moments and restored in another process: what is left of them is the same, events and bits of
// the logits. `npm run test:long -- runs` plays many moments, test/run-save.test.ts some.
//
//     node test/sessions/runs.cjs save FOLDER SEED...      writes runs and what they do, and kills itself
//     node test/sessions/runs.cjs restore FOLDER SEED...   goes on with them, prints JSON: { layouts, ..., faults }
'use strict'
const { readFileSync, writeFileSync } = require('node:fs')
const path = require('node:path')
const hogwild = require('../../dist/index.js')
const { choices, random } = require('../lifetime/random-model.cjs')

const MODEL = path.join(__dirname, '..', '..', 'models', 'demo')
const VOCABULARY = 68
/** A run that takes longer than this hangs. */
const HANG_MS = 30_000

/** FNV-1a of the bits of logits. */
function hash(logits) {
  const words = new Uint32Array(logits.buffer, logits.byteOffset, logits.length)
  let h = 0x811c9dc5
  for (const word of words) h = Math.imul(h ^ word, 0x01000193)
  return h >>> 0
}

/** All that a seed says of a run: its options, and what is asked of it at which event. The same each time. */
function scenario(seed) {
  const { below, chance, pick, tokens } = choices(
    random(Math.imul(seed + 1, 0x9e3779b1)),
    VOCABULARY,
  )
  const layout = ['contiguous', 'interleaved', 'combined'][seed % 3]
  const turns = layout !== 'contiguous' && chance(0.7)
  const worker = (name) => ({
    name,
    prompt: tokens(5, 1),
    maxTokens: 5 + below(20),
    sampler: {
      seed: seed * 100 + below(100),
      temperature: pick([0, 0.7, 1.5]),
      ...(chance(0.3) && { topK: 5, repetitionPenalty: 1.2, lastN: 9 }),
      ...(chance(0.3) && { frequencyPenalty: 0.3, scope: 'own' }),
    },
    ...(chance(0.3) && { header: tokens(40, 1) }),
    ...(chance(0.3) && { stop: [pick(['e', 'th', 'a b', 'zz'])] }),
    ...(chance(0.3) && { logitBias: { 3: -Infinity, 5: 1.5 } }),
    ...(chance(0.4) && { logprobs: true, topLogprobs: pick([0, 2]) }),
    ...(chance(0.2) && { grammar: true }),
  })
  const names = ['a', 'b', 'c', 'd'].slice(0, 1 + below(4))
  const workers = names.map(worker)
  if (names.length > 1 && chance(0.3)) workers[1].from = 'a'
  const controls = []
  const ask = (at, control) => controls.push({ at, ...control })
  const events = 60
  for (let i = below(9); i > 0; i--) {
    const name = pick(names)
    const at = below(events)
    switch (below(6)) {
      case 0:
        ask(at, { type: 'inject', name, tokens: tokens(5, 1) })
        break
      case 1:
        ask(at, { type: 'pause', name })
        ask(at + below(40), { type: 'resume', name })
        break
      case 2:
        ask(at, { type: 'append', tokens: tokens(100, 1) })
        break
      case 3:
        ask(at, { type: 'stop', name, mark: tokens(3) })
        break
      case 4:
        ask(at, { type: 'join', worker: worker(`j${controls.length}`) })
        break
      case 5: {
        const data = { ticket: controls.length, tokens: tokens(4, 1) }
        ask(at, { type: 'park', name, data })
        ask(at + below(40), { type: 'release', data })
      }
    }
  }
  // Where there is no room for a prompt or for what is appended there is no run.
  const isEarly = chance(0.15)
  const prompt = isEarly ? tokens(400, 200) : tokens(chance(0.2) ? 400 : 30)
  const needsRoom = prompt.length > 30 || controls.some(({ type }) => type === 'append')
  return {
    layout,
    share: chance(0.8),
    sharedHeader: layout === 'combined' && chance(0.6) ? tokens(5, 1) : [],
    prompt,
    turnLength: turns ? 2 + below(6) : 0,
    trigger: chance(0.6) ? { text: pick(['e', 'th', 'a']), limit: 1 + below(3) } : undefined,
    injected: tokens(3, 1),
    dtype: pick(['f32', 'f16', 'bf16', 'int8']),
    place: isEarly ? 'scheduler' : pick(['pool', 'scheduler', 'cache']),
    capacity: needsRoom ? 2048 : pick([256, 512]),
    workers,
    controls,
    moment: below(events),
    /** The save is asked for while a step is under way; early: while the prompt is computed, in many chunks. */
    isBeside: isEarly || chance(0.4),
    isEarly,
    wait: below(10),
  }
}

/** What a process has for all of its runs. */
async function open() {
  const model = await hogwild.loadModel(MODEL, { device: 'cpu', threads: 1 })
  const tokenizer = await hogwild.loadTokenizer(MODEL)
  const stopTokens = [VOCABULARY - 1]
  const grammar = await hogwild.createGrammar({ tokenizer, ebnf: 'root ::= [a-h ]+', stopTokens })
  return { model, tokenizer, grammar }
}

/** What a file says of a run, in the middle of which its save came. */
function traits(file) {
  const bytes = readFileSync(file)
  const length = Number(bytes.readBigUInt64LE(16))
  const { data } = JSON.parse(bytes.toString('utf8', 40, 40 + length))
  const { group, workers, parked, triggersState } = data.run
  return {
    'events not taken': group.outbox.length + group.events.length > 0,
    'controls asked for': group.controls.length > 0,
    'a prompt half computed': group.prefills.some(({ done }) => done > 0),
    'a worker parked': parked.length > 0,
    'a worker paused': workers.some(({ state }) => state.name === 'paused'),
    'a worker stopping': workers.some(({ state }) => state.name === 'stopping'),
    'a worker stopped': workers.some(({ state }) => state.name === 'stopped'),
    'a turn ended': workers.some(({ turn }) => turn > 0),
    'a trigger half matched': triggersState.tails.some(([, tail]) => tail !== ''),
    'a trigger set off': triggersState.counts.some((count) => count > 0),
    'a grammar begun': workers.some(({ grammar }) => grammar?.length > 0),
    'a forced token pending': workers.some(({ pending }) => pending.some(({ forced }) => forced)),
  }
}

/** One run of a scenario, with what the hooks of it see. */
class Play {
  constructor(its, { model, tokenizer, grammar }) {
    this.its = its
    this.grammar = grammar
    this.bits = {}
    this.events = []
    this.waiting = new Map()
    this.base = { model, tokenizer }
    const { dtype, place, capacity, trigger, turnLength } = its
    if (place === 'scheduler') {
      this.base.scheduler = hogwild.createScheduler({ model, capacity: 4096, chunk: 7 })
    }
    if (place === 'cache') {
      this.cache = model.createCache({ dtype, capacity: 2 * capacity })
      this.base.cache = this.cache
    }
    if (turnLength > 0) {
      this.base.turnEnds = (ids) => ids.length >= turnLength
      this.base.turnHeader = (_, turn) => [turn % VOCABULARY, 7]
    }
    if (trigger !== undefined) {
      const action = ({ worker, count }) => this.run.inject(worker, [...its.injected, count])
      this.base.triggers = [{ ...trigger, action }]
    }
  }

  hooks({ name, grammar }) {
    this.bits[name] = []
    const processLogits = (logits) => {
      this.bits[name].push(hash(logits))
      for (let id = 0; id < logits.length; id++) logits[id] += ((id * 7) % 13) / 10
    }
    return { processLogits, grammar: grammar ? this.grammar : undefined }
  }

  spec(worker) {
    return { ...worker, ...this.hooks(worker) }
  }

  async begin() {
    const { layout, share, sharedHeader, prompt, workers, dtype, place, capacity } = this.its
    const options = { ...this.base, layout, share, prompt, workers: [] }
    if (sharedHeader.length > 0) options.sharedHeader = sharedHeader
    if (place !== 'cache') Object.assign(options, { cacheDtype: dtype, capacity })
    options.workers = workers.map((worker) => this.spec(worker))
    if (place === 'cache') {
      const block = this.cache.createBlock()
      await this.base.model.prefill(block, [1, 2, 3], { sampler: null })
      options.common = block
      options.workers[0].own = block.fork()
      if (this.its.capacity > 500) options.capacity = capacity
    }
    this.run = hogwild.runWorkers(options)
    this.iterator = this.run[Symbol.asyncIterator]()
  }

  /** `names`: of the saved run's workers. */
  async restore(file, names) {
    const known = this.its.controls.flatMap(({ worker }) => worker ?? [])
    const all = [...this.its.workers, ...known].filter(({ name }) => names.includes(name))
    const workers = Object.fromEntries(all.map((worker) => [worker.name, this.hooks(worker)]))
    const park = (_, data) => this.work(data)
    const { run, data } = await hogwild.restoreRun(file, { ...this.base, workers, park })
    this.run = run
    this.iterator = run[Symbol.asyncIterator]()
    return data
  }

  work({ ticket, tokens }) {
    return () =>
      new Promise((resolve) => {
        this.waiting.set(ticket, () => resolve(tokens))
      })
  }

  release(ticket) {
    this.waiting.get(ticket)?.()
    this.waiting.delete(ticket)
  }

  act({ type, name, tokens, mark, worker, data }) {
    const { run } = this
    const isOver = run.workers.every(({ state }) => state === 'stopped')
    if (isOver) return
    switch (type) {
      case 'inject':
        return run.inject(name, tokens)
      case 'pause':
        return run.pause(name)
      case 'resume':
        return run.resume(name)
      case 'append':
        return run.append(tokens)
      case 'stop':
        return run.stop(name, { append: mark })
      case 'join':
        return run.join(this.spec(worker))
      case 'park':
        return run.park(name, this.work(data), { data })
      case 'release':
        return this.release(data.ticket)
    }
  }

  /** Event number `at` is there: what is asked for then, and that nobody waits for ever. */
  async taken(at, event) {
    this.events.push('milliseconds' in event ? { ...event, milliseconds: 0 } : event)
    for (const control of this.its.controls) if (control.at === at) this.act(control)
    const states = this.run.workers.map(({ state }) => state)
    if (states.includes('paused') && states.every((one) => one === 'paused' || one === 'stopped')) {
      for (const ticket of [...this.waiting.keys()]) this.release(ticket)
      for (const { name, state } of this.run.workers) if (state === 'paused') this.run.resume(name)
    }
    await new Promise((resolve) => setImmediate(resolve)) // released work has been handed over
  }

  /** To the end, from event number `from` on; `before(at)` is called before each is asked for. */
  async play(from, before = async () => {}) {
    for (let at = from; ; at++) {
      const pending = await before(at)
      const { value, done } = await (pending ?? this.iterator.next())
      if (done) break
      await this.taken(at, value)
    }
  }

  async close() {
    await this.run?.close()
    await this.cache?.close()
  }
}

const timed = async (work, what) => {
  let timer
  const hang = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`hangs: ${what()}`)), HANG_MS)
  })
  try {
    return await Promise.race([work, hang])
  } finally {
    clearTimeout(timer)
  }
}

const counts = (bits) => Object.fromEntries(Object.entries(bits).map(([k, v]) => [k, v.length]))

/** Plays a scenario without a save and with one, and says what happened. */
async function save(seed, file, tools) {
  const its = scenario(seed)
  const whole = new Play(its, tools)
  await whole.begin()
  await timed(whole.play(0), () => JSON.stringify(whole.run.workers))
  await whole.close()

  // One event is there before anything can be saved, and one is left.
  const moment = its.isEarly ? 0 : 1 + (its.moment % (whole.events.length - 1))
  const saved = new Play(its, tools)
  // Of a save beside a step nobody knows behind which event it falls: nothing is asked for from there on.
  if (its.isBeside) its.controls = its.controls.filter(({ at }) => at < moment)
  const compared = its.isBeside ? new Play(its, tools) : whole
  if (its.isBeside) {
    await compared.begin()
    await timed(compared.play(0), () => JSON.stringify(compared.run.workers))
    await compared.close()
  }
  const report = { seed, moment, events: compared.events, bits: compared.bits }
  let saving
  const mark = () => ({ events: saved.events.length, bits: counts(saved.bits) })
  await saved.begin()
  const before = async (at) => {
    if (at !== moment) return undefined
    report.least = mark()
    report.names = saved.run.workers.map(({ name }) => name)
    if (!its.isBeside) {
      report.bytes = await saved.run.save(file, { data: { seed } })
      report.most = mark()
      return undefined
    }
    const pending = saved.iterator.next()
    const { run } = saved
    while (run.blocks.common === undefined) await new Promise((resolve) => setImmediate(resolve))
    if (its.isEarly) await new Promise((resolve) => setTimeout(resolve, its.wait))
    for (let i = its.wait % 4; i > 0; i--) await new Promise((resolve) => setImmediate(resolve))
    const done = (bytes) => {
      report.bytes = bytes
      report.most = mark()
    }
    saving = saved.run.save(file, { data: { seed } }).then(done, (error) => {
      if (error.code !== 'HOGWILD_CLOSED') throw error
      report.isLate = true // the last event was taken before
    })
    return pending
  }
  await timed(saved.play(0, before), () => JSON.stringify(saved.run.workers))
  await saving
  if (report.isLate) return report
  report.most.events = Math.min(report.most.events + 1, report.events.length)
  await saved.close()
  report.goesOn = JSON.stringify([saved.events, saved.bits])
  report.expected = JSON.stringify([compared.events, compared.bits])
  return report
}

async function restore(report, file, tools, faults) {
  const { seed, moment, least, most } = report
  const its = scenario(seed)
  if (its.isBeside) its.controls = its.controls.filter(({ at }) => at < moment)
  const fault = (text) => faults.push(`seed ${seed}: ${text}`)
  const play = new Play(its, tools)
  const data = await play.restore(file, report.names)
  if (data?.seed !== seed) fault(`other data: ${JSON.stringify(data)}`)
  await timed(play.play(moment), () => JSON.stringify(play.run.workers))
  await play.close()
  if (report.goesOn !== report.expected) fault('the saved run went on otherwise')
  const begin = report.events.length - play.events.length
  if (begin < least.events || begin > most.events) {
    fault(
      `${play.events.length} events are left, of ${report.events.length}: ${JSON.stringify({ least, most })}`,
    )
  }
  const expected = JSON.stringify(report.events.slice(begin))
  // As JSON has them, in both.
  if (JSON.stringify(play.events) !== expected) fault('other events')
  for (const [name, bits] of Object.entries(report.bits)) {
    const found = play.bits[name] ?? []
    const from = bits.length - found.length
    if (bits.slice(from).join() !== found.join()) fault(`other logits of ${name}`)
    const [low, high] = [least.bits[name] ?? 0, most.bits[name] ?? 0]
    if (from < low || from > high)
      fault(`${found.length} of ${bits.length} logits of ${name} are left`)
  }
}

async function main([mode, folder, ...seeds]) {
  const tools = await open()
  const result = {
    moments: 0,
    beside: 0,
    layouts: {},
    places: {},
    kinds: {},
    traits: {},
    faults: [],
  }
  for (const seed of seeds.map(Number)) {
    const file = path.join(folder, `${seed}.run`)
    const known = path.join(folder, `${seed}.json`)
    if (mode === 'save') {
      writeFileSync(known, JSON.stringify(await save(seed, file, tools)))
      continue
    }
    const report = JSON.parse(readFileSync(known, 'utf8'))
    if (report.isLate) continue
    await restore(report, file, tools, result.faults).catch((error) => {
      result.faults.push(`seed ${seed}: ${error.stack}`)
    })
    for (const [trait, has] of Object.entries(traits(file))) {
      result.traits[trait] = (result.traits[trait] ?? 0) + has
    }
    const { layout, place, isBeside } = scenario(seed)
    result.moments++
    if (isBeside) result.beside++
    result.layouts[layout] = (result.layouts[layout] ?? 0) + 1
    result.places[place] = (result.places[place] ?? 0) + 1
    for (const { type } of report.events) result.kinds[type] = (result.kinds[type] ?? 0) + 1
  }
  if (mode === 'save') process.kill(process.pid, 'SIGKILL')
  console.log(JSON.stringify(result))
  process.exit(0)
}

main(process.argv.slice(2)).catch((error) => {
  console.error(error)
  process.exit(1)
})

// Random runs, generations and steps, each without drafts and with them: all that comes out is the same. `npm run test:long`
// plays many; test/speculation.test.ts plays a few.
'use strict'
const { mkdtempSync, rmSync, writeFileSync } = require('node:fs')
const { tmpdir } = require('node:os')
const path = require('node:path')
const { isDeepStrictEqual } = require('node:util')
const { choices, random } = require('../lifetime/random-model.cjs')

const root = path.join(__dirname, '..', '..')
const DEMO = path.join(root, 'models', 'demo')
const VOCABULARY = 68

/** A folder with a random model that has the demo's vocabulary, of 4 query heads and 2 layers. */
function writeRandomModel({ seed, window, maxPositions = 4096 }) {
  const [hidden, headDim, kvHeads, intermediate] = [32, 8, 2, 48]
  const next = random(seed)
  const tensors = []
  const add = (name, rows, cols, gain = 1) => {
    const width = gain * Math.sqrt(3 / cols)
    const values = Float32Array.from({ length: rows * cols }, () => width * (2 * next() - 1))
    tensors.push({ name: `${name}.weight`, shape: [rows, cols], values })
  }
  const norm = (name) => {
    const values = Float32Array.from({ length: hidden }, () => 0.8 + 0.4 * next())
    tensors.push({ name: `${name}.weight`, shape: [hidden], values })
  }
  add('model.embed_tokens', VOCABULARY, hidden, 4)
  for (let layer = 0; layer < 2; layer++) {
    const part = (name) => `model.layers.${layer}.${name}`
    norm(part('input_layernorm'))
    norm(part('post_attention_layernorm'))
    add(part('self_attn.q_proj'), 4 * headDim, hidden, 1.5)
    add(part('self_attn.k_proj'), kvHeads * headDim, hidden, 1.5)
    add(part('self_attn.v_proj'), kvHeads * headDim, hidden)
    add(part('self_attn.o_proj'), hidden, 4 * headDim)
    add(part('mlp.gate_proj'), intermediate, hidden)
    add(part('mlp.up_proj'), intermediate, hidden)
    add(part('mlp.down_proj'), hidden, intermediate)
  }
  norm('model.norm')
  add('lm_head', VOCABULARY, hidden, 2)
  const header = {}
  let end = 0
  for (const { name, shape, values } of tensors) {
    header[name] = { dtype: 'F32', shape, data_offsets: [end, end + values.byteLength] }
    end += values.byteLength
  }
  const text = Buffer.from(JSON.stringify(header))
  const size = Buffer.alloc(8)
  size.writeBigUInt64LE(BigInt(text.length))
  const bytes = tensors.map(({ values }) => Buffer.from(values.buffer))
  const folder = mkdtempSync(path.join(tmpdir(), 'hogwild-speculation-'))
  writeFileSync(path.join(folder, 'model.safetensors'), Buffer.concat([size, text, ...bytes]))
  const config = {
    architectures: [window === undefined ? 'LlamaForCausalLM' : 'MistralForCausalLM'],
    model_type: window === undefined ? 'llama' : 'mistral',
    sliding_window: window,
    vocab_size: VOCABULARY,
    hidden_size: hidden,
    intermediate_size: intermediate,
    num_hidden_layers: 2,
    num_attention_heads: 4,
    num_key_value_heads: kvHeads,
    head_dim: headDim,
    hidden_act: 'silu',
    max_position_embeddings: maxPositions,
    rms_norm_eps: 1e-5,
    rope_theta: 10000,
    tie_word_embeddings: false,
    eos_token_id: 6,
    torch_dtype: 'float32',
  }
  writeFileSync(path.join(folder, 'config.json'), JSON.stringify(config))
  return folder
}

/** Plays the cases of these seeds on a built package or on the sources. Resolves to what happened. */
async function play(hogwild, seeds) {
  const report = { cases: 0, drafted: 0, accepted: 0, faults: [] }
  const folders = [
    writeRandomModel({ seed: 1 }),
    writeRandomModel({ seed: 2, window: 9 }),
    writeRandomModel({ seed: 3, maxPositions: 40 }),
  ]
  const options = { threads: 2, onWarning: () => {} }
  const models = await Promise.all([...folders, DEMO].map((at) => hogwild.loadModel(at, options)))
  const tokenizer = await hogwild.loadTokenizer(DEMO)
  const grammar = await hogwild.createGrammar({
    tokenizer,
    ebnf: 'root ::= ("ab" | [a-f]){1,14}',
    stopTokens: [6],
  })
  const kinds = [playRuns, playGeneration, playRuns, playStep]
  for (const seed of seeds) {
    report.cases++
    const next = random(seed)
    const world = { hogwild, tokenizer, grammar, seed, report, model: models[seed % 4] }
    const tools = { next, ...toolsOf(next) }
    await kinds[Math.floor(seed / 4) % 4](world, tools).catch((error) => {
      report.faults.push(`seed ${seed}: ${error.stack}`)
    })
  }
  for (const model of models) await model.close()
  await tokenizer.close()
  for (const folder of folders) rmSync(folder, { recursive: true })
  return report
}

// Few different ones, so that text repeats.
const toolsOf = (next) => choices(next, 4, 32)

/** What only one way of playing a case may tell. */
function same(world, one, other, what) {
  if (isDeepStrictEqual(one, other)) return
  world.report.faults.push(
    `seed ${world.seed}: ${what}: ${JSON.stringify(one)} !== ${JSON.stringify(other)}`,
  )
}

/** A processor that is never twice in the same state. */
function processor(seed, calls) {
  const next = random(seed)
  return (logits, { worker, block, tokens }) => {
    calls.push([worker, block.length + tokens.length, tokens.at(-1)])
    for (let id = 0; id < logits.length; id++) logits[id] += next()
  }
}

/** Options of how tokens are chosen, made anew for each way of playing the case. */
function tokenOptions({ grammar }, { below, chance, pick }) {
  const seed = below(1e6)
  const options = {
    sampler: {
      ...{ seed, temperature: pick([0, 0, 0.4, 1]), topK: pick([0, 3]), topP: pick([1, 0.9]) },
      ...(chance(0.4) && { repetitionPenalty: 1.2, scope: pick(['view', 'own']) }),
      ...(chance(0.2) && { frequencyPenalty: 0.5, presencePenalty: 0.2, lastN: 7 }),
      ...(chance(0.2) && { forbidden: [33, 40] }),
    },
    // Mostly text of a few letters, in which stop strings and triggers occur.
    ...(chance(0.8) && {
      logitBias: { 32: 12, 33: 12, 34: 12, 35: pick([12, -Infinity]), 6: pick([0, 10]) },
    }),
    ...(chance(0.25) && { grammar }),
    logprobs: chance(0.5),
    topLogprobs: pick([0, 0, 2]),
  }
  const isProcessed = chance(0.3)
  return (calls) => ({ ...options, ...(isProcessed && { processLogits: processor(seed, calls) }) })
}

// ---- runs -------------------------------------------------------------------------------------------

async function playRuns(world, tools) {
  const specs = Array.from({ length: 1 + tools.below(2) }, () => runSpec(world, tools))
  const alone = await playTogether(specs, [])
  const together = await playTogether(specs, alone)
  specs.forEach((_, i) => {
    const [plain, drafted] = [alone[i], together[i]]
    same(world, drafted.told, plain.told, 'events')
    same(world, drafted.calls, plain.calls, 'calls of processors')
    same(world, drafted.error, plain.error, 'errors')
    const { speculation } = drafted
    if (speculation === undefined) return
    world.report.drafted += speculation.drafted
    world.report.accepted += speculation.accepted
    const steps = plain.told.filter(({ type }) => type === 'step').length
    if (speculation.passes > steps) same(world, speculation.passes, steps, 'passes')
  })
}

function runSpec(world, tools) {
  const { below, chance, pick, tokens } = tools
  const layout = pick(['contiguous', 'interleaved', 'combined'])
  const names = ['a', 'b', 'c'].slice(0, 1 + below(3))
  const choices = names.map(() => tokenOptions(world, tools))
  const own = names.map(() => ({
    prompt: tokens(4, 1),
    ...(chance(0.3) && { header: tokens(3) }),
    ...(chance(0.3) && { maxTokens: 1 + below(20) }),
  }))
  const options = {
    layout,
    share: chance(0.8),
    prompt: tokens(12),
    maxTokens: 4 + below(24),
    capacity: pick([192, 256, 512, 4096]),
    stopTokens: tokens(1),
    ...(chance(0.3) && { stop: ['ab', 'dd'] }),
    ...(layout === 'combined' && chance(0.5) && { sharedHeader: tokens(3) }),
    ...(chance(0.3) && { beyondContext: 'error' }),
  }
  const header = tokens(2)
  const turns =
    layout !== 'contiguous' && chance(0.6)
      ? { turnEnds: (ids) => ids.length > 5 || ids.at(-1) === 33, turnHeader: () => header }
      : {}
  const trigger = chance(0.4) && {
    text: pick(['a', 'bc', 'dd']),
    given: tokens(3, 1),
    branch: tokens(2, 1),
  }
  const speculate = { by: pick(['lookup', 'jacobi', 'known', 'known']), tokens: 1 + below(8) }
  /** `known`: the events of the run without drafts; undefined: this is the run without. */
  return (known, calls) => {
    const random = toolsOf(tools.next)
    const run = world.hogwild.runWorkers({
      ...{ ...options, ...turns, model: world.model, tokenizer: world.tokenizer },
      workers: names.map((name, i) => ({ name, ...own[i], ...choices[i](calls) })),
      ...(trigger && { triggers: [triggerOf(() => run, trigger)] }),
      ...(known && {
        speculate: {
          ...speculate,
          by: speculate.by === 'known' ? knownDrafts(() => run, known, random) : speculate.by,
        },
      }),
    })
    return run
  }
}

function triggerOf(run, { text, given, branch }) {
  const action = ({ worker, count }) => {
    if (count === 1) run().inject(worker, given)
    if (count === 2) run().join({ name: 'j', prompt: branch, from: worker, maxTokens: 5 })
    if (count === 3) run().stop(worker, { append: given })
  }
  return { text, limit: 3, action }
}

/** What the worker writes next in a run that is known, with mistakes. */
function knownDrafts(run, known, { chance, below }) {
  return ({ worker, tokens, count }) => {
    const { length } = run().workers.find(({ name }) => name === worker).tokens
    const text = known.filter((event) => event.type === 'token' && event.worker === worker)
    let next = length
    while (next < text.length && text[next].token !== tokens.at(-1)) next++
    const drafts = text.slice(next + 1, next + 1 + count).map(({ token }) => token)
    return drafts.map((token) => (chance(0.1) ? below(VOCABULARY) : token))
  }
}

async function playTogether(specs, known) {
  return await Promise.all(
    specs.map(async (spec, i) => {
      const calls = []
      const told = []
      let speculation
      let error
      const run = spec(known[i]?.told, calls)
      try {
        for await (const event of run) {
          if (event.type === 'end') speculation = event.usage.speculation
          const { milliseconds, ...rest } = event
          told.push(
            event.type === 'end' ? { ...rest, usage: { ...event.usage, speculation: 0 } } : rest,
          )
        }
      } catch (thrown) {
        error = thrown.code
        // Steps of one pass are told together, or none of them.
        if (error === undefined) throw thrown
      }
      return { told, calls, speculation, error }
    }),
  )
}

// ---- generate ---------------------------------------------------------------------------------------

async function playGeneration(world, tools) {
  const { below, chance, pick, tokens } = tools
  const choice = tokenOptions(world, tools)
  const options = {
    ...{ model: world.model, tokenizer: world.tokenizer },
    prompt: tokens(12, 1),
    maxTokens: 1 + below(40),
    stopTokens: tokens(1),
    ...(chance(0.4) && { stop: ['ab', 'dd'] }),
  }
  const outcome = async (speculate) => {
    const calls = []
    const generation = world.hogwild.generate({ ...options, ...choice(calls), speculate })
    const written = []
    for await (const token of generation) written.push(token)
    const { usage, ...result } = await generation.result
    return { told: { written, calls, result }, usage }
  }
  const plain = await outcome(undefined)
  const text = plain.told.written.map(({ token }) => token)
  const by = ({ tokens, count }) => {
    const at = tokens.length - options.prompt.length
    return text.slice(at, at + count).map((token) => (chance(0.1) ? below(VOCABULARY) : token))
  }
  const drafted = await outcome({ by: pick(['lookup', 'jacobi', by, by]), tokens: 1 + below(8) })
  same(world, drafted.told, plain.told, 'generate')
  const { passes, drafted: count, accepted } = drafted.usage.speculation
  same(world, passes + accepted, text.length, 'passes and tokens')
  world.report.drafted += count
  world.report.accepted += accepted
}

// ---- one step ---------------------------------------------------------------------------------------

async function playStep(world, tools) {
  const { below, chance, pick, tokens } = tools
  const filled = Array.from({ length: 2 }, () => tokens(70))
  const choices = []
  const workers = Array.from({ length: 1 + below(3) }, (_, index) => {
    choices.push(tokenOptions(world, tools))
    return { index, own: tokens(66), tokens: tokens(3, 1), stages: below(5) }
  })
  const views = workers.map(({ index }) => {
    const blocks = [...filled.keys(), ...workers.map((_, i) => filled.length + i)]
    const others = blocks.filter((i) => i !== filled.length + index && chance(0.7))
    const at = below(others.length + 1)
    return [...others.slice(0, at), filled.length + index, ...others.slice(at)].map((block) => ({
      block,
      ...(chance(0.2) && { at: below(90) }),
      ...(chance(0.3) && { lag: 1 }),
      ...(chance(0.2) && { temperature: 0.5 + below(3) }),
      ...(chance(0.2) && { bias: pick([-1, 0.5, -Infinity]) }),
    }))
  })
  const dtype = pick(['f32', 'f16', 'bf16', 'int8'])
  /** The same blocks, samplers and hooks in a cache of its own. */
  const open = async () => {
    const cache = world.model.createCache({ capacity: 2048, dtype })
    const blocks = []
    for (const ids of [...filled, ...workers.map(({ own }) => own)]) {
      const block = cache.createBlock()
      if (ids.length > 0) await world.model.prefill(block, ids, { sampler: null })
      blocks.push(block)
    }
    const calls = workers.map(() => [])
    const parts = await Promise.all(
      workers.map(async ({ index }) => {
        const { sampler, grammar, logprobs, ...rest } = choices[index](calls[index])
        const entries = views[index].map((entry) => ({ ...entry, block: blocks[entry.block] }))
        return {
          view: { blocks: entries, writeTo: blocks[filled.length + index] },
          ...{ ...rest, logprob: logprobs, logits: 'last' },
          sampler: new world.hogwild.Sampler(sampler),
          grammar: await grammar?.matcher(),
        }
      }),
    )
    return { cache, blocks, parts, calls }
  }
  /** Worker by worker, what its first steps chose. */
  const oneByOne = async ({ parts }, stages) => {
    const chosen = workers.map(() => [])
    for (let stage = 0; stage <= Math.max(...stages); stage++) {
      const active = workers.filter(({ index }) => stages[index] >= stage)
      const outputs = await world.model.step(
        active.map(({ index, tokens: given }) => {
          return { ...parts[index], tokens: stage === 0 ? given : [chosen[index].at(-1).token] }
        }),
      )
      active.forEach(({ index }, i) => {
        chosen[index].push(outputs[i])
      })
    }
    return chosen
  }
  const known = await open()
  const chosen = await oneByOne(
    known,
    workers.map(({ stages }) => stages),
  ).catch((error) => {
    if (error.code !== 'HOGWILD_INVALID_ARGUMENT') throw error
    return undefined // a grammar's text has ended, or a processor met what a grammar forbids
  })
  await known.cache.close()
  if (chosen === undefined) return

  const drafted = await open()
  const before = drafted.cache.stats.freePages
  const outputs = await world.model.step(
    workers.map(({ index, tokens: given, stages }) => ({
      ...{ ...drafted.parts[index], tokens: given },
      drafts: chosen[index]
        .slice(0, stages)
        .map(({ token }) => (chance(0.1) ? below(VOCABULARY) : token)),
    })),
  )
  const kept = outputs.map((output) => output.drafted?.kept ?? 0)
  for (const { stages } of workers) world.report.drafted += stages
  for (const count of kept) world.report.accepted += count
  const plain = await open()
  const expected = await oneByOne(plain, kept)
  const tellOf = ({ token, logprob, topLogprobs }) => ({ token, logprob, topLogprobs })
  outputs.forEach((output, i) => {
    const all = output.drafted?.chosen ?? [output]
    same(world, all.map(tellOf), expected[i].map(tellOf), `tokens of worker ${i}`)
    same(world, output.logits, expected[i].at(-1).logits, `logits of worker ${i}`)
  })
  // A worker's number in a step depends on who else is in it.
  const unnumbered = (calls) => calls.map((own) => own.map(([, ...rest]) => rest))
  same(world, unnumbered(drafted.calls), unnumbered(plain.calls), 'calls of processors')
  const stateOf = ({ cache, blocks, parts }) => ({
    free: cache.stats.freePages,
    blocks: blocks.map((block) => [Array.from(block.tokens()), block.segments]),
    parts: parts.map(({ sampler, grammar }) => [sampler.state, grammar?.tokens]),
  })
  same(world, stateOf(drafted), stateOf(plain), `states; ${before} pages were free`)
  // Whatever is stored is seen by the next step.
  const after = async ({ parts }) => {
    const asked = parts.map(({ view }) => ({ view, tokens: [36], sampler: null, logits: 'last' }))
    return (await world.model.step(asked)).map(({ logits }) => logits)
  }
  same(world, await after(drafted), await after(plain), 'the next step')
  await drafted.cache.close()
  await plain.cache.close()
}

module.exports = { play }

if (require.main === module) {
  const [first = '1', count = '2000'] = process.argv.slice(2)
  const seeds = Array.from({ length: Number(count) }, (_, i) => Number(first) + i)
  void play(require(path.join(root, 'dist')), seeds).then((report) => {
    console.log(JSON.stringify(report))
    process.exitCode = report.faults.length > 0 ? 1 : 0
  })
}

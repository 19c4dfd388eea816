// The addon itself, without lib/, and a random Llama in its terms: for tests of the binding and for the
// scripts of this folder, which run in processes of their own.
'use strict'
const { mkdtempSync, rmSync, writeFileSync } = require('node:fs')
const { tmpdir } = require('node:os')
const path = require('node:path')

const root = path.join(__dirname, '..', '..')

function loadAddon() {
  return require('node-gyp-build')(root)
}

/** mulberry32, in [0, 1). */
function random(seed) {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let t = state
    t = Math.imul(t ^ (t >>> 15), t | 1)
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }
}

/** What random cases are drawn with; `next` as `random` gives it. Tokens are `vocabulary` ids, from `first` on. */
function choices(next, vocabulary, first = 0) {
  const below = (n) => Math.floor(next() * n)
  return {
    below,
    chance: (share) => next() < share,
    pick: (values) => values[below(values.length)],
    tokens: (most, least = 0) =>
      Array.from({ length: least + below(most - least + 1) }, () => first + below(vocabulary)),
  }
}

/**
 * Arguments of createModel: `config`, and `tensors` whose weights (f32, deviation 1 / sqrt(cols), norms
 * 1) lie in a new file; `remove` deletes it.
 */
function randomModel({
  vocabSize = 256,
  hiddenSize = 64,
  intermediateSize = 128,
  layers = 2,
  queryHeads = 4,
  kvHeads = 2,
  headDim = 16,
  seed = 1,
} = {}) {
  const folder = mkdtempSync(path.join(tmpdir(), 'hogwild-random-'))
  const file = path.join(folder, 'weights.bin')
  const tensors = []
  const chunks = []
  let offset = 0
  const next = random(seed)
  const add = (name, rows, cols) => {
    const values = new Float32Array(rows * cols)
    // Uniform on [-w, w] has deviation w / sqrt(3).
    const width = Math.sqrt(3 / cols)
    for (let i = 0; i < values.length; i++) {
      values[i] = rows === 1 ? 1 : width * (2 * next() - 1)
    }
    tensors.push({ name, path: file, offset, format: 'f32', rows, cols })
    chunks.push(new Uint8Array(values.buffer))
    offset += values.byteLength
  }

  add('embed', vocabSize, hiddenSize)
  for (let layer = 0; layer < layers; layer++) {
    const prefix = `layers.${layer}.`
    add(`${prefix}input_norm`, 1, hiddenSize)
    add(`${prefix}q_proj`, queryHeads * headDim, hiddenSize)
    add(`${prefix}k_proj`, kvHeads * headDim, hiddenSize)
    add(`${prefix}v_proj`, kvHeads * headDim, hiddenSize)
    add(`${prefix}o_proj`, hiddenSize, queryHeads * headDim)
    add(`${prefix}mlp_norm`, 1, hiddenSize)
    add(`${prefix}gate_proj`, intermediateSize, hiddenSize)
    add(`${prefix}up_proj`, intermediateSize, hiddenSize)
    add(`${prefix}down_proj`, hiddenSize, intermediateSize)
  }
  add('norm', 1, hiddenSize)
  writeFileSync(file, Buffer.concat(chunks))

  const inverseFrequencies = Float64Array.from(
    { length: headDim / 2 },
    (_, u) => 10000 ** ((-2 * u) / headDim),
  )
  const layer = {
    norms: { input: true, attentionOutput: false, mlp: true, mlpOutput: false },
    qkNorm: 'none',
    biases: { qkv: false, o: false, mlp: false },
    rope: 0,
    window: 0,
    softcap: 0,
    sinks: false,
    mlp: { type: 'dense', intermediateSize },
  }
  const config = {
    vocabSize,
    hiddenSize,
    queryHeads,
    kvHeads,
    headDim,
    rmsNormEps: 1e-5,
    normOffset: 0,
    activation: 'silu',
    embeddingScale: 1,
    attentionScale: 1 / Math.sqrt(headDim),
    residualScale: 1,
    logitScale: 1,
    logitSoftcap: 0,
    ropes: [[{ inverseFrequencies, attentionFactor: 1 }]],
    layers: Array(layers).fill(layer),
  }
  return {
    config,
    tensors,
    remove: () => rmSync(folder, { recursive: true, force: true }),
  }
}

/** Argument of createCache that fits a model's config. */
function cacheShape(config, capacity, keyFormat = 'f32', valueFormat = keyFormat) {
  const { layers, kvHeads, headDim, ropes } = config
  const layerRopes = Int32Array.from(layers, ({ rope }) => rope)
  return {
    layers: layers.length,
    kvHeads,
    headDim,
    keyFormat,
    valueFormat,
    capacity,
    ropes: ropes[0],
    layerRopes,
  }
}

/** A step's worker that writes to the last block of its view; greedy. */
function stepWorker(view, tokens, rest = {}) {
  const sampler = {
    temperature: 0,
    topK: 0,
    topP: 1,
    minP: 0,
    repetitionPenalty: 1,
    presencePenalty: 0,
    frequencyPenalty: 0,
    scope: 'view',
    lastN: 0,
    forbidden: new Int32Array(0),
    seed: 1n,
    draw: 0n,
  }
  return {
    view,
    fields: null,
    target: view.at(-1),
    tokens: Int32Array.from(tokens),
    logits: 'none',
    logprob: false,
    topLogprobs: 0,
    sampler,
    ...rest,
  }
}

/** What `passAttend` takes: plain attention into new arrays. */
function attendOptions(scale, wantLse) {
  return { scale, softcap: null, window: null, sinks: null, wantLse, out: null, lse: null }
}

module.exports = { attendOptions, cacheShape, choices, loadAddon, random, randomModel, stepWorker }

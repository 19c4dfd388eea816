// A transformer of our own on hogwild's cache and attention: a Llama in plain JavaScript, which reads its weights from a
// safetensors file, computes everything but attention itself, and gives keys, values and queries to `append` and `attend`. Two
// workers reverse words with it, each seeing what the other writes as it is written. At the end hogwild's own model does the same.
//
//   node examples/own-transformer.mjs
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { createCache, demoModelPath, loadModel, loadTokenizer, ropeFrequencies } from 'hogwild'

const MOST_STEPS = 100

// ---- weights: an index in JSON, then the tensors

const config = JSON.parse(readFileSync(join(demoModelPath, 'config.json'), 'utf8'))
const file = readFileSync(join(demoModelPath, 'model.safetensors'))
const indexLength = Number(file.readBigUInt64LE(0))
const index = JSON.parse(file.toString('utf8', 8, 8 + indexLength))

/** A tensor in bf16, the upper halves of float32s. */
function tensor(name) {
  const [begin, end] = index[name].data_offsets
  const bytes = file.subarray(8 + indexLength + begin, 8 + indexLength + end)
  const bits = Uint32Array.from(
    { length: bytes.length / 2 },
    (_, i) => bytes.readUInt16LE(2 * i) << 16,
  )
  return new Float32Array(bits.buffer)
}

const hidden = config.hidden_size
const embedding = tensor('model.embed_tokens.weight') // [V, H], the output matrix too
const finalNorm = tensor('model.norm.weight')
const layers = Array.from({ length: config.num_hidden_layers }, (_, i) => {
  const of = (name) => tensor(`model.layers.${i}.${name}.weight`)
  return {
    inputNorm: of('input_layernorm'),
    q: of('self_attn.q_proj'),
    k: of('self_attn.k_proj'),
    v: of('self_attn.v_proj'),
    o: of('self_attn.o_proj'),
    mlpNorm: of('post_attention_layernorm'),
    gate: of('mlp.gate_proj'),
    up: of('mlp.up_proj'),
    down: of('mlp.down_proj'),
  }
})

// ---- what a layer computes beside attention; x: [rows, width]

/** x times the transpose of a weight [n, k]: [rows, n]. */
function matmul(x, weight, k) {
  const [rows, n] = [x.length / k, weight.length / k]
  const out = new Float32Array(rows * n)
  for (let row = 0; row < rows; row++) {
    for (let i = 0; i < n; i++) {
      let sum = 0
      for (let j = 0; j < k; j++) sum += x[row * k + j] * weight[i * k + j]
      out[row * n + i] = sum
    }
  }
  return out
}

function rmsNorm(x, weight) {
  const out = new Float32Array(x.length)
  for (let row = 0; row < x.length; row += hidden) {
    let squares = 0
    for (let i = 0; i < hidden; i++) squares += x[row + i] ** 2
    const scale = 1 / Math.sqrt(squares / hidden + config.rms_norm_eps)
    for (let i = 0; i < hidden; i++) out[row + i] = x[row + i] * scale * weight[i]
  }
  return out
}

const silu = (x) => x / (1 + Math.exp(-x))
const add = (x, y) => x.map((value, i) => value + y[i])

// ---- a step

const cache = createCache({
  layers: layers.length,
  kvHeads: config.num_key_value_heads,
  headDim: config.head_dim,
  rope: ropeFrequencies({ type: 'default', theta: config.rope_theta, rotaryDim: config.head_dim }),
  capacity: 1024, // tokens
})

/** One forward pass for all workers, each with a view and new tokens. Gives the most likely next token of each. */
async function step(workers) {
  const ids = workers.flatMap(({ tokens }) => tokens)
  let x = new Float32Array(ids.length * hidden)
  ids.forEach((id, row) => {
    x.set(embedding.subarray(id * hidden, (id + 1) * hidden), row * hidden)
  })
  const pass = cache.beginPass(workers.map(({ view, tokens }) => ({ view, tokens: tokens.length })))
  try {
    for (const [i, layer] of layers.entries()) {
      const input = rmsNorm(x, layer.inputNorm)
      await pass.append(i, matmul(input, layer.k, hidden), matmul(input, layer.v, hidden))
      const { out } = await pass.attend(i, matmul(input, layer.q, hidden))
      x = add(x, matmul(out, layer.o, out.length / ids.length))
      const between = rmsNorm(x, layer.mlpNorm)
      const up = matmul(between, layer.up, hidden)
      const gated = matmul(between, layer.gate, hidden).map((gate, j) => silu(gate) * up[j])
      x = add(x, matmul(gated, layer.down, config.intermediate_size))
    }
    pass.commit()
  } finally {
    pass.abort() // does nothing to a pass that was committed
  }
  const last = workers.map(
    (_, w) => workers.slice(0, w + 1).flatMap(({ tokens }) => tokens).length - 1,
  )
  const rows = rmsNorm(x, finalNorm)
  return last.map((row) => {
    const logits = matmul(rows.subarray(row * hidden, (row + 1) * hidden), embedding, hidden)
    return logits.indexOf(Math.max(...logits))
  })
}

// ---- two workers

const tokenizer = await loadTokenizer(demoModelPath)
const encode = (text) => tokenizer.encodeSync(text, { addSpecialTokens: false })
const names = ['Alice', 'Bob']
const task = encode('<s>A:ynam\nB:sdnah\nC:ekam\nD:thgil\nE:krow\n')

/** Both workers write from their names on, each behind the other's text; gives the tokens that they have chosen. */
async function write(cache, step) {
  const prompt = cache.createBlock()
  const own = names.map(() => cache.createBlock())
  await step([{ view: { blocks: [prompt] }, tokens: task }])
  const written = names.map(() => [])
  let active = own.map((block, w) => ({ block, w, tokens: encode(names[w]) }))
  for (let i = 0; i < MOST_STEPS && active.length > 0; i++) {
    const chosen = await step(
      active.map(({ block, tokens }) => {
        const others = own.filter((other) => other !== block)
        return { view: { blocks: [prompt, ...others, block] }, tokens }
      }),
    )
    active.forEach((worker, at) => {
      worker.tokens = [chosen[at]]
      written[worker.w].push(chosen[at])
    })
    active = active.filter(({ tokens }) => tokens[0] !== config.eos_token_id)
  }
  return written
}

const ours = await write(cache, step)
ours.forEach((tokens, w) => {
  console.log(`${names[w]}: ${names[w]}${tokenizer.decode(tokens)}`)
})

// ---- the same by hogwild's own model

const model = await loadModel(demoModelPath, { dtype: 'f32' })
const theirs = await write(model.createCache({ dtype: 'f32' }), async (workers) => {
  return (await model.step(workers)).map(({ token }) => token)
})
const same = JSON.stringify(ours) === JSON.stringify(theirs)
console.log(
  same ? 'The same tokens as hogwild’s own model.' : 'hogwild’s own model writes something else.',
)
await model.close()
await cache.close()
process.exitCode = same ? 0 : 1

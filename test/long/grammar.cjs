// JSON of schemas from three workers at once, on a random model: each text has to parse and be of its schema.
// `npm run test:long` writes 200, test/grammar.test.ts a part of them.
'use strict'
const { mkdtempSync, readFileSync, rmSync, writeFileSync } = require('node:fs')
const { tmpdir } = require('node:os')
const path = require('node:path')
const { random } = require('../lifetime/random-model.cjs')

const root = path.join(__dirname, '..', '..')
const SEED = 20261128
/** Of three workers. */
const RUNS = 67

/** All text of them is bounded: a random model ends a string or an array when it must. */
const SCHEMAS = [
  {
    type: 'object',
    properties: {
      name: { type: 'string', maxLength: 12 },
      tags: { type: 'array', items: { type: 'string', maxLength: 4 }, maxItems: 3 },
      done: { type: 'boolean' },
    },
    required: ['name', 'tags', 'done'],
  },
  {
    type: 'array',
    items: {
      type: 'object',
      properties: {
        kind: { type: 'string', enum: ['plan', 'call', 'sum"up'] },
        step: { type: 'integer', minimum: 0, maximum: 99 },
      },
      required: ['kind', 'step'],
    },
    minItems: 1,
    maxItems: 3,
  },
  {
    type: 'object',
    properties: {
      'a b': { type: 'null' },
      nested: {
        type: 'object',
        properties: { é: { type: 'string', maxLength: 6 } },
        required: ['é'],
      },
    },
    required: ['a b', 'nested'],
  },
]

function isOfSchema(value, schema) {
  switch (schema.type) {
    case 'null':
      return value === null
    case 'boolean':
      return typeof value === 'boolean'
    case 'integer':
      return Number.isInteger(value) && value >= schema.minimum && value <= schema.maximum
    case 'string':
      if (typeof value !== 'string') return false
      if (schema.enum) return schema.enum.includes(value)
      return [...value].length <= schema.maxLength
    case 'array':
      return (
        Array.isArray(value) &&
        value.length >= (schema.minItems ?? 0) &&
        value.length <= schema.maxItems &&
        value.every((item) => isOfSchema(item, schema.items))
      )
    default: {
      if (typeof value !== 'object' || value === null) return false
      const names = Object.keys(schema.properties)
      return (
        Object.keys(value).join() === names.join() &&
        names.every((name) => isOfSchema(value[name], schema.properties[name]))
      )
    }
  }
}

/**
 * Runs of three workers that see each other, one for each schema. Resolves to the texts, and to what is wrong with
 * them.
 */
async function writeTexts(
  { createGrammar, Sampler },
  { model, tokenizer, stopTokens, runs, seed },
) {
  const next = random(seed)
  const grammars = await Promise.all(
    SCHEMAS.map((jsonSchema) => createGrammar({ tokenizer, stopTokens, jsonSchema })),
  )
  const texts = []
  const faults = []
  for (let run = 0; run < runs; run++) {
    const cache = model.createCache({ capacity: 4096 })
    const blocks = SCHEMAS.map(() => cache.createBlock())
    const workers = await Promise.all(
      grammars.map(async (grammar, i) => ({
        view: { blocks: [...blocks.filter((_, other) => other !== i), blocks[i]] },
        sampler: new Sampler({ temperature: 1.5, seed: Math.floor(next() * 2 ** 32) }),
        grammar: await grammar.matcher(),
        tokens: Array.from({ length: 4 }, () => Math.floor(next() * tokenizer.size)),
      })),
    )
    const running = () => workers.filter(({ grammar }) => !grammar.hasEnded)
    for (let step = 0; step < 400 && running().length > 0; step++) {
      const active = running()
      const outputs = await model.step(active)
      outputs.forEach(({ token }, i) => {
        active[i].tokens = [token]
      })
    }
    workers.forEach(({ grammar }, i) => {
      const text = tokenizer.decode(grammar.tokens, { skipSpecialTokens: true })
      texts.push(text)
      const where = JSON.stringify({ seed, run, worker: i, text })
      if (!grammar.hasEnded) faults.push(`${where} has no end`)
      else if (!parses(text, SCHEMAS[i])) faults.push(`${where} is not of its schema`)
    })
    await cache.close()
  }
  return { texts, faults }
}

function parses(text, schema) {
  try {
    return isOfSchema(JSON.parse(text), schema)
  } catch {
    return false
  }
}

/** A random Llama with a tokenizer of test/fixtures/tokenizers, as a folder. */
function writeFolder(name, rows) {
  const folder = mkdtempSync(path.join(tmpdir(), 'hogwild-grammar-'))
  const file = path.join(root, 'test', 'fixtures', 'tokenizers', `${name}.json`)
  const { tokenizer } = JSON.parse(readFileSync(file, 'utf8'))
  writeFileSync(path.join(folder, 'tokenizer.json'), JSON.stringify(tokenizer))
  const size = 32
  const config = {
    model_type: 'llama',
    vocab_size: rows,
    hidden_size: size,
    intermediate_size: 48,
    num_hidden_layers: 2,
    num_attention_heads: 4,
    num_key_value_heads: 2,
    head_dim: 8,
    hidden_act: 'silu',
    rms_norm_eps: 1e-5,
    rope_theta: 10000,
    max_position_embeddings: 4096,
    tie_word_embeddings: true,
  }
  writeFileSync(path.join(folder, 'config.json'), JSON.stringify(config))
  const next = random(SEED)
  const header = {}
  const chunks = []
  let offset = 0
  const add = (tensor, ...shape) => {
    const length = shape.reduce((a, b) => a * b, 1)
    const width = shape.length === 1 ? 0 : 4 * Math.sqrt(3 / shape[1])
    const values = Float32Array.from({ length }, () => (width === 0 ? 1 : width * (2 * next() - 1)))
    header[`model.${tensor}.weight`] = {
      dtype: 'F32',
      shape,
      data_offsets: [offset, offset + values.byteLength],
    }
    chunks.push(Buffer.from(values.buffer))
    offset += values.byteLength
  }
  add('embed_tokens', rows, size)
  add('norm', size)
  for (const layer of ['layers.0', 'layers.1']) {
    add(`${layer}.input_layernorm`, size)
    add(`${layer}.post_attention_layernorm`, size)
    add(`${layer}.self_attn.q_proj`, 32, size)
    add(`${layer}.self_attn.k_proj`, 16, size)
    add(`${layer}.self_attn.v_proj`, 16, size)
    add(`${layer}.self_attn.o_proj`, size, 32)
    add(`${layer}.mlp.gate_proj`, 48, size)
    add(`${layer}.mlp.up_proj`, 48, size)
    add(`${layer}.mlp.down_proj`, size, 48)
  }
  const json = Buffer.from(JSON.stringify(header))
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(BigInt(json.length))
  writeFileSync(path.join(folder, 'model.safetensors'), Buffer.concat([length, json, ...chunks]))
  return folder
}

async function main() {
  const hogwild = require(path.join(root, 'dist'))
  const folder = writeFolder('qwen2', 557)
  const tokenizer = await hogwild.loadTokenizer(folder)
  const model = await hogwild.loadModel(folder, { device: 'cpu', threads: 2 })
  const stopTokens = [tokenizer.tokenId('<|end|>')]
  const options = { model, tokenizer, stopTokens, runs: RUNS, seed: SEED }
  const { texts, faults } = await writeTexts(hogwild, options)
  for (const fault of faults) console.error(fault)
  console.log(`${texts.length} texts, ${new Set(texts).size} different, faults: ${faults.length}`)
  if (faults.length > 0) process.exitCode = 1
  await model.close()
  await tokenizer.close()
  rmSync(folder, { recursive: true, force: true })
}

module.exports = { writeTexts }

if (require.main === module) {
  main().catch((error) => {
    console.error(error)
    process.exit(1)
  })
}

// Writes the Llama of a Hugging Face folder as GGUF version 3
// (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), with a vocabulary of placeholders: for
// runs on token ids.

import { createWriteStream } from 'node:fs'
import { open } from 'node:fs/promises'
import { pipeline } from 'node:stream/promises'
import type { LayerSpec, ModelConfig } from '../../lib/families'
import type { RopeConfig } from '../../lib/rope'
import { readConfig } from '../../lib/sources/huggingface-config'
import { readTensors, type TensorEntry } from '../../lib/sources/safetensors'

/** A value of the metadata with its type; the numbers are GGUF's own. */
type Value =
  | { type: 'uint32' | 'int32' | 'float32'; value: number }
  | { type: 'string'; value: string }
  | { type: 'array'; of: 'int32' | 'float32' | 'string'; values: readonly (number | string)[] }
const VALUE_TYPES = { uint32: 4, int32: 5, float32: 6, string: 8, array: 9 }

const uint32 = (value: number): Value => ({ type: 'uint32', value })
const float32 = (value: number): Value => ({ type: 'float32', value })
const string = (value: string): Value => ({ type: 'string', value })

/** Numbers of llama.cpp's token types. */
const TOKEN = { normal: 1, unknown: 2, control: 3, byte: 6 }

/** ggml's numbers for the types of tensors that are written. */
const TENSOR_TYPES = { F32: 0, BF16: 30 }
const ALIGNMENT = 32

interface Tensor {
  name: string
  /** As in the safetensors: the fastest index last. */
  shape: readonly number[]
  type: keyof typeof TENSOR_TYPES
  bytes: number
  read(): Promise<Buffer>
}

const LAYER_NAMES: Record<string, string> = {
  'input_layernorm.weight': 'attn_norm.weight',
  'self_attn.q_proj.weight': 'attn_q.weight',
  'self_attn.k_proj.weight': 'attn_k.weight',
  'self_attn.v_proj.weight': 'attn_v.weight',
  'self_attn.o_proj.weight': 'attn_output.weight',
  'post_attention_layernorm.weight': 'ffn_norm.weight',
  'mlp.gate_proj.weight': 'ffn_gate.weight',
  'mlp.up_proj.weight': 'ffn_up.weight',
  'mlp.down_proj.weight': 'ffn_down.weight',
}
const OTHER_NAMES: Record<string, string> = {
  'model.embed_tokens.weight': 'token_embd.weight',
  'model.norm.weight': 'output_norm.weight',
  'lm_head.weight': 'output.weight',
}

/** Writes `folder`, a Llama whose tensors are BF16, to the file `path`. */
export async function writeGguf(folder: string, path: string): Promise<void> {
  const config = await readConfig(folder)
  if (config.architecture !== 'LlamaForCausalLM' || config.ropes[0]?.type !== 'default') {
    throw new Error(`${folder}: expected a Llama without scaled positions`)
  }
  const entries = await readTensors(folder)
  const tensors = [...entries.values()].map((entry) => toTensor(entry, config))
  await pipeline(() => serialize(metadataOf(config), tensors), createWriteStream(path))
}

function toTensor(entry: TensorEntry, config: ModelConfig): Tensor {
  const { name, shape, dtype } = entry
  if (dtype !== 'BF16') throw new Error(`${name}: expected BF16, found ${dtype}`)
  const [, layer, part] = /^model\.layers\.(\d+)\.(.+)$/.exec(name) ?? []
  const ggufName = part === undefined ? OTHER_NAMES[name] : LAYER_NAMES[part]
  if (ggufName === undefined) throw new Error(`${name}: not a tensor of a Llama`)
  const elements = shape.reduce((product, size) => product * size, 1)
  // llama.cpp multiplies by norms in f32 only.
  const type = shape.length === 1 ? 'F32' : 'BF16'
  return {
    name: layer === undefined ? ggufName : `blk.${layer}.${ggufName}`,
    shape,
    type,
    bytes: elements * (type === 'F32' ? 4 : 2),
    async read() {
      const data = await readData(entry, 2 * elements)
      if (type === 'F32') return toFloat32(data)
      if (part === 'self_attn.q_proj.weight') return interleave(data, config.headDim)
      if (part === 'self_attn.k_proj.weight') return interleave(data, config.headDim)
      return data
    },
  }

  /**
   * The rows of a projection, head by head, in the order of llama.cpp's rotary embedding, whose pairs are
   * (0, 1), (2, 3), ...; in the Hugging Face format they are (0, D / 2), (1, D / 2 + 1), ...
   */
  function interleave(data: Buffer, headDim: number): Buffer {
    const [rows, cols] = shape as [number, number]
    const row = (index: number) => data.subarray(index * cols * 2, (index + 1) * cols * 2)
    return Buffer.concat(
      Array.from({ length: rows }, (_, index) => {
        const place = index % headDim
        return row(index - place + (place % 2) * (headDim / 2) + Math.floor(place / 2))
      }),
    )
  }
}

async function readData(entry: TensorEntry, bytes: number): Promise<Buffer> {
  const file = await open(entry.path)
  try {
    return (await file.read(Buffer.alloc(bytes), 0, bytes, entry.offset)).buffer
  } finally {
    await file.close()
  }
}

/** bf16 is the upper half of a float32. */
function toFloat32(data: Buffer): Buffer {
  const wide = Buffer.alloc(2 * data.length)
  for (let at = 0; at < data.length; at += 2) data.copy(wide, 2 * at + 2, at, at + 2)
  return wide
}

function metadataOf(config: ModelConfig): [string, Value][] {
  const { tokens, types } = vocabulary(config.vocabSize)
  const [rope] = config.ropes as [RopeConfig]
  const [{ mlp }] = config.layers as [LayerSpec]
  return [
    ['general.architecture', string('llama')],
    ['general.name', string('random Llama')],
    ['general.alignment', uint32(ALIGNMENT)],
    ['llama.vocab_size', uint32(config.vocabSize)],
    ['llama.context_length', uint32(config.maxPositions ?? 0)],
    ['llama.embedding_length', uint32(config.hiddenSize)],
    ['llama.block_count', uint32(config.layers.length)],
    ['llama.feed_forward_length', uint32(mlp.intermediateSize)],
    ['llama.attention.head_count', uint32(config.queryHeads)],
    ['llama.attention.head_count_kv', uint32(config.kvHeads)],
    ['llama.attention.layer_norm_rms_epsilon', float32(config.rmsNormEps)],
    ['llama.rope.dimension_count', uint32(config.headDim)],
    ['llama.rope.freq_base', float32(rope.theta)],
    ['tokenizer.ggml.model', string('llama')],
    ['tokenizer.ggml.tokens', { type: 'array', of: 'string', values: tokens }],
    ['tokenizer.ggml.scores', { type: 'array', of: 'float32', values: tokens.map(() => 0) }],
    ['tokenizer.ggml.token_type', { type: 'array', of: 'int32', values: types }],
    ['tokenizer.ggml.unknown_token_id', uint32(0)],
    ['tokenizer.ggml.bos_token_id', uint32(1)],
    ['tokenizer.ggml.eos_token_id', uint32(2)],
  ]
}

/** <unk>, <s>, </s>, the 256 bytes that a SentencePiece vocabulary must have, and made-up words. */
function vocabulary(size: number): { tokens: string[]; types: number[] } {
  const special = ['<unk>', '<s>', '</s>']
  const byte = (value: number) => `<0x${value.toString(16).toUpperCase().padStart(2, '0')}>`
  const bytes = Array.from({ length: 256 }, (_, value) => byte(value))
  if (size < special.length + bytes.length)
    throw new Error(`no vocabulary of ${size} has all bytes`)
  const words = Array.from({ length: size - special.length - bytes.length }, (_, i) => `word${i}`)
  const types = [
    ...[TOKEN.unknown, TOKEN.control, TOKEN.control],
    ...bytes.map(() => TOKEN.byte),
    ...words.map(() => TOKEN.normal),
  ]
  return { tokens: [...special, ...bytes, ...words], types }
}

async function* serialize(metadata: [string, Value][], tensors: readonly Tensor[]) {
  let offset = 0
  const infos = tensors.map(({ name, shape, type, bytes }) => {
    const begin = offset
    offset = align(begin + bytes)
    return Buffer.concat([
      encodeString(name),
      encodeUint32(shape.length),
      ...shape.toReversed().map(encodeUint64), // the fastest index first
      encodeUint32(TENSOR_TYPES[type]),
      encodeUint64(begin),
    ])
  })
  const header = Buffer.concat([
    Buffer.from('GGUF'),
    encodeUint32(3),
    encodeUint64(tensors.length),
    encodeUint64(metadata.length),
    ...metadata.map(([key, value]) => Buffer.concat([encodeString(key), encodeTyped(value)])),
    ...infos,
  ])
  yield header
  yield Buffer.alloc(align(header.length) - header.length)
  for (const tensor of tensors) {
    yield await tensor.read()
    yield Buffer.alloc(align(tensor.bytes) - tensor.bytes)
  }
}

function align(bytes: number): number {
  return Math.ceil(bytes / ALIGNMENT) * ALIGNMENT
}

function encodeTyped(value: Value): Buffer {
  const type = encodeUint32(VALUE_TYPES[value.type])
  if (value.type !== 'array') return Buffer.concat([type, encode(value.type, value.value)])
  const { of, values } = value
  return Buffer.concat([
    type,
    encodeUint32(VALUE_TYPES[of]),
    encodeUint64(values.length),
    ...values.map((item) => encode(of, item)),
  ])
}

function encode(type: 'uint32' | 'int32' | 'float32' | 'string', value: number | string): Buffer {
  if (type === 'string') return encodeString(value as string)
  const buffer = Buffer.alloc(4)
  if (type === 'float32') buffer.writeFloatLE(value as number)
  else if (type === 'int32') buffer.writeInt32LE(value as number)
  else buffer.writeUInt32LE(value as number)
  return buffer
}

function encodeString(text: string): Buffer {
  const bytes = Buffer.from(text)
  return Buffer.concat([encodeUint64(bytes.length), bytes])
}

function encodeUint32(value: number): Buffer {
  return encode('uint32', value)
}

function encodeUint64(value: number): Buffer {
  const buffer = Buffer.alloc(8)
  buffer.writeBigUInt64LE(BigInt(value))
  return buffer
}

// Llamas of random weights as GGUF files, for benchmarks: every matrix in the format that is asked for, with a vocabulary
// of placeholders, as runs are on token ids. Both engines read the same file.

import { FORMATS, GGUF_FORMATS, type GgufFormat, isQuantised, storedBytes } from '../../lib/formats'
import {
  array,
  float32,
  type GgufWriterTensor,
  type Metadata,
  string,
  uint32,
  writeGgufFile,
} from '../../test/gguf-writer'

export interface Shape {
  name: string
  layers: number
  hiddenSize: number
  intermediateSize: number
  queryHeads: number
  kvHeads: number
  headDim: number
  vocabSize: number
}

export const SHAPES: Record<string, Shape> = {
  '135m': {
    name: 'random Llama of 135 M parameters (the shape of SmolLM2-135M)',
    layers: 30,
    hiddenSize: 576,
    intermediateSize: 1536,
    queryHeads: 9,
    kvHeads: 3,
    headDim: 64,
    vocabSize: 49_152,
  },
  '0.6b': {
    name: 'random Llama of 0.6 B parameters (the shape of Qwen3-0.6B)',
    layers: 28,
    hiddenSize: 1024,
    intermediateSize: 3072,
    queryHeads: 16,
    kvHeads: 8,
    headDim: 128,
    vocabSize: 151_936,
  },
}

/** ggml's numbers of the formats that are written. */
export const TYPES: Readonly<Record<GgufFormat, number>> = {
  ...{ f32: 0, f16: 1, bf16: 30, q8_0: 8, q4_0: 2, q4_1: 3, q5_0: 6, q5_1: 7, q2_k: 10, q3_k: 11 },
  ...{ q4_k: 12, q5_k: 13, q6_k: 14, iq4_nl: 20, iq4_xs: 23, mxfp4: 39 },
}

/** What matrices may be in. */
export type BenchFormat = Exclude<GgufFormat, 'f32'>
export const BENCH_FORMATS = GGUF_FORMATS.filter((one) => one !== 'f32')

/** What the embedding is in, as llama.cpp's quantiser has it by default. */
function embeddingFormat(format: BenchFormat): BenchFormat {
  return isQuantised(format) && format !== 'q8_0' ? 'q6_k' : format
}

/** Numbers of llama.cpp's token types. */
const TOKEN = { normal: 1, unknown: 2, control: 3, byte: 6 }

/** Whole blocks of every format. */
const CHUNK_ELEMENTS = 2 ** 18

/**
 * Writes the file `path`. `repeated`: matrices are one chunk of numbers over and over, which is faster and enough for
 * timing; else each number is drawn. Throws where rows of the shape are no whole blocks of the format.
 */
export async function writeRandomGguf(
  path: string,
  shape: Shape,
  format: BenchFormat,
  { repeated }: { repeated: boolean },
): Promise<void> {
  const numbers = randomBytes()
  const fill = (format: GgufFormat, bytes: number) =>
    repeated ? repeatedWeights(format, bytes) : randomWeights(format, bytes, numbers)
  await writeGgufFile(path, metadataOf(shape), tensorsOf(shape, format, fill))
}

/** Throws where rows of the shape are no whole blocks of the format. */
export function checkFormat(shape: Shape, format: BenchFormat): void {
  tensorsOf(shape, format, () => Buffer.alloc(0))
}

type FillTensor = (format: GgufFormat, bytes: number) => Buffer

function tensorsOf(shape: Shape, format: BenchFormat, fill: FillTensor): GgufWriterTensor[] {
  const { hiddenSize, intermediateSize, queryHeads, kvHeads, headDim, vocabSize } = shape
  const wholeBlocks = (wanted: GgufFormat) =>
    hiddenSize % FORMATS[wanted].elements === 0 ? wanted : 'q8_0'
  const tensor = (name: string, shape: readonly number[], format: GgufFormat): GgufWriterTensor => {
    const cols = shape.at(-1) as number
    if (cols % FORMATS[format].elements !== 0) {
      throw new Error(`${name}: rows of ${cols} elements are no whole blocks of ${format}`)
    }
    const elements = shape.reduce((product, size) => product * size, 1)
    const bytes = storedBytes(format, 1, elements)
    return { name, shape, type: TYPES[format], bytes, read: () => fill(format, bytes) }
  }
  const matrix = (name: string, rows: number, cols: number) => tensor(name, [rows, cols], format)
  const norm = (name: string) => tensor(name, [hiddenSize], 'f32')
  const layer = (index: number) => {
    const name = (part: string) => `blk.${index}.${part}.weight`
    return [
      norm(name('attn_norm')),
      matrix(name('attn_q'), queryHeads * headDim, hiddenSize),
      matrix(name('attn_k'), kvHeads * headDim, hiddenSize),
      matrix(name('attn_v'), kvHeads * headDim, hiddenSize),
      matrix(name('attn_output'), hiddenSize, queryHeads * headDim),
      norm(name('ffn_norm')),
      matrix(name('ffn_gate'), intermediateSize, hiddenSize),
      matrix(name('ffn_up'), intermediateSize, hiddenSize),
      matrix(name('ffn_down'), hiddenSize, intermediateSize),
    ]
  }
  const embedding = wholeBlocks(embeddingFormat(format))
  return [
    tensor('token_embd.weight', [vocabSize, hiddenSize], embedding),
    ...Array.from({ length: shape.layers }, (_, index) => layer(index)).flat(),
    norm('output_norm.weight'),
  ]
}

const chunks = new Map<GgufFormat, Buffer>()

function repeatedWeights(format: GgufFormat, bytes: number): Buffer {
  const chunkBytes = storedBytes(format, 1, CHUNK_ELEMENTS)
  const chunk = chunks.get(format) ?? randomWeights(format, chunkBytes, randomBytes())
  chunks.set(format, chunk)
  const data = Buffer.alloc(bytes)
  for (let at = 0; at < bytes; at += chunk.length) chunk.copy(data, at)
  return data
}

/** Whole blocks of weights that are finite and of a usual size. */
export function randomWeights(
  format: GgufFormat,
  bytes: number,
  numbers: Iterator<number>,
): Buffer {
  return FILL[format](Buffer.alloc(bytes), numbers)
}

/** Bytes of a linear congruential generator (that of Numerical Recipes): quality does not matter here. */
export function* randomBytes(seed = 1): Generator<number, never> {
  for (let state = seed; ; ) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    yield state >>> 24
  }
}

type Fill = (data: Buffer, bytes: Iterator<number>) => Buffer

/** Weights within 0.04 of 0, as trained ones are in size; norms close to 1. */
const MOST = 0.04

/** Blocks of random codes; `scales` writes what must not be random. */
function blocks(format: GgufFormat, scales: (block: Buffer) => void): Fill {
  return (data, bytes) => {
    for (let at = 0; at < data.length; at++) data[at] = bytes.next().value
    const size = FORMATS[format].bytes
    for (let at = 0; at < data.length; at += size) scales(data.subarray(at, at + size))
    return data
  }
}

const FILL: Record<GgufFormat, Fill> = {
  f32(data, bytes) {
    for (let at = 0; at < data.length; at += 4) {
      data.writeFloatLE(1 + MOST * (bytes.next().value / 128 - 1), at)
    }
    return data
  },
  bf16(data, bytes) {
    const wide = Buffer.alloc(4)
    for (let at = 0; at < data.length; at += 2) {
      wide.writeFloatLE(MOST * ((bytes.next().value + bytes.next().value / 256) / 128 - 1))
      wide.copy(data, at, 2) // bf16 is the upper half of a float32
    }
    return data
  },
  f16(data, bytes) {
    for (let at = 0; at < data.length; at += 2) {
      writeHalf(data, at, MOST * ((bytes.next().value + 0.5) / 128 - 1))
    }
    return data
  },
  q8_0: blocks('q8_0', (block) => writeHalf(block, 0, MOST / 127)),
  q4_0: blocks('q4_0', (block) => writeHalf(block, 0, MOST / 8)),
  q4_1: blocks('q4_1', (block) => {
    writeHalf(block, 0, (2 * MOST) / 15)
    writeHalf(block, 2, -MOST)
  }),
  q5_0: blocks('q5_0', (block) => writeHalf(block, 0, MOST / 16)),
  q5_1: blocks('q5_1', (block) => {
    writeHalf(block, 0, (2 * MOST) / 31)
    writeHalf(block, 2, -MOST)
  }),
  // Scales and minima of 4 bits are random: d s q - m t has the mean 0 where m = 1.5 d.
  q2_k: blocks('q2_k', (block) => {
    writeHalf(block, 80, MOST / (1.5 * 8))
    writeHalf(block, 82, MOST / 8)
  }),
  q3_k: blocks('q3_k', (block) => writeHalf(block, 108, MOST / (32 * 2))),
  // Scales and minima of 6 bits are random too: d s q - m t has the mean 0 where m = 7.5 d.
  q4_k: blocks('q4_k', (block) => {
    writeHalf(block, 0, MOST / (7.5 * 32))
    writeHalf(block, 2, MOST / 32)
  }),
  q5_k: blocks('q5_k', (block) => {
    writeHalf(block, 0, MOST / (15.5 * 32))
    writeHalf(block, 2, MOST / 32)
  }),
  q6_k: blocks('q6_k', (block) => writeHalf(block, 208, MOST / (32 * 64))),
  iq4_nl: blocks('iq4_nl', (block) => writeHalf(block, 0, MOST / 127)),
  iq4_xs: blocks('iq4_xs', (block) => writeHalf(block, 0, MOST / (16 * 127))),
  // The largest code is 12 times 2^(exponent - 128).
  mxfp4: blocks('mxfp4', (block) => block.writeUInt8(128 + Math.round(Math.log2(MOST / 12)), 0)),
}

/** A positive or negative number in the range of f16, rounded towards zero. */
function writeHalf(block: Buffer, at: number, value: number): void {
  const magnitude = Math.abs(value)
  const exponent = Math.max(-14, Math.floor(Math.log2(magnitude)))
  const fraction = Math.floor((magnitude / 2 ** exponent) * 1024)
  // The leading 1 of a normal number's fraction raises the exponent.
  const bits = ((exponent + 14) << 10) + fraction
  block.writeUInt16LE((value < 0 ? 0x8000 : 0) | bits, at)
}

function metadataOf(shape: Shape): Metadata {
  const { tokens, types } = vocabulary(shape.vocabSize)
  return [
    ['general.architecture', string('llama')],
    ['general.name', string(shape.name)],
    ['llama.vocab_size', uint32(shape.vocabSize)],
    ['llama.context_length', uint32(8192)],
    ['llama.embedding_length', uint32(shape.hiddenSize)],
    ['llama.block_count', uint32(shape.layers)],
    ['llama.feed_forward_length', uint32(shape.intermediateSize)],
    ['llama.attention.head_count', uint32(shape.queryHeads)],
    ['llama.attention.head_count_kv', uint32(shape.kvHeads)],
    ['llama.attention.key_length', uint32(shape.headDim)],
    ['llama.attention.value_length', uint32(shape.headDim)],
    ['llama.attention.layer_norm_rms_epsilon', float32(1e-5)],
    ['llama.rope.dimension_count', uint32(shape.headDim)],
    ['llama.rope.freq_base', float32(100_000)],
    ['tokenizer.ggml.model', string('llama')],
    ['tokenizer.ggml.tokens', array('string', tokens)],
    ['tokenizer.ggml.scores', array('float32', new Array(tokens.length).fill(0))],
    ['tokenizer.ggml.token_type', array('int32', types)],
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
  const words = Array.from({ length: size - special.length - bytes.length }, (_, i) => `word${i}`)
  const types = [
    ...[TOKEN.unknown, TOKEN.control, TOKEN.control],
    ...bytes.map(() => TOKEN.byte),
    ...words.map(() => TOKEN.normal),
  ]
  return { tokens: [...special, ...bytes, ...words], types }
}

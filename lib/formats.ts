// Formats in which weights, keys and values are stored. The tables are those of native/core/format.h and tensor.h;
// test/formats.test.ts compares them.

/** Of activations and caches. */
export type Dtype = 'f32' | 'f16' | 'bf16'

/** Bytes of an element. */
export const DTYPE_BYTES: Readonly<Record<Dtype, number>> = { f32: 4, f16: 2, bf16: 2 }

export const DTYPES = Object.keys(DTYPE_BYTES) as readonly Dtype[]

/**
 * Of weights. Names are GGUF's in lower case, but for those of 4-bit integers in groups of N columns, `int4_gN`: AWQ,
 * GPTQ and compressed-tensors, whose files keep the parts of a block apart.
 */
export type Format =
  | 'f32'
  | 'f16'
  | 'bf16'
  | 'q8_0'
  | 'q4_0'
  | 'q4_1'
  | 'q5_0'
  | 'q5_1'
  | 'q2_k'
  | 'q3_k'
  | 'q4_k'
  | 'q5_k'
  | 'q6_k'
  | 'iq4_nl'
  | 'iq4_xs'
  | 'mxfp4'
  | 'int4_g32'
  | 'int4_g64'
  | 'int4_g128'

/**
 * The elements and bytes of a block. A row is a whole number of blocks; plain formats, which store each element by
 * itself, have blocks of one.
 */
export const FORMATS: Readonly<
  Record<Format, { readonly elements: number; readonly bytes: number }>
> = {
  f32: { elements: 1, bytes: 4 },
  f16: { elements: 1, bytes: 2 },
  bf16: { elements: 1, bytes: 2 },
  q8_0: { elements: 32, bytes: 34 },
  q4_0: { elements: 32, bytes: 18 },
  q4_1: { elements: 32, bytes: 20 },
  q5_0: { elements: 32, bytes: 22 },
  q5_1: { elements: 32, bytes: 24 },
  q2_k: { elements: 256, bytes: 84 },
  q3_k: { elements: 256, bytes: 110 },
  q4_k: { elements: 256, bytes: 144 },
  q5_k: { elements: 256, bytes: 176 },
  q6_k: { elements: 256, bytes: 210 },
  iq4_nl: { elements: 32, bytes: 18 },
  iq4_xs: { elements: 256, bytes: 136 },
  mxfp4: { elements: 32, bytes: 17 },
  int4_g32: { elements: 32, bytes: 21 },
  int4_g64: { elements: 64, bytes: 37 },
  int4_g128: { elements: 128, bytes: 69 },
}

/**
 * Bytes of 64 elements of a row on a CUDA card, which keeps codes of up to 4 bits in 4 and larger ones in 8
 * (native/core/fragments.h). 0: as they are stored.
 */
export const CARD_BYTES: Readonly<Record<Format, number>> = {
  ...{ f32: 0, f16: 0, bf16: 0, q8_0: 68, q4_0: 36, q4_1: 40, q5_0: 68, q5_1: 72, q2_k: 44 },
  ...{ q3_k: 38, q4_k: 40, q5_k: 72, q6_k: 70, iq4_nl: 36, iq4_xs: 36, mxfp4: 36 },
  ...{ int4_g32: 42, int4_g64: 37, int4_g128: 37 },
}

/** Those of GGUF files. */
export type GgufFormat = Exclude<Format, `int4_${string}`>

export const GGUF_FORMATS = Object.keys(FORMATS).filter(
  (format) => !format.startsWith('int4_'),
) as readonly GgufFormat[]

/** Whether it stores blocks of integers with scales. */
export function isQuantised(format: Format): boolean {
  return FORMATS[format].elements > 1
}

/** Bytes of a matrix of a quantised format on a CUDA card, which has whole blocks of 16 rows and 64 columns. */
export function cardBytes(format: Format, rows: number, cols: number): number {
  return Math.ceil(rows / 16) * 16 * Math.ceil(cols / 64) * CARD_BYTES[format]
}

/** Bytes of `rows` rows of `cols` elements in a file; `cols` is a multiple of the format's block. */
export function storedBytes(format: Format, rows: number, cols: number): number {
  const { elements, bytes } = FORMATS[format]
  return rows * (cols / elements) * bytes
}

/**
 * Of keys, or of values. `int8`: codes from -127 to 127, and a scale in f32 for each token and kv head, max |x| / 127.
 * Rounded once, when they are written; a key after its rotation.
 */
export type KvDtype = 'f32' | 'f16' | 'bf16' | 'int8'

/** The name stands for both keys and values. */
export type CacheDtype = KvDtype | Readonly<KvDtypes>

/** A dtype for keys and one for values. */
export interface KvDtypes {
  /** Of the keys, after RoPE. */
  keys: KvDtype
  /** Of the values. */
  values: KvDtype
}

export const KV_DTYPES: readonly KvDtype[] = [...DTYPES, 'int8']

const SCALE_BYTES = 4

export function kvDtypes(dtype: CacheDtype): KvDtypes {
  return typeof dtype === 'string' ? { keys: dtype, values: dtype } : dtype
}

/** Bytes of one row of `headDim` elements and, where the dtype has one, its scale. */
export function kvRowBytes(dtype: KvDtype, headDim: number): number {
  return dtype === 'int8' ? headDim + SCALE_BYTES : headDim * DTYPE_BYTES[dtype]
}

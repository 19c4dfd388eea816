// Matrices that a folder keeps as 4-bit integers, each in several tensors: native/core/int4.h says how.

import type { Dtype, Format } from '../formats'
import type { NativeIntegers, NativePlace, NativeTensor } from '../native'
import { unsupported } from './fields'
import type { StoredTensor } from './stored-tensor'

/** How a folder keeps them. */
export interface Int4 {
  layout: NativeIntegers['layout']
  /** Columns that share a scale. */
  group: 32 | 64 | 128
  /** How zeros are stored; undefined: they are not, each is 8. */
  zeros: NonNullable<NativeIntegers['zeros']>['rule'] | undefined
}

/** What files call the tensors of a matrix. */
export interface Int4Names {
  codes: string
  scales: string
  zeros: string
  groups?: string
  /** Follows from the others. */
  shape?: string
}

/** In the place of `weight`. */
const SUFFIXES: Readonly<Record<Int4['layout'], Int4Names>> = {
  awq: { codes: 'qweight', scales: 'scales', zeros: 'qzeros' },
  gptq: { codes: 'qweight', scales: 'scales', zeros: 'qzeros', groups: 'g_idx' },
  'compressed-tensors': {
    codes: 'weight_packed',
    scales: 'weight_scale',
    zeros: 'weight_zero_point',
    groups: 'weight_g_idx',
    shape: 'weight_shape',
  },
}

const SCALE_DTYPES: Readonly<Record<string, Dtype>> = { F16: 'f16', BF16: 'bf16', F32: 'f32' }
const WORDS = { I32: 'i32' } as const
const SHAPES = { I64: 'i64', I32: 'i32' } as const

/** Integers in a word. */
const WORD = 8

/** The names of the tensors that may hold a matrix, which a file would else call `file`. */
export function int4Names(int4: Int4, file: string): Int4Names | undefined {
  if (!file.endsWith('.weight')) return undefined
  const prefix = file.slice(0, -'weight'.length)
  const names = Object.entries(SUFFIXES[int4.layout]).map(([part, suffix]) => [
    part,
    prefix + suffix,
  ])
  return Object.fromEntries(names) as unknown as Int4Names
}

/** The place of a tensor that has this shape and one of these types. Throws where there is none. */
export type Find = <T>(
  file: string,
  shape: readonly number[],
  types: Readonly<Record<string, T>>,
) => NativePlace & { type: T }

/**
 * The roles of a matrix [outputs, columns] in tensors of these names; `has` says which there are.
 *
 * Throws HOGWILD_UNSUPPORTED where columns are not whole groups, or rows not eights.
 */
export function locateInt4(
  { layout, group, zeros: rule }: Int4,
  names: Int4Names,
  { file, shape, parts }: StoredTensor,
  has: (file: string) => boolean,
  find: Find,
): NativeTensor[] {
  const [outputs, cols] = shape as [number, number]
  if (cols % group !== 0) {
    throw unsupported(`"${file}" [${shape}] in groups of ${group} columns`, 'whole groups')
  }
  if (parts.some(({ role }) => role.rows % WORD !== 0)) {
    throw unsupported(`"${file}" [${shape}] as 4-bit integers`, `multiples of ${WORD} rows`)
  }
  const groups = cols / group
  const perOutput = (count: number, each: number) =>
    layout === 'compressed-tensors' ? [count, each] : [each, count]
  const codes = find(
    names.codes,
    layout === 'awq' ? [cols, outputs / WORD] : perOutput(outputs, cols / WORD),
    WORDS,
  )
  const scales = find(names.scales, perOutput(outputs, groups), SCALE_DTYPES)
  const zeros = rule && find(names.zeros, perOutput(outputs / WORD, groups), WORDS)
  const order = names.groups && has(names.groups) ? find(names.groups, [cols], WORDS) : undefined
  if (names.shape && has(names.shape)) find(names.shape, [2], SHAPES)
  const place = ({ path, offset }: NativePlace): NativePlace => ({ path, offset })
  return parts.map(({ role: { name, rows }, offset, ...part }) => ({
    ...{ name, ...place(codes), format: `int4_g${group}` as Format, rows, cols, ...part },
    integers: {
      ...{ layout, outputs, first: offset / cols },
      scales: { ...place(scales), dtype: scales.type },
      ...(zeros && rule && { zeros: { ...place(zeros), rule } }),
      ...(order && { groups: place(order) }),
    },
  }))
}

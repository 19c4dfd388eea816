// In which dtype a cache stores keys and values: what is asked for, or the default.

import type { Device } from './device'
import {
  type CacheDtype,
  DTYPES,
  type Format,
  KV_DTYPES,
  type KvDtype,
  type KvDtypes,
} from './formats'
import { checkOneOf, checkOptions, invalid, optionKeys } from './validate'

const KEYS = optionKeys<KvDtypes>()({ keys: true, values: true })

/** The same in its shortest form: a name where keys and values have one dtype. */
export function checkCacheDtype(value: unknown, name: string): CacheDtype {
  if (typeof value !== 'object' || value === null) {
    if (!(KV_DTYPES as readonly unknown[]).includes(value)) {
      const list = KV_DTYPES.map((dtype) => `'${dtype}'`).join(', ')
      throw invalid(name, `one of ${list}, or { keys, values }`, value)
    }
    return value as KvDtype
  }
  const given = checkOptions(value as KvDtypes, name, KEYS)
  const keys = checkOneOf(given.keys, `${name}.keys`, KV_DTYPES)
  const values = checkOneOf(given.values, `${name}.values`, KV_DTYPES)
  return keys === values ? keys : { keys, values }
}

/**
 * In which a cache is kept where none is asked for, beside weights of this format: as they are or, beside quantised
 * ones, f16, which is as small as bf16 and eight times as exact. A CUDA device has no f32.
 */
export function defaultCacheDtype(device: Device, weights: Format): KvDtype {
  const dtype = DTYPES.find((plain) => plain === weights) ?? 'f16'
  return device.info.type === 'cuda' && dtype === 'f32' ? 'bf16' : dtype
}

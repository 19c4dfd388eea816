// In which dtype a cache stores keys and values: what is asked for, or the default.

import type { Device } from './device'
import { type CacheDtype, type Dtype, KV_DTYPES, type KvDtype, type KvDtypes } from './formats'
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

/** Where none is asked for: the model's (f16 beside quantised weights: Model.dtype). A CUDA device multiplies f32 in bf16. */
export function defaultCacheDtype(device: Device, dtype: Dtype): Dtype {
  return device.info.type === 'cuda' && dtype === 'f32' ? 'bf16' : dtype
}

// What fits into memory. A pool of pages is memory that the system hands out only when it is written, and files are
// mapped, so what is too large would not fail when it is made but end the process later.

import { readFileSync } from 'node:fs'
import { freemem, totalmem } from 'node:os'
import { join } from 'node:path'
import type { Device } from './device'
import { HogwildError } from './errors'
import { cardBytes, type Dtype, FORMATS, type Format, storedBytes } from './formats'
import { inBytes } from './printable'
import type { Warnings } from './warnings'

/** A tensor as it is stored; vectors have one row. */
interface StoredTensor {
  format: Format
  rows: number
  cols: number
  /** With one of these, a matrix is not what lies in its file. */
  interleaved?: unknown
  strides?: unknown
  exponents?: unknown
  integers?: unknown
}

/** Bytes that the weights of a model take. */
export interface WeightMemory {
  /** In pages of its files, which processes share. */
  mapped: number
  /** In memory of the process. */
  own: number
}

/** What is known of where weights go before they are read. */
export interface WeightPlace {
  device: 'cpu' | 'cuda'
  /** What matrices are converted to; 'auto': nothing. */
  dtype: 'auto' | Dtype
  mapped: boolean
  /** Whether quantised matrices are put in another order. */
  repack: boolean
}

/** Of quantised weights about, where they are put in another order. */
export function weightMemory(tensors: readonly StoredTensor[], place: WeightPlace): WeightMemory {
  const memory = { mapped: 0, own: 0 }
  for (const { format, rows, cols, interleaved, strides, exponents, integers } of tensors) {
    if (rows === 1) {
      memory.own += 4 * cols
      continue
    }
    const asked = place.dtype === 'auto' ? format : place.dtype
    const kept = place.device === 'cuda' && asked === 'f32' ? 'bf16' : asked
    const isPlain = FORMATS[kept].elements === 1
    const stays = isPlain || !place.repack
    const isInOrder = !interleaved && !strides && !exponents && !integers
    const inPlace = kept === format && stays && isInOrder
    const where = inPlace && place.mapped && place.device === 'cpu' ? 'mapped' : 'own'
    const isRepacked = place.device === 'cuda' && !isPlain
    memory[where] += isRepacked ? cardBytes(kept, rows, cols) : storedBytes(kept, rows, cols)
  }
  return memory
}

/**
 * Before weights are read: throws HOGWILD_OUT_OF_MEMORY where they need more memory than there is, and warns
 * (HOGWILD_LOW_MEMORY) where pages of files would have to be read again and again.
 */
export function checkWeightMemory(device: Device, memory: WeightMemory, warnings: Warnings): void {
  const isCard = device.info.type === 'cuda'
  const free = isCard ? device.freeMemory : availableMemory()
  const where = isCard ? `of ${device.info.name}` : 'of memory'
  const { mapped, own } = memory
  if (own > free) {
    throw new HogwildError(
      `the model's weights take ${inBytes(own)}, and ${inBytes(free)} ${where} are free`,
      'HOGWILD_OUT_OF_MEMORY',
    )
  }
  if (own + mapped > free) {
    warnings.warn(
      'HOGWILD_LOW_MEMORY',
      `the model's weights take ${inBytes(own + mapped)}, and ${inBytes(free)} ${where} are free: each step reads from the disk what does not fit`,
    )
  }
}

/**
 * Throws HOGWILD_OUT_OF_MEMORY for a cache that this machine can never hold, and warns
 * (HOGWILD_LOW_MEMORY) of one larger than what is free now. A GPU allocates its pool at once and refuses by itself.
 */
export function checkMemory(
  device: Device,
  capacity: number,
  bytesPerToken: number,
  warnings: Warnings,
): void {
  if (device.info.type !== 'cpu') return
  const bytes = capacity * bytesPerToken
  const limit = memoryLimit()
  const asked = `a cache of ${capacity} tokens takes ${inBytes(bytes)}`
  if (bytes > limit) {
    const most = Math.floor(limit / bytesPerToken)
    throw new HogwildError(
      `${asked}, and this machine has ${inBytes(limit)}: enough for a capacity of ${most}`,
      'HOGWILD_OUT_OF_MEMORY',
    )
  }
  const available = availableMemory()
  if (bytes > available) {
    warnings.warn('HOGWILD_LOW_MEMORY', `${asked}, and ${inBytes(available)} are free`)
  }
}

/** Bytes that this process may use at most: the machine's memory or its cgroup's limit. */
export function memoryLimit(): number {
  const constrained = process.constrainedMemory?.() ?? 0
  return constrained > 0 ? Math.min(constrained, totalmem()) : totalmem()
}

/** Bytes that it can still get. Pages of files count as free, for the system drops them where it must. */
export function availableMemory(): number {
  const limit = memoryLimit()
  if (limit >= totalmem()) return freemem()
  return Math.max(0, Math.min(freemem(), limit - usedOfLimit()))
}

/** What the processes of this cgroup have beyond pages of files; of version 1, what this process has. */
function usedOfLimit(): number {
  try {
    const [, path = ''] = /^0::(.*)$/m.exec(readFileSync('/proc/self/cgroup', 'utf8')) ?? []
    const folder = ['/sys/fs/cgroup', path].reduce((root, part) => join(root, part))
    const used = Number(readFileSync(join(folder, 'memory.current'), 'utf8'))
    const [, files] = /^file (\d+)$/m.exec(readFileSync(join(folder, 'memory.stat'), 'utf8')) ?? []
    if (Number.isFinite(used) && files !== undefined) return used - Number(files)
  } catch {
    // No such files: another system, or version 1.
  }
  return process.memoryUsage.rss()
}

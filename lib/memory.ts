// What fits into memory. A pool of pages is memory that the system hands out only when it is written, so one
// that is too large would not fail when it is made but end the process later.

import { freemem, totalmem } from 'node:os'
import type { Device } from './device'
import { HogwildError } from './errors'
import type { Warnings } from './warnings'

const GIB = 2 ** 30

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
  const asked = `a cache of ${capacity} tokens takes ${gib(bytes)}`
  if (bytes > limit) {
    const most = Math.floor(limit / bytesPerToken)
    throw new HogwildError(
      `${asked}, and this machine has ${gib(limit)}: enough for a capacity of ${most}`,
      'HOGWILD_OUT_OF_MEMORY',
    )
  }
  const available = process.availableMemory?.() ?? freemem()
  if (bytes > available) {
    warnings.warn('HOGWILD_LOW_MEMORY', `${asked}, and ${gib(available)} are free`)
  }
}

/** Bytes that this process may use at most: the machine's memory or its cgroup's limit. */
function memoryLimit(): number {
  const constrained = process.constrainedMemory?.() ?? 0
  return constrained > 0 ? Math.min(constrained, totalmem()) : totalmem()
}

function gib(bytes: number): string {
  return `${(bytes / GIB).toFixed(bytes < 10 * GIB ? 2 : 0)} GiB`
}

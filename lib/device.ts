// Devices: what computes.

import { HogwildError } from './errors'
import {
  type DeviceHandle,
  type NativeDeviceInfo,
  type NativeOpProfile,
  type NativeProbe,
  native,
  type SimdLevel,
} from './native'
import { checkBoolean, checkInteger, checkObject, checkOneOf, invalid } from './validate'

export type DeviceType = 'cpu' | 'cuda'

export interface DeviceOptions {
  /** Default 'auto': the best device that this machine has. */
  type?: 'auto' | DeviceType | undefined
  /** CPU threads that compute, the runner's own included; default: the processors this process may use. */
  threads?: number | undefined
  /** SIMD level of the CPU's kernels; default: the best that the processor has. */
  simd?: SimdLevel | undefined
  /** Whether it measures its ops, for `takeProfile`; default false. */
  profile?: boolean | undefined
}

/** What a device is: its type, the processor or card, the SIMD level in use, the threads that compute. */
export type DeviceInfo = NativeDeviceInfo

/**
 * One kind of op: its calls, their wall time in seconds, and the bytes that come from memory or go there
 * (weights, keys and values, sampled logits). Matrix products are told apart by their sizes.
 */
export type OpProfile = NativeOpProfile

/** What this build and this machine offer; see `probe`. */
export type Probe = NativeProbe

const SIMD_LEVELS = ['baseline', 'avx2', 'avx512', 'avx512bf16', 'neon'] as const

/** SIMD levels, threads and CUDA devices found, and why CUDA cannot be used where it cannot. */
export function probe(): Probe {
  return native.probe()
}

/**
 * A device. Models and caches may share one; who created it closes it.
 *
 * Throws HOGWILD_UNSUPPORTED for a type or SIMD level that this build or machine does not offer.
 */
export function createDevice(options: DeviceOptions = {}): Device {
  checkObject(options, 'options')
  const type = checkOneOf(options.type ?? 'auto', 'options.type', ['auto', 'cpu', 'cuda'])
  const threads = options.threads ?? 0
  if (options.threads !== undefined) checkInteger(threads, 'options.threads', 1, 1024)
  const simd = options.simd ?? ''
  if (options.simd !== undefined) checkOneOf(simd, 'options.simd', SIMD_LEVELS)
  const profile = checkBoolean(options.profile ?? false, 'options.profile')
  if (type === 'cuda') {
    const { reason } = native.probe().cuda
    throw new HogwildError(`device 'cuda' cannot be used: ${reason}`, 'HOGWILD_UNSUPPORTED')
  }
  return new Device(native.createDevice({ type: 'cpu', threads, simd, profile }))
}

/** What computes. Calls of all models and caches on one device run one after another, off the JS thread. */
export class Device {
  readonly info: DeviceInfo
  /** @internal */
  readonly handle: DeviceHandle
  #closed = false

  /** @internal */
  constructor(handle: DeviceHandle) {
    this.handle = handle
    this.info = native.deviceInfo(handle)
  }

  /**
   * Bytes per second that all threads together read from a buffer of `bytes` (default 256 MiB): the
   * bound of decoding. Median of several passes.
   */
  async readBandwidth(bytes: number = 2 ** 28): Promise<number> {
    checkInteger(bytes, 'bytes', 2 ** 16, 2 ** 36)
    return native.deviceReadBandwidth(this.handle, bytes)
  }

  /**
   * What its ops took since the last call, the most time first. Throws HOGWILD_INVALID_ARGUMENT on a
   * device made without `profile`, HOGWILD_BUSY while the device computes.
   */
  takeProfile(): OpProfile[] {
    return native.deviceProfile(this.handle)
  }

  get closed(): boolean {
    return this.#closed
  }

  /** Aborts what runs on it. Models and caches on it answer HOGWILD_CLOSED from now on. Idempotent. */
  close(): void {
    if (this.#closed) return
    this.#closed = true
    native.deviceClose(this.handle)
  }

  [Symbol.dispose](): void {
    this.close()
  }
}

/** A device given as such, or one made for its user, who then closes it. */
export function useDevice(
  device: Device | 'auto' | DeviceType | undefined,
  threads?: number,
): { device: Device; owned: boolean } {
  if (device instanceof Device) {
    if (threads !== undefined) {
      throw invalid('options.threads', 'absent where options.device is a Device', threads)
    }
    return { device, owned: false }
  }
  const type = checkOneOf(device ?? 'auto', 'options.device', ['auto', 'cpu', 'cuda'])
  return { device: createDevice(threads === undefined ? { type } : { type, threads }), owned: true }
}

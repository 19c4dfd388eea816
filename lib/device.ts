// Devices: what computes.

import { type DeviceName, type DeviceType, parseDevice } from './device-name'
import { HogwildError } from './errors'
import { MAX_THREADS } from './limits'
import { type DeviceHandle, native, type SimdLevel } from './native'
import {
  checkBoolean,
  checkInteger,
  checkOneOf,
  checkOptions,
  invalid,
  optionKeys,
} from './validate'

/** Options of `createDevice`. */
export interface DeviceOptions {
  /** Default 'auto': the first CUDA card that can be used, else the CPU. */
  type?: 'auto' | DeviceType | undefined
  /** Which CUDA card, in the driver's order; default: the first that can be used. */
  index?: number | undefined
  /** CPU threads that compute, the runner's own included; default: the processors this process may use. */
  threads?: number | undefined
  /**
   * SIMD level of the CPU's kernels; default: the best that the processor has. 'avx512bf16' and 'amx' multiply bf16
   * weights with activations rounded to bf16, sums in f32; 'avx512bf16' rounds queries and probabilities too where
   * the cache is in bf16. The others round nothing but results. f32 and f16 are the same at all levels, to f32's
   * accuracy, and so are quantised weights, to the bit from 'avx2' on.
   */
  simd?: SimdLevel | undefined
  /** Whether it measures its ops, for `takeProfile`; default false. */
  profile?: boolean | undefined
  /**
   * Whether the logits of a worker are the same to the last bit whoever else is in the step, and however a prompt is cut
   * into chunks. A CPU always is so. A card is only if asked, and takes longer then: see docs/cuda.md. Default false.
   */
  deterministic?: boolean | undefined
}

/** What a device is. */
export interface DeviceInfo {
  /** What computes. */
  type: DeviceType
  /** Of the processor or card. */
  name: string
  /** Which of the cards; 0 on a CPU. */
  index: number
  /** The SIMD level in use, on a CPU. */
  simd: string
  /** Threads that compute, on a CPU. */
  threads: number
  /** Whether what else is in a step changes no bit of a worker's results: true on a CPU, on a card if asked for. */
  deterministic: boolean
}

/** What one kind of op took. Matrix products are told apart by their sizes. */
export interface OpProfile {
  /** Which op. */
  op: string
  /** How often it ran. */
  calls: number
  /** Wall time of all calls. */
  seconds: number
  /** Bytes that came from memory or went there: weights, keys and values, sampled logits. */
  bytes: number
}

/** What this build and this machine offer; see `probe`. */
export interface Probe {
  /** Of the addon. */
  version: string
  /** SIMD levels that this processor can run, best last. */
  simd: SimdLevel[]
  /** Threads that a device uses when not told: the processors this process may run on. */
  threads: number
  /** What there is of CUDA. */
  cuda: ProbedCuda
}

/** CUDA on this machine. */
export interface ProbedCuda {
  /** Whether this build holds CUDA kernels. */
  compiled: boolean
  /** Those that the driver shows, by index. */
  cards: CudaCard[]
  /** Why none can be used; empty where one can. */
  reason: string
}

/** A card that the driver shows. */
export interface CudaCard {
  /** As the driver has it. */
  name: string
  /** Bytes. */
  memory: number
  /** E.g. 8.6. */
  computeCapability: number
  /** Why it cannot be used; empty where it can. */
  reason: string
}

const DEVICE_KEYS = optionKeys<DeviceOptions>()({
  type: true,
  index: true,
  threads: true,
  simd: true,
  profile: true,
  deterministic: true,
})

const SIMD_LEVELS = [
  'baseline',
  'avx2',
  'avxvnni',
  'avx512',
  'avx512vnni',
  'avx512bf16',
  'amx',
  'neon',
  'neondot',
] as const satisfies readonly SimdLevel[]

/** SIMD levels, threads and CUDA cards found, and why CUDA cannot be used where it cannot. */
export function probe(): Probe {
  return native.probe()
}

/**
 * A device. Models and caches may share one; who created it closes it.
 *
 * Throws HOGWILD_UNSUPPORTED for a type or SIMD level that this build or machine does not offer.
 */
export function createDevice(options: DeviceOptions = {}): Device {
  options = checkOptions(options, 'options', DEVICE_KEYS)
  const type = checkOneOf(options.type ?? 'auto', 'options.type', ['auto', 'cpu', 'cuda'])
  const threads = options.threads ?? 0
  if (options.threads !== undefined) checkInteger(threads, 'options.threads', 1, MAX_THREADS)
  const simd = options.simd ?? ''
  if (options.simd !== undefined) checkOneOf(simd, 'options.simd', SIMD_LEVELS)
  const profile = checkBoolean(options.profile ?? false, 'options.profile')
  const deterministic = checkBoolean(options.deterministic ?? false, 'options.deterministic')
  if (options.index !== undefined) {
    checkInteger(options.index, 'options.index', 0, 2 ** 16)
    if (type !== 'cuda')
      throw invalid('options.index', "absent unless type is 'cuda'", options.index)
  }
  const settings = { type: 'cpu', index: 0, threads, simd, profile, deterministic } as const
  if (type === 'cpu') return new Device(native.createDevice(settings), '')
  const { cards, reason } = native.probe().cuda
  const usable = cards.findIndex((card) => card.reason === '')
  if (type === 'cuda') {
    if (options.threads !== undefined || options.simd !== undefined) {
      throw invalid('options', "without threads and simd where type is 'cuda'", options)
    }
    if (usable < 0 && options.index === undefined) {
      throw new HogwildError(`device 'cuda' cannot be used: ${reason}`, 'HOGWILD_UNSUPPORTED')
    }
    const index = options.index ?? usable
    return new Device(native.createDevice({ ...settings, type, index }), '')
  }
  if (usable < 0) return new Device(native.createDevice(settings), reason)
  if (options.threads !== undefined || options.simd !== undefined) {
    return new Device(native.createDevice(settings), 'threads or a SIMD level are asked for')
  }
  try {
    return new Device(native.createDevice({ ...settings, type: 'cuda', index: usable }), '')
  } catch (error) {
    // Only now its kernels were tried: this build may have none for the card.
    if ((error as HogwildError).code !== 'HOGWILD_UNSUPPORTED') throw error
    return new Device(native.createDevice(settings), (error as HogwildError).message)
  }
}

/** What computes. Calls of all models and caches on one device run one after another, off the JS thread. */
export class Device {
  /** What it is. */
  readonly info: DeviceInfo
  /** Where 'auto' chose the CPU: why no CUDA card; else empty. */
  readonly whyNotCuda: string
  /** @internal */
  readonly handle: DeviceHandle
  #closed = false

  /** @internal */
  constructor(handle: DeviceHandle, whyNotCuda: string) {
    this.handle = handle
    this.whyNotCuda = whyNotCuda
    this.info = native.deviceInfo(handle)
  }

  /**
   * Bytes per second that all threads together read from a buffer of `bytes` (default 256 MiB): the
   * bound of decoding. Median of several passes.
   */
  async readBandwidth(bytes: number = 2 ** 28): Promise<number> {
    checkInteger(bytes, 'bytes', 2 ** 16, 2 ** 36)
    return await native.deviceReadBandwidth(this.handle, bytes)
  }

  /**
   * What its ops took since the last call, the most time first. Throws HOGWILD_INVALID_ARGUMENT on a
   * device made without `profile`, HOGWILD_BUSY while the device computes.
   */
  takeProfile(): OpProfile[] {
    return native.deviceProfile(this.handle)
  }

  /** @internal Bytes of its own memory that nobody uses; 0 on a CPU. */
  get freeMemory(): number {
    return native.deviceFreeMemory(this.handle)
  }

  /** Whether `close()` was called on it. */
  get closed(): boolean {
    return this.#closed
  }

  /** @internal */
  static is(value: unknown): value is Device {
    return typeof value === 'object' && value !== null && #closed in value
  }

  /** Aborts what runs on it. Models and caches on it answer HOGWILD_CLOSED from now on. Idempotent. */
  close(): void {
    if (this.#closed) return
    this.#closed = true
    native.deviceClose(this.handle)
  }

  /** As `close`. */
  [Symbol.dispose](): void {
    this.close()
  }
}

/** A device given as such, or one made for its user, who then closes it. */
export function useDevice(
  device: Device | DeviceName | undefined,
  threads?: number,
): { device: Device; owned: boolean } {
  if (Device.is(device)) {
    if (threads !== undefined) {
      throw invalid('options.threads', 'absent where options.device is a Device', threads)
    }
    return { device, owned: false }
  }
  return { device: createDevice({ ...parseDevice(device ?? 'auto'), threads }), owned: true }
}

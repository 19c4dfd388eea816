// The public surface, in three levels, each usable without the next: (a) the cache, for engines that
// bring their own model; (b) models and the step; (c) the loop of workers.

export {
  type Attended,
  type AttendOptions,
  Block,
  Cache,
  type CacheOptions,
  type CacheShape,
  type CacheStats,
  type CompactResult,
  createCache,
  type DeviceCaller,
  type DeviceKeys,
  type DeviceQueries,
  Pass,
  type PassWorker,
  type Segment,
  type View,
} from './cache'
export {
  createDevice,
  Device,
  type DeviceInfo,
  type DeviceOptions,
  type OpProfile,
  type Probe,
  probe,
} from './device'
export type { DeviceName, DeviceType } from './device-name'
export { HogwildError, type HogwildErrorCode } from './errors'
export type * from './events'
export type { Architecture, ModelConfig } from './families'
export {
  commitsTurns,
  type LayoutBlocks,
  type LayoutName,
  type ViewOptions,
  viewOf,
} from './layout'
export {
  type LoadModelOptions,
  type LoadProgress,
  loadModel,
  Model,
  type PrefillOptions,
  type StepOptions,
  type StepOutput,
  type StepWorker,
} from './model'
export type { Dtype, SimdLevel } from './native'
export {
  type DefaultRope,
  type LinearRope,
  type Llama3Rope,
  type Rope,
  type RopeConfig,
  type RopeOptions,
  ropeFrequencies,
  type YarnRope,
} from './rope'
export { Sampler, type SamplerOptions } from './sampler'
export { TextStream } from './tokenizer/text-stream'
export {
  type ChatMessage,
  type ChatOptions,
  loadTokenizer,
  Tokenizer,
} from './tokenizer/tokenizer'
export type { Warning, WarningHandler } from './warnings'
export {
  type RunOptions,
  runWorkers,
  WorkerRun,
  type WorkerSpec,
  type WorkerStatus,
} from './workers'

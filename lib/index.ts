/// <reference lib="es2022.error" preserve="true" />
/// <reference lib="esnext.disposable" preserve="true" />
/**
 * All that the package exports, in three levels, each usable without the next: runs of workers (`runWorkers`,
 * `collaborate`, `generate`), models and steps (`loadModel`, `Model.step`), and the cache alone, for engines that bring
 * their own model (`createCache`, `Cache.beginPass`). What is exported as a type is made by these functions.
 *
 * @module API
 */

declare global {
  // Types of a signal come with @types/node or the DOM's library; where a project has neither, the name is enough.
  interface AbortSignal {}
}

export type { AppendFromOptions, Block, CompactResult, Segment, StoredKeys } from './block'
export {
  type Cache,
  type CacheOptions,
  type CacheShape,
  type CacheStats,
  createCache,
  type ExportOptions,
  type Imported,
  type ImportOptions,
} from './cache'
export { type AnswerFormat, findAnswer } from './collaboration/answer'
export {
  type Collaboration,
  type CollaborationOptions,
  type CollaborationRun,
  collaborate,
} from './collaboration/collaboration'
export {
  type EarlyAnswer,
  type ExtractOptions,
  extractAnswer,
  type FinishOptions,
  finish,
} from './collaboration/finisher'
export { type CollaborationTexts, collaborationTexts, type Team } from './collaboration/texts'
export {
  type LateInputs,
  type ThinkerQuestion,
  type ThinkerWriter,
  type ThinkerWriterBlocks,
  type ThinkerWriterOptions,
  type ThinkerWriterTexts,
  thinkAndWrite,
  thinkerView,
  thinkerWriterTexts,
  writerView,
} from './collaboration/thinker-writer'
export {
  type Check,
  type GivenAnswer,
  type Snapshot,
  type SnapshotWorker,
  Transcript,
} from './collaboration/transcript'
export { endsParagraph, paragraphEnds } from './collaboration/turns'
export {
  type CudaCard,
  createDevice,
  type Device,
  type DeviceInfo,
  type DeviceOptions,
  type OpProfile,
  type Probe,
  type ProbedCuda,
  probe,
} from './device'
export type { DeviceName, DeviceType } from './device-name'
export { HogwildError, type HogwildErrorCode } from './errors'
export type {
  Architecture,
  DenseMlp,
  ExpertsMlp,
  LayerBiases,
  LayerNorms,
  LayerSpec,
  ModelConfig,
} from './families'
export type { CacheDtype, Format, KvDtype, KvDtypes } from './formats'
export {
  type GeneratedToken,
  type GenerateOptions,
  type GenerateReason,
  type GenerateResult,
  type GenerateUsage,
  type Generation,
  generate,
  type ToolCall,
} from './generate'
export {
  createGrammar,
  type Grammar,
  type GrammarMatcher,
  type GrammarOptions,
} from './grammar/grammar'
export type { FileKinds } from './hub/choose'
export { type DownloadOptions, type DownloadProgress, download } from './hub/download'
export { findModel, type ModelDownloadOptions } from './hub/find'
export type { HubOptions } from './hub/settings'
export {
  type InspectedModel,
  type InspectedTokenizer,
  type InspectOptions,
  inspectModel,
  type ModelMemory,
  type ModelReport,
  type Refusal,
  type StoredRole,
} from './inspect'
export type { WeightMemory } from './memory'
export { type AttentionState, mergeStates } from './merge-states'
export {
  type BeyondContext,
  type ChosenToken,
  type DraftedTokens,
  type EmbeddingsWorker,
  type LoadModelOptions,
  type LoadProgress,
  loadModel,
  type Model,
  type ModelCacheOptions,
  type PrefillOptions,
  type StepOptions,
  type StepOutput,
  type StepWorker,
  type TokenLogprob,
  type WeightFormats,
} from './model'
export type { Dtype, SimdLevel } from './native'
export type {
  AttendDeviceOptions,
  Attended,
  AttendOptions,
  DeviceCaller,
  DeviceKeys,
  DeviceQueries,
  Pass,
  PassWorker,
} from './pass'
export type { PrefillProgress } from './prefill'
export {
  type DefaultRope,
  type FactorsRope,
  type LinearRope,
  type Llama3Rope,
  type LongRope,
  type Rope,
  type RopeBase,
  type RopeConfig,
  type RopeOptions,
  ropeFrequencies,
  type YarnRope,
} from './rope'
export { type PenaltyScope, Sampler, type SamplerOptions, type SamplerState } from './sampler'
export { demoModelPath, graphModelPath } from './shipped-models'
export type {
  DraftContext,
  DraftTokens,
  SpeculateOptions,
  SpeculationUsage,
} from './speculation'
export type { LogitBias, LogitsInfo, ProcessLogits } from './step-hooks'
export { type TraceToHtmlOptions, traceToHtml } from './timeline/html'
export type { TokenOptions } from './token-options'
export type { TokenizerKind } from './tokenizer/models/parse'
export type { TextStream } from './tokenizer/text-stream'
export {
  type ChatMessage,
  type ChatOptions,
  type DecodeOptions,
  type EncodeOptions,
  type LoadTokenizerOptions,
  loadTokenizer,
  type StreamOptions,
  type ThreadOptions,
  type Tokenizer,
} from './tokenizer/tokenizer'
export type { SessionProgress, TransferOptions } from './transfer'
export type { View, ViewEntry } from './view'
export type { EntryFields } from './view-entry'
export type { Warning, WarningHandler } from './warnings'
export type { Admission } from './workers/admission'
export type * from './workers/events'
export type { GroupBlocks } from './workers/group'
export {
  commitsTurns,
  type LayoutBlocks,
  type LayoutName,
  type LayoutWorker,
  type ViewOptions,
  viewOf,
} from './workers/layout'
export { type MergedTool, mergeCalls } from './workers/merge-calls'
export type { RunOptions, WorkerSpec } from './workers/options'
export {
  firstCome,
  type MultiBinOptions,
  multiBin,
  type OrderPolicy,
  type QueuedGroup,
} from './workers/order'
export type { ParkWork } from './workers/park'
export type { PrefixMetrics } from './workers/prefix-metrics'
export type { ProbeResult } from './workers/probe'
export {
  type RestoredRun,
  type RestoredWorker,
  type RestoreOptions,
  restoreRun,
} from './workers/restore'
export {
  type ParkOptions,
  type ProbeOptions,
  runWorkers,
  type StopOptions,
  type WorkerRun,
} from './workers/run'
export type { SaveOptions } from './workers/save'
export {
  createScheduler,
  type PrefixOptions,
  type ScheduledGroups,
  type ScheduledPages,
  type Scheduler,
  type SchedulerMetrics,
  type SchedulerOptions,
  schedulerOf,
} from './workers/scheduler'
export type {
  TraceAppendFrom,
  TraceBlock,
  TraceFork,
  TraceHead,
  TraceLine,
  TraceNote,
  TraceOp,
  TracePrefill,
  TraceStep,
  TraceWorker,
} from './workers/trace'
export type { Trigger, TriggerMatch } from './workers/triggers'
export type { WorkerBlocks, WorkerStatus } from './workers/worker'

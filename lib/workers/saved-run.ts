// A run as plain data, in the header of its file (docs/sessions.md): what stands there, and how it is
// JSON. Blocks are told by their place in the file. What is checked when it is read: parse-run.ts.

import { Block } from '../block'
import type { SamplerState } from '../sampler'
import { invalid } from '../validate'
import type { Append, Control } from './controls'
import type { GroupState } from './group'
import type { RunSettings, WorkerSettings } from './options'
import type { Parked } from './park'
import type { Trigger, TriggersState } from './triggers'
import type { Pending, WorkerBlocks, WorkerState } from './worker'

/** Changes when older files can no longer be read. */
export const RUN_VERSION = 1

/** Deepest nesting that is read. */
const MAX_DEPTH = 32

/** Where a block stands in its file. */
export interface SavedBlock {
  block: number
}

/** The same with places in the place of blocks. */
type WithPlaces<T> = T extends Block
  ? SavedBlock
  : T extends readonly (infer Item)[]
    ? WithPlaces<Item>[]
    : T extends object
      ? { [Key in keyof T]: WithPlaces<T[Key]> }
      : T

export type SavedBlocks = WithPlaces<WorkerBlocks>
export type SavedState = WithPlaces<WorkerState>

export interface SavedPrefill {
  block: SavedBlock
  tokens: Int32Array
  done: number
  /** Whose header it is. */
  newcomer: { worker: string; blocks: SavedBlocks } | undefined
  /** Whether `onPrefill` is told of it. */
  isPrompt: boolean
}

/** A worker: its settings, and how far it is. */
export interface SavedWorker
  extends Omit<
    WorkerSettings,
    'prompt' | 'header' | 'own' | 'sampler' | 'processLogits' | 'grammar'
  > {
  /** Of one that has not joined yet; else without meaning. */
  header: Int32Array | SavedBlock
  own: SavedBlock | undefined
  sampler: SamplerState
  /** Whether it has one, which the file cannot hold. */
  processLogits: boolean
  /** Tokens of its grammar's text; undefined: it has no grammar. */
  grammar: Int32Array | undefined
  tokens: Int32Array
  /** '1' for each of the tokens that was given, '0' for one that was sampled. */
  forced: string
  /** SHA-256 of the tokens' text, in hex; undefined without a tokenizer. */
  text: string | undefined
  written: number
  turn: number
  turnIds: Int32Array
  pending: Pending[]
  state: SavedState
}

export type SavedGroup = Omit<
  GroupState,
  'common' | 'shared' | 'prefills' | 'controls' | 'stopTokens'
> & {
  common: SavedBlock
  shared: SavedBlock | undefined
  prefills: SavedPrefill[]
  controls: (Control | Append)[]
  stopTokens: Int32Array
}

/** What `restoreRun` is given again. */
export type GivenSettings =
  | ('model' | 'tokenizer' | 'cache' | 'scheduler' | 'signal')
  | ('turnEnds' | 'turnHeader' | 'triggers' | 'speculate' | 'onPrefill')

/** What has no meaning any more once a run has begun, and the trace, which ends with its process. */
export type PastSettings = 'common' | 'sharedHeader' | 'workers' | 'trace'

export type SavedSettings = Omit<RunSettings, GivenSettings | PastSettings>

/** A trigger but for its action; all keys are there. */
export type SavedTrigger = {
  [Key in keyof Required<Omit<Trigger, 'action'>>]: Trigger[Key]
}

export interface SavedRun {
  settings: SavedSettings
  /** What the run was given and a file cannot hold. */
  given: { cache: boolean; tokenizer: boolean; turnEnds: boolean; turnHeader: boolean }
  triggers: SavedTrigger[]
  triggersState: TriggersState
  /** Codes of warnings that were told. */
  warned: string[]
  group: SavedGroup
  workers: SavedWorker[]
  parked: Omit<Parked, 'data'>[]
  /** Which of the file's blocks were the run's own, and not its user's. */
  owned: boolean[]
}

/** What JSON has not: numbers that are not finite, -0, typed arrays, blocks. */
export function toJson(value: unknown, placeOf: (block: Block) => number): unknown {
  if (typeof value === 'number') {
    const isPlain = Number.isFinite(value) && !Object.is(value, -0)
    return isPlain ? value : { number: Object.is(value, -0) ? '-0' : `${value}` }
  }
  if (typeof value !== 'object' || value === null) return value
  if (Block.is(value)) return { block: placeOf(value) }
  if (ArrayBuffer.isView(value)) return Array.from(value as Int32Array)
  if (Array.isArray(value)) return value.map((item) => toJson(item, placeOf))
  const entries = Object.entries(value).filter(([, item]) => item !== undefined)
  return Object.fromEntries(entries.map(([key, item]) => [key, toJson(item, placeOf)]))
}

/** Numbers as they were; blocks stay places. */
export function fromJson(value: unknown, depth = 0): unknown {
  if (typeof value !== 'object' || value === null) return value
  if (depth > MAX_DEPTH) throw invalid('the run', `at most ${MAX_DEPTH} levels deep`, value)
  if (Array.isArray(value)) return value.map((item) => fromJson(item, depth + 1))
  const { number } = value as { number?: unknown }
  if (typeof number === 'string') return Number(number)
  return Object.fromEntries(
    Object.entries(value).map(([key, item]) => [key, fromJson(item, depth + 1)]),
  )
}

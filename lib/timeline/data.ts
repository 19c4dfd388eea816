// What the page of a trace (page/) gets as JSON: made by read.ts, written into the page by html.ts. Workers, blocks and texts
// are told by their place in a list, steps are columns.

/** How a block is drawn: what everybody sees from the beginning, a header, or what a worker writes. */
export type BlockKind = 'common' | 'header' | 'own'

export interface TimelineBlock {
  name: string
  kind: BlockKind
  /** The worker that writes it or whose header it is; -1: none. */
  owner: number
}

/** An entry of a view; fields that are not there have their defaults. */
export interface TimelineEntry {
  block: number
  at?: number | undefined
  lag?: 0 | 1 | undefined
  temperature?: number | undefined
  bias?: number | undefined
}

/** What changes blocks and views beside the steps. */
export type TimelineOp =
  | { type: 'block'; block: number }
  | { type: 'fork'; block: number; from: number }
  | { type: 'prefill'; block: number; ids: number[]; text: number }
  | { type: 'move'; target: number; source: number; clear: boolean }
  | { type: 'clear'; block: number }
  | { type: 'truncate'; block: number; length: number }
  | { type: 'insert'; target: number; place: number; source: number }
  | { type: 'forget'; block: number; begin: number; end: number }
  /** `write`: the entry that is written; nothing behind it is seen. */
  | { type: 'view'; worker: number; entries: TimelineEntry[]; write: number }

/** What is told beside them. */
export type TimelineNote =
  | { type: 'join'; worker: number }
  | { type: 'resume'; worker: number }
  /** `parked`: JSON of what the worker waits for; '': it was paused. */
  | { type: 'pause'; worker: number; parked: string }
  | { type: 'turn'; worker: number; turn: number }
  | { type: 'stop'; worker: number; reason: string; text: string }
  | { type: 'append'; tokens: number }
  | { type: 'warning'; code: string; message: string }
  | { type: 'end'; promptTokens: number; reusedTokens: number; completionTokens: number }

export type TimelineEvent = {
  /** How many steps there were before it. */
  at: number
  /** Milliseconds since the beginning; null in a script. */
  time: number | null
} & (TimelineOp | TimelineNote)

/** A cell is what one worker brings to one step. */
export interface TimelineSteps {
  /** By step: its number, when it was done, its forward pass in milliseconds; the last two are empty in a script. */
  numbers: number[]
  ends: number[]
  milliseconds: number[]
  /** By step: its cells, in the order of the lists below. */
  sizes: number[]
  /** By cell: worker, tokens, how many of them were given, text. */
  workers: number[]
  counts: number[]
  forced: number[]
  texts: number[]
  /** Token ids of all cells, one behind the other. */
  ids: number[]
  /** Of cells that have it: the cell, then the share of attention of each entry of its view. */
  attention: number[][]
}

/** The first line of a trace. */
export interface TimelineHead {
  began: string
  model: string
  architecture: string
  layout: string
  share: boolean
}

export interface TimelineData {
  title: string
  /** null: a script, which has no times. */
  head: TimelineHead | null
  workers: string[]
  blocks: TimelineBlock[]
  /** Texts that cells and prefills name by number; the first is ''. */
  texts: string[]
  /** Texts are token ids: of a script, and of a run without a tokenizer. */
  byIds: boolean
  events: TimelineEvent[]
  steps: TimelineSteps
}

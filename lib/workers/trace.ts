// The trace of a run: what was computed, line by line, as a script that `hogwild replay` runs again (docs/replay.md,
// docs/trace.schema.json), with who, when and how long. Made from the events of the run and from what it began with: the
// loop itself knows nothing of it.

import { type FileHandle, open } from 'node:fs/promises'
import { HogwildError } from '../errors'
import type { StepEvent, TokenEvent, WorkerEvent } from './events'
import { type LayoutName, orderBlocks } from './layout'

export const TRACE_VERSION = 2

/** What a trace needs to know beside the events. */
export interface TracedRun {
  layout: LayoutName
  share: boolean
  prompt: ArrayLike<number>
  sharedHeader: ArrayLike<number>
  /** Tokens of the header block of a worker that has joined. */
  headerOf(worker: string): ArrayLike<number>
  /** The worker that it branches off; undefined: none. */
  parentOf(worker: string): string | undefined
  /** What the next append event is about. */
  nextAppended(): ArrayLike<number>
  /** undefined: there is no tokenizer. */
  textOf: ((tokens: ArrayLike<number>) => string) | undefined
  /** The model's fingerprint. */
  model: string
  /** The model's family. */
  architecture: string
}

/** The first line. */
export interface TraceHead {
  /** Version of the form. */
  trace: typeof TRACE_VERSION
  /** When the run began, ISO 8601. */
  began: string
  /** The model's fingerprint. */
  model: string
  /** Its `config.architecture`. */
  architecture: string
  /** Of the run. */
  layout: LayoutName
  /** Whether its workers see one another. */
  share: boolean
}

/** An op of a replay script, of blocks and workers: docs/replay.md has what each does. */
export type TraceOp = TraceBlock | TraceFork | TracePrefill | TraceWorker | TraceAppendFrom

/** A new block. */
export interface TraceBlock {
  /** As in a script. */
  op: 'block'
  /** Of the block. */
  name: string
}

/** A block that begins as a copy: of a worker that branches off another one, or where workers do not share. */
export interface TraceFork {
  /** As in a script. */
  op: 'fork'
  /** Name of the block that is copied. */
  block: string
  /** Of the copy. */
  name: string
}

/** Tokens that were computed on their own. */
export interface TracePrefill {
  /** As in a script. */
  op: 'prefill'
  /** Name of the block that got them. */
  block: string
  /** Their ids. */
  tokens: number[]
  /** Their text; undefined without a tokenizer. */
  text?: string | undefined
}

/** A worker, or what it sees from now on. */
export interface TraceWorker {
  /** As in a script. */
  op: 'worker'
  /** Of the worker. */
  name: string
  /** Names of the blocks that it sees, its own last. */
  view: string[]
}

/** A turn that ended. */
export interface TraceAppendFrom {
  /** As in a script. */
  op: 'append_from'
  /** Name of the block that gets the tokens. */
  target: string
  /** Name of the block that they come from. */
  source: string
  /** The source is empty afterwards. */
  clear_source: true
}

/** A lock step, an op as well. Lists have one entry per worker. */
export interface TraceStep {
  /** As in a script. */
  op: 'step'
  /** Number of the step in the run. */
  step: number
  /** Names of those that take part. */
  workers: string[]
  /** Token ids that each brings. */
  inputs: number[][]
  /** Which inputs were given and not sampled. */
  forced: boolean[][]
  /** What the inputs brought to the events' text. */
  texts: string[]
  /**
   * Of those that ask for it (`WorkerSpec.attentionMass`), else null: the share of attention that each block of the view gets
   * from the last input, in the view's order, to six decimals. Absent where nobody asks.
   */
  attention?: (number[] | null)[] | undefined
  /** What the forward pass took. */
  milliseconds: number
}

/** Whatever else was told, as the event has it, `type` called `event`. */
export type TraceNote = {
  [Type in Exclude<WorkerEvent['type'], 'token' | 'step'>]: {
    /** Its type. */
    event: Type
  } & Omit<Extract<WorkerEvent, { type: Type }>, 'type'>
}[Exclude<WorkerEvent['type'], 'token' | 'step'>]

/** Every line but the first. */
export type TraceLine = {
  /** Milliseconds since the run began. */
  time: number
} & (TraceOp | TraceStep | TraceNote)

const COMMON = 'common'
const SHARED = 'shared'
const own = (worker: string) => `own ${worker}`
const header = (worker: string) => `header ${worker}`
const ownCommon = (worker: string) => `common ${worker}`

/** Turns events into lines. */
class TraceRecorder {
  readonly #run: TracedRun
  readonly #began = performance.now()
  /** Workers that have joined, in worker order, each with what it was last said to see. */
  readonly #views = new Map<string, string>()
  /** Whose header block was computed. */
  readonly #headers = new Set<string>()
  /** Since the last step. */
  #tokens: TokenEvent[] = []
  /** Notes of the step under way, and the ops that follow from it. */
  #afterStep: (TraceOp | TraceNote)[] = []

  constructor(run: TracedRun) {
    this.#run = run
  }

  /** What comes before all events. */
  begin(): [TraceHead, ...TraceLine[]] {
    const { model, architecture, layout, share, prompt, sharedHeader } = this.#run
    const began = new Date().toISOString()
    return [
      { trace: TRACE_VERSION, began, model, architecture, layout, share },
      ...this.#timed(this.#filled(COMMON, prompt)),
      ...(sharedHeader.length > 0 ? this.#timed(this.#filled(SHARED, sharedHeader)) : []),
    ]
  }

  /** Empty while a step's events are not complete. */
  record(event: WorkerEvent): TraceLine[] {
    switch (event.type) {
      case 'token':
        this.#tokens.push(event)
        return []
      case 'step':
        return this.#timed(this.#step(event))
      case 'join':
        return this.#timed([note(event), ...this.#join(event.worker)])
      case 'append':
        return this.#timed([note(event), ...this.#append()])
      case 'turn': {
        const [target, source] = [this.#common(event.worker), own(event.worker)]
        this.#afterStep.push(note(event), { op: 'append_from', target, source, clear_source: true })
        return []
      }
      default:
        // Of what is told within a step, between its tokens, the step comes first.
        if (this.#tokens.length === 0) return this.#timed([note(event)])
        this.#afterStep.push(note(event))
        return []
    }
  }

  #join(worker: string): TraceOp[] {
    this.#views.set(worker, '')
    const parent = this.#run.parentOf(worker)
    const name = own(worker)
    const common = { op: 'fork', block: COMMON, name: ownCommon(worker) } as const
    return [
      parent === undefined ? { op: 'block', name } : { op: 'fork', block: own(parent), name },
      ...(this.#run.share ? [] : [common]),
    ]
  }

  /** Where each worker has a common block of its own, all of them get the tokens. */
  #append(): TraceOp[] {
    const tokens = this.#run.nextAppended()
    const blocks = [COMMON, ...(this.#run.share ? [] : [...this.#views.keys()].map(ownCommon))]
    return blocks.map((block) => this.#prefill(block, tokens))
  }

  #step({ step, milliseconds }: StepEvent): (TraceOp | TraceStep | TraceNote)[] {
    const inputs = new Map<string, TokenEvent[]>()
    for (const event of this.#tokens) {
      inputs.set(event.worker, [...(inputs.get(event.worker) ?? []), event])
    }
    const workers = [...inputs.keys()]
    const lists = [...inputs.values()]
    const taken: TraceStep = {
      op: 'step',
      step,
      workers,
      inputs: lists.map((events) => events.map(({ token }) => token)),
      forced: lists.map((events) => events.map(({ forced }) => forced)),
      texts: lists.map((events) => events.map(({ text }) => text).join('')),
      ...(lists.some((events) => events.at(-1)?.attentionMass !== undefined) && {
        attention: lists.map((events) => events.at(-1)?.attentionMass?.map(sixDecimals) ?? null),
      }),
      milliseconds,
    }
    const lines = [...workers.flatMap((worker) => this.#see(worker)), taken, ...this.#afterStep]
    this.#tokens = []
    this.#afterStep = []
    return lines
  }

  /** A worker's header, before its first step, and its view, where that has changed. */
  #see(worker: string): TraceOp[] {
    const ops: TraceOp[] = []
    if (this.#hasHeader(worker) && !this.#headers.has(worker)) {
      ops.push(...this.#filled(header(worker), this.#run.headerOf(worker)))
      this.#headers.add(worker)
    }
    const view = this.#viewOf(worker)
    if (this.#views.get(worker) !== JSON.stringify(view)) {
      this.#views.set(worker, JSON.stringify(view))
      ops.push({ op: 'worker', name: worker, view })
    }
    return ops
  }

  #viewOf(worker: string): string[] {
    const { layout, share, sharedHeader } = this.#run
    const names = [...this.#views.keys()]
    const blocks = {
      common: this.#common(worker),
      shared: sharedHeader.length > 0 ? SHARED : undefined,
      workers: names.map((name) => ({
        own: own(name),
        header: this.#hasHeader(name) ? header(name) : undefined,
      })),
    }
    return orderBlocks(layout, blocks, names.indexOf(worker), share)
  }

  #hasHeader(worker: string): boolean {
    return this.#run.headerOf(worker).length > 0
  }

  #common(worker: string): string {
    return this.#run.share ? COMMON : ownCommon(worker)
  }

  #filled(name: string, tokens: ArrayLike<number>): TraceOp[] {
    const block = { op: 'block', name } as const
    return tokens.length === 0 ? [block] : [block, this.#prefill(name, tokens)]
  }

  #prefill(block: string, tokens: ArrayLike<number>): TracePrefill {
    const text = this.#run.textOf?.(tokens)
    return { op: 'prefill', block, tokens: Array.from(tokens), ...(text !== undefined && { text }) }
  }

  #timed<T extends object>(lines: readonly T[]): ({ time: number } & T)[] {
    const time = Math.round((performance.now() - this.#began) * 1e3) / 1e3
    return lines.map((line) => ({ time, ...line }))
  }
}

const sixDecimals = (value: number) => Math.round(value * 1e6) / 1e6

function note({ type, ...rest }: Exclude<WorkerEvent, TokenEvent | StepEvent>): TraceNote {
  return { event: type, ...rest } as TraceNote
}

/** The trace of a run in a file. */
export class TraceFile {
  readonly #path: string
  readonly #file: FileHandle
  readonly #recorder: TraceRecorder

  private constructor(path: string, file: FileHandle, recorder: TraceRecorder) {
    this.#path = path
    this.#file = file
    this.#recorder = recorder
  }

  /** A new file, or one that is emptied. Throws HOGWILD_NOT_WRITTEN. */
  static async open(path: string, run: TracedRun): Promise<TraceFile> {
    const recorder = new TraceRecorder(run)
    const trace = new TraceFile(path, await writing(path, open(path, 'w')), recorder)
    try {
      await trace.#write(recorder.begin())
      return trace
    } catch (error) {
      await trace.close()
      throw error
    }
  }

  /** Throws HOGWILD_NOT_WRITTEN. */
  async record(events: readonly WorkerEvent[]): Promise<void> {
    await this.#write(events.flatMap((event) => this.#recorder.record(event)))
  }

  async #write(lines: readonly (TraceHead | TraceLine)[]): Promise<void> {
    if (lines.length === 0) return
    const text = lines.map((line) => `${JSON.stringify(line)}\n`).join('')
    await writing(this.#path, this.#file.appendFile(text))
  }

  async close(): Promise<void> {
    await this.#file.close()
  }
}

async function writing<T>(path: string, work: Promise<T>): Promise<T> {
  try {
    return await work
  } catch (cause) {
    const message = `cannot write ${path}: ${(cause as Error).message}`
    throw new HogwildError(message, 'HOGWILD_NOT_WRITTEN', { cause })
  }
}

// Reads a trace or a script (docs/replay.md) for its page. What `replay` refuses is refused here, as are fields of a trace
// that are not what docs/trace.schema.json says.

import { scriptIn } from '../replay/read'
import { rehearse } from '../replay/rehearsal'
import { parseScript, type ReplayEntry, type ReplayOp, wrong } from '../replay/script'
import { linesOfTrace, opOf, type TraceRecord } from '../replay/trace'
import { checkArray, checkBoolean, checkInteger, checkNumber, checkString } from '../validate'
import type {
  TimelineBlock,
  TimelineData,
  TimelineEntry,
  TimelineEvent,
  TimelineHead,
  TimelineNote,
  TimelineOp,
  TimelineSteps,
} from './data'

/**
 * All that a page shows but its title.
 *
 * @throws HogwildError HOGWILD_INVALID_ARGUMENT, HOGWILD_WRITE_CONFLICT, HOGWILD_UNSUPPORTED (the version of the trace).
 */
export function readTimeline(text: string): Omit<TimelineData, 'title'> {
  const lines = linesOfTrace(text)
  if (lines === undefined) return readScript(text)
  const [head, ...rest] = lines as [TraceRecord, ...TraceRecord[]]
  const ops = parseScript({ ops: rest.flatMap((line) => opOf(line) ?? []) })
  rehearse(ops)
  const reader = new Reader()
  let next = 0
  for (const [i, line] of rest.entries()) {
    const name = `line ${i + 2}`
    const time = amount(line.time, `${name}: time`)
    if (Object.hasOwn(line, 'op')) reader.op(ops[next++] as ReplayOp, { line, name, time })
    else reader.note(line, name, time)
  }
  return reader.timeline(readHead(head))
}

function readScript(text: string): Omit<TimelineData, 'title'> {
  const ops = parseScript(scriptIn(text, 'the text'))
  rehearse(ops)
  const reader = new Reader()
  for (const op of ops) reader.op(op, undefined)
  return reader.timeline(null)
}

function readHead(head: TraceRecord): TimelineHead {
  const text = (field: string) => checkString(head[field], `line 1: ${field}`)
  return {
    began: text('began'),
    model: text('model'),
    architecture: text('architecture'),
    layout: text('layout'),
    share: checkBoolean(head.share, 'line 1: share'),
  }
}

/** What a trace says of an op beside the op itself. */
interface Told {
  line: TraceRecord
  /** Of the line, for messages. */
  name: string
  time: number
}

const count = (value: unknown, name: string) => checkInteger(value, name, 0)
const amount = (value: unknown, name: string) =>
  checkNumber(value, name, 'a number >= 0', (number) => number >= 0)

/** A list with one entry for each of `of`. */
function listFor(value: unknown, of: readonly unknown[], name: string): unknown[] {
  const list = checkArray(value, name)
  if (list.length !== of.length) throw wrong(`expected ${name} to have ${of.length} entries`)
  return list
}

class Reader {
  readonly #workers = new Names()
  readonly #blocks = new Names()
  readonly #texts = new Names()
  /** By block: the first worker that writes it. */
  readonly #writers = new Map<number, number>()
  /** By worker: entries of its view. */
  readonly #views = new Map<number, readonly unknown[]>()
  readonly #events: TimelineEvent[] = []
  readonly #steps: TimelineSteps = {
    ...{ numbers: [], ends: [], milliseconds: [], sizes: [] },
    ...{ workers: [], counts: [], forced: [], texts: [], ids: [], attention: [] },
  }

  constructor() {
    this.#texts.add('')
  }

  timeline(head: TimelineHead | null): Omit<TimelineData, 'title'> {
    const byIds = this.#texts.list.length === 1
    if (byIds) this.#writeIds()
    const blocks = this.#blocks.list.map((name, i) => this.#block(name, i))
    const [workers, texts] = [this.#workers.list, this.#texts.list]
    return { head, workers, blocks, texts, byIds, events: this.#events, steps: this.#steps }
  }

  /** In the place of texts, where there are none. */
  #writeIds(): void {
    const { counts, ids, texts } = this.#steps
    let begin = 0
    for (const [cell, count] of counts.entries()) {
      texts[cell] = this.#texts.add(ids.slice(begin, begin + count).join(' '))
      begin += count
    }
    for (const event of this.#events) {
      if (event.type === 'prefill') event.text = this.#texts.add(event.ids.join(' '))
    }
  }

  op(op: ReplayOp, told: Told | undefined): void {
    if (op.op === 'step') this.#step(op, told)
    else if (op.op !== 'compact') this.#add(this.#opOf(op, told), told?.time ?? null)
  }

  note(line: TraceRecord, name: string, time: number): void {
    this.#add(
      this.#noteOf(line, (field) => `${name}: ${field}`),
      time,
    )
  }

  #add(event: TimelineOp | TimelineNote, time: number | null): void {
    this.#events.push({ at: this.#steps.numbers.length, time, ...event })
  }

  #opOf(op: Exclude<ReplayOp, { op: 'step' | 'compact' }>, told: Told | undefined): TimelineOp {
    const block = (name: string) => this.#blocks.add(name)
    switch (op.op) {
      case 'block':
        return { type: 'block', block: block(op.name) }
      case 'fork':
        return { type: 'fork', block: block(op.name), from: block(op.block) }
      case 'prefill': {
        const { tokens: ids } = op
        const text = this.#text(told?.line.text, `${told?.name}: text`)
        return { type: 'prefill', block: block(op.block), ids, text }
      }
      case 'append_from': {
        const { target, source, clear_source: clear = false } = op
        return { type: 'move', target: block(target), source: block(source), clear }
      }
      case 'clear':
        return { type: 'clear', block: block(op.block) }
      case 'truncate':
        return { type: 'truncate', block: block(op.block), length: op.length }
      case 'insert':
        return { type: 'insert', target: block(op.target), place: op.at, source: block(op.source) }
      case 'forget':
        return { type: 'forget', block: block(op.block), begin: op.begin, end: op.end }
      default:
        return this.#view(op)
    }
  }

  #view({ name, view, write_to }: Extract<ReplayOp, { op: 'worker' }>): TimelineOp {
    const worker = this.#workers.add(name)
    const entries = view.map((entry) => this.#entry(entry))
    const target = write_to === undefined ? entries.at(-1)?.block : this.#blocks.add(write_to)
    const write = entries.findIndex(({ block }) => block === target)
    if (target !== undefined && !this.#writers.has(target)) this.#writers.set(target, worker)
    this.#views.set(worker, entries)
    return { type: 'view', worker, entries, write }
  }

  #entry(entry: ReplayEntry): TimelineEntry {
    if (typeof entry === 'string') return { block: this.#blocks.add(entry) }
    return { ...entry, block: this.#blocks.add(entry.block) }
  }

  #step({ workers, inputs }: Extract<ReplayOp, { op: 'step' }>, told: Told | undefined): void {
    const steps = this.#steps
    const { line, name } = told ?? {}
    const list = (field: string) => listFor(line?.[field], workers, `${name}: ${field}`)
    const texts = line && list('texts')
    const forced = line && list('forced')
    const attention = line?.attention === undefined ? undefined : list('attention')
    steps.numbers.push(line ? count(line.step, `${name}: step`) : steps.numbers.length)
    if (told !== undefined) {
      steps.ends.push(told.time)
      steps.milliseconds.push(amount(told.line.milliseconds, `${name}: milliseconds`))
    }
    steps.sizes.push(workers.length)
    for (const [i, ids] of inputs.entries()) {
      const worker = this.#workers.add(workers[i] as string)
      const shares = this.#attention(attention?.[i], worker, `${name}: attention[${i}]`)
      if (shares !== undefined) steps.attention.push([steps.workers.length, ...shares])
      steps.workers.push(worker)
      steps.counts.push(ids.length)
      steps.forced.push(forced ? given(forced[i], ids, `${name}: forced[${i}]`) : ids.length)
      steps.texts.push(this.#text(texts?.[i], `${name}: texts[${i}]`))
      for (const id of ids) steps.ids.push(id)
    }
  }

  #attention(value: unknown, worker: number, name: string): number[] | undefined {
    if (value === undefined || value === null) return undefined
    const entries = this.#views.get(worker) as readonly unknown[]
    return listFor(value, entries, name).map((share, i) =>
      checkNumber(share, `${name}[${i}]`, 'a number in [0, 1]', (x) => x >= 0 && x <= 1),
    )
  }

  #text(text: unknown, name: string): number {
    return text === undefined ? 0 : this.#texts.add(checkString(text, name))
  }

  #noteOf(line: TraceRecord, of: (field: string) => string): TimelineNote {
    const worker = () => this.#workers.add(checkString(line.worker, of('worker')))
    switch (line.event) {
      case 'join':
      case 'resume':
        return { type: line.event, worker: worker() }
      case 'pause': {
        const { parked } = line as { parked?: { data?: unknown } }
        return {
          type: 'pause',
          worker: worker(),
          parked: parked ? JSON.stringify(parked.data ?? null) : '',
        }
      }
      case 'turn':
        return { type: 'turn', worker: worker(), turn: count(line.turn, of('turn')) }
      case 'stop': {
        const reason = checkString(line.reason, of('reason'))
        const text = line.text === undefined ? '' : checkString(line.text, of('text'))
        return { type: 'stop', worker: worker(), reason, text }
      }
      case 'append':
        return { type: 'append', tokens: count(line.tokens, of('tokens')) }
      case 'warning': {
        const message = checkString(line.message, of('message'))
        return { type: 'warning', code: checkString(line.code, of('code')), message }
      }
      case 'end': {
        const usage = (line.usage ?? {}) as TraceRecord
        const sum = (field: string) => count(usage[field], of(`usage.${field}`))
        return {
          type: 'end',
          promptTokens: sum('promptTokens'),
          reusedTokens: sum('reusedTokens'),
          completionTokens: sum('completionTokens'),
        }
      }
      default:
        throw wrong(`${of('event')} ${JSON.stringify(line.event)} is not known`)
    }
  }

  /** Traces name blocks by what they are for; in a script it shows in who writes them. */
  #block(name: string, place: number): TimelineBlock {
    const writer = this.#writers.get(place)
    if (writer !== undefined) return { name, kind: 'own', owner: writer }
    for (const kind of ['own', 'header', 'common'] as const) {
      if (!name.startsWith(`${kind} `)) continue
      const owner = this.#workers.find(name.slice(kind.length + 1))
      if (owner !== undefined) return { name, kind, owner }
    }
    return { name, kind: 'common', owner: -1 }
  }
}

/** How many of a worker's inputs were given. */
function given(value: unknown, ids: readonly number[], name: string): number {
  return listFor(value, ids, name).filter((flag, i) => checkBoolean(flag, `${name}[${i}]`)).length
}

/** Strings by number. */
class Names {
  readonly list: string[] = []
  readonly #places = new Map<string, number>()

  add(name: string): number {
    const known = this.#places.get(name)
    if (known !== undefined) return known
    this.#places.set(name, this.list.length)
    return this.list.push(name) - 1
  }

  find(name: string): number | undefined {
    return this.#places.get(name)
  }
}

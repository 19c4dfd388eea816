// Goes through a script without computing anything: do the names exist, do the numbers fit. Lengths of
// blocks follow from the script alone, so all of this is known before the first op.

import { HogwildError } from '../errors'
import { type BlockGrowth, endOf, placeEntries } from '../places'
import { MAX_VIEW_POSITION } from '../view-entry'
import { blockOf, type ReplayEntry, type ReplayOp, refusal, show, wrong } from './script'

/**
 * Tokens in all blocks together. Blocks grow by reference, so a short script could ask for lists that no
 * memory holds.
 */
const MAX_TOKENS = 2 ** 24
/** Names that a message lists. */
const NAMES_SHOWN = 10

/** What the ops can take of a cache at most. */
export interface Demand {
  /** Tokens that are computed, or copied by `compact`. */
  tokens: number
  /** Pages that may stay partly empty. */
  partPages: number
}

/**
 * @param vocabSize token ids are below it; default: not looked at.
 * @throws HogwildError HOGWILD_INVALID_ARGUMENT, HOGWILD_WRITE_CONFLICT, with the index of the op, its kind
 *   and its field.
 */
export function rehearse(ops: readonly ReplayOp[], vocabSize = Number.POSITIVE_INFINITY): Demand {
  const rehearsal = new Rehearsal(vocabSize)
  ops.forEach((op, at) => {
    try {
      rehearsal.run(op)
    } catch (error) {
      throw error instanceof HogwildError ? refusal(at, op.op, error) : error
    }
  })
  return rehearsal.demand
}

interface RehearsedWorker {
  view: readonly ReplayEntry[]
  /** The name of a block. */
  target: string
}

class Rehearsal {
  readonly demand: Demand = { tokens: 0, partPages: 0 }
  /** Lengths by name. */
  private readonly blocks = new Map<string, number>()
  /** By name. */
  private readonly workers = new Map<string, RehearsedWorker>()
  /** In all blocks. */
  private total = 0

  constructor(private readonly vocabSize: number) {}

  run(op: ReplayOp): void {
    switch (op.op) {
      case 'block':
        this.define(op.name, 0)
        break
      case 'worker':
        this.worker(op.name, op.view, op.write_to)
        break
      case 'prefill':
        this.write(op.block, 'block', op.tokens, 'tokens')
        break
      case 'step':
        this.step(op.workers, op.inputs)
        break
      case 'append_from':
        this.append(op.target, op.source, op.clear_source ?? false)
        break
      case 'clear':
        this.resize(op.block, 'block', () => 0)
        break
      case 'truncate':
        this.resize(op.block, 'block', (length) => within(op.length, 'length', length, op.block))
        break
      case 'fork':
        this.define(op.name, this.length(op.block, 'block'))
        break
      case 'insert':
        this.insert(op.target, op.at, op.source)
        break
      case 'forget':
        this.resize(op.block, 'block', (length) => {
          const end = within(op.end, 'end', length, op.block)
          return length - (end - within(op.begin, 'begin', end, op.block))
        })
        break
      case 'compact':
        this.demand.tokens += this.length(op.block, 'block')
        this.demand.partPages += 1
    }
  }

  private define(name: string, length: number): void {
    if (this.blocks.has(name)) throw wrong(`there is a block ${show(name)} already (field "name")`)
    this.blocks.set(name, 0)
    this.resize(name, 'name', () => length)
  }

  private worker(name: string, view: readonly ReplayEntry[], writeTo: string | undefined): void {
    const blocks = view.map(blockOf)
    for (const [at, block] of blocks.entries()) {
      this.length(block, typeof view[at] === 'string' ? `view[${at}]` : `view[${at}].block`)
    }
    const target = writeTo ?? (blocks.at(-1) as string)
    if (!blocks.includes(target)) {
      throw wrong(`expected write_to to be one of the blocks of the view, received ${show(target)}`)
    }
    this.workers.set(name, { view, target })
  }

  private step(names: readonly string[], inputs: readonly (readonly number[])[]): void {
    const writers = new Map<string, string>()
    const workers = names.map((name, at) => {
      const worker = this.workers.get(name)
      if (worker === undefined) {
        throw wrong(`unknown worker ${show(name)} in workers[${at}]; ${known(this.workers)}`)
      }
      const { target } = worker
      const other = writers.get(target)
      if (other === name) throw wrong(`worker ${show(name)} stands twice in workers`)
      if (other !== undefined) {
        const both = `${show(other)} and ${show(name)}`
        const message = `${both} in workers write to the same block, ${show(target)}`
        throw wrong(message, 'HOGWILD_WRITE_CONFLICT')
      }
      writers.set(target, name)
      return worker
    })
    const appended = new Map(workers.map(({ target }, at) => [target, inputs[at]?.length ?? 0]))
    workers.forEach((worker, at) => {
      this.place(worker, names[at] as string, appended)
    })
    workers.forEach(({ target }, at) => {
      this.write(target, `workers[${at}]`, inputs[at] ?? [], `inputs[${at}]`)
    })
  }

  /** Refuses positions that a step would refuse. */
  private place(
    { view, target }: RehearsedWorker,
    name: string,
    appended: ReadonlyMap<string, number>,
  ): void {
    const written = view.findIndex((entry) => blockOf(entry) === target)
    const entries = view.map(
      (entry): Exclude<ReplayEntry, string> =>
        typeof entry === 'string' ? { block: entry } : entry,
    )
    const growthOf = ({ block }: { block: string }): BlockGrowth => ({
      before: this.blocks.get(block) as number,
      appended: appended.get(block) ?? 0,
    })
    const places = placeEntries(entries, written, growthOf)
    const beyond = places.findIndex((place) => endOf([place]) > MAX_VIEW_POSITION + 1)
    if (beyond < 0) return
    const last = endOf(places.slice(beyond, beyond + 1)) - 1
    throw wrong(
      `view[${beyond}] of worker ${show(name)} shows a token at view position ${last}: positions go up to ${MAX_VIEW_POSITION}`,
    )
  }

  private write(block: string, field: string, tokens: readonly number[], where: string): void {
    tokens.forEach((token, at) => {
      if (token >= this.vocabSize) {
        const range = `a token id in [0, ${this.vocabSize - 1}]`
        throw wrong(`expected ${where}[${at}] to be ${range}, received ${token}`)
      }
    })
    this.demand.tokens += tokens.length
    this.resize(block, field, (length) => length + tokens.length)
  }

  private append(target: string, source: string, clearSource: boolean): void {
    const added = this.other(target, source)
    this.resize(target, 'target', (length) => length + added)
    if (clearSource) this.resize(source, 'source', () => 0)
  }

  private insert(target: string, at: number, source: string): void {
    const added = this.other(target, source)
    this.resize(target, 'target', (length) => {
      within(at, 'at', length, target)
      return length + added
    })
  }

  /** Length of the source of an op between two blocks. */
  private other(target: string, source: string): number {
    this.length(target, 'target')
    const length = this.length(source, 'source')
    if (source === target) {
      throw wrong(`expected source to be another block than target, received ${show(source)}`)
    }
    return length
  }

  private length(name: string, field: string): number {
    const length = this.blocks.get(name)
    if (length === undefined) {
      throw wrong(`unknown block ${show(name)} in ${field}; ${known(this.blocks)}`)
    }
    return length
  }

  private resize(name: string, field: string, change: (length: number) => number): void {
    const before = this.length(name, field)
    const after = change(before)
    this.total += after - before
    if (this.total > MAX_TOKENS) {
      throw wrong(`expected all blocks together to hold at most ${MAX_TOKENS} tokens`)
    }
    this.blocks.set(name, after)
    // What cuts a block or shares its pages may leave two of them partly empty.
    this.demand.partPages += 2
  }
}

function within(value: number, field: string, most: number, block: string): number {
  if (value > most) {
    const range = `an integer in [0, ${most}]`
    throw wrong(`expected ${field} to be ${range} for block ${show(block)}, received ${value}`)
  }
  return value
}

function known(names: ReadonlyMap<string, unknown>): string {
  const list = [...names.keys()].slice(0, NAMES_SHOWN).map(show)
  if (list.length === 0) return 'none is defined'
  const more = names.size - list.length
  return `defined: ${list.join(', ')}${more > 0 ? ` and ${more} more` : ''}`
}

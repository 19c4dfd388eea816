// Views: what one worker sees.

import { Block } from './block'
import type { Cache } from './cache'
import { HogwildError } from './errors'
import type { NativeWorkerView } from './native'
import { checkArray, checkInstance, checkOptions, invalid, optionKeys } from './validate'
import { type CheckedFields, checkEntryFields, type EntryFields } from './view-entry'

/** A block in a view, with how it is seen. */
export interface ViewEntry extends EntryFields {
  /** What is seen. */
  block: Block
}

/**
 * The blocks that one worker sees, in order: all that stands before the block it writes to, and its own tokens. Positions
 * follow from the blocks' lengths at each step, and from `at`.
 */
export interface View {
  /**
   * At least one; a block alone is an entry that says nothing else. Blocks may be empty, shared with other views, and
   * occur twice. All of one cache. What stands behind the block that is written is not seen.
   */
  blocks: readonly (Block | ViewEntry)[]
  /** The block that receives the new tokens, one of `blocks` (its first place counts); default: the last. */
  writeTo?: Block | undefined
}

const VIEW_KEYS = optionKeys<View>()({ blocks: true, writeTo: true })
const ENTRY_KEYS = optionKeys<ViewEntry>()({
  block: true,
  at: true,
  lag: true,
  temperature: true,
  bias: true,
})

export interface CheckedEntry extends CheckedFields {
  block: Block
}

/** A view whose parts were checked and copied. */
export interface CheckedView {
  cache: Cache
  entries: readonly CheckedEntry[]
  writeTo: Block
}

/** Throws HOGWILD_INVALID_ARGUMENT; `cache`: that of the views checked before. */
export function checkView(view: View, name: string, cache?: Cache): CheckedView {
  const { blocks: list, writeTo } = checkOptions(view, name, VIEW_KEYS)
  const entries = checkArray(list, `${name}.blocks`).map((entry, i) =>
    Block.is(entry) ? plainEntry(entry) : checkEntry(entry, `${name}.blocks[${i}]`),
  )
  const last = entries.at(-1)?.block
  if (last === undefined) throw invalid(`${name}.blocks`, 'at least one block', entries)
  const owner = cache ?? last.cache
  const stranger = entries.findIndex(({ block }) => block.cache !== owner)
  if (stranger >= 0) {
    const what = 'of the same cache as all others'
    throw new HogwildError(
      `expected ${name}.blocks[${stranger}] to be ${what}, received one of another cache`,
      'HOGWILD_INVALID_ARGUMENT',
    )
  }
  const target = writeTo === undefined ? last : checkInstance(writeTo, `${name}.writeTo`, Block)
  if (!entries.some(({ block }) => block === target)) {
    throw invalid(`${name}.writeTo`, 'one of the blocks of the view', target)
  }
  return { cache: owner, entries, writeTo: target }
}

function plainEntry(block: Block): CheckedEntry {
  return { block, at: undefined, lag: 0, temperature: 1, bias: 0 }
}

function checkEntry(entry: unknown, name: string): CheckedEntry {
  if (typeof entry !== 'object' || entry === null) {
    throw invalid(name, `a Block or an entry { ${ENTRY_KEYS.join(', ')} }`, entry)
  }
  const { block, ...fields } = checkOptions(entry as ViewEntry, name, ENTRY_KEYS)
  return { block: checkInstance(block, `${name}.block`, Block), ...checkEntryFields(fields, name) }
}

/** As the native side takes it. Throws HOGWILD_CLOSED where the cache is closed. */
export function nativeView({ entries, writeTo }: CheckedView): NativeWorkerView {
  const says = ({ at, lag, temperature, bias }: CheckedFields) =>
    at !== undefined || lag !== 0 || temperature !== 1 || bias !== 0
  return {
    view: entries.map(({ block }) => block.handle),
    fields: entries.some(says)
      ? Float64Array.from(
          entries.flatMap(({ at = -1, lag, temperature, bias }) => [at, lag, temperature, bias]),
        )
      : null,
    target: writeTo.handle,
  }
}

// Views: what one worker sees.

import { Block } from './block'
import type { Cache } from './cache'
import { HogwildError } from './errors'
import type { NativeWorkerView } from './native'
import {
  checkArray,
  checkInstance,
  checkNumbers,
  checkOptions,
  invalid,
  optionKeys,
} from './validate'

/** The blocks that one worker sees, in order. Positions follow from the blocks' lengths at each step. */
export interface View {
  /** At least one; blocks may be empty, shared with other views, and occur twice. All of one cache. */
  blocks: readonly Block[]
  /** The block that receives the new tokens, one of `blocks` (its first place counts); default: the last. */
  writeTo?: Block | undefined
  /** Log-weight per block, added to its scores; -Infinity hides it. Default: none. */
  bias?: ArrayLike<number> | undefined
}

const VIEW_KEYS = optionKeys<View>()({ blocks: true, writeTo: true, bias: true })

/** A view whose parts were checked and copied. */
export interface CheckedView {
  cache: Cache
  blocks: readonly Block[]
  writeTo: Block
  bias: Float32Array | null
}

/** Throws HOGWILD_INVALID_ARGUMENT; `cache`: that of the views checked before. */
export function checkView(view: View, name: string, cache?: Cache): CheckedView {
  const { blocks: list, writeTo, bias } = checkOptions(view, name, VIEW_KEYS)
  const blocks = checkArray(list, `${name}.blocks`).map((block, i) =>
    checkInstance(block, `${name}.blocks[${i}]`, Block),
  )
  const last = blocks.at(-1)
  if (last === undefined) throw invalid(`${name}.blocks`, 'at least one block', blocks)
  const owner = cache ?? last.cache
  const stranger = blocks.findIndex((block) => block.cache !== owner)
  if (stranger >= 0) {
    const what = 'of the same cache as all others'
    throw new HogwildError(
      `expected ${name}.blocks[${stranger}] to be ${what}, received one of another cache`,
      'HOGWILD_INVALID_ARGUMENT',
    )
  }
  const target = writeTo === undefined ? last : checkInstance(writeTo, `${name}.writeTo`, Block)
  if (!blocks.includes(target)) {
    throw invalid(`${name}.writeTo`, 'one of the blocks of the view', target)
  }
  return { cache: owner, blocks, writeTo: target, bias: checkBias(bias, name, blocks.length) }
}

function checkBias(bias: View['bias'], name: string, length: number): Float32Array | null {
  if (bias === undefined) return null
  const expected = `one number for each of ${length} blocks, finite or -Infinity`
  return Float32Array.from(
    checkNumbers(bias, `${name}.bias`, length, expected, (x) => Math.fround(x) < Infinity),
  )
}

/** As the native side takes it. Throws HOGWILD_CLOSED where the cache is closed. */
export function nativeView({ blocks, writeTo, bias }: CheckedView): NativeWorkerView {
  return { view: blocks.map((block) => block.handle), bias, target: writeTo.handle }
}

// Layouts: the rules that give each worker its view (Hogwild! Inference, arXiv 2504.06261, section 3;
// figure 3). Pure functions over anything that stands for a block.

import {
  checkArray,
  checkBoolean,
  checkInteger,
  checkOneOf,
  checkOptions,
  invalid,
  optionKeys,
} from '../validate'

/**
 * - `contiguous`: others' text as it grows, then one's own. [common, others…, header, own]
 * - `interleaved`: others' text only once a turn has ended. [common, header, own]
 * - `combined`: both. [common, shared, others…, header, own]
 */
export type LayoutName = 'contiguous' | 'interleaved' | 'combined'

export const LAYOUT_NAMES: readonly LayoutName[] = ['contiguous', 'interleaved', 'combined']

/** A worker's part of a layout: its own text and, before it, its own header. */
export interface LayoutWorker<B> {
  /** What it writes. */
  own: B
  /** Before that; only it sees it. Absent: none. */
  header?: B | undefined
}

/** The blocks that a layout puts in order. `B` is a Block, a name, anything but undefined. */
export interface LayoutBlocks<B> {
  /** The prompt and, where turns are committed, the turns that have ended. */
  common: B
  /** Header between the finished turns and the others' unfinished ones; only `combined` shows it. */
  shared?: B | undefined
  /** One per worker, in worker order. */
  workers: readonly LayoutWorker<B>[]
}

/** Options of `viewOf`. */
export interface ViewOptions {
  /** false leaves the other workers' blocks out; default true. */
  share?: boolean | undefined
}

const BLOCKS_KEYS = optionKeys<LayoutBlocks<unknown>>()({
  common: true,
  shared: true,
  workers: true,
})
const WORKER_KEYS = optionKeys<LayoutWorker<unknown>>()({ own: true, header: true })
const VIEW_KEYS = optionKeys<ViewOptions>()({ share: true })

/**
 * The view of worker number `worker`: blocks in the order in which it sees them, its own last (the
 * write target). Others come in worker order; headers that are not there are left out.
 *
 * Throws HOGWILD_INVALID_ARGUMENT.
 */
export function viewOf<B>(
  layout: LayoutName,
  blocks: LayoutBlocks<B>,
  worker: number,
  options: ViewOptions = {},
): B[] {
  checkOneOf(layout, 'layout', LAYOUT_NAMES)
  const { common, shared, workers: list } = checkOptions(blocks, 'blocks', BLOCKS_KEYS)
  if (common === undefined) throw invalid('blocks.common', 'a block', common)
  const workers = checkArray(list, 'blocks.workers').map((part, i) => {
    const name = `blocks.workers[${i}]`
    const checked = checkOptions(part as LayoutWorker<B>, name, WORKER_KEYS)
    if (checked.own === undefined) throw invalid(`${name}.own`, 'a block', checked.own)
    return checked
  })
  checkInteger(worker, 'worker', 0, workers.length - 1)
  const share = checkOptions(options, 'options', VIEW_KEYS).share ?? true
  checkBoolean(share, 'options.share')
  return orderBlocks(layout, { common, shared, workers }, worker, share)
}

/** `viewOf` for arguments that are known to be right. */
export function orderBlocks<B>(
  layout: LayoutName,
  { common, shared, workers }: LayoutBlocks<B>,
  worker: number,
  share: boolean,
): B[] {
  const self = workers[worker] as LayoutWorker<B>
  const othersVisible = layout !== 'interleaved' && share
  const others = othersVisible ? workers.filter((_, i) => i !== worker) : []
  return [
    common,
    ...(layout === 'combined' && shared !== undefined ? [shared] : []),
    ...others.map((other) => other.own),
    ...(self.header !== undefined ? [self.header] : []),
    self.own,
  ]
}

/** Whether a worker's finished turn moves to the end of `common` (paper, section 3.2). */
export function commitsTurns(layout: LayoutName): boolean {
  return checkOneOf(layout, 'layout', LAYOUT_NAMES) !== 'contiguous'
}

// Layouts: the rules that give each worker its view (Hogwild! Inference, arXiv 2504.06261, section 3;
// figure 3). Pure functions over anything that stands for a block.

import { checkInteger } from './validate'

/**
 * - `contiguous`: others' text as it grows, then one's own. [common, others…, header, own]
 * - `interleaved`: others' text only once a turn has ended. [common, header, own]
 * - `combined`: both. [common, shared, others…, header, own]
 */
export type LayoutName = 'contiguous' | 'interleaved' | 'combined'

export const LAYOUT_NAMES = ['contiguous', 'interleaved', 'combined'] as const

/** The blocks that a layout puts in order. `B` is a Block, a name, anything. */
export interface LayoutBlocks<B> {
  /** The prompt and, where turns are committed, the turns that have ended. */
  common: B
  /** Header between the finished turns and the others' unfinished ones; only `combined` shows it. */
  shared?: B | undefined
  /** One per worker, in worker order: its own text and, before it, its own header. */
  workers: readonly { own: B; header?: B | undefined }[]
}

export interface ViewOptions {
  /** false leaves the other workers' blocks out; default true. */
  share?: boolean | undefined
}

/**
 * The view of worker number `worker`: blocks in the order in which it sees them, its own last (the
 * write target). Others come in worker order; headers that are not there are left out.
 */
export function viewOf<B>(
  layout: LayoutName,
  blocks: LayoutBlocks<B>,
  worker: number,
  options: ViewOptions = {},
): B[] {
  checkInteger(worker, 'worker', 0, blocks.workers.length - 1)
  const self = blocks.workers[worker] as (typeof blocks.workers)[number]
  const othersVisible = layout !== 'interleaved' && (options.share ?? true)
  const others = othersVisible ? blocks.workers.filter((_, i) => i !== worker) : []
  return [
    blocks.common,
    ...(layout === 'combined' && blocks.shared !== undefined ? [blocks.shared] : []),
    ...others.map((other) => other.own),
    ...(self.header !== undefined ? [self.header] : []),
    self.own,
  ]
}

/** Whether a worker's finished turn moves to the end of `common` (paper, section 3.2). */
export function commitsTurns(layout: LayoutName): boolean {
  return layout !== 'contiguous'
}

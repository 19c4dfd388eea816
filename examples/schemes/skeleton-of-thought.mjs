// Skeleton-of-Thought (arXiv 2307.15337): first a skeleton of numbered points, then all points written out at once.
//
// Views: skeleton   prompt, skeleton
//        point i    prompt, skeleton, ask(i) and own text     all of them at the same positions, unseen by each other
//        closing    prompt, skeleton, points in order, own    one behind the other
// From the paper differ: a point is asked for behind the skeleton that stands in the cache, where the paper sends a new
// prompt for each; the paper joins the points' texts and has no closing.
//
//   node examples/schemes/skeleton-of-thought.mjs [MODEL]

import { atStop, demonstrate, withPrompt, writer, writeTogether } from './common.mjs'

/**
 * `pointsOf(tokens)`: of the skeleton's tokens, those that ask for each point. `begin`, `closing`: tokens behind which the
 * skeleton and the end are written; without `closing` the points are the answer.
 */
export function skeletonOfThought({ model, prompt, begin, pointsOf, closing, until }) {
  return withPrompt(model, prompt, async (common, cache) => {
    const skeleton = writer([common, cache.createBlock()], begin, until)
    let steps = await writeTogether(model, [skeleton])
    const points = pointsOf(skeleton.written).map((ask) =>
      writer([...skeleton.blocks, cache.createBlock()], ask, until),
    )
    steps += await writeTogether(model, points)
    const texts = { skeleton: skeleton.written }
    for (const [i, { written }] of points.entries()) texts[`point ${i + 1}`] = written
    if (closing !== undefined) {
      const owns = points.map(({ blocks }) => blocks.at(-1))
      const end = writer([...skeleton.blocks, ...owns, cache.createBlock()], closing, until)
      steps += await writeTogether(model, [end])
      texts.closing = end.written
    }
    return { texts, steps }
  })
}

/** The lines of a text that begin with a number, without it; at most so many. */
export const numberedLines = (text, most = 16) =>
  Array.from(text.matchAll(/^[^\S\n]*\d+[.):][^\S\n]*(\S.*)$/gm), ([, point]) => point).slice(
    0,
    most,
  )

demonstrate('skeleton-of-thought.mjs', ({ model, tokenizer, encode }) =>
  skeletonOfThought({
    model,
    prompt: encode('<s>A:ynam\nB:sdnah\nC:ekam\n'),
    begin: encode('Alice'),
    // The demo model numbers nothing: its points are two workers.
    pointsOf: (tokens) => {
      const points = numberedLines(tokenizer.decode(tokens))
      return (points.length > 0 ? points : ['Bob', 'Carol']).map(encode)
    },
    closing: encode('Dave'),
    until: atStop(model, 24),
  }),
)

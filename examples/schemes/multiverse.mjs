// Multiverse (arXiv 2506.09991; ThreadWeaver, 2512.07843, forks alike): the text itself says where it forks. When
// it has come to a tag, one branch per outline is written, all at once; then the text goes on behind them.
//
// Views: trunk     prompt, trunk
//        branch i  prompt, trunk, own                        all branches from the same place F
//        join      prompt, trunk, branches at F, own at F + the longest branch; it may fork again, as the trunk did
// From the paper differ: branches do not fork themselves; `mostForks` ends what forks for ever. A model that was not trained
// for it writes no tags.
//
//   node examples/schemes/multiverse.mjs [MODEL]

import { atTag, demonstrate, withPrompt, writer, writeTogether } from './common.mjs'

/**
 * `outlinesOf(tokens)`: what each branch begins with, by the tokens of the trunk; [] where it does not fork. `untilFork`
 * ends a trunk, `untilPathEnds` a branch. `begin`, `join`: tokens that the trunk and what follows a join begin with.
 */
export function multiverse(options) {
  const { model, prompt, begin, join, outlinesOf, untilFork, untilPathEnds } = options
  const { mostForks = 8 } = options
  return withPrompt(model, prompt, async (common, cache) => {
    const texts = {}
    const first = { block: cache.createBlock(), at: prompt.length }
    let trunk = writer([common, first], begin, untilFork)
    let steps = await writeTogether(model, [trunk])
    texts.trunk = trunk.written
    for (let fork = 1; fork <= mostForks; fork++) {
      const own = trunk.blocks.at(-1)
      const at = own.at + own.block.length
      const branches = outlinesOf(trunk.written).map((outline) =>
        writer([...trunk.blocks, { block: cache.createBlock(), at }], outline, untilPathEnds),
      )
      if (branches.length === 0) break
      steps += await writeTogether(model, branches)
      for (const [i, { written }] of branches.entries()) texts[`${fork}.${i + 1}`] = written
      const owns = branches.map(({ blocks }) => blocks.at(-1))
      const longest = Math.max(...owns.map(({ block }) => block.length))
      const next = { block: cache.createBlock(), at: at + longest }
      trunk = writer([...trunk.blocks, ...owns, next], join, untilFork)
      steps += await writeTogether(model, [trunk])
      texts[`join ${fork}`] = trunk.written
    }
    return { texts, steps }
  })
}

// In the place of the paper's tags, for which the demo model has no tokens, '=' forks and '.' ends a path.
demonstrate('multiverse.mjs', ({ model, tokenizer, encode }) =>
  multiverse({
    ...{ model, prompt: encode('<s>A:ynam\nB:sdnah\nC:ekam\n'), begin: encode('Alice') },
    ...{ join: encode('Bob'), mostForks: 2 },
    outlinesOf: (tokens) => (tokenizer.decode(tokens).endsWith('=') ? ['A', 'B'].map(encode) : []),
    untilFork: atTag(tokenizer, '=', 8),
    untilPathEnds: atTag(tokenizer, '.', 12),
  }),
)

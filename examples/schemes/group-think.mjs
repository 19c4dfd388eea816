// Group Think (arXiv 2505.11107): thinkers of one model see each other's tokens, all of them at once, each in a range of
// positions of its own.
//
// View of thinker i, with P tokens of prompt and ranges of K: prompt, every other j at P + j K, own at P + i K.
// From the paper differs: its prompts and its fine-tuning are left out. A model that was not trained for it shows the
// schedule, not good thoughts.
//
//   node examples/schemes/group-think.mjs [MODEL]

import { atStop, demonstrate, withPrompt, writer, writeTogether } from './common.mjs'

/** `thinkers`: token ids that each one's text begins with, by name. `range`: positions of each, with those of `given`. */
export function groupThink({ model, prompt, thinkers, range, until }) {
  return withPrompt(model, prompt, async (common, cache) => {
    const names = Object.keys(thinkers)
    const entries = names.map((_, i) => ({
      block: cache.createBlock(),
      at: prompt.length + i * range,
    }))
    const writers = names.map((name, i) => {
      const others = entries.filter((entry) => entry !== entries[i])
      const given = thinkers[name]
      const fills = (tokens) => given.length + tokens.length >= range || until(tokens)
      return writer([common, ...others, entries[i]], given, fills)
    })
    const steps = await writeTogether(model, writers)
    return { texts: Object.fromEntries(names.map((name, i) => [name, writers[i].written])), steps }
  })
}

demonstrate('group-think.mjs', ({ model, encode }) =>
  groupThink({
    model,
    prompt: encode('<s>A:ynam\nB:sdnah\nC:ekam\nD:thgil\n'),
    thinkers: { Alice: encode('Alice'), Bob: encode('Bob') },
    range: 64,
    until: atStop(model, 40),
  }),
)

// Hogwild! Inference (arXiv 2504.06261): workers see each other's tokens as they are written, and decide from them what
// is left to do.
//
// Views: contiguous   prompt, the others' blocks, own
//        interleaved  prompt with all turns that have ended, own turn
//        combined     prompt with all turns that have ended, the others' turns, own turn
// From the paper differ the texts that workers are told: `collaborate` has rules, headings and checks. Where its published
// code computes something else: docs/semantics.md.
//
//   node examples/schemes/hogwild.mjs [MODEL]

import { runWorkers } from 'hogwild'
import { demonstrate } from './common.mjs'

/**
 * `workers`: token ids that each one's text begins with, by name. `turnEnds(ids)`: whether the turn of these ids is over,
 * but in the contiguous layout, which has no turns.
 */
export async function hogwild({ model, prompt, workers, layout, turnEnds, ...options }) {
  const run = runWorkers({
    model,
    prompt,
    layout,
    workers: Object.entries(workers).map(([name, given]) => ({ name, prompt: given })),
    turnEnds: layout === 'contiguous' ? undefined : turnEnds,
    ...options,
  })
  let steps = 0
  for await (const event of run) if (event.type === 'end') steps = event.steps
  const texts = run.workers.map(({ name, tokens }) => [name, tokens.slice(workers[name].length)])
  return { texts: Object.fromEntries(texts), steps }
}

demonstrate('hogwild.mjs', async ({ model, encode }) => {
  const all = { texts: {}, steps: 0 }
  for (const layout of ['contiguous', 'interleaved', 'combined']) {
    const { texts, steps } = await hogwild({
      model,
      layout,
      prompt: encode('<s>A:ynam\nB:sdnah\nC:ekam\nD:thgil\nE:krow\n'),
      workers: { Alice: encode('Alice'), Bob: encode('Bob') },
      // The demo model begins each line with its worker's name.
      turnEnds: (ids) => encode('AliceBob').includes(ids.at(-1)),
      maxTokens: 40,
    })
    all.steps += steps
    for (const [name, tokens] of Object.entries(texts)) all.texts[`${layout}, ${name}`] = tokens
  }
  return all
})

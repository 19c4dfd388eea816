// Multi-stream LLMs (arXiv 2605.12460): several streams of tokens advance together, each reading what the others had
// written when the step began.
//
// View of stream i, with P tokens of prompt: prompt, every other stream at P with lag 1, own at P. So token t of every
// stream stands at P + t, and sees nothing that another one brings to its step.
// From the paper differs: there models are trained for it, and some streams are input (a user who goes on speaking); here the
// model writes all of them, and one that was not trained shows the schedule.
//
//   node examples/schemes/streams.mjs [MODEL]

import { atStop, demonstrate, withPrompt, writer, writeTogether } from './common.mjs'

/** `streams`: token ids that each one begins with, by name. */
export function multiStream({ model, prompt, streams, until }) {
  return withPrompt(model, prompt, async (common, cache) => {
    const names = Object.keys(streams)
    const at = prompt.length
    const owns = names.map(() => cache.createBlock())
    const writers = names.map((name, i) => {
      const others = owns.filter((own) => own !== owns[i])
      const late = others.map((block) => ({ block, at, lag: 1 }))
      return writer([common, ...late, { block: owns[i], at }], streams[name], until)
    })
    const steps = await writeTogether(model, writers)
    return { texts: Object.fromEntries(names.map((name, i) => [name, writers[i].written])), steps }
  })
}

demonstrate('streams.mjs', ({ model, encode }) =>
  multiStream({
    model,
    prompt: encode('<s>A:ynam\nB:sdnah\nC:ekam\nD:thgil\n'),
    streams: { Alice: encode('Alice'), Bob: encode('Bob') },
    until: atStop(model, 40),
  }),
)

// AsyncReasoning (arXiv 2512.10931): one worker thinks while another answers and new input comes in. A probe, a question
// whose tokens leave no trace, tells whether the writer may go on.
//
// Views: thinker  prompt, answer, inputs, thoughts
//        writer   prompt, inputs, thoughts, answer
//        probe    the writer's, then the question
// From the paper differ: its prompts are left out; the probe is asked after every step. A model that does not reason decides
// by chance.
//
//   node examples/schemes/async-reasoning.mjs [MODEL]

import { atStop, demonstrate, withPrompt, writer, writeTogether } from './common.mjs'

/**
 * `mayWrite(logits)`: whether the writer goes on, by the logits behind `question`; it does when the thinker has ended.
 * `input(step)`: tokens that come in when so many steps are done, if any. `thinker`, `answerer`: what each begins with.
 */
export function asyncReasoning(options) {
  const { model, prompt, thinker, answerer, question, mayWrite, input, until } = options
  return withPrompt(model, prompt, async (common, cache) => {
    const [inputs, thoughts, answer] = [0, 1, 2].map(() => cache.createBlock())
    const thinks = writer([common, answer, inputs, thoughts], thinker, until)
    const writes = writer([common, inputs, thoughts, answer], answerer, until)
    writes.held = true
    const probe = async () => {
      const scratch = cache.createBlock()
      const view = { blocks: [...writes.blocks, scratch] }
      const ask = { view, tokens: question, sampler: null, logits: 'last' }
      const [{ logits }] = await model.step([ask])
      scratch.close()
      return mayWrite(logits)
    }
    let done = 0
    const steps = await writeTogether(model, [thinks, writes], async () => {
      const news = input(++done) ?? []
      if (news.length > 0) await model.prefill(inputs, news, { sampler: null })
      writes.held = thinks.next.length > 0 && writes.next.length > 0 && !(await probe())
    })
    return { texts: { thoughts: thinks.written, answer: writes.written }, steps }
  })
}

demonstrate('async-reasoning.mjs', ({ model, encode }) => {
  const [yes, no] = ['y', 'n'].map((answer) => encode(answer).at(-1))
  return asyncReasoning({
    model,
    prompt: encode('<s>A:ynam\nB:sdnah\n'),
    ...{ thinker: encode('Alice'), answerer: encode('Bob'), question: encode('\ndone:') },
    mayWrite: (logits) => logits[yes] > logits[no],
    input: (step) => (step === 4 ? encode('C:ekam\n') : []),
    until: atStop(model, 24),
  })
})

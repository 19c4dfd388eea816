// FastCoT (arXiv 2311.08263): a chain of thought by Jacobi iteration. Every step takes the next token and guesses of those
// behind it, keeps the guesses that are right and makes the others better; the answer is asked for after a few steps,
// behind the guesses as they are by then: a glance of what the thoughts are going to say.
//
// Views: thoughts  prompt, thoughts; its drafts (StepWorker.drafts) stand behind its next token
//        answer    prompt, thoughts, answer, which begins with the glance and the question
// From the paper differs: its window of guesses is smaller at the end of a text; here it is as long in every step. The
// thoughts that are kept are those of one token after the other.
//
//   node examples/schemes/fastcot.mjs [MODEL]

import { atStop, demonstrate, withPrompt, writer, writeTogether } from './common.mjs'

/** `window`: guesses in a step; `passes`: steps after which `ask` is asked, if the thoughts have not ended before. */
export function fastCot({ model, prompt, begin, window, passes, ask, until }) {
  return withPrompt(model, prompt, async (common, cache) => {
    const [thoughts, answer] = [cache.createBlock(), cache.createBlock()]
    const view = { blocks: [common, thoughts] }
    let written = []
    let next = begin
    let guesses = []
    let steps = 0
    let hasEnded = false
    while (steps < passes && !hasEnded) {
      const drafts = Array.from({ length: window }, (_, i) => guesses[i] ?? next.at(-1))
      const [{ token, drafted }] = await model.step([{ view, tokens: next, drafts }])
      const given = steps++ === 0 ? [] : next
      const known = [...written, ...given, ...drafts.slice(0, drafted.kept)]
      const end = known.findIndex((_, i) => i >= written.length && until(known.slice(0, i + 1)))
      hasEnded = end >= 0
      written = hasEnded ? known.slice(0, end + 1) : known
      next = [token]
      guesses = drafted.guesses
    }
    thoughts.truncate(begin.length + written.length)
    const glance = hasEnded ? [] : [...next, ...guesses]
    const answers = writer([common, thoughts, answer], [...glance, ...ask], until)
    steps += await writeTogether(model, [answers])
    return { texts: { thoughts: written, glance, answer: answers.written }, steps }
  })
}

demonstrate('fastcot.mjs', ({ model, encode }) =>
  fastCot({
    model,
    prompt: encode('<s>A:ynam\nB:sdnah\nC:ekam\nD:thgil\n'),
    begin: encode('Alice'),
    ...{ window: 6, passes: 8 },
    ask: encode('\nBob'),
    until: atStop(model, 24),
  }),
)

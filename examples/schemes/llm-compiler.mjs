// LLMCompiler (arXiv 2312.04511): a planner writes tasks that name each other's results. A task runs as soon as those are
// there, while the plan goes on; then a joiner reads all results, and answers or has another plan made.
//
// Views: plan    prompt, plan                        of a later one: prompt, all that was before, plan
//        result  prompt, plan as far as it is, own   parked on a tool, then computed in the steps of the others
//        joiner  prompt, plan, results, own          one behind the other, in the order of the plan
// From the paper differ: no new prompt is made of results, they stand in blocks behind the plan. Calls of one moment go to a
// tool together (arXiv 2405.17438) where `mergeCalls` makes it. A model that was not trained for it writes no plans.
//
//   node examples/schemes/llm-compiler.mjs [MODEL]

import { mergeCalls } from 'hogwild'
import { atStop, demonstrate, park, withPrompt, writer, writeTogether } from './common.mjs'

/**
 * `tasksOf(plan)`: the tasks in a plan's tokens so far: `needs`, the places of others before it, and `call`, an async
 * function of their results that gives tokens. `begin`, `join`: what plans and joiners begin with.
 */
export function llmCompiler(options) {
  const { model, prompt, begin, join, tasksOf, plansAgain, mostPlans = 4, until } = options
  return withPrompt(model, prompt, async (common, cache) => {
    const texts = {}
    let steps = 0
    let seen = [common]
    for (let round = 1; round <= mostPlans; round++) {
      const plan = writer([...seen, cache.createBlock()], begin, until)
      const [writers, results] = [[plan], []]
      steps += await writeTogether(model, writers, () => {
        for (const { needs, call } of tasksOf(plan.written).slice(results.length)) {
          const given = Promise.all(needs.map((place) => results[place]))
          results.push(given.then((tokens) => call(...tokens)))
          const own = writer([...plan.blocks, cache.createBlock()], [], () => true)
          writers.push(park(own, results.at(-1)))
        }
      })
      const owns = writers.map(({ blocks }) => blocks.at(-1))
      const joins = writer([...seen, ...owns, cache.createBlock()], join, until)
      steps += await writeTogether(model, [joins])
      texts[`plan ${round}`] = plan.written
      for (const [i, result] of results.entries()) texts[`result ${round}.${i + 1}`] = await result
      texts[`joiner ${round}`] = joins.written
      if (!plansAgain(joins.written)) break
      seen = joins.blocks
    }
    return { texts, steps }
  })
}

// The demo model's plan is its lines: each 'A=' looks up an item of the list.
demonstrate('llm-compiler.mjs', ({ model, tokenizer, encode }) => {
  const lookUp = mergeCalls(async (labels) => labels.map((label) => encode(`${label}:ekam\n`)))
  const tasksOf = (plan) =>
    Array.from(tokenizer.decode(plan).matchAll(/(\w)=/g), ([, label]) => {
      return { needs: [], call: () => lookUp(label) }
    })
  const tokens = { prompt: encode('<s>A:ynam\nB:sdnah\n'), begin: encode('Alice') }
  const ends = { plansAgain: () => false, until: atStop(model, 24) }
  return llmCompiler({ model, ...tokens, join: encode('Bob'), tasksOf, ...ends })
})

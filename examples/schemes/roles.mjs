// Roles (α-UMi, arXiv 2401.07324): a planner says what comes next, a caller writes the call of a tool, a summarizer the
// answer. Several questions are worked on at once; who waits for a tool is parked.
//
// Views: turn of a role    prompt, instructions of the role, history of the question, own
//        question, result  prompt, history
// A turn that has ended moves into the history, which stands behind the instructions of each role without being computed
// again. From the paper differ: one model plays all roles, where the paper tunes one for each.
//
//   node examples/schemes/roles.mjs [MODEL]

import { atStop, demonstrate, park, withPrompt, writer, writeTogether } from './common.mjs'

/**
 * `roles`: of planner, caller and summarizer the `instructions` and what a turn begins with. `decide(plan)`: the role that
 * comes next. `tool(call)`: async, gives the tokens of a result, at least one.
 */
export function playRoles(options) {
  const { model, prompt, roles, questions, decide, tool, until, mostTurns = 16 } = options
  return withPrompt(model, prompt, async (common, cache) => {
    const [texts, headers] = [{}, {}]
    for (const [role, { instructions }] of Object.entries(roles)) {
      headers[role] = cache.createBlock()
      await model.prefill(headers[role], instructions, { sampler: null })
    }
    const tasks = questions.map(() => ({ role: 'reads', turns: 0, history: cache.createBlock() }))
    const reads = ({ history }, tokens) => writer([common, history], tokens, () => true)
    const takes = (task, role) => {
      task.role = role
      const own = cache.createBlock()
      return writer([common, headers[role], task.history, own], roles[role].begin, until)
    }
    /** What comes behind a writer that has ended. */
    const follow = (task, number, { blocks, written }) => {
      if (task.role === 'reads') return takes(task, 'planner')
      texts[`${number}.${++task.turns} ${task.role}`] = written
      task.history.appendFrom(blocks.at(-1), { clearSource: true })
      if (task.role === 'planner' && task.turns < mostTurns) return takes(task, decide(written))
      task.role = task.role === 'caller' ? 'reads' : 'done'
      return task.role === 'reads' ? park(reads(task, []), tool(written)) : undefined
    }
    const writers = tasks.map((task, i) => reads(task, questions[i]))
    const steps = await writeTogether(model, writers, () => {
      for (const [i, task] of tasks.entries()) {
        const { next, parked } = writers[i]
        if (next.length > 0 || parked || task.role === 'done') continue
        writers[i] = follow(task, i + 1, writers[i]) ?? writers[i]
      }
    })
    return { texts, steps }
  })
}

demonstrate('roles.mjs', ({ model, encode }) => {
  const role = (name) => ({ instructions: encode('A:ynam\n'), begin: encode(name) })
  const roles = { planner: role('Alice'), caller: role('Bob'), summarizer: role('Carol') }
  const decide = (plan) => (plan.length > 8 ? 'caller' : 'summarizer')
  const texts = { prompt: encode('<s>'), questions: ['B:sdnah\n', 'C:ekam\n'].map(encode) }
  const tool = async () => encode('D:thgil\n')
  return playRoles({ model, ...texts, roles, decide, tool, until: atStop(model, 16), mostTurns: 6 })
})

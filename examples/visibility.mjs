// When do workers see what the others write: in the step in which it is written, one step later, or once the turn has ended?
// The same lists of dependent work (models/graph) by four workers each way, on a loop of one's own over cache and step.
//
//   node examples/visibility.mjs [LISTS]

import { graphModelPath, loadModel, loadTokenizer } from 'hogwild'
import { idealSteps, makeLists, resultsOf } from './experiments/graph.mjs'

const NAMES = ['Alice', 'Bob', 'Carol', 'Dave']
/** Of a worker: the blocks that it sees, in order. */
const VIEWS = {
  'in the same step': ({ common, others, own }) => [common, ...others, own],
  'one step later': ({ common, others, own }) => [
    common,
    ...others.map((block) => ({ block, lag: 1 })),
    own,
  ],
  'once the turn has ended': ({ common, own }) => [common, own],
}

const model = await loadModel(graphModelPath, { device: 'cpu', threads: 1, dtype: 'f32' })
const tokenizer = await loadTokenizer(graphModelPath)
const [stop] = tokenizer.encodeSync('.', { addSpecialTokens: false })
const encode = (text) => tokenizer.encodeSync(text, { addSpecialTokens: false })

/** What each worker writes, and the number of steps. A line is a turn: its end moves it into the common block. */
async function run({ list }, viewOf) {
  const cache = model.createCache({ capacity: 4096 })
  const common = cache.createBlock()
  await model.prefill(common, encode(`<s>${list}`), { sampler: null })
  const team = NAMES.map((name) => {
    const [token] = encode(name)
    return { name: token, own: cache.createBlock(), next: token, written: [] }
  })
  let steps = 0
  for (let active = team; active.length > 0 && steps < 300; steps++) {
    const outputs = await model.step(
      active.map(({ own, next }) => {
        const others = team.flatMap((other) => (other.own === own ? [] : [other.own]))
        return { view: { blocks: viewOf({ common, others, own }) }, tokens: [next] }
      }),
    )
    for (const [i, worker] of active.entries()) {
      worker.written.push(worker.next)
      const isLast = worker.next === stop
      worker.next = isLast ? undefined : outputs[i].token
      if (worker.next === worker.name) common.appendFrom(worker.own, { clearSource: true })
    }
    active = active.filter(({ next }) => next !== undefined)
  }
  await cache.close()
  return { texts: team.map(({ written }) => tokenizer.decode(written)), steps }
}

const lists = makeLists(2026, Number(process.argv[2] ?? 24))
console.log(`${lists.length} lists, ${NAMES.length} workers\n`)
console.log('others’ text is seen       steps  of ideal  done twice  right')
for (const [name, viewOf] of Object.entries(VIEWS)) {
  const sum = { steps: 0, ideal: 0, items: 0, twice: 0, right: 0 }
  for (const list of lists) {
    const { texts, steps } = await run(list, viewOf)
    sum.steps += steps
    sum.ideal += idealSteps(list, NAMES.length)
    for (const [item, result] of list.answer.entries()) {
      const digits = texts.flatMap((text) => resultsOf(text, item))
      sum.items++
      sum.twice += digits.length > 1
      sum.right += digits[0] === String(result)
    }
  }
  const percent = (part, whole) => `${((100 * part) / whole).toFixed(1)} %`
  console.log(
    name.padEnd(25),
    (sum.steps / lists.length).toFixed(1).padStart(6),
    percent(sum.ideal, sum.steps).padStart(9),
    percent(sum.twice, sum.items).padStart(11),
    percent(sum.right, sum.items).padStart(7),
  )
}
await model.close()

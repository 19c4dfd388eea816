// Dependent work as an experiment: lists of 12 small expressions modulo 10 that refer to each other's results, evaluated by one,
// two and four workers in the three layouts, and by workers that do not see one another and vote; and how much of it is
// done after so many steps.
//
//   npx hogwild experiment examples/experiments/graph.mjs

const ITEMS = 12
const LISTS = 24
/** Chance of an operand to be the result of an earlier item. */
const REFERENCES = 0.35
const SEED = 2026

/** mulberry32: uniform in [0, 1), the same on every machine. */
function random(seed) {
  let state = seed
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}

const label = (number) => String.fromCharCode(65 + number)

function compute(left, operator, right) {
  if (operator === '*') return (left * right) % 10
  return (left + (operator === '+' ? right : 10 - right)) % 10
}

/** Other seeds give other lists; training had seeds of its own. */
export function makeLists(seed, count) {
  const next = random(seed)
  return Array.from({ length: count }, (_, id) => makeList(next, String(id)))
}

/**
 * A list with its results and what it takes. `work`: tokens of all lines, without waits. `path`: the critical path, steps that
 * any number of workers need: a value is written one step after the result that it copies, at the earliest, and
 * whatever stands before it in a line may have been written before.
 */
function makeList(next, id) {
  const below = (count) => Math.floor(next() * count)
  /** Of the items so far: its result, and the step in which that is written at the earliest. */
  const items = []
  let list = ''
  let work = 0
  const makeOperand = () => {
    if (items.length === 0 || next() >= REFERENCES) {
      const value = below(10)
      return { text: value, value }
    }
    const item = below(items.length)
    return { text: label(item).toLowerCase(), value: items[item].result, after: items[item].step }
  }
  while (items.length < ITEMS) {
    const [left, operator, right] = [makeOperand(), '+-*'[below(3)], makeOperand()]
    list += `${label(items.length)}:${left.text}${operator}${right.text}\n`
    let step = 2 // of the colon, behind name and label
    const write = ({ after }) => {
      step++
      if (after !== undefined) step = Math.max(step, after) + 1
    }
    write(left)
    step++
    write(right)
    items.push({ result: compute(left.value, operator, right.value), step: step + 2 })
    work += 8 + (left.after !== undefined) + (right.after !== undefined)
  }
  const path = 1 + Math.max(...items.map(({ step }) => step))
  return { id, list, answer: items.map(({ result }) => result), work, path }
}

/** The results that a worker's text has for an item. */
export function resultsOf(text, item) {
  return [...text.matchAll(/([A-L]):[^=A-Z]*=(\d)/g)].flatMap(([, of, digit]) =>
    of === label(item) ? [digit] : [],
  )
}

/** Steps that so many workers need at least. Each writes its name and a full stop when nothing is left. */
export const idealSteps = ({ work, path }, workers) => Math.max(work / workers, path) + 2

/** The digit that most have written for an item; among equally many, the first. */
function vote(digits) {
  const count = (digit) => digits.filter((other) => other === digit).length
  const most = Math.max(...digits.map(count))
  return digits.find((digit) => count(digit) === most)
}

/**
 * The share of items with the right result, by vote where several have one. Metrics: shares of items that have a result and
 * that have several; waits and yields of all workers; and of runs that are over and have all results, the
 * ideal number of steps by the number taken.
 */
function grade({ texts, steps }, list, answer) {
  const ofWorkers = Object.values(texts)
  const digits = answer.map((_, i) => ofWorkers.flatMap((text) => resultsOf(text, i)))
  const all = ofWorkers.join('')
  const count = (sign) => all.split(sign).length - 1
  const done = digits.filter(({ length }) => length > 0).length / ITEMS
  const workers = ofWorkers.length
  const isOver = count('.') === workers
  return {
    score: digits.filter((given, i) => vote(given) === String(answer[i])).length / ITEMS,
    metrics: {
      done,
      twice: digits.filter(({ length }) => length > 1).length / ITEMS,
      ...{ waits: count('_'), yields: count('~') },
      ...(done === 1 && isOver && { ofIdeal: idealSteps(list, workers) / steps }),
    },
  }
}

export default {
  name: 'graph',
  data: { items: makeLists(SEED, LISTS) },
  prompt: '<s>{{list}}',
  grader: grade,
  // In f32 all SIMD levels compute the same to f32's accuracy.
  models: [{ model: '../../models/graph', dtype: 'f32' }],
  schemes: ['plain'],
  // A turn is a line.
  plain: { opening: '{{worker}}', turnEnds: ['Alice', 'Bob', 'Carol', 'Dave'] },
  layouts: ['contiguous', 'combined', 'interleaved'],
  workers: [1, 2, 4],
  share: [true, false],
  budgets: [10, 20, 30, 40, 60, 80, 100, 120],
}

// The demo model's task as an experiment: lists of 8 words that stand backwards, written the right way round by one, two and
// four workers, with and without each other's text in sight; and how much of it is done after so many steps.
//
//   npx hogwild experiment examples/experiments/demo.mjs

import { readFileSync } from 'node:fs'

const LABELS = 'ABCDEFGHIJKLMNOP'
const WORDS_OF_A_LIST = 8
const LISTS = 12

/** Real words, none of which the model was trained on; each is in one list. */
const words = JSON.parse(
  readFileSync(new URL('../../models/demo/eval-words.json', import.meta.url), 'utf8'),
)
const items = Array.from({ length: LISTS }, (_, list) => {
  // Neighbours in the file are alike.
  const answer = Array.from({ length: WORDS_OF_A_LIST }, (_, i) => words[LISTS * i + list])
  const lines = answer.map((word, i) => `${LABELS[i]}:${[...word].reverse().join('')}\n`)
  return { id: answer.join(' '), list: lines.join(''), answer }
})

/** The share of words whose first answer is right; how many were answered more than once. An answer ends with the next name or a full stop. */
function grade({ texts }, _item, words) {
  const answers = new Map(words.map((_, i) => [LABELS[i], []]))
  for (const text of Object.values(texts)) {
    for (const [, label, answer] of text.matchAll(/([A-P])=([a-z]+)(?=[A-Z.])/g)) {
      answers.get(label)?.push(answer)
    }
  }
  const given = [...answers.values()]
  return {
    score: given.filter(([first], i) => first === words[i]).length / words.length,
    metrics: { twice: given.filter(({ length }) => length > 1).length },
  }
}

export default {
  name: 'demo',
  data: { items },
  prompt: '<s>{{list}}',
  grader: grade,
  // In f32 all SIMD levels compute the same to f32's accuracy.
  models: [{ model: '../../models/demo', dtype: 'f32' }],
  schemes: ['plain'],
  plain: { opening: '{{worker}}' },
  layouts: ['contiguous'],
  workers: [1, 2, 4],
  share: [true, false],
  budgets: [5, 10, 15, 20, 30, 40, 50, 60, 80],
}

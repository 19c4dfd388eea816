// Evaluators of known benchmarks, against cases worked out by hand.

import { memoryItems } from '../lib/experiment/generators/memory'
import { needlesItems } from '../lib/experiment/generators/needles'
import { apportion, superpositionItems } from '../lib/experiment/generators/superposition'
import { largestClique } from '../lib/experiment/graders/clique'
import { createGrader } from '../lib/experiment/graders/graders'
import { matchPairs } from '../lib/experiment/graders/matching'
import { memory } from '../lib/experiment/graders/memory'
import { idsIn, retrieval, subspan } from '../lib/experiment/graders/retrieval'
import { divergence, superposition } from '../lib/experiment/graders/superposition'
import {
  chainScore,
  expectedWorkflow,
  graphScore,
  parseWorkflow,
  type Workflow,
  wordOverlap,
} from '../lib/experiment/graders/workflows'
import { Random } from './fixtures'

/** Nodes are letters; an edge is two of them, which stand for their first places. */
function workflow(nodes: string, edges = ''): Workflow {
  const pairs = edges === '' ? [] : edges.split(' ')
  return {
    nodes: [...nodes],
    edges: pairs.map(([from = '', to = '']) => [nodes.indexOf(from), nodes.indexOf(to)] as const),
  }
}

const DIAMOND = 'ab ac bd cd'

/** `common`: how many nodes count. */
const grade = (common: number, given: number, expected: number) => ({
  score: (2 * common) / (given + expected),
  metrics: { precision: given === 0 ? 0 : common / given, recall: common / expected },
})

describe('WorfEval', () => {
  test.each([
    ['abc', 'abc', 'ab bc', 3],
    ['acb', 'abc', 'ab bc', 2],
    ['cba', 'abc', 'ab bc', 1],
    ['ab', 'abc', 'ab bc', 2],
    ['abcd', 'abc', 'ab bc', 3],
    ['xyz', 'abc', 'ab bc', 0],
    ['', 'abc', 'ab bc', 0],
    // Without edges any order is right.
    ['cba', 'abc', '', 3],
    ['abcd', 'abcd', DIAMOND, 4],
    ['acbd', 'abcd', DIAMOND, 4],
    ['dabc', 'abcd', DIAMOND, 3],
    // b before a and d before c are wrong: one of each two.
    ['badc', 'abcd', DIAMOND, 2],
    // No edge, but a path leads from a to c.
    ['ca', 'abc', 'ab bc', 1],
    ['aab', 'ab', 'ab', 2],
    ['abab', 'ab', 'ab', 2],
    ['bca', 'abc', 'ab', 2],
    ['bac', 'abc', 'ac bc', 3],
    ['cdab', 'abcd', 'ab cd', 4],
    ['dcba', 'abcd', 'ab cd', 2],
    ['hgfedcba', 'abcdefgh', 'ab bc cd de ef fg gh', 1],
    ['bacdfe', 'abcdef', 'ab bc cd de ef', 4],
  ])('chain %s against %s with %s: %d nodes', (given, nodes, edges, common) => {
    expect(chainScore(workflow(given), workflow(nodes, edges))).toEqual(
      grade(common, given.length, nodes.length),
    )
  })

  test('chains with a node twice: those at like places belong together', () => {
    const twice: Workflow = {
      nodes: ['a', 'b', 'a'],
      edges: [
        [0, 1],
        [1, 2],
      ],
    }
    expect(chainScore(workflow('aba'), twice)).toEqual(grade(3, 3, 3))
  })

  test.each([
    ['abc', 'ab bc', 'abc', 'ab bc', 3],
    ['abc', 'ab bc', 'abc', 'ab', 2],
    ['abc', '', 'abc', '', 3],
    ['abc', 'cb ba', 'abc', 'ab bc', 2],
    ['abcd', DIAMOND, 'abcd', DIAMOND, 4],
    // Alike are ab, cd, and that nothing joins a and d.
    ['abcd', DIAMOND, 'abcd', 'ab bc cd', 2],
    ['ab', 'ab', 'abc', 'ab bc', 2],
    ['abcd', 'ab bc', 'abc', 'ab bc', 3],
    ['xyz', 'xy', 'abc', 'ab', 0],
    ['', '', 'abc', 'ab', 0],
    ['a', '', 'abc', 'ab bc', 1],
    ['abcd', 'ab ac ad', 'abcd', 'ab ac ad', 4],
    ['abcd', 'ab ac ad', 'abcd', 'ba ca da', 3],
    ['abc', 'ab bc ac', 'abc', 'ab bc', 2],
    ['abcd', 'ab cd', 'abcd', 'ab cd', 4],
    ['abcd', 'ab cd', 'abcd', 'ab bc cd', 3],
    ['ab', 'ab ba', 'ab', 'ab', 1],
    ['abcd', 'ab cb cd', 'abcd', 'ab bc cd', 3],
    ['abcde', 'ab ac bd', 'abcde', 'ab ac bd be', 4],
    // The second a is in no pair.
    ['aab', 'ab', 'ab', 'ab', 2],
    ['dcba', 'ab bc cd', 'abcd', 'ab bc cd', 4],
  ])('graph %s with %s against %s with %s: %d nodes', (given, has, nodes, edges, common) => {
    expect(graphScore(workflow(given, has), workflow(nodes, edges))).toEqual(
      grade(common, given.length, nodes.length),
    )
  })

  test.each([
    ['boil water', 'boil water', 1],
    ['boil the water', 'boil water', 4 / 5],
    ['Boil, the WATER!', 'boil water', 4 / 5],
    ['boil boil', 'boil', 2 / 3],
    ['boil', 'cut', 0],
    ['', '', 1],
    ['', 'cut', 0],
  ])('words that %j and %j share', (one, other, overlap) => {
    expect(wordOverlap(one, other)).toBe(overlap)
  })

  const TEXT =
    'Node:\n1: boil the water\n2. cut the onions\n 3 : cook\nEdges: (START,1) (START, 2) (1,3) ( 2 , 3 ) (3,END) (3,9)'

  test('texts and expected workflows', async () => {
    const parsed: Workflow = {
      nodes: ['boil the water', 'cut the onions', 'cook'],
      edges: [
        [0, 2],
        [1, 2],
      ],
    }
    expect(parseWorkflow(TEXT)).toEqual(parsed)
    expect(parseWorkflow('no workflow (1, 2)')).toEqual({ nodes: [], edges: [] })
    expect(expectedWorkflow(TEXT)).toEqual(parsed)
    expect(expectedWorkflow({ ...parsed })).toEqual(parsed)
    for (const wrong of ['none', {}, { nodes: [] }, { nodes: ['a'], edges: [[0, 1]] }, 3]) {
      expect(() => expectedWorkflow(wrong)).toThrow()
    }
    const answer = '1: cut onions\n2: boil water\n3: eat\n(1,3)'
    const outcome = { answer, texts: {}, early: false, steps: 1, tokens: 1 }
    const graded = (type: string) => createGrader(type, 'grader')(outcome, {}, TEXT)
    expect(await graded('worf-chain')).toEqual(grade(2, 3, 3))
    // Nothing joins onions and water in either.
    expect(await graded('worf-graph')).toEqual(grade(2, 3, 3))
    const strict = createGrader({ type: 'worf-chain', threshold: 0.8 }, 'grader')
    expect(await strict(outcome, {}, TEXT)).toEqual(grade(0, 3, 3))
  })

  test('cliques and matchings are the largest, against all that there are', () => {
    const random = new Random(5)
    for (let round = 0; round < 40; round++) {
      const size = 1 + (round % 8)
      const weights = Array.from({ length: size }, () =>
        Array.from({ length: 1 + ((round * 3) % 7) }, () =>
          random.next() < 0.4 ? 0 : random.next(),
        ),
      )
      const columns = matchPairs(weights)
      const used = columns.filter((column) => column !== undefined)
      expect(new Set(used).size).toBe(used.length)
      const sum = columns.reduce<number>(
        (s, c, i) => s + (c === undefined ? 0 : weights[i]![c]!),
        0,
      )
      expect(sum).toBeCloseTo(heaviest(weights, 0, new Set()), 12)
      const edges = new Set<string>()
      for (let a = 0; a < size; a++) {
        for (let b = 0; b < a; b++) if (random.next() < 0.6) edges.add(`${b} ${a}`)
      }
      const adjacent = (a: number, b: number) => edges.has(`${Math.min(a, b)} ${Math.max(a, b)}`)
      expect(largestClique(size, adjacent)).toBe(largestOf(size, adjacent))
    }
  })
})

function heaviest(weights: number[][], row: number, used: Set<number>): number {
  if (row === weights.length) return 0
  let best = heaviest(weights, row + 1, used)
  for (const [column, weight] of weights[row]!.entries()) {
    if (used.has(column)) continue
    best = Math.max(best, weight + heaviest(weights, row + 1, new Set([...used, column])))
  }
  return best
}

function largestOf(size: number, adjacent: (a: number, b: number) => boolean): number {
  let best = 0
  for (let set = 0; set < 2 ** size; set++) {
    const nodes = Array.from({ length: size }, (_, i) => i).filter((i) => (set >> i) & 1)
    if (nodes.every((a) => nodes.every((b) => a === b || adjacent(a, b)))) {
      best = Math.max(best, nodes.length)
    }
  }
  return best
}

describe('LOFT', () => {
  test.each([
    ["Final Answer: ['12', '7']", ['12', '7']],
    ['[3]', ['3']],
    ['3, 4\n5', ['3', '4', '5']],
    ['[1] no: ["2", "2", 3]', ['2', '3']],
    ['[]', []],
    ['', []],
  ])('ids in %j', (answer, ids) => {
    expect(idsIn(answer)).toEqual(ids)
  })

  test.each([
    ['[5]', ['5'], undefined, 1, 1],
    ['[5]', 5, undefined, 1, 1],
    ['[4]', ['5'], undefined, 0, 0],
    // As many as are expected count: the second is too late.
    ['[4, 5]', ['5'], undefined, 0, 0],
    ['[4, 5]', ['5'], 2, 1, 1],
    ['[1, 2, 3]', ['1', '2', '3'], undefined, 1, 1],
    ['[3, 1, 2]', ['1', '2', '3'], undefined, 1, 1],
    ['[1, 9, 3]', ['1', '2', '3'], undefined, 2 / 3, 0],
    ['[1]', ['1', '2', '3'], undefined, 1 / 3, 0],
    ['[1, 9]', ['1', '2', '3'], 1, 1, 1],
    ['[9, 1]', ['1', '2', '3'], 1, 0, 0],
    ['[1, 2, 9, 3]', ['1', '2', '3'], 5, 1, 1],
    ['[1, 1, 2]', ['1', '2'], undefined, 1, 1],
    [undefined, ['1'], undefined, 0, 0],
  ])('retrieval: %j, expected %j, k %j', (answer, expected, k, score, mrecall) => {
    expect(retrieval(answer, expected, k)).toEqual({ score, metrics: { mrecall } })
  })

  test.each([
    ['Paris', 'Paris', true, 1],
    ['the city of Paris.', 'Paris', true, 0],
    ['The Eiffel Tower!', 'eiffel tower', true, 1],
    ['a  tower', 'An tower', true, 1],
    ['Lyon', 'Paris', false, 0],
    ['Lyon', ['Paris', 'Lyon'], true, 1],
    ['number 4711, I think', 4711, true, 0],
    ['', 'Paris', false, 0],
    [undefined, 'Paris', false, 0],
    ['theatre', 'atre', true, 0],
  ])('subspan: %j, expected %j', (answer, expected, score, exact) => {
    expect(subspan(answer, expected)).toEqual({ score, metrics: { exact } })
  })

  test('nothing that could be expected', () => {
    expect(() => retrieval('1', [])).toThrow('at least one id')
    expect(() => subspan('1', 'the')).toThrow('a text')
  })

  test('needles stand where they should, once', () => {
    const options = { count: 2, seed: 4, documents: [1, 11, 300], depths: [0, 0.5, 1] }
    const items = needlesItems(options)
    expect(needlesItems(options)).toEqual(items)
    expect(items.map(({ ids }) => Number(ids[0]))).toEqual(
      [0, 0, 0, 0, 5, 10, 0, 150, 299].flatMap((at) => [at, at]),
    )
    for (const { corpus, question, answer, ids, documents } of items) {
      const lines = corpus.split('\n')
      expect(lines).toHaveLength(documents)
      const [, subject = ''] = /number is (.*) kept/.exec(question) ?? []
      const about = lines.filter((line) =>
        line.toLowerCase().includes(`${subject.toLowerCase()} is`),
      )
      expect(about).toEqual([
        `ID: ${ids[0]} | ${subject.replace('the', 'The')} is kept under number ${answer}.`,
      ])
    }
  })
})

describe('conversations', () => {
  test.each([
    ['blue', ['blue'], 1, 1],
    ['Blue ', ['blue'], 1, 1],
    ['red', ['blue'], 0, 0],
    ['blue; 12', ['blue', '12'], 1, 1],
    ['blue; 13', ['blue', '12'], 1 / 2, 0],
    ['12; blue', ['blue', '12'], 0, 0],
    ['blue', ['blue', '12'], 1 / 2, 0],
    ['blue; 12; 3', ['blue', '12'], 2 / 3, 0],
    ['milk, tea', [['milk', 'tea']], 1, 1],
    ['tea,  Milk', [['milk', 'tea']], 1, 1],
    ['tea', [['milk', 'tea']], 2 / 3, 0],
    ['tea, salt', [['milk', 'tea']], 1 / 2, 0],
    ['tea, milk, salt', [['milk', 'tea']], 4 / 5, 0],
    ['tea, tea', [['tea']], 1, 1],
    ['', [[]], 1, 1],
    ['milk', [[]], 0, 0],
    ['blue; milk; 12', ['blue', ['milk', 'tea'], '12'], 8 / 9, 0],
    ['blue; milk, tea; 12', ['blue', ['milk', 'tea'], '12'], 1, 1],
    ['; ; ', ['blue', ['milk'], '12'], 0, 0],
    [undefined, ['blue', '12'], 0, 0],
  ])('%j, expected %j', (answer, expected, score, whole) => {
    const graded = memory(answer, expected) as { score: number; metrics: object }
    expect(graded.score).toBeCloseTo(score, 15)
    expect(graded.metrics).toEqual({ whole })
  })

  test.each([['blue'], [[]], [undefined]])('refused: %j', (expected) => {
    expect(() => memory('blue', expected)).toThrow('for each task')
  })

  test('what is told comes to the answer, whichever half comes late', () => {
    const options = { count: 30, seed: 2, messages: 6, every: 10 }
    const items = memoryItems(options)
    expect(memoryItems(options)).toEqual(items)
    for (const { before, late, answer } of items) {
      const told = [
        ...before.split('\n'),
        ...late.map(({ text }) => text.replace('\n\nUser: ', '')),
      ]
      expect([told.length, late.map(({ step }) => step)]).toEqual([
        18,
        [10, 20, 30, 40, 50, 60, 70, 80, 90],
      ])
      const list = new Set<string>()
      let [colour, miles] = ['', 0]
      for (const text of told) {
        colour = /colour is (\w+)/.exec(text)?.[1] ?? colour
        miles += Number(/(\d) miles/.exec(text)?.[1] ?? 0)
        const [, verb, thing = ''] = /Please (put|take) (\w+)/.exec(text) ?? []
        if (verb === 'put') list.add(thing)
        if (verb === 'take') expect(list.delete(thing)).toBe(true)
      }
      expect(memory(`${colour}; ${[...list].join(', ')}; ${miles}`, answer)).toMatchObject({
        score: 1,
      })
    }
    const atOnce = memoryItems({ ...options, every: 0 })
    expect(atOnce.every(({ late }) => late.length === 0)).toBe(true)
  })
})

describe('task superposition', () => {
  const ANSWERS = { copy: 'level', reverse: 'level', upper: 'LEVEL', length: '5' }
  test.each([
    ['LEVEL', ANSWERS, true, [0, 0, 1, 0]],
    [' 5\n', ANSWERS, true, [0, 0, 0, 1]],
    // Two tasks have the same answer.
    ['level', ANSWERS, true, [0.5, 0.5, 0, 0]],
    ['Level', ANSWERS, false, [0, 0, 0, 0]],
    ['', ANSWERS, false, [0, 0, 0, 0]],
    [undefined, ANSWERS, false, [0, 0, 0, 0]],
    ['a', { one: 'a' }, true, [1]],
    ['b', { one: 'a' }, false, [0]],
    ['a', { one: 'a', two: 'a', three: 'a' }, true, [1 / 3, 1 / 3, 1 / 3]],
    ['7', { one: 7, two: '8' }, true, [1, 0]],
  ])('%j of %j', (answer, expected, score, shares) => {
    expect(superposition(answer, expected)).toEqual({
      score,
      metrics: Object.fromEntries(Object.keys(expected).map((task, i) => [task, shares[i]])),
    })
  })

  type Shares = Record<string, number>
  test.each<[Shares, Shares, number]>([
    [{ a: 1, b: 1 }, { a: 1, b: 1 }, 0],
    [{ a: 1, b: 1 }, { a: 0.1, b: 0.1 }, 0],
    [{ a: 1, b: 1 }, { a: 3, b: 1 }, 0.5 * Math.log(4 / 3)],
    [{ a: 1 }, { a: 1, b: 1 }, Math.log(2)],
    [{ a: 1, b: 0 }, { a: 1, b: 3 }, Math.log(4)],
    [{ a: 1, b: 1 }, { a: 1 }, Number.POSITIVE_INFINITY],
  ])('divergence of %j and %j', (mixture, shares, nats) => {
    expect(divergence(mixture, shares)).toBeCloseTo(nats, 12)
  })

  test.each<Shares>([{}, { a: 0 }, { a: -1, b: 2 }, { a: Number.NaN }])(
    'no distribution: %j',
    (shares) => {
      expect(() => divergence({ a: 1 }, shares)).toThrow('expected shares')
    },
  )

  test.each([
    [[1, 1], 10, [5, 5]],
    [[1, 1], 5, [3, 2]],
    [[3, 1], 8, [6, 2]],
    [[1, 2, 4], 10, [1, 3, 6]],
    [[1, 1, 1], 2, [1, 1, 0]],
    [[0.2], 3, [3]],
  ])('%j of %d examples', (weights, total, counts) => {
    expect(apportion(weights, total)).toEqual(counts)
  })

  test('prompts mix the tasks as they should', () => {
    const mixture = { copy: 1, reverse: 2, upper: 1, length: 1 } as const
    const items = superpositionItems({ count: 20, seed: 1, examples: 10, mixture })
    const outputs: Record<string, (word: string) => string> = {
      copy: (word) => word,
      reverse: (word) => word.split('').reverse().join(''),
      upper: (word) => word.toUpperCase(),
      length: (word) => `${word.length}`,
    }
    for (const { examples, query, answer } of items) {
      const pairs = examples.split('\n').map((line) => line.split(' -> ') as [string, string])
      expect(pairs).toHaveLength(10)
      expect(pairs.some(([word]) => word === query)).toBe(false)
      for (const [task, share] of Object.entries({ copy: 2, reverse: 4, upper: 2, length: 2 })) {
        const own = pairs.filter(([word, output]) => outputs[task]!(word) === output)
        expect(own).toHaveLength(share)
        expect(answer[task]).toBe(outputs[task]!(query))
      }
    }
  })
})

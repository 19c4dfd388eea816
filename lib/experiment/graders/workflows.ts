// Workflows against expected ones, as WorfEval has it (arXiv 2410.07869): nodes are matched by what they say, then
// chains are compared by the longest common subsequence with any order that the expected graph allows, and graphs by their
// maximum common induced subgraph. Both searches are exact. START and END are no nodes here.
//
// What is published beside the paper compares graphs by connected components of common edges, and looks at 20 orders at most.

import { checkArray, checkInteger, checkObject, checkString } from '../../validate'
import type { Grade } from '../item'
import { unsuitable } from './answers'
import { largestClique } from './clique'
import { matchPairs } from './matching'

export interface Workflow {
  /** What is to be done, in the order of the text. */
  nodes: readonly string[]
  /** Indices of nodes: the first comes before the second. */
  edges: readonly (readonly [number, number])[]
}

/** How alike two nodes are, in [0, 1]. */
export type Similarity = (one: string, other: string) => number

/** Similarities above this one match, as in the paper. */
export const DEFAULT_THRESHOLD = 0.6

/**
 * A workflow in a text: lines such as "2: boil the water" (or "2."), then edges such as (START,1) (1,2) (2,END). Edges of START
 * and END, and of numbers that no line has, are left out.
 */
export function parseWorkflow(text: string): Workflow {
  const lines = [...text.matchAll(/^[ \t]*(\d+)[ \t]*[:.][ \t]*(\S.*?)[ \t]*$/gm)]
  const index = new Map(lines.map(([, number = ''], i) => [number, i]))
  const edges = [...text.matchAll(/\(\s*(\d+)\s*,\s*(\d+)\s*\)/g)].flatMap(([, from, to]) => {
    const [begin, end] = [index.get(from as string), index.get(to as string)]
    return begin === undefined || end === undefined ? [] : [[begin, end] as const]
  })
  return { nodes: lines.map(([, , node = '']) => node), edges }
}

/** The expected workflow: a text, or an object with nodes and edges. Throws HOGWILD_INVALID_ARGUMENT. */
export function expectedWorkflow(expected: unknown): Workflow {
  if (typeof expected === 'string') return nonEmpty(parseWorkflow(expected))
  const { nodes, edges } = checkObject(expected, 'the expected workflow')
  const names = checkArray(nodes, 'nodes').map((node, i) => checkString(node, `nodes[${i}]`))
  return nonEmpty({
    nodes: names,
    edges: checkArray(edges ?? [], 'edges').map((edge, i) => {
      const [from, to] = checkArray(edge, `edges[${i}]`)
      const last = names.length - 1
      return [
        checkInteger(from, `edges[${i}][0]`, 0, last),
        checkInteger(to, `edges[${i}][1]`, 0, last),
      ] as const
    }),
  })
}

function nonEmpty(workflow: Workflow): Workflow {
  if (workflow.nodes.length > 0) return workflow
  throw unsuitable('a workflow of at least one node', workflow)
}

/** Dice's coefficient of the words of two texts, each as often as it stands there: 2 |common| / (|one| + |other|). */
export function wordOverlap(one: string, other: string): number {
  const [words, rest] = [wordsOf(one), wordsOf(other)]
  const all = words.length + rest.length
  let common = 0
  for (const word of words) {
    const place = rest.indexOf(word)
    if (place < 0) continue
    rest.splice(place, 1)
    common++
  }
  return all === 0 ? 1 : (2 * common) / all
}

function wordsOf(text: string): string[] {
  return text.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? []
}

export interface WorkflowOptions {
  threshold?: number | undefined
  similarity?: Similarity | undefined
}

interface Pair {
  given: number
  expected: number
}

/** Among nodes that are equally alike, those at like places belong together. Far below what similarities differ by. */
const PLACE_WEIGHT = 1e-9

/** Matched nodes, in the order of the given ones. */
function matchNodes(
  given: Workflow,
  expected: Workflow,
  { threshold = DEFAULT_THRESHOLD, similarity = wordOverlap }: WorkflowOptions,
): Pair[] {
  const longest = Math.max(given.nodes.length, expected.nodes.length)
  const weights = given.nodes.map((node, i) =>
    expected.nodes.map((other, j) => {
      const weight = similarity(node, other)
      const place = 1 - Math.abs(i - j) / longest
      return weight > threshold ? weight + PLACE_WEIGHT * place : 0
    }),
  )
  return matchPairs(weights).flatMap((column, row) =>
    column === undefined ? [] : [{ given: row, expected: column }],
  )
}

/** F1 of the node chain: how many nodes stand in an order that the expected graph allows. */
export function chainScore(
  given: Workflow,
  expected: Workflow,
  options: WorkflowOptions = {},
): Grade {
  const pairs = matchNodes(given, expected, options)
  const isBefore = reachability(expected)
  // A chain is part of some topological order if no later node comes before an earlier one.
  const fits = (earlier: Pair, later: Pair) => !isBefore(later.expected, earlier.expected)
  const size = largestClique(pairs.length, (a, b) =>
    fits(pairs[Math.min(a, b)] as Pair, pairs[Math.max(a, b)] as Pair),
  )
  return f1(size, given, expected)
}

/** F1 of the maximum common induced subgraph: of matched nodes with the same edges among them in both graphs. */
export function graphScore(
  given: Workflow,
  expected: Workflow,
  options: WorkflowOptions = {},
): Grade {
  const pairs = matchNodes(given, expected, options)
  const [hasGiven, hasExpected] = [edgeTest(given), edgeTest(expected)]
  const same = (one: Pair, other: Pair) =>
    hasGiven(one.given, other.given) === hasExpected(one.expected, other.expected)
  const size = largestClique(pairs.length, (a, b) => {
    const [one, other] = [pairs[a] as Pair, pairs[b] as Pair]
    return same(one, other) && same(other, one)
  })
  return f1(size, given, expected)
}

function f1(common: number, given: Workflow, expected: Workflow): Grade {
  const [all, wanted] = [given.nodes.length, expected.nodes.length]
  const precision = all === 0 ? 0 : common / all
  return {
    score: (2 * common) / (all + wanted),
    metrics: { precision, recall: common / wanted },
  }
}

function edgeTest({ edges }: Workflow): (from: number, to: number) => boolean {
  const known = new Set(edges.map(([from, to]) => `${from} ${to}`))
  return (from, to) => known.has(`${from} ${to}`)
}

/** Whether a path leads from one node to another. */
function reachability({ nodes, edges }: Workflow): (from: number, to: number) => boolean {
  const reached = nodes.map((_, begin) => {
    const seen = new Set<number>()
    const open = [begin]
    for (let node = open.pop(); node !== undefined; node = open.pop()) {
      for (const [from, to] of edges) {
        if (from !== node || seen.has(to)) continue
        seen.add(to)
        open.push(to)
      }
    }
    return seen
  })
  return (from, to) => reached[from]?.has(to) ?? false
}

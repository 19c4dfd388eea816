// The demo's job, as its model was trained on it (train/task.py): K words stand backwards in the
// prompt, the workers give back each word, together, each word once.
//
//   prompt   <s>A:ynam\nB:sdnah\n…           one item: label ':' letters '\n'
//   block    Alice A=many Alice E=work …     what one worker writes; no spaces between the tokens
//
// A line is the worker's own name (one token), the label it claims, '=' and the answer; the next name
// ends it. '~' instead of '=' gives the claim back, '.' ends the block, '#' is appended by whoever
// takes a worker away.

import { HogwildError } from '../../errors'

export const WORKER_NAMES = ['Alice', 'Bob', 'Carol', 'Dave'] as const
export const MAX_WORDS = 16
export const MAX_LETTERS = 9
export const YIELD = '~'
export const HALT = '.'
export const TAKEN_AWAY = '#'
export const LABELS: readonly string[] = [...'ABCDEFGHIJKLMNOP']

export interface DemoTask {
  /** The words as they are to be written, in the order of the list. */
  readonly words: readonly string[]
  /** The label of each word. */
  readonly labels: readonly string[]
  readonly prompt: string
}

/** A token in a worker's block and the step in which it was an input. */
export interface WrittenToken {
  readonly text: string
  readonly step: number
}

export type Blocks = ReadonlyMap<string, readonly WrittenToken[]>

/** One line of a worker's block. */
export interface Line {
  /** Undefined before the worker has claimed anything. */
  readonly label: string | undefined
  readonly claimedAt: number
  /** Undefined before the '='. */
  readonly answer: string | undefined
  /** 'answered' only when the next name closed the line: until then the answer may go on. */
  readonly state: 'open' | 'answered' | 'yielded' | 'halted' | 'taken away'
  /** Step of the line's last token, without the name that ends it. */
  readonly lastStep: number
}

export interface Score {
  readonly items: number
  /** Steps until every item had its first answer; undefined if some item has none. */
  readonly answeredIn: number | undefined
  /** Steps until every worker had halted. */
  readonly steps: number
  readonly tokens: number
  readonly yields: number
  /** Items that were answered more than once. */
  readonly twice: number
  /** Items without an answer. */
  readonly undone: number
  /** Items whose first answer is right. */
  readonly right: number
}

/**
 * The words of a sentence, lower case and without punctuation.
 *
 * @throws HogwildError HOGWILD_INVALID_ARGUMENT for what the model does not know: no word, more than
 *   16 words, a word of more than 9 letters, anything but the letters a-z.
 */
export function parseSentence(sentence: string): string[] {
  const limits = `The demo's model knows 1 to ${MAX_WORDS} words of 1 to ${MAX_LETTERS} letters a-z.`
  const words = sentence
    .toLowerCase()
    .replace(/[.,;:!?'"’‘“”()…]/g, '')
    .split(/[\s–—-]+/)
    .filter((word) => word !== '')
  if (words.length === 0 || words.length > MAX_WORDS) {
    const message = `expected a sentence of 1 to ${MAX_WORDS} words, received ${words.length}. ${limits}`
    throw new HogwildError(message, 'HOGWILD_INVALID_ARGUMENT')
  }
  for (const word of words) {
    if (!/^[a-z]+$/.test(word) || word.length > MAX_LETTERS) {
      const message = `expected words of 1 to ${MAX_LETTERS} letters a-z, received "${word}". ${limits}`
      throw new HogwildError(message, 'HOGWILD_INVALID_ARGUMENT')
    }
  }
  return words
}

export function createTask(words: readonly string[], labels?: readonly string[]): DemoTask {
  const named = labels ?? LABELS.slice(0, words.length)
  const items = words.map((word, index) => `${named[index]}:${reversed(word)}\n`)
  return { words, labels: named, prompt: `<s>${items.join('')}` }
}

export function reversed(word: string): string {
  return [...word].reverse().join('')
}

/** The lines of one worker's block. */
export function readLines(name: string, block: readonly WrittenToken[]): Line[] {
  const lines: Line[] = []
  let line: { -readonly [Key in keyof Line]: Line[Key] } | undefined
  for (const { text, step } of block) {
    if (text === name || line === undefined) {
      if (line?.state === 'open' && line.answer !== undefined) line.state = 'answered'
      line = { label: undefined, claimedAt: -1, answer: undefined, state: 'open', lastStep: step }
      lines.push(line)
      continue
    }
    line.lastStep = step
    if (text === YIELD) line.state = 'yielded'
    else if (text === HALT) line.state = 'halted'
    else if (text === TAKEN_AWAY) line.state = 'taken away'
    else if (line.label === undefined) {
      line.label = text
      line.claimedAt = step
    } else if (text === '=') line.answer = ''
    else line.answer = (line.answer ?? '') + text
  }
  return lines
}

/** The first worker whose claim on the line's item came before it, or with it. */
export function holderOf(line: Line, name: string, blocks: Blocks): string | undefined {
  for (const [other, block] of blocks) {
    if (other === name) continue
    const holds = readLines(other, block).some(
      (held) =>
        held.label === line.label &&
        held.claimedAt <= line.claimedAt &&
        (held.state === 'open' || held.state === 'answered'),
    )
    if (holds) return other
  }
  return undefined
}

/** The first answer to each item, by label, and how many there were. */
export function readAnswers(
  blocks: Blocks,
): Map<string, { name: string; answer: string; step: number; count: number }> {
  const answers = [...blocks].flatMap(([name, block]) =>
    readLines(name, block)
      .filter((line) => line.state === 'answered')
      .map(({ label = '', answer = '', lastStep }) => ({ label, name, answer, step: lastStep })),
  )
  answers.sort((one, other) => one.step - other.step)
  const first = new Map<string, { name: string; answer: string; step: number; count: number }>()
  for (const { label, ...answer } of answers) {
    const known = first.get(label)
    if (known) known.count += 1
    else first.set(label, { ...answer, count: 1 })
  }
  return first
}

export function score(task: DemoTask, blocks: Blocks): Score {
  const answers = readAnswers(blocks)
  const written = [...blocks.values()].flat()
  const done = task.labels.flatMap((label, index) => {
    const answer = answers.get(label)
    return answer ? [{ ...answer, right: answer.answer === task.words[index] }] : []
  })
  const complete = done.length === task.labels.length
  return {
    items: task.labels.length,
    answeredIn: complete ? 1 + Math.max(...done.map((answer) => answer.step)) : undefined,
    steps: 1 + Math.max(-1, ...written.map((token) => token.step)),
    tokens: written.length,
    yields: written.filter((token) => token.text === YIELD).length,
    twice: done.filter((answer) => answer.count > 1).length,
    undone: task.labels.length - done.length,
    right: done.filter((answer) => answer.right).length,
  }
}

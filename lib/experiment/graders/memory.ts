// What is remembered of a conversation in which several things go on at once (arXiv 2409.20222): one part of the answer for
// each of them.

import type { Grade } from '../item'
import { exact, expectedText, unsuitable } from './answers'

/**
 * Parts of the answer stand between semicolons, in the order of the expected ones. A text is right or wrong, upper case or
 * not; of a list, whose things stand between commas in any order, F1 counts. The score is the mean over the parts; more parts than expected count as wrong ones.
 */
export function memory(answer: string | undefined, expected: unknown): Grade {
  if (!Array.isArray(expected) || expected.length === 0) {
    throw unsuitable('a list with a text or a list of texts for each task', expected)
  }
  const parts = (answer ?? '').split(';')
  const scores = expected.map((one, i) => partScore(parts[i]?.trim() ?? '', one))
  const sum = scores.reduce((total, score) => total + score, 0)
  const whole = sum === expected.length && parts.length === expected.length
  return {
    score: sum / Math.max(parts.length, expected.length),
    metrics: { whole: whole ? 1 : 0 },
  }
}

function partScore(part: string, expected: unknown): number {
  if (!Array.isArray(expected)) return exact(part, expected, true) ? 1 : 0
  const things = (texts: readonly string[]) =>
    new Set(texts.map((text) => text.trim().toLowerCase()).filter((text) => text !== ''))
  const [given, wanted] = [things(part.split(',')), things(expected.map(expectedText))]
  if (given.size + wanted.size === 0) return 1
  const common = [...given].filter((thing) => wanted.has(thing)).length
  return (2 * common) / (given.size + wanted.size)
}

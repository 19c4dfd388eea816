// Graders of answers: exact, numeric, multiple choice, regular expression.

import { HogwildError } from '../../errors'
import type { Grade, Item, Outcome } from '../item'

/** Without white space at its ends, every run of it a space. */
function plain(text: string): string {
  return text.trim().replace(/\s+/g, ' ')
}

/** What is expected, as a text. */
export function expectedText(expected: unknown): string {
  if (typeof expected === 'string') return expected
  if (typeof expected === 'number' || typeof expected === 'boolean') return String(expected)
  throw unsuitable('a text or a number', expected)
}

export function unsuitable(expected: string, received: unknown): HogwildError {
  const json = JSON.stringify(received) ?? 'nothing'
  const message = `an item must expect ${expected}, and not ${json.slice(0, 60)}`
  return new HogwildError(message, 'HOGWILD_INVALID_ARGUMENT')
}

/** The expected text, or one of several. White space at the ends does not count, nor how much there is of it within. */
export function exact(answer: string | undefined, expected: unknown, ignoreCase = false): boolean {
  const comparable = (text: string) => (ignoreCase ? plain(text).toLowerCase() : plain(text))
  const accepted = Array.isArray(expected) ? expected.map(expectedText) : [expectedText(expected)]
  return answer !== undefined && accepted.some((text) => comparable(text) === comparable(answer))
}

const NUMBER =
  /(?:(?<![\w)])[-+])?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?/g

/**
 * The last number of a text: digits with an optional sign, fraction and exponent, groups of three between commas, or a
 * quotient of two such, as a/b or LaTeX's \frac{a}{b}. What stands before and behind it ($, units) does not count.
 */
export function lastNumber(text: string): number | undefined {
  const readable = text
    .replaceAll('\u2212', '-')
    .replace(/\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}/g, '$1/$2')
    .replace(/\{,\}/g, ',')
    .replace(/\\[,;! ]/g, '')
  const found = [...readable.matchAll(NUMBER)]
  const last = found.at(-1)
  if (last === undefined) return undefined
  const value = parseNumber(last[0])
  const before = found.at(-2)
  if (before === undefined) return value
  const between = readable.slice(before.index + before[0].length, last.index)
  return /^\s*\/\s*$/.test(between) ? parseNumber(before[0]) / value : value
}

function parseNumber(text: string): number {
  return Number(text.replaceAll(',', ''))
}

export interface NumericOptions {
  /** Difference that is no mistake, as a share of the expected number, of 1 where that is less. Default 1e-9. */
  tolerance?: number | undefined
  /** Where several numbers are expected: only all of them count, and not the share of the right ones. Default false. */
  all?: boolean | undefined
}

/**
 * The last number of the answer against the expected one, which may be a text too ("… #### 72"). Of a list of numbers, each
 * part of the answer is compared with the one at its place; parts end with a comma, a semicolon or a line. In lists,
 * commas group no digits.
 */
export function numeric(
  answer: string | undefined,
  expected: unknown,
  { tolerance = 1e-9, all = false }: NumericOptions = {},
): Grade {
  const isClose = (text: string | undefined, value: unknown) => {
    const [received, right] = [lastNumber(text ?? ''), numberOf(value)]
    return (
      received !== undefined &&
      Math.abs(received - right) <= tolerance * Math.max(1, Math.abs(right))
    )
  }
  if (!Array.isArray(expected)) return isClose(answer, expected)
  const parts = (answer ?? '').split(/[,;\n]/).filter((part) => lastNumber(part) !== undefined)
  const right = expected.filter((value, i) => isClose(parts[i], value)).length
  const isWhole = right === expected.length && parts.length === expected.length
  return all ? isWhole : right / Math.max(expected.length, parts.length, 1)
}

function numberOf(value: unknown): number {
  const number = typeof value === 'string' ? lastNumber(value) : value
  if (typeof number === 'number' && Number.isFinite(number)) return number
  throw unsuitable('a number', value)
}

/**
 * The letter of a choice: the one letter A to Z that stands alone in the answer, in whatever brackets or words, or the text
 * of a choice. `choices`: texts in the order of the letters, where they are known. Undefined where no letter, or more
 * than one, is named.
 */
export function choiceOf(answer: string, choices: readonly string[] = []): string | undefined {
  const same = choices.findIndex((choice) => exact(answer, choice, true))
  if (same >= 0) return letterOf(same)
  const standing = /(?<![\p{L}\p{N}'])[A-Z](?![\p{L}\p{N}'])/gu
  const known = (letter: string) =>
    choices.length === 0 || letter.charCodeAt(0) - 65 < choices.length
  const letters = new Set([...answer.matchAll(standing)].map(([letter]) => letter).filter(known))
  if (letters.size === 1) return [...letters][0]
  const bare = /^\W*([a-z])\W*$/.exec(answer)?.[1]?.toUpperCase()
  return letters.size === 0 && bare !== undefined && known(bare) ? bare : undefined
}

function letterOf(index: number): string {
  return String.fromCharCode(65 + index)
}

/** `expected`: a letter, the text of a choice, or its place from 0. */
export function multipleChoice(
  answer: string | undefined,
  expected: unknown,
  choices: readonly string[] = [],
): boolean {
  const right =
    typeof expected === 'number' ? letterOf(expected) : choiceOf(expectedText(expected), choices)
  if (right === undefined) {
    const known =
      choices.length === 0
        ? 'the letter of a choice, or its text where the grader\'s "choices" names the field with all texts'
        : `the letter or the text of a choice (${choices.join(', ')})`
    throw unsuitable(known, expected)
  }
  return answer !== undefined && choiceOf(answer, choices) === right
}

/**
 * Without a group in the pattern: whether it matches. With one: whether what the group of the last match holds is the expected
 * text. `of`: the answer, or all that workers have written, in worker order.
 */
export function regularExpression(
  outcome: Outcome,
  expected: unknown,
  pattern: RegExp,
  of: 'answer' | 'texts',
): boolean {
  const text = of === 'answer' ? (outcome.answer ?? '') : Object.values(outcome.texts).join('\n')
  const flags = new Set([...pattern.flags, 'g'])
  const match = [...text.matchAll(new RegExp(pattern.source, [...flags].join('')))].at(-1)
  if (match === undefined) return false
  return match.length === 1 || exact(match[1], expected)
}

/** The texts of an item's choices: a list or, since fields of CSV are texts, one text with | between them. */
export function choicesOf(item: Item, field: string): string[] {
  const choices = item[field]
  const texts = typeof choices === 'string' ? choices.split('|') : choices
  if (Array.isArray(texts) && texts.every((text) => typeof text === 'string')) return texts
  const json = JSON.stringify(choices) ?? 'nothing'
  const message = `an item must have in its field "${field}" a list of texts, or a text with | between them, and not ${json.slice(0, 60)}`
  throw new HogwildError(message, 'HOGWILD_INVALID_ARGUMENT')
}

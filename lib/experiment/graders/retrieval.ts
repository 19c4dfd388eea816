// Answers from long contexts, as LOFT measures them (arXiv 2406.13121): documents by their ids, and spans of text.

import type { Grade } from '../item'
import { expectedText, unsuitable } from './answers'

/**
 * The ids that an answer names, in its order, each once: what stands in its last brackets or, without brackets, in all of
 * it, between commas or line breaks; quotation marks and white space around an id do not count.
 */
export function idsIn(answer: string): string[] {
  const list = [...answer.matchAll(/\[([^[\]]*)\]/g)].at(-1)?.[1] ?? answer
  const ids = list.split(/[,\n]/).map((part) =>
    part
      .trim()
      .replace(/^(["'])(.*)\1$/, '$2')
      .trim(),
  )
  return [...new Set(ids.filter((id) => id !== ''))]
}

/**
 * Of the first `k` ids, the share that is expected; of more expected ones than k, k are enough. `mrecall`: 1 where none is
 * missing. `k` undefined: as many as are expected.
 */
export function retrieval(answer: string | undefined, expected: unknown, k?: number): Grade {
  const wanted = new Set((Array.isArray(expected) ? expected : [expected]).map(expectedText))
  if (wanted.size === 0) throw unsuitable('at least one id', expected)
  const first = idsIn(answer ?? '').slice(0, k ?? wanted.size)
  const found = first.filter((id) => wanted.has(id)).length
  const most = Math.min(k ?? wanted.size, wanted.size)
  return { score: found / most, metrics: { mrecall: found === most ? 1 : 0 } }
}

/** Lower case, without punctuation, English articles and superfluous white space. */
function normalised(text: string): string {
  return text
    .toLowerCase()
    .replace(/[\p{P}\p{S}]/gu, '')
    .replace(/\b(?:a|an|the)\b/g, ' ')
    .replace(/\s+/g, ' ')
    .trim()
}

/** Whether an expected text, or one of several, stands in the answer; `exact`: whether it is all of it. */
export function subspan(answer: string | undefined, expected: unknown): Grade {
  const accepted = (Array.isArray(expected) ? expected : [expected]).map((text) =>
    normalised(expectedText(text)),
  )
  if (accepted.length === 0 || accepted.includes('')) throw unsuitable('a text', expected)
  const given = normalised(answer ?? '')
  return {
    score: accepted.some((text) => given.includes(text)),
    metrics: { exact: accepted.includes(given) ? 1 : 0 },
  }
}

// Tokens that end a text, as a model folder names them.

import { join } from 'node:path'
import { checkInteger, checkObject } from '../validate'
import type { Warnings } from '../warnings'
import { optional, readJson } from './files'

/** How many ids a warning names. */
const MAX_NAMED = 10

/**
 * `eos_token_id` of generation_config.json and of config.json together, in this order; maybe none. Nothing says
 * that they are within the vocabulary: see `withinVocabulary`.
 *
 * Throws HOGWILD_INVALID_MODEL, naming the file.
 */
export async function readEosTokenIds(
  folder: string,
  options: { signal?: AbortSignal | undefined } = {},
): Promise<number[]> {
  const ids = new Set<number>()
  for (const file of ['generation_config.json', 'config.json']) {
    const path = join(folder, file)
    const json = await optional(readJson, path, options)
    if (json === undefined) continue
    const { eos_token_id } = checkObject(json, path, 'HOGWILD_INVALID_MODEL')
    for (const id of eosTokenIds(eos_token_id, path)) ids.add(id)
  }
  return [...ids]
}

/** `eos_token_id` as one file has it: an id, a list of them, or nothing. */
export function eosTokenIds(value: unknown, where: string): number[] {
  const list = Array.isArray(value) ? value : value === undefined || value === null ? [] : [value]
  return list.map((id) =>
    checkInteger(
      id,
      `"eos_token_id" of ${where}`,
      -(2 ** 31),
      2 ** 31 - 1,
      'HOGWILD_INVALID_MODEL',
    ),
  )
}

/** Those ids that a vocabulary of `vocabSize` tokens has. The others are told as HOGWILD_UNKNOWN_EOS_TOKEN. */
export function withinVocabulary(
  ids: readonly number[],
  vocabSize: number,
  warnings?: Warnings,
): number[] {
  const unknown = ids.filter((id) => id < 0 || id >= vocabSize)
  if (unknown.length > 0) {
    const named = unknown.slice(0, MAX_NAMED).join(', ')
    warnings?.warn(
      'HOGWILD_UNKNOWN_EOS_TOKEN',
      `eos_token_id ${named} is left out: the vocabulary has ${vocabSize} tokens`,
    )
  }
  return ids.filter((id) => id >= 0 && id < vocabSize)
}

// The generators that a definition may name, with the options of each.

import {
  checkArray,
  checkInteger,
  checkNumber,
  checkOptions,
  invalid,
  optionKeys,
} from '../../validate'
import type { Item } from '../item'
import { type GsmOptions, gsmItems } from './gsm'
import { type MemoryOptions, memoryItems } from './memory'
import { MAX_DOCUMENTS, type NeedlesOptions, needlesItems } from './needles'
import {
  MAX_EXAMPLES,
  type SuperpositionOptions,
  superpositionItems,
  TASK_NAMES,
} from './superposition'

interface OptionsOf {
  gsm: GsmOptions
  needles: NeedlesOptions
  memory: MemoryOptions
  superposition: SuperpositionOptions
}

type GeneratorName = keyof OptionsOf

/** What a definition says of a generator: options without a value have the defaults that docs/experiments.md names. */
export type GeneratorOptions = {
  [Name in GeneratorName]: { generate: Name } & {
    [Key in keyof OptionsOf[Name]]?: OptionsOf[Name][Key] | undefined
  }
}[GeneratorName]

interface Generator<Name extends GeneratorName> {
  keys: readonly (keyof OptionsOf[Name] & string)[]
  /** With defaults. Throws HOGWILD_INVALID_ARGUMENT. */
  check(options: Partial<OptionsOf[Name]>, name: string): OptionsOf[Name]
  items(options: OptionsOf[Name]): Item[]
}

const MAX_SEED = 2 ** 32 - 1

/** What all generators have. */
function checkCommon({ count, seed }: { count?: number; seed?: number }, name: string) {
  return {
    count: checkInteger(count ?? 50, `${name}.count`, 1, 1e6),
    seed: checkInteger(seed ?? 0, `${name}.seed`, 0, MAX_SEED),
  }
}

const GENERATORS: { readonly [Name in GeneratorName]: Generator<Name> } = {
  gsm: {
    keys: optionKeys<GsmOptions>()({ count: true, seed: true, questions: true }),
    check: (given, name) => ({
      ...checkCommon(given, name),
      questions: checkInteger(given.questions ?? 1, `${name}.questions`, 1, 100),
    }),
    items: gsmItems,
  },
  needles: {
    keys: optionKeys<NeedlesOptions>()({ count: true, seed: true, documents: true, depths: true }),
    check: (given, name) => ({
      ...checkCommon({ count: 1, ...given }, name),
      documents: checkNumbers(given.documents ?? [100], `${name}.documents`, (one, where) =>
        checkInteger(one, where, 1, MAX_DOCUMENTS),
      ),
      depths: checkNumbers(given.depths ?? [0, 0.25, 0.5, 0.75, 1], `${name}.depths`, checkShare),
    }),
    items: needlesItems,
  },
  memory: {
    keys: optionKeys<MemoryOptions>()({ count: true, seed: true, messages: true, every: true }),
    check: (given, name) => ({
      ...checkCommon(given, name),
      messages: checkInteger(given.messages ?? 4, `${name}.messages`, 1, 1000),
      every: checkInteger(given.every ?? 0, `${name}.every`, 0, 1e6),
    }),
    items: memoryItems,
  },
  superposition: {
    keys: optionKeys<SuperpositionOptions>()({
      count: true,
      seed: true,
      examples: true,
      mixture: true,
    }),
    check: (given, name) => ({
      ...checkCommon(given, name),
      examples: checkInteger(given.examples ?? 20, `${name}.examples`, 1, MAX_EXAMPLES),
      mixture: checkMixture(given.mixture ?? { copy: 1, reverse: 1 }, `${name}.mixture`),
    }),
    items: superpositionItems,
  },
}

export const GENERATOR_NAMES = Object.keys(GENERATORS) as GeneratorName[]

/** With defaults. Throws HOGWILD_INVALID_ARGUMENT. */
export function checkGenerator(
  generate: GeneratorName,
  options: Record<string, unknown>,
  name: string,
): GeneratorOptions {
  const { keys, check } = GENERATORS[generate] as unknown as Generator<never>
  const { generate: _, ...given } = checkOptions(options, name, ['generate', ...keys])
  return { generate, ...(check(given as never, name) as object) } as GeneratorOptions
}

/** `options`: checked. */
export function generate({ generate: name, ...options }: GeneratorOptions): Item[] {
  return (GENERATORS[name] as unknown as Generator<never>).items(options as never)
}

function checkNumbers(
  value: unknown,
  name: string,
  check: (one: unknown, where: string) => number,
): number[] {
  const numbers = checkArray(value, name).map((one, i) => check(one, `${name}[${i}]`))
  if (numbers.length === 0) throw invalid(name, 'at least one number', value)
  return numbers
}

function checkShare(value: unknown, name: string): number {
  return checkNumber(value, name, 'a number in [0, 1]', (x) => x >= 0 && x <= 1)
}

function checkMixture(value: SuperpositionOptions['mixture'], name: string) {
  const mixture = checkOptions(value, name, TASK_NAMES)
  for (const [task, weight] of Object.entries(mixture)) {
    checkNumber(weight, `${name}.${task}`, 'a number above 0', (x) => x > 0)
  }
  if (Object.keys(mixture).length === 0) throw invalid(name, 'at least one task', value)
  return mixture
}

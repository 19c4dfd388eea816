// The graders that a definition may name, with the options of each.

import { HogwildError } from '../../errors'
import {
  checkBoolean,
  checkInteger,
  checkNumber,
  checkObject,
  checkOneOf,
  checkOptions,
  checkString,
} from '../../validate'
import type { Grade, Grader } from '../item'
import { choicesOf, exact, multipleChoice, numeric, regularExpression } from './answers'
import { memory } from './memory'
import { retrieval, subspan } from './retrieval'
import { superposition } from './superposition'
import { chainScore, expectedWorkflow, graphScore, parseWorkflow } from './workflows'

/** What a definition says of a grader; defaults stand in docs/experiments.md. */
export type GraderOptions =
  | { type: 'exact'; ignoreCase?: boolean | undefined }
  | { type: 'numeric'; tolerance?: number | undefined; all?: boolean | undefined }
  | { type: 'choice'; choices?: string | undefined }
  | {
      type: 'regex'
      pattern: string
      flags?: string | undefined
      of?: 'answer' | 'texts' | undefined
    }
  | { type: 'worf-chain'; threshold?: number | undefined }
  | { type: 'worf-graph'; threshold?: number | undefined }
  | { type: 'retrieval'; k?: number | undefined }
  | { type: 'subspan' }
  | { type: 'memory' }
  | { type: 'superposition' }

type Options<Type extends GraderOptions['type']> = Extract<GraderOptions, { type: Type }>

interface Kind<T extends GraderOptions> {
  keys: readonly (keyof T & string)[]
  /** With the checks of its options. */
  grader(options: T, name: string): Grader
}

const KINDS: { readonly [Type in GraderOptions['type']]: Kind<Options<Type>> } = {
  exact: {
    keys: ['type', 'ignoreCase'],
    grader: ({ ignoreCase = false }, name) => {
      checkBoolean(ignoreCase, `${name}.ignoreCase`)
      return ({ answer }, _item, expected) => exact(answer, expected, ignoreCase)
    },
  },
  numeric: {
    keys: ['type', 'tolerance', 'all'],
    grader: ({ tolerance = 1e-9, all = false }, name) => {
      checkNumber(tolerance, `${name}.tolerance`, 'a number of at least 0', (x) => x >= 0)
      checkBoolean(all, `${name}.all`)
      return ({ answer }, _item, expected) => numeric(answer, expected, { tolerance, all })
    },
  },
  choice: {
    keys: ['type', 'choices'],
    grader: ({ choices }, name) => {
      if (choices !== undefined) checkString(choices, `${name}.choices`)
      return ({ answer }, item, expected) =>
        multipleChoice(answer, expected, choices === undefined ? [] : choicesOf(item, choices))
    },
  },
  regex: {
    keys: ['type', 'pattern', 'flags', 'of'],
    grader: ({ pattern, flags = '', of = 'answer' }, name) => {
      checkOneOf(of, `${name}.of`, ['answer', 'texts'])
      const compiled = compile(pattern, flags, name)
      return (outcome, _item, expected) => regularExpression(outcome, expected, compiled, of)
    },
  },
  'worf-chain': workflowKind(chainScore),
  'worf-graph': workflowKind(graphScore),
  retrieval: {
    keys: ['type', 'k'],
    grader: ({ k }, name) => {
      if (k !== undefined) checkInteger(k, `${name}.k`, 1)
      return ({ answer }, _item, expected) => retrieval(answer, expected, k)
    },
  },
  subspan: plainKind(subspan),
  memory: plainKind(memory),
  superposition: plainKind(superposition),
}

/** A grader of answers without options. */
function plainKind<T extends GraderOptions>(
  grade: (answer: string | undefined, expected: unknown) => Grade,
): Kind<T> {
  return {
    keys: ['type'],
    grader:
      () =>
      ({ answer }, _item, expected) =>
        grade(answer, expected),
  }
}

function workflowKind<T extends Options<'worf-chain' | 'worf-graph'>>(
  score: typeof chainScore,
): Kind<T> {
  return {
    keys: ['type', 'threshold'],
    grader: ({ threshold }, name) => {
      if (threshold !== undefined) {
        checkNumber(threshold, `${name}.threshold`, 'a number in [0, 1]', (x) => x >= 0 && x <= 1)
      }
      return ({ answer }, _item, expected) =>
        score(parseWorkflow(answer ?? ''), expectedWorkflow(expected), { threshold })
    },
  }
}

function compile(pattern: string, flags: string, name: string): RegExp {
  const [source, letters] = [
    checkString(pattern, `${name}.pattern`),
    checkString(flags, `${name}.flags`),
  ]
  try {
    return new RegExp(source, letters)
  } catch (cause) {
    const message = `expected ${name} to be a regular expression: ${(cause as Error).message}`
    throw new HogwildError(message, 'HOGWILD_INVALID_ARGUMENT', { cause })
  }
}

/**
 * The grader of a definition: one that has a name here, by its type alone or with options, or a function.
 * Throws HOGWILD_INVALID_ARGUMENT.
 */
export function createGrader(value: unknown, name: string): Grader {
  if (typeof value === 'function') return value as Grader
  const options = typeof value === 'string' ? { type: value } : checkObject(value, name)
  const types = Object.keys(KINDS) as GraderOptions['type'][]
  const type = checkOneOf(options.type, typeof value === 'string' ? name : `${name}.type`, types)
  const kind = KINDS[type] as unknown as Kind<GraderOptions>
  return kind.grader(checkOptions(options as unknown as GraderOptions, name, kind.keys), name)
}

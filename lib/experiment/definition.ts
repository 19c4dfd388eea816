// What an experiment is: data, models, and the settings that every item is run with. As a user writes it, in JSON
// (docs/experiment.schema.json) or as the default export of a module, and checked.

import { createHash } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { basename, dirname, extname, resolve } from 'node:path'
import { pathToFileURL } from 'node:url'
import { HogwildError } from '../errors'
import { DTYPES } from '../formats'
import {
  type AnswerFormat,
  type CollaborationOptions,
  type Dtype,
  type LayoutName,
  Sampler,
  type SamplerOptions,
} from '../index'
import {
  checkArray,
  checkBoolean,
  checkInteger,
  checkJson,
  checkObject,
  checkOneOf,
  checkOptions,
  checkString,
  invalid,
  optionKeys,
} from '../validate'
import { LAYOUT_NAMES } from '../workers/layout'
import { checkData, type DataSource, loadItems } from './data'
import { readJsonInput } from './files'
import { createGrader, type GraderOptions } from './graders/graders'
import type { Grader, Item, LateMessage } from './item'
import { fillTemplate } from './template'

export const SCHEME_NAMES = ['collaborate', 'plain'] as const
/**
 * - `collaborate`: rules, headings, turns and checks, as `collaborate` has them
 * - `plain`: the prompt as it is, and each worker's `opening`; nothing else is said
 */
export type SchemeName = (typeof SCHEME_NAMES)[number]

export interface ExperimentModel {
  /** A folder or GGUF file, relative to the experiment's file, or a model of the hub. */
  model: string
  /** In results; default: the last part of `model`. */
  name?: string | undefined
  /** Default 'auto': as stored. */
  dtype?: 'auto' | Dtype | undefined
  /** As `loadModel` has it. */
  ignoreFields?: readonly string[] | undefined
}

/** An experiment, as a user writes it. */
export interface Experiment {
  /** Default: that of its file. */
  name?: string | undefined
  data: DataSource
  /** The problem that workers are given: a template with {{field}}s of the item or, in modules, a function. */
  prompt: string | ((item: Item) => string)
  /** Field of the item that says what is right; default 'answer'. */
  expected?: string | undefined
  /** Field of the item with messages that come while workers write (`LateMessage`); default: none. */
  late?: string | undefined
  grader: GraderOptions | GraderOptions['type'] | Grader
  models: readonly (string | ExperimentModel)[]
  /** Numbers of workers; default [2]. */
  workers?: readonly number[] | undefined
  /** Default ['combined']. */
  layouts?: readonly LayoutName[] | undefined
  /** Default ['collaborate']. */
  schemes?: readonly SchemeName[] | undefined
  /** Whether workers see one another; default [true]. Where they do not, their answers are put to the vote. */
  share?: readonly boolean[] | undefined
  /** Sequential steps after which the answer is graded, ascending; the last is the end of a run. */
  budgets: readonly number[]
  /** Each with draws of its own for each item and worker; default [0]. */
  seeds?: readonly number[] | undefined
  /** Of all workers but for the seed; default: greedy. */
  sampler?: Omit<SamplerOptions, 'seed'> | undefined
  /** Scheme 'collaborate': tokens of an early answer where nobody has given one; 0: none is asked for. Default 32. */
  finish?: number | undefined
  /** Scheme 'collaborate': as `collaborate` has them. */
  collaborate?: Pick<CollaborationOptions, 'texts' | 'checkEvery' | 'rulesAs' | 'chat'> | undefined
  /** Scheme 'plain': what is special about it. */
  plain?: PlainOptions | undefined
  /** Budget of a run's cache, in tokens; default: as `runWorkers` has it. */
  capacity?: number | undefined
  /** Results hold what workers wrote; default false. */
  keepTexts?: boolean | undefined
}

export interface PlainOptions {
  /** What a worker's text begins with: a template of the item's fields, `worker` and `index`; default '\n\n{{worker}}:'. */
  opening?: string | undefined
  /**
   * What stands around an answer, or 'text': all that was written is one. Default: nobody gives an answer, and a grader
   * reads the texts.
   */
  answer?: AnswerFormat | 'text' | undefined
  /** Strings before which a worker stops; default: none. */
  stop?: readonly string[] | undefined
  /** Texts with which a turn ends, in layouts with turns and where workers see one another; default: none does. */
  turnEnds?: readonly string[] | undefined
}

const EXPERIMENT_KEYS = optionKeys<Experiment>()({
  name: true,
  data: true,
  prompt: true,
  expected: true,
  late: true,
  grader: true,
  models: true,
  workers: true,
  layouts: true,
  schemes: true,
  share: true,
  budgets: true,
  seeds: true,
  sampler: true,
  finish: true,
  collaborate: true,
  plain: true,
  capacity: true,
  keepTexts: true,
})
const MODEL_KEYS = optionKeys<ExperimentModel>()({
  model: true,
  name: true,
  dtype: true,
  ignoreFields: true,
})
const COLLABORATE_KEYS = optionKeys<NonNullable<Experiment['collaborate']>>()({
  texts: true,
  checkEvery: true,
  rulesAs: true,
  chat: true,
})
const PLAIN_KEYS = optionKeys<PlainOptions>()({
  opening: true,
  answer: true,
  stop: true,
  turnEnds: true,
})
const ANSWER_KEYS = ['opening', 'closing'] as const

const MAX_WORKERS = 16
const MAX_SEED = Number.MAX_SAFE_INTEGER

/** A model of a checked experiment. */
export interface CheckedModel {
  model: string
  name: string
  dtype: 'auto' | Dtype
  ignoreFields: readonly string[]
}

/** An experiment that was checked, with defaults in it. */
export interface CheckedExperiment {
  name: string
  data: DataSource
  prompt: string | ((item: Item) => string)
  expected: string
  late: string | undefined
  /** What the definition says of it. */
  grader: Experiment['grader']
  models: readonly CheckedModel[]
  workers: readonly number[]
  layouts: readonly LayoutName[]
  schemes: readonly SchemeName[]
  share: readonly boolean[]
  budgets: readonly number[]
  seeds: readonly number[]
  sampler: Omit<SamplerOptions, 'seed'> | undefined
  finish: number
  collaborate: NonNullable<Experiment['collaborate']>
  plain: Omit<PlainOptions, 'opening' | 'stop'> & { opening: string; stop: string[] }
  capacity: number | undefined
  keepTexts: boolean
}

/** Throws HOGWILD_INVALID_ARGUMENT. `name`: of the experiment, where it does not say. */
export function checkExperiment(value: unknown, name: string): CheckedExperiment {
  const given = checkOptions(value as Experiment, 'the experiment', EXPERIMENT_KEYS)
  const { prompt } = given
  if (typeof prompt !== 'function') checkString(prompt, 'prompt')
  createGrader(given.grader, 'grader')
  const sampler = given.sampler && checkSampler(given.sampler)
  const seeds = checkList(given.seeds ?? [0], 'seeds', (one, where) =>
    checkInteger(one, where, 0, MAX_SEED),
  )
  if (seeds.length > 1 && (sampler === undefined || sampler.temperature === 0)) {
    throw invalid('seeds', 'one seed where workers are greedy and all would give the same', seeds)
  }
  return {
    name: checkString(given.name ?? name, 'name'),
    data: checkData(given.data, 'data'),
    prompt,
    expected: checkString(given.expected ?? 'answer', 'expected'),
    late: given.late === undefined ? undefined : checkString(given.late, 'late'),
    grader: given.grader,
    models: checkModels(given.models),
    workers: checkList(given.workers ?? [2], 'workers', (one, where) =>
      checkInteger(one, where, 1, MAX_WORKERS),
    ),
    layouts: checkList(given.layouts ?? ['combined'], 'layouts', (one, where) =>
      checkOneOf(one, where, LAYOUT_NAMES),
    ),
    schemes: checkList(given.schemes ?? ['collaborate'], 'schemes', (one, where) =>
      checkOneOf(one, where, SCHEME_NAMES),
    ),
    share: checkList(given.share ?? [true], 'share', (one, where) => checkBoolean(one, where)),
    budgets: checkBudgets(given.budgets),
    seeds,
    sampler,
    finish: checkInteger(given.finish ?? 32, 'finish', 0),
    collaborate: checkOptions(given.collaborate ?? {}, 'collaborate', COLLABORATE_KEYS),
    plain: checkPlain(given.plain ?? {}),
    capacity:
      given.capacity === undefined ? undefined : checkInteger(given.capacity, 'capacity', 1),
    keepTexts: checkBoolean(given.keepTexts ?? false, 'keepTexts'),
  }
}

/** The copy is read once, and its sampler says what is wrong with it. */
function checkSampler(value: NonNullable<Experiment['sampler']>) {
  const sampler = checkJson(checkObject(value, 'sampler'), 'sampler') as typeof value
  if ('seed' in sampler) throw invalid('sampler', 'options without a seed: see seeds', sampler)
  new Sampler({ ...sampler, seed: 0 })
  return sampler
}

/** At least one, each once. */
function checkList<T>(
  value: unknown,
  name: string,
  check: (one: unknown, where: string) => T,
): readonly T[] {
  const list = checkArray(value, name).map((one, i) => check(one, `${name}[${i}]`))
  if (list.length === 0 || new Set(list).size < list.length) {
    throw invalid(name, 'a list of at least one, each once', value)
  }
  return list
}

function checkBudgets(value: unknown): readonly number[] {
  const budgets = checkList(value, 'budgets', (one, where) => checkInteger(one, where, 1))
  if (budgets.every((budget, i) => i === 0 || budget > (budgets[i - 1] as number))) return budgets
  throw invalid('budgets', 'a list of ascending numbers of steps', value)
}

function checkModels(value: unknown): CheckedModel[] {
  const models = checkArray(value, 'models').map((one, i) => {
    const where = `models[${i}]`
    const given: ExperimentModel =
      typeof one === 'string' ? { model: one } : (one as ExperimentModel)
    const { model, name, dtype, ignoreFields } = checkOptions(given, where, MODEL_KEYS)
    const path = checkString(model, `${where}.model`)
    return {
      model: path,
      name: checkString(name ?? basename(path), `${where}.name`),
      dtype: checkOneOf(dtype ?? 'auto', `${where}.dtype`, ['auto', ...DTYPES]),
      ignoreFields: checkArray(ignoreFields ?? [], `${where}.ignoreFields`).map((field, at) =>
        checkString(field, `${where}.ignoreFields[${at}]`),
      ),
    }
  })
  checkList(
    models.map(({ name }) => name),
    'the names of models',
    (name) => name,
  )
  return models
}

function checkPlain(value: PlainOptions): CheckedExperiment['plain'] {
  const { opening, answer, stop, turnEnds } = checkOptions(value, 'plain', PLAIN_KEYS)
  return {
    opening: checkString(opening ?? '\n\n{{worker}}:', 'plain.opening'),
    ...(answer !== undefined && { answer: checkAnswer(answer) }),
    stop: checkArray(stop ?? [], 'plain.stop').map((one, i) =>
      checkString(one, `plain.stop[${i}]`),
    ),
    ...(turnEnds !== undefined && { turnEnds: checkTurnEnds(turnEnds) }),
  }
}

function checkTurnEnds(value: unknown): string[] {
  return checkArray(value, 'plain.turnEnds').map((one, i) => {
    const name = `plain.turnEnds[${i}]`
    if (one === '') throw invalid(name, 'a text that is not empty', one)
    return checkString(one, name)
  })
}

function checkAnswer(value: AnswerFormat | 'text'): AnswerFormat | 'text' {
  if (value === 'text') return value
  const format = checkOptions(value, "plain.answer (or 'text')", ANSWER_KEYS)
  for (const key of ANSWER_KEYS) {
    if (checkString(format[key], `plain.answer.${key}`) === '') {
      throw invalid(`plain.answer.${key}`, 'a text that is not empty', '')
    }
  }
  return format
}

/** An experiment with its items, ready to run. */
export interface LoadedExperiment {
  readonly experiment: CheckedExperiment
  readonly items: readonly Item[]
  readonly grader: Grader
  /** Of the experiment's file: what the paths in it are relative to. */
  readonly folder: string
  /** The definition as plain data; for a function stands '(function)'. */
  readonly definition: unknown
  /** SHA-256 of the items and, of a module, of its source: what the definition alone does not tell. */
  readonly hashes: { items: string; module?: string }
}

/**
 * Reads an experiment: a .json file, or a JavaScript module whose default export is one. Throws HOGWILD_INVALID_ARGUMENT.
 */
export async function loadExperiment(path: string): Promise<LoadedExperiment> {
  const extension = extname(path)
  const name = basename(path, extension)
  if (extension === '.json') {
    const { $schema: _, ...value } = checkObject(await readJsonInput(path), 'the experiment')
    return await prepare(checkExperiment(value, name), dirname(path), undefined)
  }
  if (!/^\.[cm]?js$/.test(extension)) {
    throw invalid('the experiment', 'a .json, .js, .mjs or .cjs file', path)
  }
  const module = sha256(await readModule(path))
  const { default: value } = await import(pathToFileURL(resolve(path)).href)
  return await prepare(checkExperiment(value, name), dirname(path), module)
}

async function readModule(path: string): Promise<Buffer> {
  try {
    return await readFile(path)
  } catch (cause) {
    const message = `cannot read ${path}: ${(cause as Error).message}`
    throw new HogwildError(message, 'HOGWILD_INVALID_ARGUMENT', { cause })
  }
}

async function prepare(
  experiment: CheckedExperiment,
  folder: string,
  module: string | undefined,
): Promise<LoadedExperiment> {
  const items = await loadItems(experiment.data, folder)
  // What is wrong with a late item need not wait for the models.
  for (const [i, item] of items.entries()) {
    promptOf(experiment, item, i)
    lateMessages(experiment, item, i)
  }
  return {
    experiment,
    items,
    grader: createGrader(experiment.grader, 'grader'),
    folder,
    definition: JSON.parse(
      JSON.stringify(experiment, (_, value) =>
        typeof value === 'function' ? '(function)' : value,
      ),
    ),
    hashes: { items: sha256(JSON.stringify(items)), ...(module !== undefined && { module }) },
  }
}

/** The problem of an item. Throws HOGWILD_INVALID_ARGUMENT. */
export function promptOf({ prompt }: CheckedExperiment, item: Item, index: number): string {
  const what = `item ${index}`
  if (typeof prompt === 'string') return fillTemplate(prompt, item, what)
  return checkString(prompt(item), `the prompt of ${what}`)
}

/** The messages that come while workers write, earlier ones first. Throws HOGWILD_INVALID_ARGUMENT. */
export function lateMessages(
  { late }: CheckedExperiment,
  item: Item,
  index: number,
): LateMessage[] {
  if (late === undefined) return []
  const name = `${late} of item ${index}`
  const messages = checkArray(item[late], name).map((one, i) => {
    const { step, text } = checkOptions(one as LateMessage, `${name}[${i}]`, ['step', 'text'])
    if (text === '') throw invalid(`${name}[${i}].text`, 'a text that is not empty', text)
    return {
      step: checkInteger(step, `${name}[${i}].step`, 1),
      text: checkString(text, `${name}[${i}].text`),
    }
  })
  return messages.sort((one, other) => one.step - other.step)
}

/** What an item is called in results. */
export function itemName(item: Item, index: number): string {
  const { id } = item
  return typeof id === 'string' || typeof id === 'number' ? String(id) : String(index)
}

export function sha256(data: string | Uint8Array): string {
  return createHash('sha256').update(data).digest('hex')
}

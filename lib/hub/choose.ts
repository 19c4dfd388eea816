// Which files of a repository make a model.

import { HogwildError } from '../errors'
import { INDEX_FILE, SINGLE_FILE } from '../sources/safetensors'
import { describe } from '../validate'
import type { HubName } from './name'

/** Besides the weights. Whatever reads a file of a model folder (lib/sources, lib/chat, lib/tokenizer) is served. */
const FOLDER_FILES = new Set([
  'config.json',
  'generation_config.json',
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'chat_template.jinja',
  'chat_template.json',
])
const TEMPLATE = /^additional_chat_templates\/[^/]+\.jinja$/

/** What is no model: projectors of images, and what quantisation was guided by. */
const NO_MODEL = /(^|[/._-])(mmproj|imatrix)[._-]/i
const PART = /-(\d{5})-of-(\d{5})\.gguf$/
/** Where in a file's name its quantisation stands. */
const QUANTISATION =
  /(?:^|[/._-])((?:UD-)?(?:I?Q\d+(?:_[0-9A-Z]+)*|MXFP4(?:_[A-Z]+)*|TQ\d_\d|BF16|F(?:P)?16|F(?:P)?32))(?=$|[/.-])/gi
const MAX_NAMED = 40

/** 'tokenizer': without the weights, where these are files of their own. */
export type FileKinds = 'all' | 'tokenizer'

export interface Choice {
  /** What is loaded: a file, or '' for the whole folder. */
  entry: string
  /** To be there before the weights. */
  files: readonly string[]
  /** The files of the weights, or the index that names them. */
  weights: readonly string[] | typeof INDEX_FILE
}

/**
 * The files of the model that `name` means, of those that there are. `where` is for messages.
 *
 * Throws HOGWILD_INVALID_ARGUMENT where the name fits no file or several, HOGWILD_UNSUPPORTED where there is no model,
 * HOGWILD_INVALID_MODEL where a part of one is missing.
 */
export function chooseFiles(
  { repo, quantisation }: HubName,
  paths: readonly string[],
  kinds: FileKinds,
  where: string,
): Choice {
  const models = ggufModels(paths)
  if (quantisation === undefined) {
    const small = paths.filter((path) => FOLDER_FILES.has(path) || TEMPLATE.test(path))
    if (kinds === 'tokenizer' && paths.includes('tokenizer.json')) {
      return { entry: '', files: small, weights: [] }
    }
    if (paths.includes(SINGLE_FILE)) return { entry: '', files: small, weights: [SINGLE_FILE] }
    if (paths.includes(INDEX_FILE)) {
      return { entry: '', files: small, weights: INDEX_FILE }
    }
  }
  if (models.size === 0) {
    const folder = quantisation === undefined ? `${SINGLE_FILE}, ${INDEX_FILE} or ` : ''
    throw new HogwildError(
      `${where} holds no ${folder}GGUF file; it holds ${listed(paths)}`,
      'HOGWILD_UNSUPPORTED',
    )
  }
  const all = [...models.keys()]
  const fitting = all.filter((base) => fits(base, quantisation))
  const [base] = fitting
  if (base === undefined || fitting.length > 1) {
    throw unclear(repo, quantisation, fitting, all, where)
  }
  const weights = partsOf(base, models.get(base) as string[], where)
  return { entry: weights[0] as string, files: [], weights }
}

/** GGUF files by what they are parts of. */
function ggufModels(paths: readonly string[]): Map<string, string[]> {
  const models = new Map<string, string[]>()
  for (const path of paths) {
    if (!path.endsWith('.gguf') || NO_MODEL.test(path)) continue
    const base = path.replace(PART, '').replace(/\.gguf$/, '')
    models.set(base, [...(models.get(base) ?? []), path])
  }
  return models
}

function fits(base: string, quantisation: string | undefined): boolean {
  if (quantisation === undefined) return true
  const wanted = quantisation.replace(/\.gguf$/i, '').replace(/-\d{5}-of-\d{5}$/, '')
  if (wanted === base) return true
  const escaped = wanted.replace(/[+.]/g, '\\$&')
  return new RegExp(`(^|[/._-])${escaped}($|[/.-])`, 'i').test(base)
}

/** The files of one model, in order. */
function partsOf(base: string, files: readonly string[], where: string): readonly string[] {
  const count = Number(PART.exec(files[0] ?? '')?.[2] ?? 0)
  if (count === 0) return files
  const digits = (part: number) => String(part).padStart(5, '0')
  const parts = Array.from(
    { length: count },
    (_, i) => `${base}-${digits(i + 1)}-of-${digits(count)}.gguf`,
  )
  const missing = parts.find((part) => !files.includes(part))
  if (missing === undefined && files.length === count) return parts
  const problem = missing === undefined ? `more than ${count} parts of ${base}` : `no ${missing}`
  throw new HogwildError(`${where} holds ${problem}`, 'HOGWILD_INVALID_MODEL')
}

function unclear(
  repo: string,
  quantisation: string | undefined,
  fitting: readonly string[],
  all: readonly string[],
  where: string,
): HogwildError {
  const labels = all.map((base) => labelOf(base, all))
  const problem =
    quantisation === undefined
      ? `holds several GGUF models: ${listed(labels)}; choose one, as in ${repo}:${labels[0]}`
      : fitting.length > 1
        ? `holds several GGUF models that ${describe(quantisation)} fits: ${listed(fitting)}; name one of them behind the colon`
        : `holds no GGUF model that ${describe(quantisation)} fits; there are ${listed(labels)}`
  return new HogwildError(`${where} ${problem}`, 'HOGWILD_INVALID_ARGUMENT')
}

/** The shortest name that only this model fits. */
function labelOf(base: string, all: readonly string[]): string {
  const label = [...base.matchAll(QUANTISATION)].at(-1)?.[1]
  const isUnique = label !== undefined && all.filter((other) => fits(other, label)).length === 1
  return isUnique ? label : base
}

function listed(names: readonly string[]): string {
  const more = names.length > MAX_NAMED ? `, and ${names.length - MAX_NAMED} more` : ''
  return names.length === 0 ? 'nothing' : names.slice(0, MAX_NAMED).join(', ') + more
}

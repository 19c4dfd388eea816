// What a model's files say about conversations: its chat templates and its named special tokens.

import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { exists, optional, readJson, readText } from '../sources/files'
import { checkArray, checkObject, checkString, invalid } from '../validate'
import { type DeclaredToken, readSpecialTokens } from './special-tokens'

/** Plain data, so that it can be sent to a worker thread. */
export interface ChatSources {
  /** Jinja sources by name. A model with one template calls it 'default'. Empty: the model has none. */
  readonly templates: ReadonlyMap<string, string>
  /** The special tokens that a template can name: bos_token, eos_token and those of the model's own. */
  readonly specialTokens: Readonly<Record<string, string>>
  /** Where the templates come from, for messages: a folder or a file. */
  readonly origin: string
}

const CODE = 'HOGWILD_INVALID_MODEL'
const ADDITIONAL = 'additional_chat_templates'
/** Most files of additional_chat_templates. */
const MAX_TEMPLATES = 64

/**
 * Reads a Hugging Face folder as transformers does. Templates in files of their own (chat_template.jinja and
 * additional_chat_templates/) come first; where there are none, chat_template of tokenizer_config.json, a string or
 * a list of named ones; at last chat_template.json, which processors have.
 *
 * `config` is the content of tokenizer_config.json, {} without one. Throws HOGWILD_INVALID_MODEL, naming the file;
 * HOGWILD_ABORTED.
 */
export async function readChatSources(
  folder: string,
  config: Readonly<Record<string, unknown>>,
  options: { signal?: AbortSignal | undefined } = {},
): Promise<{ chat: ChatSources; declaredTokens: DeclaredToken[] }> {
  const mapPath = join(folder, 'special_tokens_map.json')
  const map = await optional(readJson, mapPath, options)
  const { named, declared } = readSpecialTokens(
    config,
    map === undefined ? undefined : checkObject(map, mapPath, CODE),
    folder,
  )
  const templates = await readTemplates(folder, config, options)
  return { chat: { templates, specialTokens: named, origin: folder }, declaredTokens: declared }
}

async function readTemplates(
  folder: string,
  config: Readonly<Record<string, unknown>>,
  options: { signal?: AbortSignal | undefined },
): Promise<Map<string, string>> {
  const files = await readTemplateFiles(folder, options)
  if (files.size > 0) return files
  const inConfig = namedTemplates(config.chat_template, `chat_template of ${folder}`)
  if (inConfig.size > 0) return inConfig
  const path = join(folder, 'chat_template.json')
  const legacy = await optional(readJson, path, options)
  if (legacy === undefined) return new Map()
  return namedTemplates(checkObject(legacy, path, CODE).chat_template, `chat_template of ${path}`)
}

async function readTemplateFiles(
  folder: string,
  options: { signal?: AbortSignal | undefined },
): Promise<Map<string, string>> {
  const templates = new Map<string, string>()
  const single = await optional(readText, join(folder, 'chat_template.jinja'), options)
  if (single !== undefined) templates.set('default', single)
  const additional = join(folder, ADDITIONAL)
  for (const file of await templateFileNames(additional)) {
    templates.set(file.slice(0, -'.jinja'.length), await readText(join(additional, file), options))
  }
  return templates
}

async function templateFileNames(folder: string): Promise<string[]> {
  if (!(await exists(folder))) return []
  const names = await readdir(folder).catch((cause: NodeJS.ErrnoException) => {
    // A file of that name is no folder of templates.
    if (cause.code === 'ENOTDIR') return []
    throw invalid(folder, 'a folder that can be read', cause.message, CODE)
  })
  const files = names.filter((name) => name.endsWith('.jinja')).sort()
  if (files.length > MAX_TEMPLATES) {
    throw invalid(folder, `a folder of at most ${MAX_TEMPLATES} templates`, files.length, CODE)
  }
  return files
}

/** A template, or a list or an object of named ones. */
function namedTemplates(value: unknown, name: string): Map<string, string> {
  if (value === undefined || value === null) return new Map()
  if (typeof value === 'string') return new Map([['default', value]])
  if (!Array.isArray(value)) {
    const expected = 'a template or a list of named ones'
    if (typeof value !== 'object') throw invalid(name, expected, value, CODE)
    return new Map(
      Object.entries(value).map(([key, one]) => [key, checkString(one, `${key} of ${name}`, CODE)]),
    )
  }
  return new Map(
    checkArray(value, name, CODE).map((one, i) => {
      const entry = checkObject(one, `${name}[${i}]`, CODE)
      return [
        checkString(entry.name, `name of ${name}[${i}]`, CODE),
        checkString(entry.template, `template of ${name}[${i}]`, CODE),
      ]
    }),
  )
}

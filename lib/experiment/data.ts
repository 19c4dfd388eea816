// Where the items of an experiment come from: a file, the definition itself, or a generator.

import { resolve } from 'node:path'
import { HogwildError } from '../errors'
import {
  checkArray,
  checkInteger,
  checkJson,
  checkObject,
  checkOneOf,
  checkOptions,
  checkString,
  optionKeys,
} from '../validate'
import { parseCsv } from './csv'
import { readInput } from './files'
import {
  checkGenerator,
  GENERATOR_NAMES,
  type GeneratorOptions,
  generate,
} from './generators/generators'
import type { Item } from './item'

/** Items of a file: an object per line of JSON (.jsonl), or a row behind a header (.csv), all of whose fields are texts. */
export interface DataFile {
  /** Relative to the experiment's file. */
  file: string
  /** Default: by the end of the file's name. */
  format?: 'jsonl' | 'csv' | undefined
}

/** Items that stand in the definition. */
export interface DataItems {
  items: readonly Item[]
}

export type DataSource = Limited<DataFile> | Limited<DataItems> | Limited<GeneratorOptions>

type Limited<T> = T & {
  /** Only so many, from the first on. Default: all. */
  limit?: number | undefined
}

const FILE_KEYS = optionKeys<Limited<DataFile>>()({
  file: true,
  format: true,
  limit: true,
})
const ITEMS_KEYS = optionKeys<Limited<DataItems>>()({ items: true, limit: true })

/** A data source whose form is right; files are not read yet. Throws HOGWILD_INVALID_ARGUMENT. */
export function checkData(value: unknown, name: string): DataSource {
  const given = checkObject(value, name)
  const limit =
    given.limit === undefined ? undefined : checkInteger(given.limit, `${name}.limit`, 1)
  const limited = limit === undefined ? {} : { limit }
  if (given.file !== undefined) {
    const { file, format } = checkOptions(given as unknown as Limited<DataFile>, name, FILE_KEYS)
    const path = checkString(file, `${name}.file`)
    const known = format ?? /\.(jsonl|csv)$/.exec(path)?.[1]
    return { file: path, format: checkOneOf(known, `${name}.format`, ['jsonl', 'csv']), ...limited }
  }
  if (given.items !== undefined) {
    const { items } = checkOptions(given as unknown as Limited<DataItems>, name, ITEMS_KEYS)
    const list = checkArray(items, `${name}.items`)
    return { items: list.map((item, i) => checkItem(item, `${name}.items[${i}]`)), ...limited }
  }
  const where = `${name}.generate (or file, or items)`
  const generator = checkOneOf(given.generate, where, GENERATOR_NAMES)
  const { limit: _, ...options } = given
  return { ...checkGenerator(generator, options, name), ...limited }
}

function checkItem(value: unknown, name: string): Item {
  return checkJson(checkObject(value, name), name) as Item
}

/** The items of a source, at least one. `folder`: of the experiment's file. Throws HOGWILD_INVALID_ARGUMENT. */
export async function loadItems(source: DataSource, folder: string): Promise<Item[]> {
  const all = await allItems(source, folder)
  const items = all.slice(0, source.limit)
  if (items.length > 0) return items
  throw new HogwildError('expected at least one item in the data', 'HOGWILD_INVALID_ARGUMENT')
}

async function allItems(source: DataSource, folder: string): Promise<readonly Item[]> {
  if ('items' in source) return source.items
  if ('generate' in source) {
    const { limit: _, ...options } = source
    return generate(options)
  }
  const text = await readInput(resolve(folder, source.file))
  return source.format === 'csv' ? parseCsv(text, source.file) : parseLines(text, source.file)
}

/** An object per line. Throws HOGWILD_INVALID_ARGUMENT, with the line. */
function parseLines(text: string, where: string): Item[] {
  const lines = text.split('\n')
  if (lines.at(-1) === '') lines.pop()
  return lines.map((line, i) => {
    const name = `${where}, line ${i + 1}`
    try {
      return checkItem(JSON.parse(line), name)
    } catch (cause) {
      if (cause instanceof HogwildError) throw cause
      const message = `${name}: expected an object in JSON: ${(cause as Error).message}`
      throw new HogwildError(message, 'HOGWILD_INVALID_ARGUMENT', { cause })
    }
  })
}

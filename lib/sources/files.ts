// Reads the small files of a model folder. Folders come from strangers: only regular files are read (links to
// them included, since the hub's cache is made of links), up to a size that is checked before reading.

import { randomUUID } from 'node:crypto'
import { constants } from 'node:fs'
import { type FileHandle, open, stat } from 'node:fs/promises'
import { throwIfAborted } from '../abort-signal'
import { HogwildError, type HogwildErrorCode } from '../errors'
import { checkString } from '../validate'

const MIB = 2 ** 20

/** Largest sizes that are read, in bytes, by kind of file. */
export const MAX_BYTES = {
  /** config.json, generation_config.json, tokenizer_config.json, chat templates, ... */
  config: 4 * MIB,
  /** The header of a safetensors file, and model.safetensors.index.json. */
  header: 16 * MIB,
  tokenizer: 64 * MIB,
} as const

/** Deepest nesting of JSON that is read. Files of models have up to 10. */
const MAX_DEPTH = 64

/** Bytes read between two looks at the signal. */
const READ_BYTES = 4 * MIB

export interface ReadOptions {
  /** Largest size in bytes; default MAX_BYTES.config. */
  maxBytes?: number
  signal?: AbortSignal | undefined
}

/** The error for a file that cannot be used. `problem` continues the path. */
export function damaged(
  path: string,
  problem: string,
  cause?: unknown,
  code: HogwildErrorCode = 'HOGWILD_INVALID_MODEL',
): HogwildError {
  const message = problem.startsWith(':') ? `${path}${problem}` : `${path} ${problem}`
  return new HogwildError(message, code, { cause })
}

function unreadable(path: string, cause: unknown, code?: HogwildErrorCode): HogwildError {
  const { message } = cause as Error
  return new HogwildError(`cannot read ${path}: ${message}`, code ?? 'HOGWILD_INVALID_MODEL', {
    cause,
  })
}

/** The path of a model, as a caller gave it. */
export function checkPath(value: unknown, name: string): string {
  const path = checkString(value, name)
  if (path.includes('\0')) {
    throw new HogwildError(`${name} holds a NUL character`, 'HOGWILD_INVALID_ARGUMENT')
  }
  return path
}

/** Whether there is anything at `path`; a link that leads nowhere is nothing. Throws HOGWILD_INVALID_MODEL. */
export async function exists(path: string): Promise<boolean> {
  try {
    await stat(path)
    return true
  } catch (cause) {
    if (isAbsent(cause)) return false
    throw unreadable(path, cause)
  }
}

function isAbsent(error: unknown): boolean {
  return (error as NodeJS.ErrnoException).code === 'ENOENT'
}

/**
 * Opens a regular file, calls `use` with its size in bytes, and closes it. Pipes, devices, sockets and folders are
 * refused without waiting for them, with `code`, default HOGWILD_INVALID_MODEL, as is whatever the system refuses.
 */
export async function withFile<T>(
  path: string,
  use: (file: RegularFile) => Promise<T>,
  code?: HogwildErrorCode,
): Promise<T> {
  let handle: FileHandle | undefined
  try {
    // Opening a device can have effects, so it is looked at first; the open file counts, if both differ.
    refuseIrregular(path, await stat(path), code)
    handle = await open(path, constants.O_RDONLY | (constants.O_NONBLOCK ?? 0))
    const found = await handle.stat()
    refuseIrregular(path, found, code)
    return await use(new RegularFile(path, found.size, handle, code))
  } catch (cause) {
    throw cause instanceof HogwildError ? cause : unreadable(path, cause, code)
  } finally {
    await handle?.close().catch(() => {})
  }
}

function refuseIrregular(
  path: string,
  found: { isFile(): boolean },
  code: HogwildErrorCode | undefined,
): void {
  if (!found.isFile()) throw damaged(path, 'is not a regular file', undefined, code)
}

/** An open regular file. */
export class RegularFile {
  constructor(
    readonly path: string,
    /** In bytes, when it was opened. */
    readonly size: number,
    private readonly handle: FileHandle,
    private readonly code?: HogwildErrorCode,
  ) {}

  /** `length` bytes from `position` on. Throws the file's code where it ends before, HOGWILD_ABORTED. */
  async read(position: number, length: number, signal?: AbortSignal): Promise<Buffer> {
    const bytes = Buffer.alloc(length)
    for (let done = 0; done < length; ) {
      throwIfAborted(signal)
      const piece = Math.min(length - done, READ_BYTES)
      const { bytesRead } = await this.handle.read(bytes, done, piece, position + done)
      if (bytesRead === 0) {
        throw damaged(this.path, `ends at byte ${position + done}`, undefined, this.code)
      }
      done += bytesRead
    }
    return bytes
  }
}

/** Whole content of a file. Throws HOGWILD_INVALID_MODEL, naming it, HOGWILD_ABORTED. */
export async function readBytes(path: string, options: ReadOptions = {}): Promise<Buffer> {
  const { maxBytes = MAX_BYTES.config, signal } = options
  throwIfAborted(signal)
  return await withFile(path, (file) => {
    if (file.size > maxBytes) {
      throw damaged(path, `has ${file.size} bytes; at most ${maxBytes} are read`)
    }
    return file.read(0, file.size, signal)
  })
}

/** A text file in UTF-8, its byte order mark included. Throws as `readBytes`, and for bytes that are no UTF-8. */
export async function readText(path: string, options: ReadOptions = {}): Promise<string> {
  return decodeText(await readBytes(path, options), path)
}

/** A JSON file; see `parseJson`. Throws as `readText`. */
export async function readJson(path: string, options: ReadOptions = {}): Promise<unknown> {
  return parseJson(await readText(path, options), path)
}

/** undefined where there is no such file; else as the reader. */
export async function optional<T>(
  reader: (path: string, options?: ReadOptions) => Promise<T>,
  path: string,
  options: ReadOptions = {},
): Promise<T | undefined> {
  return (await exists(path)) ? reader(path, options) : undefined
}

/** Text in UTF-8. Throws HOGWILD_INVALID_MODEL. */
export function decodeText(bytes: Uint8Array, path: string): string {
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes)
  } catch (cause) {
    throw damaged(path, 'is not UTF-8 text', cause)
  }
}

/**
 * JSON as Python's json module reads it, which wrote the files of models: NaN, Infinity and -Infinity are
 * numbers, and of equal keys the last counts. A byte order mark is refused, as there. `where` is for messages.
 *
 * Throws HOGWILD_INVALID_MODEL, also for more than 64 levels of nesting.
 */
export function parseJson(text: string, where: string): unknown {
  if (text.startsWith('\uFEFF')) throw damaged(where, 'begins with a byte order mark')
  const constants = findConstants(text, where)
  try {
    return constants.length === 0 ? JSON.parse(text) : parseWithConstants(text, constants)
  } catch (cause) {
    throw damaged(where, `is not JSON: ${(cause as Error).message}`, cause)
  }
}

/** A number that JSON does not have and Python writes: its place in the text. */
interface Constant {
  begin: number
  end: number
}

const CONSTANTS = ['NaN', 'Infinity', '-Infinity']

/** Refuses deep nesting, which would exhaust the stack later, and finds Python's constants. */
function findConstants(text: string, where: string): Constant[] {
  const constants: Constant[] = []
  let end = 0
  scanJson(text, (character, begin, depth) => {
    if (depth > MAX_DEPTH) throw damaged(where, `is nested deeper than ${MAX_DEPTH} levels`)
    if (begin < end || !(character === 'N' || character === 'I' || character === '-')) return
    const name = CONSTANTS.find((constant) => text.startsWith(constant, begin))
    if (name === undefined) return
    end = begin + name.length
    constants.push({ begin, end })
  })
  return constants
}

/** Characters that `scanJson` shows, by their codes: brackets, colons, quotes, and what Python's constants begin with. */
const SHOWN = Uint8Array.from({ length: 128 }, (_, code) =>
  '{}[]:"NI-'.includes(String.fromCharCode(code)) ? 1 : 0,
)
const [QUOTE, BACKSLASH] = ['"', '\\'].map((character) => character.charCodeAt(0))

/**
 * Calls `visit` for each bracket, colon, opening quote, minus, N and I of a JSON text that is not within a
 * string, with the number of lists and objects around it; those that a bracket opens or closes count for it.
 */
export function scanJson(
  text: string,
  visit: (character: string, at: number, depth: number) => void,
): void {
  let depth = 0
  for (let at = 0; at < text.length; at++) {
    if (SHOWN[text.charCodeAt(at)] !== 1) continue
    const character = text[at] as string
    if (character === '[' || character === '{') depth++
    visit(character, at, depth)
    if (character === ']' || character === '}') depth--
    if (character === '"') at = endOfString(text, at)
  }
}

/** The index of the quote that ends the string which begins at `at`, or of the text's end. */
function endOfString(text: string, at: number): number {
  for (let i = at + 1; i < text.length; i++) {
    const code = text.charCodeAt(i)
    if (code === QUOTE) return i
    if (code === BACKSLASH) i++
  }
  return text.length
}

// Each constant goes through JSON.parse as a string that no file holds.
function parseWithConstants(text: string, constants: readonly Constant[]): unknown {
  const mark = randomUUID()
  const values = new Map(CONSTANTS.map((name) => [mark + name, Number(name)]))
  let marked = ''
  let done = 0
  for (const { begin, end } of constants) {
    marked += `${text.slice(done, begin)}"${mark}${text.slice(begin, end)}"`
    done = end
  }
  return JSON.parse(marked + text.slice(done), (_, value) => values.get(value) ?? value)
}

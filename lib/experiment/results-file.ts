// Results on disk: a line of JSON that says what the experiment is, then one for each finished cell. Lines are appended whole;
// a last line without an end was being written when the process was ended, and is left out.

import { type FileHandle, open, readFile } from 'node:fs/promises'
import { HogwildError } from '../errors'
import type { DeviceInfo } from '../index'
import { checkObject } from '../validate'
import type { CheckedExperiment } from './definition'
import { written } from './files'
import type { CellNumbers } from './run-cell'

export const RESULTS_VERSION = 1

/** The first line: all that tells an experiment from others. */
export interface ResultsHead {
  experiment: typeof RESULTS_VERSION
  /** SHA-256 of what follows: cells of files with different ones belong to different experiments. */
  identity: string
  name: string
  /** Version of the package. */
  hogwild: string
  /** As it was checked, with defaults. */
  definition: CheckedExperiment
  hashes: { items: string; module?: string }
  /** All of them, in whichever shard. */
  cells: number
}

/** What computed a cell. */
export interface Machine extends Pick<DeviceInfo, 'name' | 'type' | 'simd' | 'threads'> {
  /** Its version. */
  node: string
  platform: string
  arch: string
}

/** A line of a cell: its numbers, and beside them what may differ from run to run. */
export interface CellResult extends CellNumbers {
  /** The model's fingerprint. */
  fingerprint: string
  milliseconds: number
  on: Machine
}

export interface Results {
  head: ResultsHead
  /** In the order of the file; none twice. */
  cells: CellResult[]
}

interface Lines {
  head: ResultsHead | undefined
  cells: CellResult[]
  /** Length of all whole lines. */
  bytes: number
}

/** The results in a file. Throws HOGWILD_INVALID_ARGUMENT for anything else. */
export async function readResults(path: string): Promise<Results> {
  const { head, cells } = parseLines(await readWhole(path), path)
  if (head === undefined) throw refused(path, 1, 'the head of results')
  return { head, cells }
}

async function readWhole(path: string): Promise<Buffer> {
  try {
    return await readFile(path)
  } catch (cause) {
    const message = `cannot read ${path}: ${(cause as Error).message}`
    throw new HogwildError(message, 'HOGWILD_INVALID_ARGUMENT', { cause })
  }
}

function parseLines(content: Buffer, path: string): Lines {
  const bytes = content.lastIndexOf('\n') + 1
  const [first, ...rest] = content.toString('utf8', 0, bytes).split('\n').slice(0, -1)
  if (first === undefined) return { head: undefined, cells: [], bytes: 0 }
  const head = parseLine(first, path, 1) as unknown as ResultsHead
  if (head.experiment !== RESULTS_VERSION || !Number.isSafeInteger(head.cells)) {
    throw refused(path, 1, `the head of results of version ${RESULTS_VERSION}`)
  }
  const cells = new Map<number, CellResult>()
  for (const [i, line] of rest.entries()) {
    const cell = parseLine(line, path, i + 2) as unknown as CellResult
    const isKnown = Number.isInteger(cell.cell) && cell.cell >= 0 && cell.cell < head.cells
    if (!isKnown || !Array.isArray(cell.points)) throw refused(path, i + 2, 'the result of a cell')
    if (!cells.has(cell.cell)) cells.set(cell.cell, cell)
  }
  return { head, cells: [...cells.values()], bytes }
}

function parseLine(line: string, path: string, number: number): Record<string, unknown> {
  try {
    return checkObject(JSON.parse(line), 'the line')
  } catch (cause) {
    throw refused(path, number, 'an object in JSON', cause)
  }
}

function refused(path: string, line: number, expected: string, cause?: unknown): HogwildError {
  const message = `${path}, line ${line}: expected ${expected}`
  return new HogwildError(message, 'HOGWILD_INVALID_ARGUMENT', { cause })
}

/** A file to which cells are added as they finish. */
export class ResultsFile {
  private constructor(
    private readonly path: string,
    private readonly file: FileHandle,
    /** What was there already. */
    readonly cells: readonly CellResult[],
  ) {}

  /**
   * Goes on with the file where there is one; one without a finished cell is begun anew. Throws HOGWILD_INVALID_ARGUMENT
   * where it holds the results of another experiment, HOGWILD_NOT_WRITTEN.
   */
  static async open(path: string, head: ResultsHead): Promise<ResultsFile> {
    const file = await written(path, () => open(path, 'a+'))
    try {
      const content = await readWhole(path)
      const lines = parseLines(content, path)
      const isOther = lines.head !== undefined && lines.head.identity !== head.identity
      if (lines.head !== undefined && isOther && lines.cells.length > 0) {
        throw otherExperiment(path, lines.head, head)
      }
      const kept = isOther ? 0 : lines.bytes
      if (kept < content.length) await written(path, () => file.truncate(kept))
      const results = new ResultsFile(path, file, lines.cells)
      if (kept === 0) await results.#write(head)
      return results
    } catch (error) {
      await file.close()
      throw error
    }
  }

  /** The cell is on the disk when this resolves. Throws HOGWILD_NOT_WRITTEN. */
  async append(cell: CellResult): Promise<void> {
    await this.#write(cell)
  }

  async close(): Promise<void> {
    await this.file.close()
  }

  async #write(line: object): Promise<void> {
    await written(this.path, async () => {
      await this.file.appendFile(`${JSON.stringify(line)}\n`)
      await this.file.datasync()
    })
  }
}

/** The error for results that do not belong together, with what differs. */
export function otherExperiment(
  path: string,
  found: ResultsHead,
  wanted: ResultsHead,
): HogwildError {
  const parts = ['hogwild', 'name', 'definition', 'hashes'] as const
  const differs = parts.find((part) => JSON.stringify(found[part]) !== JSON.stringify(wanted[part]))
  const message = `${path} has results of another experiment, which differs in: ${differs ?? 'identity'}. Give another --out, or remove it`
  return new HogwildError(message, 'HOGWILD_INVALID_ARGUMENT')
}

/** The text of a whole file of results. */
export function formatResults({ head, cells }: Results): string {
  return [head, ...cells].map((line) => `${JSON.stringify(line)}\n`).join('')
}

// Runs the cells of an experiment that are not on disk yet, and joins the results of shards.

import { join, resolve } from 'node:path'
import { HogwildError } from '../errors'
import { loadTokenizer, type Model, type Tokenizer } from '../index'
import { exists } from '../sources/files'
import { type Cell, cellsOf, listCells, type Shard } from './cells'
import { type CheckedModel, type LoadedExperiment, sha256 } from './definition'
import { makeFolder, replaceFile } from './files'
import {
  type CellResult,
  formatResults,
  type Machine,
  otherExperiment,
  RESULTS_VERSION,
  type Results,
  ResultsFile,
  type ResultsHead,
  readResults,
} from './results-file'
import { runCell } from './run-cell'
import { type SummaryRow, summarise, summaryCsv } from './summary'

export interface RunExperimentOptions {
  /** Folder of the results; made where it is not there. */
  out: string
  /** Version of the package. */
  version: string
  /** Default: all cells. */
  shard?: Shard | undefined
  /** A path that `loadModel` and `loadTokenizer` take, of what stands in the definition. */
  findModel(path: string): Promise<string>
  loadModel(path: string, spec: CheckedModel): Promise<Model>
  /** Writes a trace of each cell into OUT/traces. Default false. */
  traces?: boolean | undefined
  /** Called before the first cell, after each one, and at the end. */
  onProgress?: ((done: number, total: number) => void) | undefined
  signal?: AbortSignal | undefined
}

/**
 * Runs what is missing; cells that a run before has finished are taken from its file. Throws HOGWILD_INVALID_ARGUMENT where
 * OUT has results of something else, HOGWILD_NOT_WRITTEN, and what models and runs throw.
 */
export async function runExperiment(
  loaded: LoadedExperiment,
  options: RunExperimentOptions,
): Promise<Results> {
  const { out, shard, traces } = options
  const all = listCells(loaded.experiment, loaded.items.length)
  const head = headOf(loaded, all.length, options.version)
  const mine = shard === undefined ? all : cellsOf(all, shard)
  await makeFolder(traces ? join(out, 'traces') : out)
  const file = await ResultsFile.open(join(out, resultsName(shard)), head)
  try {
    const done = new Map(file.cells.map((cell) => [cell.cell, cell]))
    const work = new Work(loaded, options, file, done, mine)
    for (const model of loaded.experiment.models) await work.runModel(model)
    return { head, cells: mine.map(({ cell }) => done.get(cell) as CellResult) }
  } finally {
    await file.close()
  }
}

function resultsName(shard: Shard | undefined): string {
  return shard === undefined ? 'results.jsonl' : `results.${shard.index}-of-${shard.count}.jsonl`
}

function headOf(loaded: LoadedExperiment, cells: number, version: string): ResultsHead {
  const { experiment, hashes } = loaded
  const definition = loaded.definition as ResultsHead['definition']
  const told = { name: experiment.name, hogwild: version, definition, hashes, cells }
  return { experiment: RESULTS_VERSION, identity: sha256(JSON.stringify(told)), ...told }
}

class Work {
  constructor(
    private readonly loaded: LoadedExperiment,
    private readonly options: RunExperimentOptions,
    private readonly file: ResultsFile,
    private readonly done: Map<number, CellResult>,
    private readonly mine: readonly Cell[],
  ) {}

  /** A model whose cells are all there is not loaded. */
  async runModel(spec: CheckedModel): Promise<void> {
    const left = this.mine.filter(({ cell, model }) => model === spec.name && !this.done.has(cell))
    if (left.length === 0) return
    const { findModel, loadModel } = this.options
    const path = await findModel(await this.#pathOf(spec.model))
    await using tokenizer = await loadTokenizer(path)
    await using model = await loadModel(path, spec)
    const fingerprint = await model.fingerprint()
    this.#checkFingerprint(spec.name, fingerprint)
    this.#tell()
    for (const cell of left) {
      await this.#runCell(cell, model, tokenizer, fingerprint)
      this.#tell()
    }
  }

  /** A path that is there, relative to the experiment's file, or a name of the hub. */
  async #pathOf(model: string): Promise<string> {
    const path = resolve(this.loaded.folder, model)
    return (await exists(path)) ? path : model
  }

  #tell(): void {
    const done = this.mine.filter(({ cell }) => this.done.has(cell)).length
    this.options.onProgress?.(done, this.mine.length)
  }

  #checkFingerprint(name: string, fingerprint: string): void {
    for (const cell of this.done.values()) checkModel(cell, name, fingerprint)
  }

  async #runCell(
    cell: Cell,
    model: Model,
    tokenizer: Tokenizer,
    fingerprint: string,
  ): Promise<void> {
    const { out, traces, signal } = this.options
    const trace = traces ? join(out, 'traces', `${cell.cell}.jsonl`) : undefined
    const began = performance.now()
    try {
      const numbers = await runCell(this.loaded, cell, { model, tokenizer, trace, signal })
      const milliseconds = Math.round(performance.now() - began)
      const result = { ...numbers, fingerprint, milliseconds, on: machineOf(model) }
      await this.file.append(result)
      this.done.set(cell.cell, result)
    } catch (cause) {
      if (!(cause instanceof HogwildError)) throw cause
      const { workers, model: name, item } = cell
      const team = `${workers} worker${workers === 1 ? '' : 's'}`
      const what = `cell ${cell.cell} (${name}, ${team}, item ${item})`
      throw new HogwildError(`${what}: ${cause.message}`, cause.code, { cause })
    }
  }
}

function checkModel(cell: CellResult, name: string, fingerprint: string): void {
  if (cell.model !== name || cell.fingerprint === fingerprint) return
  const message = `cell ${cell.cell} was computed by another model of the name "${name}": fingerprint ${cell.fingerprint.slice(0, 12)}, and not ${fingerprint.slice(0, 12)}`
  throw new HogwildError(message, 'HOGWILD_INVALID_ARGUMENT')
}

function machineOf(model: Model): Machine {
  const { name, type, simd, threads } = model.device.info
  const { version: node, platform, arch } = process
  return { name, type, simd, threads, node, platform, arch }
}

/**
 * All cells of an experiment from the files of its shards, in any order. Throws HOGWILD_INVALID_ARGUMENT where the files are
 * of different experiments or models, or cells are missing.
 */
export async function mergeResults(paths: readonly string[]): Promise<Results> {
  const cells = new Map<number, CellResult>()
  const models = new Map<string, CellResult>()
  let head: ResultsHead | undefined
  for (const path of paths) {
    const results = await readResults(path)
    head ??= results.head
    if (results.head.identity !== head.identity) throw otherExperiment(path, results.head, head)
    for (const cell of results.cells) {
      const known = models.get(cell.model)
      if (known !== undefined) checkModel(known, cell.model, cell.fingerprint)
      models.set(cell.model, cell)
      if (!cells.has(cell.cell)) cells.set(cell.cell, cell)
    }
  }
  if (head === undefined) throw new HogwildError('no files to merge', 'HOGWILD_INVALID_ARGUMENT')
  if (cells.size < head.cells) throw incomplete(head, cells)
  const inOrder = [...cells.values()].sort((one, other) => one.cell - other.cell)
  return { head, cells: inOrder }
}

function incomplete(head: ResultsHead, cells: ReadonlyMap<number, unknown>): HogwildError {
  const missing = Array.from({ length: head.cells }, (_, cell) => cell).filter(
    (cell) => !cells.has(cell),
  )
  const some = missing.slice(0, 5).join(', ')
  const message = `${missing.length} of ${head.cells} cells are missing, among them ${some}: run their shards to the end first`
  return new HogwildError(message, 'HOGWILD_INVALID_ARGUMENT')
}

/**
 * Writes OUT/summary.json and OUT/summary.csv, and with `whole` OUT/results.jsonl. Throws HOGWILD_INVALID_ARGUMENT where that
 * would replace the results of another experiment, HOGWILD_NOT_WRITTEN.
 */
export async function writeSummary(
  results: Results,
  out: string,
  whole: boolean,
): Promise<SummaryRow[]> {
  const rows = summarise(results)
  await makeFolder(out)
  if (whole) await replaceResults(join(out, resultsName(undefined)), results)
  const { name, identity, hogwild } = results.head
  const interval = 'of accuracy: 95 %, Wilson score, n = items; seeds of an item are averaged first'
  const json = { name, identity, hogwild, interval, rows }
  await replaceFile(join(out, 'summary.json'), `${JSON.stringify(json, undefined, 2)}\n`)
  await replaceFile(join(out, 'summary.csv'), summaryCsv(rows))
  return rows
}

async function replaceResults(path: string, results: Results): Promise<void> {
  if (await exists(path)) {
    const { head } = await readResults(path)
    if (head.identity !== results.head.identity) throw otherExperiment(path, head, results.head)
  }
  await replaceFile(path, formatResults(results))
}

// A run that goes on from its file.

import { onAbort, throwIfAborted } from '../abort-signal'
import type { Block } from '../block'
import { Cache, checkTransfer } from '../cache'
import { checkFacts, dataOf, sizesOf, takeBlocks, whileOpen } from '../cache-file'
import { errorCode, HogwildError } from '../errors'
import { Grammar, type GrammarMatcher } from '../grammar/grammar'
import { Model } from '../model'
import type { PrefillProgress } from '../prefill'
import { Sampler } from '../sampler'
import { invalidSession, readSessionFile, type SessionFile } from '../session-file'
import { checkPath } from '../sources/files'
import { checkSpeculation, type SpeculateOptions, type Speculation } from '../speculation'
import type { ProcessLogits } from '../step-hooks'
import { Tokenizer } from '../tokenizer/tokenizer'
import type { SessionProgress } from '../transfer'
import {
  checkArray,
  checkInstance,
  checkInteger,
  checkObject,
  checkOptionalFunction,
  checkOptions,
  invalid,
  optionKeys,
  readable,
} from '../validate'
import type { Group, GroupState } from './group'
import { checkScheduler, checkTriggers, type RunSettings, type WorkerSettings } from './options'
import type { Parked, ParkWork } from './park'
import { parseRun } from './parse-run'
import { WorkerRun } from './run'
import { textHash } from './save'
import {
  RUN_VERSION,
  type SavedBlock,
  type SavedBlocks,
  type SavedRun,
  type SavedState,
  type SavedTrigger,
  type SavedWorker,
} from './saved-run'
import type { Scheduler } from './scheduler'
import type { Seat } from './seat'
import type { Trigger } from './triggers'
import { Worker, type WorkerBlocks, type WorkerState } from './worker'

/** What a worker of a saved run had and a file cannot hold. */
export interface RestoredWorker {
  /** As WorkerSpec has it. */
  processLogits?: ProcessLogits | undefined
  /** As WorkerSpec has it, of the same text. */
  grammar?: Grammar | undefined
}

/**
 * What a file cannot hold, as the saved run had it: functions, grammars, and what belongs to the process. What the run had must
 * be given, and what it had not must be absent, but for those where it says so.
 */
export interface RestoreOptions {
  /** The same model: see docs/sessions.md, "What must fit". */
  model: Model
  /** As RunOptions has it. */
  tokenizer?: Tokenizer | undefined
  /** In which the run's blocks are made, where it had a cache of its user's: one that is like it. */
  cache?: Cache | undefined
  /** As RunOptions has it; may be given or absent. */
  scheduler?: Scheduler | undefined
  /** As RunOptions has it. */
  turnEnds?: ((ids: readonly number[]) => boolean) | undefined
  /** As RunOptions has it. */
  turnHeader?: ((worker: string, turn: number) => ArrayLike<number>) | undefined
  /** As RunOptions has them, with the same `text`, `workers` and `limit`. Calls that were made count. */
  triggers?: readonly Trigger[] | undefined
  /** By name, of workers that had some. */
  workers?: Readonly<Record<string, RestoredWorker>> | undefined
  /**
   * The work that a worker waits for (`WorkerRun.park`), called for each one that was parked, with its `ParkOptions.data`: the
   * work begins anew, and so does its `timeoutMs`. May be given where nobody was parked.
   */
  park?: ((worker: string, data: unknown) => ParkWork) | undefined
  /**
   * As RunOptions has it; may be given or absent, whatever the run had: drafts change no token. Counts of
   * `usage.speculation` begin anew.
   */
  speculate?: SpeculateOptions | undefined
  /** As RunOptions has it; may be given or absent. */
  onPrefill?: ((progress: PrefillProgress) => void) | undefined
  /** Of the file that is read. May be given or absent. */
  onProgress?: ((progress: SessionProgress) => void) | undefined
  /** Ends the reading, and later the run, as RunOptions has it. May be given or absent. */
  signal?: AbortSignal | undefined
}

const RESTORE_KEYS = optionKeys<RestoreOptions>()({
  model: true,
  tokenizer: true,
  cache: true,
  scheduler: true,
  turnEnds: true,
  turnHeader: true,
  triggers: true,
  workers: true,
  park: true,
  speculate: true,
  onPrefill: true,
  onProgress: true,
  signal: true,
})

const WORKER_KEYS = optionKeys<RestoredWorker>()({ processLogits: true, grammar: true })

/** What `restoreRun` has read. */
export interface RestoredRun {
  /** It goes on when its events are asked for. */
  run: WorkerRun
  /** What was given to `save` to go with the run. */
  data: unknown
}

/**
 * A run that goes on where `WorkerRun.save` found it, in this process or another: it tells the events that the consumer of the
 * saved one had not taken, then writes the same tokens, to the last bit of the logits on the same kind of CPU with
 * the same options of `loadModel`. Several runs may be restored from one file.
 *
 *     const { run, data } = await restoreRun('team.run', { model, tokenizer })
 *     for await (const event of run) show(event)
 *
 * It has its blocks at once: where its scheduler makes groups wait this waits, and `run.close()` gives them back where no
 * event is asked for. After an error nothing stays.
 *
 * Rejects: HOGWILD_INVALID_SESSION for a file that is damaged, cut short, something else, or of another model, dtype or RoPE;
 * HOGWILD_UNSUPPORTED for a version that this build does not know; HOGWILD_INVALID_ARGUMENT, naming the option, for one
 * that the run had and is absent, or that is another one; HOGWILD_OUT_OF_PAGES, HOGWILD_OUT_OF_MEMORY, HOGWILD_BUSY,
 * HOGWILD_CLOSED, HOGWILD_ABORTED.
 */
export async function restoreRun(path: string, options: RestoreOptions): Promise<RestoredRun> {
  const { onProgress, ...others } = checkTransfer(options, RESTORE_KEYS)
  const { signal } = others
  const given = checkGiven(others)
  const abort = new AbortController()
  const forget = onAbort(signal, () => abort.abort())
  try {
    throwIfAborted(signal)
    return await readSessionFile(
      checkPath(path, 'path'),
      { signal: abort.signal, onProgress },
      async (file) => {
        const { saved, parkedData, data } = await readRun(file, given.model)
        checkSame(saved, given)
        const run = new WorkerRun(settingsOf(saved, given))
        await run.restore({
          warned: saved.warned,
          workers: await restoreWorkers(saved, given),
          pages: sizesOf(file).pages,
          fill: async (group, seat) => {
            await whileOpen(seat.cache, { signal }, async (transfer) => {
              onAbort(transfer.signal, () => abort.abort())
              await fill(group, seat, saved, file)
            })
          },
          parked: parkedWork(saved, parkedData, given),
        })
        return { run, data }
      },
    )
  } catch (error) {
    if (errorCode(error) === 'HOGWILD_ABORTED') throwIfAborted(signal) // with its reason
    throw error
  } finally {
    forget()
  }
}

/** RestoreOptions that were checked and copied. */
type Given = Omit<RestoreOptions, 'onProgress' | 'speculate' | 'triggers' | 'workers'> & {
  speculate: Speculation | undefined
  triggers: Trigger[]
  workers: ReadonlyMap<string, RestoredWorker>
}

/** `options`: a copy. */
function checkGiven(options: Omit<RestoreOptions, 'onProgress'>): Given {
  const { triggers = [], workers = {}, speculate, ...given } = options
  const { tokenizer, cache, scheduler } = given
  const model = checkInstance(given.model, 'options.model', Model)
  if (tokenizer !== undefined) checkInstance(tokenizer, 'options.tokenizer', Tokenizer)
  if (cache !== undefined) checkInstance(cache, 'options.cache', Cache)
  checkScheduler(scheduler, model)
  checkOptionalFunction(given.turnEnds, 'options.turnEnds')
  checkOptionalFunction(given.turnHeader, 'options.turnHeader')
  checkOptionalFunction(given.park, 'options.park')
  checkOptionalFunction(given.onPrefill, 'options.onPrefill')
  const entries = readable('options.workers', undefined, () =>
    Object.entries(checkObject(workers, 'options.workers')),
  )
  return {
    ...given,
    speculate: checkSpeculation(speculate, 'options.speculate'),
    triggers: checkTriggers(triggers, tokenizer),
    workers: new Map(
      entries.map(([name, worker]) => [name, checkWorker(worker, `options.workers.${name}`)]),
    ),
  }
}

function checkWorker(value: unknown, name: string): RestoredWorker {
  const { processLogits, grammar } = checkOptions(value as RestoredWorker, name, WORKER_KEYS)
  checkOptionalFunction(processLogits, `${name}.processLogits`)
  if (grammar !== undefined) checkInstance(grammar, `${name}.grammar`, Grammar)
  return { processLogits, grammar }
}

/** What the header of a file says of a run. */
async function readRun(file: SessionFile, model: Model) {
  const header = dataOf(file, 'run')
  checkFacts(file, { model: await model.fingerprint() })
  try {
    const { version, run, parkedData, data } = checkObject(header, 'its data')
    if (checkInteger(version, 'its version', 1) !== RUN_VERSION) {
      throw new HogwildError(
        `${file.path} holds a run of version ${version}: this build reads version ${RUN_VERSION}`,
        'HOGWILD_UNSUPPORTED',
      )
    }
    const saved = parseRun(run, model.config.vocabSize)
    const list = checkArray(parkedData, 'parkedData')
    const { blocks } = sizesOf(file)
    if (saved.owned.length !== blocks) throw invalid('owned', `${blocks} values`, saved.owned)
    return { saved, parkedData: list, data: data ?? null }
  } catch (error) {
    if (errorCode(error) !== 'HOGWILD_INVALID_ARGUMENT') throw error
    const problem = `holds a run that cannot go on: ${(error as Error).message}`
    throw invalidSession(file.path, problem, error)
  }
}

/** Throws HOGWILD_INVALID_ARGUMENT where what is given is not what the run had. */
function checkSame(saved: SavedRun, given: Given): void {
  const { cache, tokenizer, turnEnds, turnHeader } = saved.given
  checkPresence('options.cache', cache, given.cache)
  checkPresence('options.tokenizer', tokenizer, given.tokenizer)
  checkPresence('options.turnEnds', turnEnds, given.turnEnds)
  checkPresence('options.turnHeader', turnHeader, given.turnHeader)
  checkSameTriggers(saved.triggers, given.triggers)
  for (const { name, processLogits, grammar } of saved.workers) {
    const worker = given.workers.get(name)
    const option = `options.workers.${name}`
    checkPresence(`${option}.processLogits`, processLogits, worker?.processLogits)
    checkPresence(`${option}.grammar`, grammar !== undefined, worker?.grammar)
  }
  const names = saved.workers.map(({ name }) => name)
  const unknown = [...given.workers.keys()].find((name) => !names.includes(name))
  if (unknown !== undefined) {
    throw invalid('options.workers', `an object by the names ${names.join(', ')}`, unknown)
  }
}

function checkPresence(name: string, had: boolean, value: unknown): void {
  if (had && value === undefined) {
    throw invalid(name, 'that of the saved run, which its file cannot hold', value)
  }
  if (!had && value !== undefined) throw invalid(name, 'absent: the saved run had none', value)
}

function checkSameTriggers(saved: readonly SavedTrigger[], given: readonly Trigger[]): void {
  const expected = JSON.stringify(saved)
  const received = JSON.stringify(given.map(({ action, ...trigger }) => trigger))
  if (received === expected) return
  throw invalid('options.triggers', `those of the saved run, ${expected}`, received)
}

function settingsOf({ settings }: SavedRun, given: Given): RunSettings {
  const { park, workers, ...others } = given
  return {
    ...settings,
    ...others,
    common: undefined,
    sharedHeader: new Int32Array(0),
    trace: undefined,
    workers: [],
  }
}

function parkedWork({ parked }: SavedRun, data: readonly unknown[], { park }: Given) {
  return parked.map(({ worker, timeoutMs }, i) => {
    const expected = `a function that gives the work that '${worker}' waits for`
    if (park === undefined) throw invalid('options.park', expected, park)
    const one: Parked = { worker, timeoutMs, data: data[i] ?? null }
    const work = park(worker, one.data)
    if (typeof work !== 'function') throw invalid('the result of options.park', 'a function', work)
    return { parked: one, work }
  })
}

async function restoreWorkers({ workers }: SavedRun, given: Given): Promise<Worker[]> {
  return await Promise.all(workers.map((worker) => restoreWorker(worker, given)))
}

/** All of a worker but its blocks and its state. */
async function restoreWorker(saved: SavedWorker, given: Given): Promise<Worker> {
  const { name, from, maxTokens, stop, logprob, topLogprobs, logitBias, tokens, forced } = saved
  const { attentionMass } = saved
  if (attentionMass && given.speculate !== undefined) {
    throw invalid('options.speculate', `absent beside attentionMass of '${name}'`, 'drafts')
  }
  const { tokenizer } = given
  const { processLogits, grammar } = given.workers.get(name) ?? {}
  const settings: WorkerSettings = {
    ...{ name, from, maxTokens, stop, logitBias, logprob, topLogprobs, processLogits, grammar },
    attentionMass,
    prompt: new Int32Array(0),
    header: new Int32Array(0),
    own: undefined,
    sampler: Sampler.restore(saved.sampler),
  }
  const matcher = grammar && (await matcherOf(name, grammar, saved.grammar as Int32Array))
  const worker = new Worker(settings, tokenizer, matcher)
  tokens.forEach((token, i) => {
    worker.take(token, forced[i] === '1')
  })
  if (tokenizer !== undefined && textHash(tokenizer, tokens) !== saved.text) {
    const received = `one that gives another text of '${name}'`
    throw invalid('options.tokenizer', 'that of the saved run', received)
  }
  worker.written = saved.written
  worker.turn = saved.turn
  worker.turnIds = Array.from(saved.turnIds)
  worker.pending = [...saved.pending]
  return worker
}

async function matcherOf(
  name: string,
  grammar: Grammar,
  tokens: Int32Array,
): Promise<GrammarMatcher> {
  try {
    return await grammar.matcher(tokens)
  } catch (cause) {
    if (errorCode(cause) !== 'HOGWILD_INVALID_ARGUMENT') throw cause
    throw new HogwildError(
      `expected options.workers.${name}.grammar to be that of the saved run, received one that does not allow its text: ${(cause as Error).message}`,
      'HOGWILD_INVALID_ARGUMENT',
      { cause },
    )
  }
}

/** Brings the blocks, and the group to where it was. Nobody uses the cache meanwhile. */
async function fill(group: Group, seat: Seat, saved: SavedRun, file: SessionFile): Promise<void> {
  const { owned } = saved
  const blocks = await takeBlocks(seat.cache, file, seat.budgetsFor(owned))
  seat.adopt(blocks.filter((_, i) => owned[i]))
  const at = ({ block }: SavedBlock) => blocks[block] as Block
  const blocksOf = ({ common, header, own }: SavedBlocks): WorkerBlocks => {
    return { common: at(common), header: header && at(header), own: at(own) }
  }
  saved.workers.forEach(({ header, own, state }, i) => {
    const worker = group.workers[i] as Worker
    worker.header = ArrayBuffer.isView(header) ? header : at(header)
    worker.own = own && at(own)
    worker.state = stateOf(state, blocksOf)
  })
  const { common, shared, prefills, stopTokens, outbox, ...state } = saved.group
  Object.assign(group.state, {
    ...state,
    common: at(common),
    shared: shared && at(shared),
    stopTokens: new Set(stopTokens),
    // What was warned of meanwhile is told behind the rest.
    outbox: [...outbox, ...group.state.outbox],
    prefills: prefills.map(({ block, newcomer, isPrompt, ...prefill }) => ({
      ...prefill,
      block: at(block),
      newcomer: newcomer && {
        worker: group.workers.find(({ name }) => name === newcomer.worker) as Worker,
        blocks: blocksOf(newcomer.blocks),
      },
      onProgress: isPrompt ? group.settings.onPrefill : undefined,
    })),
  } satisfies GroupState)
  group.triggers.restore(saved.triggersState)
}

function stateOf(state: SavedState, blocksOf: (blocks: SavedBlocks) => WorkerBlocks): WorkerState {
  if (state.name === 'joining') return state
  if (state.name === 'stopped') {
    return { name: 'stopped', blocks: state.blocks && blocksOf(state.blocks) }
  }
  return { ...state, blocks: blocksOf(state.blocks) }
}

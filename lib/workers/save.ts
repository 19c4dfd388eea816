// A run to a file, between two steps of its cache.

import { createHash } from 'node:crypto'
import type { Block } from '../block'
import { checkTransfer } from '../cache'
import { exportBlocks } from '../cache-file'
import { HogwildError } from '../errors'
import { checkPath } from '../sources/files'
import type { Tokenizer } from '../tokenizer/tokenizer'
import type { TransferOptions } from '../transfer'
import { checkJson, optionKeys } from '../validate'
import type { Group } from './group'
import type { RunSettings } from './options'
import type { Parked } from './park'
import { RUN_VERSION, type SavedSettings, toJson } from './saved-run'
import type { Seat } from './seat'
import type { Worker } from './worker'

export interface SaveOptions extends TransferOptions {
  /** Anything that JSON can hold, to go with the run: state of the application. Default: null. */
  data?: unknown
}

const SAVE_KEYS = optionKeys<SaveOptions>()({ data: true, signal: true, onProgress: true })

/** SaveOptions that were checked and copied. */
export interface SaveSettings extends TransferOptions {
  path: string
  data: unknown
}

/** Throws HOGWILD_INVALID_ARGUMENT. */
export function checkSave(path: string, options: SaveOptions): SaveSettings {
  const { data, ...transfer } = checkTransfer(options, SAVE_KEYS)
  return {
    ...transfer,
    path: checkPath(path, 'path'),
    data: checkJson(data ?? null, 'options.data'),
  }
}

/**
 * @internal Writes a group as it is now; nobody uses its cache meanwhile. `waiting`: for whom work is under way. Returns the file's
 * length.
 */
export async function saveGroup(
  group: Group,
  seat: Seat,
  waiting: readonly Parked[],
  { path, data, ...transfer }: SaveSettings,
): Promise<number> {
  const { state } = group
  if (state.common === undefined) {
    throw new HogwildError(
      'the run has no blocks before its first event',
      'HOGWILD_INVALID_ARGUMENT',
    )
  }
  if (state.hasEnded && state.outbox.length === 0) {
    throw new HogwildError('the run has ended', 'HOGWILD_CLOSED')
  }
  // Nobody needs the work of a worker that was stopped meanwhile.
  const parked = waiting.filter(({ worker }) =>
    group.workers.some(({ name, state }) => name === worker && state.name !== 'stopped'),
  )
  const places = new Map<Block, number>()
  const placeOf = (block: Block): number => {
    const place = places.get(block) ?? places.size
    places.set(block, place)
    return place
  }
  const run = toJson(describeGroup(group, parked), placeOf) as object
  const blocks = [...places.keys()]
  const owned = blocks.map((block) => seat.owns(block))
  const header = {
    version: RUN_VERSION,
    run: { ...run, owned },
    parkedData: parked.map((one) => one.data),
    data,
  }
  return await exportBlocks(seat.cache, blocks, path, 'run', header, transfer)
}

/** All of SavedRun but `owned`, with blocks where that has places. */
function describeGroup(group: Group, parked: readonly Parked[]) {
  const { common, shared, prefills, stopTokens, ...state } = group.state
  const { cache, tokenizer, turnEnds, turnHeader, triggers, onPrefill } = group.settings
  return {
    settings: savedSettings(group.settings),
    given: {
      cache: cache !== undefined,
      tokenizer: tokenizer !== undefined,
      turnEnds: turnEnds !== undefined,
      turnHeader: turnHeader !== undefined,
    },
    triggers: triggers.map(({ action, ...trigger }) => trigger),
    triggersState: group.triggers.state,
    warned: group.warnings.told,
    group: {
      ...state,
      common,
      shared,
      prefills: prefills.map(({ newcomer, onProgress, ...prefill }) => ({
        ...prefill,
        newcomer: newcomer && { worker: newcomer.worker.name, blocks: newcomer.blocks },
        isPrompt: onProgress !== undefined && onProgress === onPrefill,
      })),
      stopTokens: [...stopTokens],
      peakPages: group.peakPages ?? 0,
    },
    workers: group.workers.map((worker) => describeWorker(worker, tokenizer)),
    parked: parked.map(({ worker, timeoutMs }) => ({ worker, timeoutMs })),
  }
}

function savedSettings(settings: RunSettings): SavedSettings {
  const { layout, share, prompt, stopTokens, stop, maxTokens, capacity, context } = settings
  const { cacheDtype, beyondContext, keepBlocks, priority } = settings
  return {
    ...{ layout, share, prompt, stopTokens, stop, maxTokens, capacity, context },
    ...{ cacheDtype, beyondContext, keepBlocks, priority },
  }
}

function describeWorker(worker: Worker, tokenizer: Tokenizer | undefined) {
  const { state, header, own, tokens, forced, written, turn, turnIds, pending } = worker
  const { name, from, maxTokens, stop, logprob, topLogprobs, attentionMass, ...choice } =
    worker.settings
  const isJoining = state.name === 'joining'
  return {
    ...{ name, from, maxTokens, stop, logprob, topLogprobs, attentionMass },
    header: isJoining ? header : [],
    own: isJoining ? own : undefined,
    sampler: choice.sampler.state,
    // A copy of the user's, in which it is a Map (`copyLogitBias`).
    logitBias: choice.logitBias && [...(choice.logitBias as ReadonlyMap<number, number>)],
    processLogits: choice.processLogits !== undefined,
    grammar: worker.matcher?.tokens,
    tokens,
    forced: forced.map(Number).join(''),
    text: tokenizer && textHash(tokenizer, tokens),
    ...{ written, turn, turnIds, pending, state },
  }
}

/** SHA-256, in hex, of the tokens' text: another tokenizer has another one. */
export function textHash(tokenizer: Tokenizer, tokens: ArrayLike<number>): string {
  const text = tokenizer.decode(tokens, { skipSpecialTokens: true })
  return createHash('sha256').update(text).digest('hex')
}

// What is checked of a run that comes from a file: nothing of it may lead the loop astray.

import { checkCapacity } from '../cache'
import { checkCacheDtype } from '../cache-dtype'
import { type BeyondContext, checkBeyondContext, checkContext } from '../model'
import { Sampler, type SamplerState } from '../sampler'
import { copyLogitBias, type LogitBias } from '../step-hooks'
import {
  checkArray,
  checkBoolean,
  checkInteger,
  checkNumber,
  checkObject,
  checkOneOf,
  checkString,
  checkTokens,
  invalid,
} from '../validate'
import type { Append, Control } from './controls'
import type { StopReason, WorkerEvent } from './events'
import { LAYOUT_NAMES } from './layout'
import {
  fromJson,
  type SavedBlock,
  type SavedBlocks,
  type SavedGroup,
  type SavedPrefill,
  type SavedRun,
  type SavedSettings,
  type SavedState,
  type SavedTrigger,
  type SavedWorker,
} from './saved-run'
import type { Pending } from './worker'

type Check<T> = (value: unknown, name: string) => T

const optional =
  <T>(check: Check<T>): Check<T | undefined> =>
  (value, name) =>
    value === undefined ? undefined : check(value, name)

const listOf =
  <T>(check: Check<T>): Check<T[]> =>
  (value, name) =>
    checkArray(value, name).map((item, i) => check(item, `${name}[${i}]`))

const count: Check<number> = (value, name) => checkInteger(value, name, 0)
const amount: Check<number> = (value, name) =>
  checkNumber(value, name, 'a number >= 0', (x) => x >= 0)
const text: Check<string> = (value, name) => checkString(value, name)
const stopString: Check<string> = (value, name) => {
  if (text(value, name) === '') throw invalid(name, 'a string of at least one character', value)
  return value as string
}
const flag: Check<boolean> = (value, name) => checkBoolean(value, name)
const logprob: Check<number> = (value, name) => {
  if (typeof value !== 'number') throw invalid(name, 'a number', value)
  return value
}
/** Infinity: no bound. */
const bound: Check<number> = (value, name) =>
  value === Number.POSITIVE_INFINITY ? value : checkInteger(value, name, 1)

const bias: Check<[number, number]> = (value, name) => {
  const list = checkArray(value, name)
  return [count(list[0], `${name}[0]`), logprob(list[1], `${name}[1]`)]
}

const STOP_REASONS = {
  'stop-token': true,
  'stop-string': true,
  'max-tokens': true,
  'out-of-pages': true,
  stopped: true,
} as const satisfies Record<StopReason, true>
const reason: Check<StopReason> = (value, name) =>
  checkOneOf(value, name, Object.keys(STOP_REASONS) as StopReason[])

const EVENT_TYPES = {
  warning: true,
  join: true,
  pause: true,
  resume: true,
  token: true,
  append: true,
  turn: true,
  stop: true,
  step: true,
  end: true,
} as const satisfies Record<WorkerEvent['type'], true>

/** An event as it was told: of what it says its type alone is looked at. */
const event: Check<WorkerEvent> = (value, name) => {
  const { type } = checkObject(value, name)
  checkOneOf(type, `${name}.type`, Object.keys(EVENT_TYPES))
  return value as WorkerEvent
}

const topLogprob: Check<{ token: number; logprob: number }> = (value, name) => {
  const entry = checkObject(value, name)
  return {
    token: count(entry.token, `${name}.token`),
    logprob: logprob(entry.logprob, `${name}.logprob`),
  }
}

/**
 * Checks what the header of a file says of a run; `json` is what `toJson` made. Throws HOGWILD_INVALID_ARGUMENT, naming what is
 * wrong, and HOGWILD_UNSUPPORTED for the state of a sampler of a later release.
 */
export function parseRun(json: unknown, vocabSize: number): SavedRun {
  const run = checkObject(fromJson(json), 'the run')
  const owned = listOf(flag)(run.owned, 'owned')
  const parse = new RunParser(vocabSize, owned.length, names(run.workers))
  const given = checkObject(run.given, 'given')
  const triggersState = checkObject(run.triggersState, 'triggersState')
  const triggers = listOf(trigger)(run.triggers, 'triggers')
  const counts = listOf(count)(triggersState.counts, 'triggersState.counts')
  if (counts.length !== triggers.length) {
    throw invalid('triggersState.counts', `${triggers.length} numbers`, counts)
  }
  return {
    settings: parse.settings(run.settings, 'settings'),
    given: {
      cache: flag(given.cache, 'given.cache'),
      tokenizer: flag(given.tokenizer, 'given.tokenizer'),
      turnEnds: flag(given.turnEnds, 'given.turnEnds'),
      turnHeader: flag(given.turnHeader, 'given.turnHeader'),
    },
    triggers,
    triggersState: { counts, tails: listOf(tail)(triggersState.tails, 'triggersState.tails') },
    warned: listOf(text)(run.warned, 'warned'),
    group: parse.group(run.group, 'group'),
    workers: checkArray(run.workers, 'workers').map((worker, i) =>
      parse.worker(worker, `workers[${i}]`),
    ),
    parked: checkArray(run.parked, 'parked').map((value, i) => {
      const parked = checkObject(value, `parked[${i}]`)
      return {
        worker: parse.workerName(parked.worker, `parked[${i}].worker`),
        timeoutMs: optional<number>((ms, name) => checkInteger(ms, name, 1, 2 ** 31 - 1))(
          parked.timeoutMs,
          `parked[${i}].timeoutMs`,
        ),
      }
    }),
    owned,
  }
}

function names(workers: unknown): Set<string> {
  const list = checkArray(workers, 'workers').map((worker, i) =>
    text(checkObject(worker, `workers[${i}]`).name, `workers[${i}].name`),
  )
  const known = new Set(list)
  if (known.size < list.length) throw invalid('workers', 'workers of different names', list)
  return known
}

const trigger: Check<SavedTrigger> = (value, name) => {
  const known = checkObject(value, name)
  return {
    text: text(known.text, `${name}.text`),
    workers: optional(listOf(text))(known.workers, `${name}.workers`),
    limit: optional(count)(known.limit, `${name}.limit`),
    depth: optional(count)(known.depth, `${name}.depth`),
  }
}

const tail: Check<[string, string]> = (value, name) => {
  const list = checkArray(value, name)
  return [text(list[0], `${name}[0]`), text(list[1], `${name}[1]`)]
}

/** Parts of a run that name tokens, blocks and workers. */
class RunParser {
  readonly #vocabSize: number
  readonly #blocks: number
  readonly #workers: ReadonlySet<string>

  constructor(vocabSize: number, blocks: number, workers: ReadonlySet<string>) {
    this.#vocabSize = vocabSize
    this.#blocks = blocks
    this.#workers = workers
  }

  readonly tokens: Check<Int32Array> = (value, name) => checkTokens(value, name, this.#vocabSize)

  readonly block: Check<SavedBlock> = (value, name) => {
    const { block } = checkObject(value, name)
    return { block: checkInteger(block, `${name}.block`, 0, this.#blocks - 1) }
  }

  readonly workerName: Check<string> = (value, name) => {
    if (!this.#workers.has(text(value, name))) throw invalid(name, 'a worker of the run', value)
    return value as string
  }

  readonly blocks: Check<SavedBlocks> = (value, name) => {
    const blocks = checkObject(value, name)
    return {
      common: this.block(blocks.common, `${name}.common`),
      header: optional(this.block)(blocks.header, `${name}.header`),
      own: this.block(blocks.own, `${name}.own`),
    }
  }

  readonly settings: Check<SavedSettings> = (value, name) => {
    const settings = checkObject(value, name)
    const of = (key: string) => `${name}.${key}`
    return {
      layout: checkOneOf(settings.layout, of('layout'), LAYOUT_NAMES),
      share: flag(settings.share, of('share')),
      prompt: this.tokens(settings.prompt, of('prompt')),
      stopTokens: optional(this.tokens)(settings.stopTokens, of('stopTokens')),
      stop: listOf(stopString)(settings.stop, of('stop')),
      maxTokens: bound(settings.maxTokens, of('maxTokens')),
      capacity: optional((value) => checkCapacity(value as number))(
        settings.capacity,
        of('capacity'),
      ),
      context: optional((value) => checkContext(value as number))(settings.context, of('context')),
      cacheDtype: optional(checkCacheDtype)(settings.cacheDtype, of('cacheDtype')),
      beyondContext: optional((value) => checkBeyondContext(value as BeyondContext))(
        settings.beyondContext,
        of('beyondContext'),
      ),
      keepBlocks: flag(settings.keepBlocks, of('keepBlocks')),
      priority: checkNumber(settings.priority, of('priority'), 'a finite number', () => true),
    }
  }

  readonly group: Check<SavedGroup> = (value, name) => {
    const group = checkObject(value, name)
    const of = (key: string) => `${name}.${key}`
    return {
      steps: count(group.steps, of('steps')),
      tokens: count(group.tokens, of('tokens')),
      milliseconds: amount(group.milliseconds, of('milliseconds')),
      promptTokens: count(group.promptTokens, of('promptTokens')),
      reusedTokens: count(group.reusedTokens, of('reusedTokens')),
      common: this.block(group.common, of('common')),
      shared: optional(this.block)(group.shared, of('shared')),
      prefills: listOf(this.prefill)(group.prefills, of('prefills')),
      controls: listOf(this.control)(group.controls, of('controls')),
      events: listOf(event)(group.events, of('events')),
      outbox: listOf(event)(group.outbox, of('outbox')),
      atBoundary: flag(group.atBoundary, of('atBoundary')),
      hasEnded: flag(group.hasEnded, of('hasEnded')),
      stopTokens: this.tokens(group.stopTokens, of('stopTokens')),
      peakPages: count(group.peakPages, of('peakPages')),
    }
  }

  readonly prefill: Check<SavedPrefill> = (value, name) => {
    const { block, tokens, done, newcomer, isPrompt } = checkObject(value, name)
    const ids = this.tokens(tokens, `${name}.tokens`)
    return {
      block: this.block(block, `${name}.block`),
      tokens: ids,
      done: checkInteger(done, `${name}.done`, 0, ids.length - 1),
      newcomer: optional((one, its) => {
        const { worker, blocks } = checkObject(one, its)
        return {
          worker: this.workerName(worker, `${its}.worker`),
          blocks: this.blocks(blocks, `${its}.blocks`),
        }
      })(newcomer, `${name}.newcomer`),
      isPrompt: flag(isPrompt, `${name}.isPrompt`),
    }
  }

  readonly control: Check<Control | Append> = (value, name) => {
    const control = checkObject(value, name)
    const types = ['append', 'stop', 'pause', 'resume', 'inject'] as const
    const type = checkOneOf(control.type, `${name}.type`, types)
    if (type === 'append') return { type, tokens: this.tokens(control.tokens, `${name}.tokens`) }
    const worker = this.workerName(control.worker, `${name}.worker`)
    const pending = listOf(this.pending)
    switch (type) {
      case 'stop':
        return { type, worker, mark: pending(control.mark, `${name}.mark`) }
      case 'inject':
        return { type, worker, tokens: pending(control.tokens, `${name}.tokens`) }
      case 'pause': {
        const parked = optional(checkObject)(control.parked, `${name}.parked`)
        return { type, worker, ...(parked && { parked: { data: parked.data ?? null } }) }
      }
      case 'resume':
        return { type, worker }
    }
  }

  readonly pending: Check<Pending> = (value, name) => {
    const pending = checkObject(value, name)
    return {
      token: checkInteger(pending.token, `${name}.token`, 0, this.#vocabSize - 1),
      forced: flag(pending.forced, `${name}.forced`),
      logprob: optional(logprob)(pending.logprob, `${name}.logprob`),
      topLogprobs: optional(listOf(topLogprob))(pending.topLogprobs, `${name}.topLogprobs`),
    }
  }

  readonly state: Check<SavedState> = (value, name) => {
    const state = checkObject(value, name)
    const states = ['joining', 'active', 'paused', 'stopping', 'stopped'] as const
    const its = checkOneOf(state.name, `${name}.name`, states)
    if (its === 'joining') return { name: its }
    if (its === 'stopped') {
      return { name: its, blocks: optional(this.blocks)(state.blocks, `${name}.blocks`) }
    }
    const blocks = this.blocks(state.blocks, `${name}.blocks`)
    switch (its) {
      case 'active':
        return { name: its, blocks }
      case 'paused':
        return { name: its, blocks, ending: optional(reason)(state.ending, `${name}.ending`) }
      case 'stopping':
        return { name: its, blocks, reason: reason(state.reason, `${name}.reason`) }
    }
  }

  readonly logitBias: Check<LogitBias> = (value, name) => {
    return copyLogitBias(new Map(listOf(bias)(value, name)), name, this.#vocabSize)
  }

  readonly worker: Check<SavedWorker> = (value, name) => {
    const worker = checkObject(value, name)
    const of = (key: string) => `${name}.${key}`
    const tokens = this.tokens(worker.tokens, of('tokens'))
    const forced = text(worker.forced, of('forced'))
    if (forced.length !== tokens.length || /[^01]/.test(forced)) {
      throw invalid(of('forced'), `${tokens.length} digits, 0 or 1`, forced)
    }
    const header = Array.isArray(worker.header) ? this.tokens : this.block
    Sampler.restore(worker.sampler as SamplerState)
    return {
      name: text(worker.name, of('name')),
      header: header(worker.header, of('header')),
      own: optional(this.block)(worker.own, of('own')),
      from: optional(this.workerName)(worker.from, of('from')),
      maxTokens: bound(worker.maxTokens, of('maxTokens')),
      stop: listOf(stopString)(worker.stop, of('stop')),
      sampler: worker.sampler as SamplerState,
      logitBias: optional(this.logitBias)(worker.logitBias, of('logitBias')),
      logprob: flag(worker.logprob, of('logprob')),
      topLogprobs: checkInteger(worker.topLogprobs, of('topLogprobs'), 0, 1024),
      attentionMass: flag(worker.attentionMass, of('attentionMass')),
      processLogits: flag(worker.processLogits, of('processLogits')),
      grammar: optional(this.tokens)(worker.grammar, of('grammar')),
      tokens,
      forced,
      text: optional(text)(worker.text, of('text')),
      written: count(worker.written, of('written')),
      turn: count(worker.turn, of('turn')),
      turnIds: this.tokens(worker.turnIds, of('turnIds')),
      pending: listOf(this.pending)(worker.pending, of('pending')),
      state: this.state(worker.state, of('state')),
    }
  }
}

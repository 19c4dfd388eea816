// One worker alone: a prompt or a conversation, and what the model writes after it.

import { onAbort, throwIfAborted } from './abort-signal'
import { findToolCalls, type ToolCall } from './chat/tool-calls'
import { errorCode } from './errors'
import type { CacheDtype } from './formats'
import { type BeyondContext, Model, type StepOutput, type TokenLogprob } from './model'
import { type PrefillProgress, prefillInPieces } from './prefill'
import { withinVocabulary } from './sources/eos'
import {
  checkSpeculation,
  countDrafts,
  Drafter,
  type SpeculateOptions,
  type SpeculationUsage,
  stagesOf,
  tokensOf,
} from './speculation'
import { openPlace, type Place } from './text-place'
import { checkTokenOptions, type TokenOptions } from './token-options'
import { StopMatcher } from './tokenizer/stop-strings'
import { type ChatMessage, type ChatOptions, Tokenizer } from './tokenizer/tokenizer'
import {
  checkInstance,
  checkOptionalFunction,
  checkOptions,
  checkSignal,
  checkTokens,
  invalid,
  optionKeys,
} from './validate'
import { checkMaxTokens, checkScheduler, checkStop } from './workers/options'
import type { Scheduler } from './workers/scheduler'

export type { ToolCall }

/** Options of `generate`. */
export interface GenerateOptions extends TokenOptions {
  /** What writes. */
  model: Model
  /**
   * For text: of a prompt that is a string, of messages, of stop strings and of what comes out. Ids without a token
   * are then never chosen, but for stop tokens.
   */
  tokenizer?: Tokenizer | undefined
  /** Text or token ids, at least one. Either this or `messages`. */
  prompt?: string | ArrayLike<number> | undefined
  /** A conversation, as `Tokenizer.encodeChat` takes it. */
  messages?: readonly ChatMessage[] | undefined
  /** Of the conversation: tools, documents, the template and its variables. */
  chat?: ChatOptions | undefined
  /** Tokens that may be written, at least 1; default 512. */
  maxTokens?: number | undefined
  /** Token ids that end the text; default: those of model and tokenizer. */
  stopTokens?: ArrayLike<number> | undefined
  /** Strings before which the text ends; matched across tokens. Default: none. */
  stop?: readonly string[] | undefined
  /**
   * Guesses the next tokens, so that one step may bring several of them (docs/speculation.md). What is written stays the
   * same. Default: no guesses.
   */
  speculate?: SpeculateOptions | undefined
  /**
   * In whose pool it writes (`createScheduler({ model, ... })`), beside runs and other texts: it waits there until its pages
   * (of the prompt and `maxTokens`) are free, and its steps come between those of the others. With
   * `SchedulerOptions.prefixes`, prompts that begin as others did, as those of a conversation do, are not computed again;
   * on a CPU the text is the same to the last bit. Default: it has a cache of its own.
   */
  scheduler?: Scheduler | undefined
  /** In which keys and values are stored; default: as `model.createCache` has it. */
  cacheDtype?: CacheDtype | undefined
  /** What happens when the text is longer than the model's context; default: as the model was loaded with. */
  beyondContext?: BeyondContext | undefined
  /** Called while the prompt is computed, piece by piece. What it throws ends the generation. */
  onPrefill?: ((progress: PrefillProgress) => void) | undefined
  /** Ends it: the iterator and `result` reject with HOGWILD_ABORTED and the signal's reason as `cause`. */
  signal?: AbortSignal | undefined
}

const KEYS = optionKeys<GenerateOptions>()({
  model: true,
  tokenizer: true,
  prompt: true,
  messages: true,
  chat: true,
  sampler: true,
  logitBias: true,
  processLogits: true,
  grammar: true,
  maxTokens: true,
  stopTokens: true,
  stop: true,
  logprobs: true,
  topLogprobs: true,
  speculate: true,
  scheduler: true,
  cacheDtype: true,
  beyondContext: true,
  onPrefill: true,
  signal: true,
})

const DEFAULT_MAX_TOKENS = 512

/** A token that was chosen. */
export interface GeneratedToken {
  /** Its id. */
  token: number
  /**
   * What it adds to the text: '' without a tokenizer, until a character is complete, and while the text may be the
   * beginning of a stop string. The last token, a stop token too, brings what was held back: joined, the texts are
   * that of the result.
   */
  text: string
  /** Natural log of its probability by the raw logits, where `logprobs` asks for it. */
  logprob?: number | undefined
  /** The most likely tokens at its place, the most likely first, where `topLogprobs` asks for them. */
  topLogprobs?: TokenLogprob[] | undefined
}

/**
 * Why a text ends: at a stop token (that of a grammar too), at a stop string, after `maxTokens`, or because the consumer left its loop or called
 * `close` ('stopped').
 */
export type GenerateReason = 'stop-token' | 'stop-string' | 'max-tokens' | 'stopped'

/** Tokens of a text. */
export interface GenerateUsage {
  /** Of the prompt. */
  promptTokens: number
  /** Of these, those that the scheduler had in store, so that they were not computed (`SchedulerOptions.prefixes`). */
  reusedTokens: number
  /** That were chosen, a stop token included. */
  completionTokens: number
  /** With `speculate`. Without, each token would have taken a pass, a stop token too. */
  speculation?: SpeculationUsage | undefined
}

/** A text that has ended. */
export interface GenerateResult {
  /** All of it, without stop token and stop string; '' without a tokenizer. */
  text: string
  /** What was chosen, without the stop token; those of a stop string included. */
  tokens: number[]
  /** Why it ended. */
  reason: GenerateReason
  /** Tokens that went in and came out. */
  usage: GenerateUsage
  /** Calls of tools that the text makes, in its order; empty where the conversation has no tools. */
  toolCalls: ToolCall[]
}

/**
 * Lets one worker write. It begins at once and goes on by itself; the tokens wait for their reader.
 *
 *     const answer = generate({ model, tokenizer, messages: [{ role: 'user', content: 'Hello' }] })
 *     for await (const { text } of answer) process.stdout.write(text)
 *     const { reason, usage } = await answer.result
 *
 * Throws HOGWILD_INVALID_ARGUMENT.
 */
export function generate(options: GenerateOptions): Generation {
  return new Generation(checkGenerate(options))
}

type Settings = ReturnType<typeof checkGenerate>

function checkGenerate(options: GenerateOptions) {
  options = checkOptions(options, 'options', KEYS)
  const { tokenizer, prompt, messages, chat, stopTokens, onPrefill } = options
  const model = checkInstance(options.model, 'options.model', Model)
  const { vocabSize } = model.config
  checkScheduler(options.scheduler, model)
  if (tokenizer !== undefined) checkInstance(tokenizer, 'options.tokenizer', Tokenizer)
  if ((prompt === undefined) === (messages === undefined)) {
    throw invalid('options', 'either a prompt or messages', { prompt, messages })
  }
  if (tokenizer === undefined && (messages !== undefined || typeof prompt === 'string')) {
    throw invalid('options.tokenizer', 'a tokenizer, for text', tokenizer)
  }
  const ids =
    typeof prompt === 'object' ? checkTokens(prompt, 'options.prompt', vocabSize) : undefined
  if (ids?.length === 0) throw invalid('options.prompt', 'at least one token', prompt)
  const max = options.maxTokens ?? DEFAULT_MAX_TOKENS
  const stopIds = stopTokens && checkTokens(stopTokens, 'options.stopTokens', vocabSize)
  return {
    model,
    tokenizer,
    prompt: ids ?? prompt,
    messages,
    chat: chat ?? {},
    ...checkTokenOptions(options, 'options', model, tokenizer, stopIds),
    maxTokens: checkMaxTokens(max, 'options.maxTokens'),
    stopTokens: stopIds,
    stop: checkStop(options.stop ?? [], 'options.stop', tokenizer),
    speculate: checkSpeculation(options.speculate, 'options.speculate'),
    scheduler: options.scheduler,
    cacheDtype: options.cacheDtype,
    beyondContext: options.beyondContext,
    onPrefill: checkOptionalFunction(onPrefill, 'options.onPrefill'),
    signal: checkSignal(options.signal, 'options.signal'),
  }
}

/**
 * A text that is being written: an async iterable of its tokens, for one consumer. Whoever leaves the loop stops it.
 * An error is thrown from the iterator, after the tokens before it, and from `result`.
 */
export class Generation implements AsyncIterable<GeneratedToken> {
  /** Settles when the text has ended; also without a consumer of the tokens. */
  readonly result: Promise<GenerateResult>
  readonly #abort = new AbortController()
  readonly #tokens: GeneratedToken[] = []
  #wake: () => void = () => {}
  #isStopped = false
  #hasEnded = false

  /** @internal */
  constructor(settings: Settings) {
    this.result = this.#run(settings)
    const ended = () => {
      this.#hasEnded = true
      this.#wake()
    }
    // Not everyone awaits `result`.
    this.result.then(ended, ended)
  }

  /** The tokens, for one consumer. One that leaves its loop ends the text. */
  async *[Symbol.asyncIterator](): AsyncGenerator<GeneratedToken, void, void> {
    try {
      for (;;) {
        const token = this.#tokens.shift()
        if (token !== undefined) yield token
        else if (this.#hasEnded) break
        else await new Promise<void>((resolve) => this.#waitFor(resolve))
      }
      await this.result
    } finally {
      this.#stop()
    }
  }

  /** Ends the text where it is, and waits for that; `result` then has the reason 'stopped'. Idempotent. */
  async close(): Promise<void> {
    this.#stop()
    await this.result.catch(() => {})
  }

  /** As `close`. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  #waitFor(resolve: () => void): void {
    this.#wake = resolve
    if (this.#hasEnded || this.#tokens.length > 0) resolve()
  }

  #stop(): void {
    this.#isStopped = true
    this.#abort.abort()
  }

  async #run(settings: Settings): Promise<GenerateResult> {
    const { signal } = settings
    const forget = onAbort(signal, () => this.#abort.abort())
    const writing = new Writing(settings)
    let [promptTokens, reusedTokens] = [0, 0]
    try {
      throwIfAborted(signal)
      const prompt = await encodePrompt(settings, this.#abort.signal)
      promptTokens = prompt.length
      const place = await openPlace(settings, prompt, this.#abort.signal)
      reusedTokens = place.reusedTokens
      try {
        await this.#write(settings, place, prompt, writing)
      } finally {
        await place.close()
      }
    } catch (error) {
      const isAborted = errorCode(error) === 'HOGWILD_ABORTED'
      if (isAborted) throwIfAborted(signal) // with its reason
      if (!(isAborted && this.#isStopped)) throw error
    } finally {
      forget()
    }
    return writing.result(promptTokens, reusedTokens)
  }

  async #write(
    settings: Settings,
    { block, reusedTokens, prefill }: Place,
    prompt: Int32Array,
    writing: Writing,
  ): Promise<void> {
    const { model, sampler, logitBias, processLogits, logprob, topLogprobs } = settings
    const { beyondContext, onPrefill, speculate } = settings
    const drafter = speculate && new Drafter(speculate, undefined, model.config.vocabSize)
    const grammar = settings.grammar?.newMatcher()
    const options = {
      sampler,
      logitBias,
      processLogits,
      grammar,
      logprob,
      topLogprobs,
      beyondContext,
      signal: this.#abort.signal,
    }
    let output = await prefillInPieces(prefill, prompt, reusedTokens, options, onPrefill)
    for (;;) {
      writing.count(output)
      const stages = stagesOf(output)
      stages.forEach((stage, i) => {
        const endsGrammar = i + 1 === stages.length && (grammar?.hasEnded ?? false)
        this.#tokens.push(writing.add(stage, endsGrammar))
      })
      this.#wake()
      if (writing.reason !== undefined) return
      const token = output.token as number
      const drafts = drafter && writing.drafts(drafter, tokensOf([block], [token]))
      output = await prefill([token], { ...options, drafts })
      drafter?.learn(output)
    }
  }
}

async function encodePrompt(settings: Settings, signal: AbortSignal): Promise<Int32Array> {
  const { model, tokenizer, prompt, messages, chat } = settings
  if (messages !== undefined) {
    const ids = await (tokenizer as Tokenizer).encodeChat(messages, { ...chat, signal })
    return checkTokens(ids, 'the ids of options.messages', model.config.vocabSize)
  }
  if (typeof prompt !== 'string') return prompt as Int32Array
  const ids = await (tokenizer as Tokenizer).encode(prompt, { signal })
  if (ids.length === 0) throw invalid('options.prompt', 'at least one token', prompt)
  return checkTokens(ids, 'the ids of options.prompt', model.config.vocabSize)
}

/** What has been written so far, and whether that is the end. */
class Writing {
  reason: GenerateReason | undefined
  readonly #settings: Settings
  readonly #stopTokens: ReadonlySet<number>
  readonly #matcher: StopMatcher
  readonly #stream
  readonly #tokens: number[] = []
  readonly #speculation: SpeculationUsage | undefined
  #text = ''

  constructor(settings: Settings) {
    const { model, tokenizer, stopTokens, stop } = settings
    const { eosTokenIds, vocabSize } = model.config
    const known = [...eosTokenIds, ...(tokenizer?.eosTokenIds ?? [])]
    this.#settings = settings
    this.#stopTokens = new Set(stopTokens ?? withinVocabulary(known, vocabSize, model.warnings))
    this.#matcher = new StopMatcher(stop)
    this.#stream = tokenizer?.stream()
    this.#speculation = settings.speculate && { passes: 0, drafted: 0, accepted: 0 }
  }

  /** What may come next behind `tokens`, up to what would end the text. */
  drafts(drafter: Drafter, tokens: Int32Array): Int32Array {
    const { speculate, maxTokens, grammar } = this.#settings
    const left = maxTokens - this.#tokens.length - 1
    const count = Math.min(speculate?.tokens ?? 0, left)
    const drafts = count > 0 ? drafter.draft(tokens, count) : new Int32Array(0)
    const stream = this.#stream?.fork()
    const matcher = this.#matcher.fork()
    const end = drafts.findIndex((id) => {
      matcher.push(stream?.push(id) ?? '')
      return matcher.found || this.#stopTokens.has(id) || (grammar?.isStop(id) ?? false)
    })
    return end < 0 ? drafts : drafts.subarray(0, end)
  }

  /** A step has chosen tokens. */
  count(output: StepOutput): void {
    if (this.#speculation === undefined) return
    this.#speculation.passes++
    countDrafts(this.#speculation, output)
  }

  /** The token that a step has chosen. `endsGrammar`: it is the stop token of a grammar's. */
  add({ token, logprob, topLogprobs }: StepOutput, endsGrammar: boolean): GeneratedToken {
    const id = token as number
    if (endsGrammar || this.#stopTokens.has(id)) {
      this.reason = 'stop-token'
      return { token: id, text: this.#end(), logprob, topLogprobs }
    }
    this.#tokens.push(id)
    let text = this.#matcher.push(this.#stream?.push(id) ?? '')
    this.#text += text
    if (this.#matcher.found) this.reason = 'stop-string'
    else if (this.#tokens.length >= this.#settings.maxTokens) {
      this.reason = 'max-tokens'
      text += this.#end()
    }
    return { token: id, text, logprob, topLogprobs }
  }

  /** The text held back: characters that were never complete, and what could have become a stop string. */
  #end(): string {
    if (this.#matcher.found) return ''
    const text = this.#matcher.push(this.#stream?.end() ?? '') + this.#matcher.end()
    this.#text += text
    return text
  }

  /** Where it was stopped, `reason` is not known. */
  result(promptTokens: number, reusedTokens: number): GenerateResult {
    this.#end()
    const tools = this.#settings.chat.tools ?? []
    return {
      text: this.#text,
      tokens: this.#tokens,
      reason: this.reason ?? 'stopped',
      usage: {
        promptTokens,
        reusedTokens,
        completionTokens: this.#tokens.length,
        speculation: this.#speculation,
      },
      toolCalls: tools.length > 0 ? findToolCalls(this.#text) : [],
    }
  }
}

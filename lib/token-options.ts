// How a worker's tokens are chosen, and what is told of them: options of `generate` and of the workers of a run.

import { Grammar } from './grammar/grammar'
import type { Model } from './model'
import { Sampler, type SamplerOptions } from './sampler'
import { copyLogitBias, type LogitBias, type ProcessLogits } from './step-hooks'
import type { Tokenizer } from './tokenizer/tokenizer'
import { tokenlessIds } from './tokenless-ids'
import { checkBoolean, checkInstance, checkInteger, checkOptionalFunction } from './validate'

/** How tokens of a text are chosen, and what is told of them: of `generate` and of workers. */
export interface TokenOptions {
  /** Default: greedy. */
  sampler?: SamplerOptions | undefined
  /** As in a step: added to the logits of these token ids; -Infinity for a token that must not come out. Default: none. */
  logitBias?: LogitBias | undefined
  /**
   * As in a step: changes the logits [V] of each token in place, the first one's too. Called once for each token. What it
   * throws ends the generation or the run, and no other run. Default: none.
   */
  processLogits?: ProcessLogits | undefined
  /**
   * What the text of the chosen tokens has to be, from the first one on (`createGrammar`): tokens that are given (prompt,
   * header of a turn, injected) are no part of it. A text that `maxTokens` ends is incomplete. Default: none.
   */
  grammar?: Grammar | undefined
  /** Whether chosen tokens come with their log-probability; default false. */
  logprobs?: boolean | undefined
  /** How many of the most likely tokens come with each chosen one, at most 1024; default 0. */
  topLogprobs?: number | undefined
}

/** TokenOptions that were checked and copied. */
export interface TokenSettings {
  sampler: Sampler
  logitBias: LogitBias | undefined
  processLogits: ProcessLogits | undefined
  grammar: Grammar | undefined
  logprob: boolean
  topLogprobs: number
}

/** `name` is what messages call the options. Throws HOGWILD_INVALID_ARGUMENT. */
export function checkTokenOptions(
  options: TokenOptions,
  name: string,
  model: Model,
  tokenizer: Tokenizer | undefined,
  stopTokens: ArrayLike<number> | undefined,
): TokenSettings {
  const { logitBias, processLogits, grammar, logprobs, topLogprobs } = options
  const { vocabSize } = model.config
  const sampler = new Sampler(options.sampler ?? { temperature: 0 })
  sampler.forbid(tokenlessIds(model, tokenizer, stopTokens))
  return {
    sampler,
    logitBias:
      logitBias === undefined
        ? undefined
        : copyLogitBias(logitBias, `${name}.logitBias`, vocabSize),
    processLogits: checkOptionalFunction(processLogits, `${name}.processLogits`),
    grammar: grammar === undefined ? undefined : checkInstance(grammar, `${name}.grammar`, Grammar),
    logprob: checkBoolean(logprobs ?? false, `${name}.logprobs`),
    topLogprobs: checkInteger(topLogprobs ?? 0, `${name}.topLogprobs`, 0, 1024),
  }
}

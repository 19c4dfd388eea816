// Angles of the rotary position embedding (RoFormer, arXiv 2104.09864) and its context extensions,
// in double precision. Pure arithmetic: sources/ reads the numbers from a model's files.

import { HEAD_DIM } from './limits'
import {
  checkArray,
  checkBoolean,
  checkInteger,
  checkNumber,
  checkOneOf,
  checkOptions,
  invalid,
  optionKeys,
} from './validate'

/** What rotates q and k. Pair u of R/2 turns by position * inverseFrequencies[u]. */
export interface RopeOptions {
  /** [R/2], radians per position; R = rotated dimensions, the first R of each head (pairs u, u + R/2). */
  inverseFrequencies: Float64Array
  /** Multiplies q once and k once; default 1. Only YaRN has another. */
  attentionFactor?: number | undefined
}

/** RopeOptions with everything said. */
export interface Rope extends RopeOptions {
  /** Multiplies q once and k once. */
  attentionFactor: number
}

/** What all kinds of RoPE have. */
export interface RopeBase {
  /** R: even, in [2, head_dim]. */
  rotaryDim: number
  /** Base of the frequencies, in (1, 1e12]. */
  theta: number
}

/** Frequencies theta^(-2u/R), 0 <= u < R/2. */
export interface DefaultRope extends RopeBase {
  /** Frequencies as they are. */
  type: 'default'
}

/** All frequencies divided by `factor`. */
export interface LinearRope extends RopeBase {
  /** Positions are pressed together. */
  type: 'linear'
  /** How much longer the context becomes. */
  factor: number
}

/** Llama 3.1: waves longer than originalMaxPositions / lowFreqFactor are slowed down by `factor`. */
export interface Llama3Rope extends RopeBase {
  /** Slow pairs are slowed down. */
  type: 'llama3'
  /** How much longer the context becomes. */
  factor: number
  /** Waves longer than the original context divided by this are slowed down in full. */
  lowFreqFactor: number
  /** Waves shorter than the original context divided by this stay; between the two it is a mixture. */
  highFreqFactor: number
  /** Context that the model was first trained with, in tokens. */
  originalMaxPositions: number
}

/** YaRN (arXiv 2309.00071). */
export interface YarnRope extends RopeBase {
  /** Slow pairs are slowed down, and scores are made warmer. */
  type: 'yarn'
  /** How much longer the context becomes. */
  factor: number
  /** Context that the model was first trained with, in tokens. */
  originalMaxPositions: number
  /** Rotations over the original context from which on a pair is left alone; default 32. */
  betaFast?: number | undefined
  /** Rotations up to which a pair is slowed down in full; default 1. */
  betaSlow?: number | undefined
  /** Default: mscale(factor) = 0.1 ln(factor) + 1, or the quotient of the two below where both are given. */
  attentionFactor?: number | undefined
  /** Of the attention factor's numerator: 0.1 mscale ln(factor) + 1. */
  mscale?: number | undefined
  /** The same of its denominator. */
  mscaleAllDim?: number | undefined
  /** Whether the bounds of the ramp are rounded to whole pairs; default true. */
  truncate?: boolean | undefined
}

/** LongRoPE (arXiv 2402.13753): each frequency is divided by a factor of its own. */
export interface LongRope extends RopeBase {
  /** Two sets of factors, for views up to the original context and for longer ones. */
  type: 'longrope'
  /** [R/2], for views of up to `originalMaxPositions` tokens. */
  shortFactors: readonly number[]
  /** [R/2], for longer ones. */
  longFactors: readonly number[]
  /** Context that the model was first trained with, in tokens. */
  originalMaxPositions: number
  /** How much longer the context is than the original one: only the attention factor follows from it. */
  factor: number
  /** Default: sqrt(1 + ln(factor) / ln(originalMaxPositions)). */
  attentionFactor?: number | undefined
}

/** Each frequency divided by a factor of its own, as GGUF files have them. */
export interface FactorsRope extends RopeBase {
  /** Frequencies divided one by one. */
  type: 'factors'
  /** [R/2] */
  factors: readonly number[]
}

/** What `ropeFrequencies` takes, by `type`. */
export type RopeConfig = DefaultRope | LinearRope | Llama3Rope | YarnRope | LongRope | FactorsRope

/** RoPE types that `ropeFrequencies` knows. */
export const ROPE_TYPES = ['default', 'linear', 'llama3', 'yarn', 'longrope', 'factors'] as const

/** A range of numbers, without `min` where it is `open`. */
interface Range {
  min: number
  max: number
  open?: boolean
}

/** Numbers with which angles stay finite, not all zero, and as exact as those of float32. */
export const ROPE_LIMITS = {
  theta: { min: 1, max: 1e12, open: true },
  factor: { min: 1, max: 1e6 },
  attentionFactor: { min: 0, max: 100, open: true },
  /** Rotations, frequency factors, mscale. */
  weight: { min: 0, max: 1e6, open: true },
} as const satisfies Record<string, Range>

const MAX_POSITIONS = 2 ** 31 - 1

const KEYS = {
  default: optionKeys<DefaultRope>()({ type: true, rotaryDim: true, theta: true }),
  linear: optionKeys<LinearRope>()({ type: true, rotaryDim: true, theta: true, factor: true }),
  llama3: optionKeys<Llama3Rope>()({
    type: true,
    rotaryDim: true,
    theta: true,
    factor: true,
    lowFreqFactor: true,
    highFreqFactor: true,
    originalMaxPositions: true,
  }),
  yarn: optionKeys<YarnRope>()({
    type: true,
    rotaryDim: true,
    theta: true,
    factor: true,
    originalMaxPositions: true,
    betaFast: true,
    betaSlow: true,
    attentionFactor: true,
    mscale: true,
    mscaleAllDim: true,
    truncate: true,
  }),
  longrope: optionKeys<LongRope>()({
    type: true,
    rotaryDim: true,
    theta: true,
    shortFactors: true,
    longFactors: true,
    originalMaxPositions: true,
    factor: true,
    attentionFactor: true,
  }),
  factors: optionKeys<FactorsRope>()({ type: true, rotaryDim: true, theta: true, factors: true }),
}

/**
 * Inverse frequencies [R/2] and attention factor of a RoPE configuration, as Hugging Face
 * transformers 5 computes them (modeling_rope_utils.py), but in float64. Factors are in [1, 1e6],
 * the attention factor in (0, 100], other weights in (0, 1e6].
 *
 * `context`: tokens of the longest view, which chooses between the factors of longrope; default: those for short
 * views.
 *
 * Throws HOGWILD_INVALID_ARGUMENT.
 */
export function ropeFrequencies(config: RopeConfig, context = 1): Rope {
  checkRope(config)
  checkInteger(context, 'context', 1, Number.MAX_SAFE_INTEGER)
  const plain = Float64Array.from(
    { length: config.rotaryDim / 2 },
    (_, u) => config.theta ** ((-2 * u) / config.rotaryDim),
  )
  switch (config.type) {
    case 'default':
      return { inverseFrequencies: plain, attentionFactor: 1 }
    case 'linear':
      return { inverseFrequencies: plain.map((f) => f / config.factor), attentionFactor: 1 }
    case 'llama3':
      return { inverseFrequencies: plain.map((f) => llama3(f, config)), attentionFactor: 1 }
    case 'yarn':
      return { inverseFrequencies: yarn(plain, config), attentionFactor: yarnFactor(config) }
    case 'longrope': {
      const { shortFactors, longFactors, originalMaxPositions } = config
      const factors = context > originalMaxPositions ? longFactors : shortFactors
      return {
        inverseFrequencies: divided(plain, factors),
        attentionFactor: longFactor(config),
      }
    }
    case 'factors':
      return { inverseFrequencies: divided(plain, config.factors), attentionFactor: 1 }
  }
}

function checkRope(config: RopeConfig): void {
  const type = checkOneOf((config as RopeConfig | undefined)?.type, 'config.type', ROPE_TYPES)
  checkOptions<object>(config, 'config', KEYS[type] as readonly never[])
  const pairs = checkInteger(config.rotaryDim, 'config.rotaryDim', 2, HEAD_DIM.max) / 2
  checkNumber(config.rotaryDim, 'config.rotaryDim', 'even', () => Number.isInteger(pairs))
  checkRange(config.theta, 'config.theta', ROPE_LIMITS.theta)
  if (config.type === 'default') return
  if (config.type === 'factors') {
    checkFactors(config.factors, 'config.factors', pairs, ROPE_LIMITS.factor)
    return
  }
  checkRange(config.factor, 'config.factor', ROPE_LIMITS.factor)
  if (config.type === 'linear') return
  const least = config.type === 'longrope' ? 2 : 1 // whose logarithm divides
  checkInteger(config.originalMaxPositions, 'config.originalMaxPositions', least, MAX_POSITIONS)
  if (config.type === 'llama3') {
    checkRange(config.lowFreqFactor, 'config.lowFreqFactor', ROPE_LIMITS.weight)
    const above = { ...ROPE_LIMITS.weight, min: config.lowFreqFactor }
    checkRange(config.highFreqFactor, 'config.highFreqFactor', above)
    return
  }
  if (config.attentionFactor !== undefined) {
    checkRange(config.attentionFactor, 'config.attentionFactor', ROPE_LIMITS.attentionFactor)
  }
  if (config.type === 'longrope') {
    for (const key of ['shortFactors', 'longFactors'] as const) {
      checkFactors(config[key], `config.${key}`, pairs, ROPE_LIMITS.weight)
    }
    return
  }
  for (const key of ['betaFast', 'betaSlow', 'mscale', 'mscaleAllDim'] as const) {
    if (config[key] !== undefined) checkRange(config[key], `config.${key}`, ROPE_LIMITS.weight)
  }
  checkBoolean(config.truncate ?? true, 'config.truncate')
}

function checkRange(value: unknown, name: string, { min, max, open = false }: Range): void {
  checkNumber(
    value,
    name,
    `a number ${open ? '>' : '>='} ${min} and <= ${max}`,
    (x) => (open ? x > min : x >= min) && x <= max,
  )
}

function checkFactors(value: unknown, name: string, pairs: number, range: Range): void {
  const factors = checkArray(value, name)
  if (factors.length !== pairs) {
    throw invalid(name, `${pairs} numbers`, `${factors.length} of them`)
  }
  for (const [u, factor] of factors.entries()) checkRange(factor, `${name}[${u}]`, range)
}

function divided(plain: Float64Array, factors: readonly number[]): Float64Array {
  return plain.map((f, u) => f / (factors[u] as number))
}

function clamp(x: number): number {
  return Math.min(Math.max(x, 0), 1)
}

function llama3(frequency: number, rope: Llama3Rope): number {
  const rotations = (rope.originalMaxPositions * frequency) / (2 * Math.PI)
  const kept = clamp((rotations - rope.lowFreqFactor) / (rope.highFreqFactor - rope.lowFreqFactor))
  return ((1 - kept) * frequency) / rope.factor + kept * frequency
}

// Section 3.2 of the paper, "NTK-by-parts": a ramp from pairs that are kept to pairs that are slowed down.
function yarn(plain: Float64Array, rope: YarnRope): Float64Array {
  const { rotaryDim, theta, originalMaxPositions, truncate = true } = rope
  const pairThatTurns = (rotations: number) =>
    (rotaryDim * Math.log(originalMaxPositions / (rotations * 2 * Math.PI))) / (2 * Math.log(theta))
  let low = pairThatTurns(rope.betaFast ?? 32)
  let high = pairThatTurns(rope.betaSlow ?? 1)
  if (truncate) {
    low = Math.floor(low)
    high = Math.ceil(high)
  }
  low = Math.max(low, 0)
  high = Math.min(high, rotaryDim - 1)
  if (low === high) high += 0.001
  return plain.map((f, u) => {
    const slowed = clamp((u - low) / (high - low))
    return (slowed * f) / rope.factor + (1 - slowed) * f
  })
}

function longFactor({ attentionFactor, factor, originalMaxPositions }: LongRope): number {
  if (attentionFactor !== undefined) return attentionFactor
  return factor <= 1 ? 1 : Math.sqrt(1 + Math.log(factor) / Math.log(originalMaxPositions))
}

function yarnFactor(rope: YarnRope): number {
  const mscale = (weight: number) =>
    rope.factor <= 1 ? 1 : 0.1 * weight * Math.log(rope.factor) + 1
  if (rope.attentionFactor !== undefined) return rope.attentionFactor
  if (rope.mscale && rope.mscaleAllDim) return mscale(rope.mscale) / mscale(rope.mscaleAllDim)
  return mscale(1)
}

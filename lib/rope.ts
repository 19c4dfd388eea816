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
  attentionFactor: number
}

interface RopeBase {
  /** R: even, in [2, head_dim]. */
  rotaryDim: number
  /** Base of the frequencies, in (1, 1e12]. */
  theta: number
}

/** Frequencies theta^(-2u/R), 0 <= u < R/2. */
export interface DefaultRope extends RopeBase {
  type: 'default'
}

/** All frequencies divided by `factor`. */
export interface LinearRope extends RopeBase {
  type: 'linear'
  factor: number
}

/** Llama 3.1: waves longer than originalMaxPositions / lowFreqFactor are slowed down by `factor`. */
export interface Llama3Rope extends RopeBase {
  type: 'llama3'
  factor: number
  lowFreqFactor: number
  highFreqFactor: number
  originalMaxPositions: number
}

/** YaRN (arXiv 2309.00071). */
export interface YarnRope extends RopeBase {
  type: 'yarn'
  factor: number
  originalMaxPositions: number
  /** Rotations over the original context from which on a pair is left alone; default 32. */
  betaFast?: number | undefined
  /** Rotations up to which a pair is slowed down in full; default 1. */
  betaSlow?: number | undefined
  /** Default: mscale(factor) = 0.1 ln(factor) + 1, or the quotient of the two below where both are given. */
  attentionFactor?: number | undefined
  mscale?: number | undefined
  mscaleAllDim?: number | undefined
  /** Whether the bounds of the ramp are rounded to whole pairs; default true. */
  truncate?: boolean | undefined
}

/** Each frequency divided by a factor of its own, as GGUF files have them. */
export interface FactorsRope extends RopeBase {
  type: 'factors'
  /** [R/2] */
  factors: readonly number[]
}

export type RopeConfig = DefaultRope | LinearRope | Llama3Rope | YarnRope | FactorsRope

/** RoPE types that `ropeFrequencies` knows. */
export const ROPE_TYPES = ['default', 'linear', 'llama3', 'yarn', 'factors'] as const

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
  factors: optionKeys<FactorsRope>()({ type: true, rotaryDim: true, theta: true, factors: true }),
}

/**
 * Inverse frequencies [R/2] and attention factor of a RoPE configuration, as Hugging Face
 * transformers 5 computes them (modeling_rope_utils.py), but in float64. Factors are in [1, 1e6],
 * the attention factor in (0, 100], other weights in (0, 1e6].
 *
 * Throws HOGWILD_INVALID_ARGUMENT.
 */
export function ropeFrequencies(config: RopeConfig): Rope {
  checkRope(config)
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
    case 'factors': {
      const { factors } = config
      return {
        inverseFrequencies: plain.map((f, u) => f / (factors[u] as number)),
        attentionFactor: 1,
      }
    }
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
    const factors = checkArray(config.factors, 'config.factors')
    if (factors.length !== pairs) {
      throw invalid('config.factors', `${pairs} numbers`, `${factors.length} of them`)
    }
    factors.forEach((factor, u) => {
      checkRange(factor, `config.factors[${u}]`, ROPE_LIMITS.factor)
    })
    return
  }
  checkRange(config.factor, 'config.factor', ROPE_LIMITS.factor)
  if (config.type === 'linear') return
  checkInteger(config.originalMaxPositions, 'config.originalMaxPositions', 1, MAX_POSITIONS)
  if (config.type === 'llama3') {
    checkRange(config.lowFreqFactor, 'config.lowFreqFactor', ROPE_LIMITS.weight)
    const above = { ...ROPE_LIMITS.weight, min: config.lowFreqFactor }
    checkRange(config.highFreqFactor, 'config.highFreqFactor', above)
    return
  }
  for (const key of ['betaFast', 'betaSlow', 'mscale', 'mscaleAllDim'] as const) {
    if (config[key] !== undefined) checkRange(config[key], `config.${key}`, ROPE_LIMITS.weight)
  }
  if (config.attentionFactor !== undefined) {
    checkRange(config.attentionFactor, 'config.attentionFactor', ROPE_LIMITS.attentionFactor)
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

function yarnFactor(rope: YarnRope): number {
  const mscale = (weight: number) =>
    rope.factor <= 1 ? 1 : 0.1 * weight * Math.log(rope.factor) + 1
  if (rope.attentionFactor !== undefined) return rope.attentionFactor
  if (rope.mscale && rope.mscaleAllDim) return mscale(rope.mscale) / mscale(rope.mscaleAllDim)
  return mscale(1)
}

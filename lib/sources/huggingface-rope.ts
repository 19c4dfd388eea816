// RoPE in config.json: transformers 4 keeps the type and its numbers in rope_scaling and the rest beside it, 5
// keeps everything in rope_parameters. What is said twice must say the same.

import { isDeepStrictEqual } from 'node:util'
import { HogwildError } from '../errors'
import type { Family } from '../families'
import { type FactorsRope, ROPE_LIMITS, ROPE_TYPES, type RopeConfig } from '../rope'
import { describe, invalid } from '../validate'
import { type Fields, unsupported } from './fields'

/** Those that config.json can name. */
type NamedRope = Exclude<RopeConfig, FactorsRope>

const NAMED_TYPES = ROPE_TYPES.filter((type) => type !== 'factors')

const PLACES = ['rope_scaling', 'rope_parameters']

function contradiction(what: string): HogwildError {
  return new HogwildError(`${what} contradict each other`, 'HOGWILD_INVALID_MODEL')
}

/** Throws HOGWILD_INVALID_MODEL, HOGWILD_UNSUPPORTED. */
export function readRope(fields: Fields, headDim: number, family: Family): RopeConfig {
  const places = PLACES.map((place) => fields.child(place)).filter((place) => !place.isEmpty)
  const [rope, second] = (places.length > 0 ? places : [fields.child('rope_parameters')]).map(
    (place) => readPlace(fields, place, headDim, family),
  ) as [RopeConfig, RopeConfig?]
  if (second !== undefined && !isDeepStrictEqual(rope, second)) {
    throw contradiction(`${places[0]?.where} and "rope_parameters"`)
  }
  return rope
}

function readPlace(fields: Fields, rope: Fields, headDim: number, family: Family): RopeConfig {
  const type = readType(rope, family)
  const theta = twice(fields, rope, 'rope_theta').number('rope_theta', ROPE_LIMITS.theta, 10000)
  const base = { rotaryDim: readRotaryDim(fields, rope, type, headDim, family), theta }
  const config = { ...base, ...readNumbers(fields, rope, type) } as RopeConfig
  // Of interest only to some types, but often written down with others.
  for (const place of [fields, rope]) place.passOver(['original_max_position_embeddings'])
  rope.refuseUnknown(`the RoPE type ${type}`)
  return config
}

function readType(rope: Fields, family: Family): NamedRope['type'] {
  const [first, second] = [rope.get('rope_type'), rope.get('type')]
  if (first !== undefined && second !== undefined && first !== second) {
    throw contradiction(`"rope_type" and "type" of ${rope.where}`)
  }
  if (rope.has('full_attention') || rope.has('sliding_attention')) {
    throw unsupported(`RoPE by layer type in ${rope.where}`, 'one RoPE for all layers')
  }
  const type = first ?? second ?? 'default'
  const supported: readonly RopeConfig['type'][] = family.ropeTypes ?? NAMED_TYPES
  if (!supported.includes(type as NamedRope['type'])) {
    throw unsupported(`RoPE type ${describe(type)} of ${rope.where}`, supported.join(', '))
  }
  return type as NamedRope['type']
}

/** Where a field is read that may stand within the RoPE object, beside it, or in both places alike. */
function twice(fields: Fields, rope: Fields, field: string): Fields {
  const [outer, inner] = [fields.get(field), rope.get(field)]
  if (outer !== undefined && inner !== undefined && outer !== inner) {
    throw contradiction(`${fields.name(field)} and of ${rope.where}`)
  }
  return inner === undefined ? fields : rope
}

// Most families ignore the share with the default type, and cannot be computed by transformers with others.
function readRotaryDim(
  fields: Fields,
  rope: Fields,
  type: RopeConfig['type'],
  headDim: number,
  family: Family,
): number {
  const field = 'partial_rotary_factor'
  if (!family.partialRotary && type === 'default') {
    for (const place of [fields, rope]) place.passOver([field])
    return headDim
  }
  const place = twice(fields, rope, field)
  const share = place.number(field, { min: 0, max: 1, open: true }, 1)
  const rotaryDim = Math.trunc(headDim * share)
  if (!family.partialRotary && rotaryDim !== headDim) {
    throw unsupported(`${place.name(field)} = ${share}`, `1 for ${family.modelType}`)
  }
  if (rotaryDim < 2 || rotaryDim % 2 !== 0) {
    throw unsupported(
      `${place.name(field)} = ${share}`,
      `an even number of the ${headDim} dimensions`,
    )
  }
  return rotaryDim
}

/** The type and what only it has. */
function readNumbers(fields: Fields, rope: Fields, type: NamedRope['type']): object {
  const { factor, weight, attentionFactor } = ROPE_LIMITS
  const optionalWeight = (field: string) =>
    rope.get(field) === 0 ? undefined : rope.optionalNumber(field, weight)
  switch (type) {
    case 'default': {
      const given = rope.get('factor') ?? 1
      if (given !== 1) {
        throw invalid(
          rope.name('rope_type'),
          'given where there is a factor',
          type,
          'HOGWILD_INVALID_MODEL',
        )
      }
      return { type }
    }
    case 'linear':
      return { type, factor: rope.number('factor', factor) }
    case 'llama3': {
      const lowFreqFactor = rope.number('low_freq_factor', weight)
      const above = { ...weight, min: lowFreqFactor }
      return {
        type,
        factor: rope.number('factor', factor),
        lowFreqFactor,
        highFreqFactor: rope.number('high_freq_factor', above),
        originalMaxPositions: originalMaxPositions(fields, rope),
      }
    }
    case 'yarn': {
      const original = originalMaxPositions(fields, rope)
      const stretch = () => fields.count('max_position_embeddings') / original
      return {
        type,
        factor: rope.number('factor', factor, rope.get('factor') === undefined ? stretch() : 1),
        originalMaxPositions: original,
        betaFast: optionalWeight('beta_fast'),
        betaSlow: optionalWeight('beta_slow'),
        attentionFactor: rope.optionalNumber('attention_factor', attentionFactor),
        mscale: optionalWeight('mscale'),
        mscaleAllDim: optionalWeight('mscale_all_dim'),
        // Here null means false.
        truncate: rope.boolean('truncate', !rope.has('truncate')),
      }
    }
  }
}

function originalMaxPositions(fields: Fields, rope: Fields): number {
  const field = 'original_max_position_embeddings'
  return twice(fields, rope, field).count(field, fields.optionalCount('max_position_embeddings'))
}

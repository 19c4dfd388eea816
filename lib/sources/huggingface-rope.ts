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

/**
 * What `LayerSpec.rope` names: one, or where they differ by window that of layers without, then of those with one.
 *
 * Throws HOGWILD_INVALID_MODEL, HOGWILD_UNSUPPORTED.
 */
export function readRopes(fields: Fields, headDim: number, family: Family): RopeConfig[] {
  const { theta = 10000, localTheta } = family.defaults ?? {}
  const full = { name: 'rope_theta', byDefault: theta }
  if (!family.ropeByWindow) return [readRope(fields, PLACES, headDim, family, full)]
  // transformers 4 has rope_scaling for the layers without a window alone.
  const nested = fields.child('rope_parameters')
  const sliding = { name: 'rope_local_base_freq', byDefault: localTheta as number }
  const ropes = [
    readRope(fields, ['rope_scaling', 'rope_parameters.full_attention'], headDim, family, full),
    readRope(fields, ['rope_parameters.sliding_attention'], headDim, family, sliding),
  ]
  nested.passOver(['full_attention', 'sliding_attention'])
  nested.refuseUnknown('RoPE by layer type')
  return ropes
}

/** The field beside the RoPE object that has its base, and what its absence means. */
interface Theta {
  name: string
  byDefault: number
}

function readRope(
  fields: Fields,
  names: readonly string[],
  headDim: number,
  family: Family,
  theta: Theta,
): RopeConfig {
  const all = names.map((name) =>
    name.split('.').reduce((within: Fields, part) => within.child(part), fields),
  )
  const places = all.filter((place) => !place.isEmpty)
  const [rope, second] = (places.length > 0 ? places : all.slice(-1)).map((place) =>
    readPlace(fields, place, headDim, family, theta),
  ) as [RopeConfig, RopeConfig?]
  if (second !== undefined && !isDeepStrictEqual(rope, second)) {
    throw contradiction(`${places[0]?.where} and "${names.at(-1)}"`)
  }
  return rope
}

function readPlace(
  fields: Fields,
  rope: Fields,
  headDim: number,
  family: Family,
  { name, byDefault }: Theta,
): RopeConfig {
  const type = readType(rope, family)
  const theta = readTheta(fields, rope, name, byDefault)
  const base = { rotaryDim: readRotaryDim(fields, rope, type, headDim, family), theta }
  const config = { ...base, ...readNumbers(fields, rope, base.rotaryDim, type) } as RopeConfig
  // Of interest only to some types, but often written down with others.
  for (const place of [fields, rope]) place.passOver(['original_max_position_embeddings'])
  rope.refuseUnknown(`the RoPE type ${type}`)
  return config
}

function readTheta(fields: Fields, rope: Fields, name: string, byDefault: number): number {
  const [outer, inner] = [fields.get(name), rope.get('rope_theta')]
  if (outer !== undefined && inner !== undefined && outer !== inner) {
    throw contradiction(`${fields.name(name)} and "rope_theta" of ${rope.where}`)
  }
  if (inner !== undefined) return rope.number('rope_theta', ROPE_LIMITS.theta)
  return fields.number(name, ROPE_LIMITS.theta, byDefault)
}

function readType(rope: Fields, family: Family): NamedRope['type'] {
  const [first, second] = [rope.get('rope_type'), rope.get('type')]
  if (first !== undefined && second !== undefined && first !== second) {
    throw contradiction(`"rope_type" and "type" of ${rope.where}`)
  }
  if (rope.has('full_attention') || rope.has('sliding_attention')) {
    throw unsupported(`RoPE by layer type in ${rope.where}`, 'one RoPE for all layers')
  }
  const given = first ?? second ?? 'default'
  // LongRoPE as the first files of Phi-3 call it.
  const isLong = family.ropeTypes?.includes('longrope') && (given === 'su' || given === 'yarn')
  const type = isLong ? 'longrope' : given
  const supported: readonly RopeConfig['type'][] =
    family.ropeTypes ?? NAMED_TYPES.filter((known) => known !== 'longrope')
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
  const { rotaryShare = 1 } = family.defaults ?? {}
  const share = place.number(field, { min: 0, max: 1, open: true }, rotaryShare)
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
function readNumbers(
  fields: Fields,
  rope: Fields,
  rotaryDim: number,
  type: NamedRope['type'],
): object {
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
    case 'longrope': {
      const original = originalMaxPositions(fields, rope)
      const stretch = () => fields.count('max_position_embeddings') / original
      const factors = (field: string) => {
        const list = rope.list(field)
        const good = (x: unknown) => typeof x === 'number' && x > weight.min && x <= weight.max
        if (list.length === rotaryDim / 2 && list.every(good)) return list
        const expected = `${rotaryDim / 2} numbers > ${weight.min} and <= ${weight.max}`
        throw invalid(rope.name(field), expected, list, 'HOGWILD_INVALID_MODEL')
      }
      return {
        type,
        shortFactors: factors('short_factor'),
        longFactors: factors('long_factor'),
        originalMaxPositions: original,
        factor: rope.number('factor', factor, rope.get('factor') === undefined ? stretch() : 1),
        attentionFactor: rope.optionalNumber('attention_factor', attentionFactor),
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

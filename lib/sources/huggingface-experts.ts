// What config.json says of a mixture of experts.

import type { DenseMlp, ExpertsFamily, ExpertsMlp, Family } from '../families'
import { EXPERTS } from '../limits'
import { describe, invalid } from '../validate'
import { type Fields, unsupported } from './fields'

const COUNT_FIELDS = ['num_local_experts', 'num_experts'] as const

/** The MLP of each of `layers` layers. Throws HOGWILD_INVALID_MODEL, HOGWILD_UNSUPPORTED. */
export function readMlps(
  fields: Fields,
  { experts: family }: Family,
  layers: number,
): (DenseMlp | ExpertsMlp)[] {
  const dense = (): DenseMlp => ({
    type: 'dense',
    intermediateSize: fields.count('intermediate_size'),
  })
  if (family === undefined) return Array<DenseMlp>(layers).fill(dense())
  const experts = readExperts(fields, family)
  const isDense = readDenseLayers(fields, family)
  return Array.from({ length: layers }, (_, i) => (isDense(i) ? dense() : experts))
}

function readExperts(fields: Fields, family: ExpertsFamily): ExpertsMlp {
  fields.passOver(['router_aux_loss_coef', 'output_router_logits'])
  // That of dense layers, which there may be none of.
  fields.passOver(['intermediate_size'])
  // Noise of training alone.
  if (family.jitter) fields.passOver(['router_jitter_noise'])
  const [first, second] = COUNT_FIELDS.filter((name) => fields.get(name) !== undefined)
  if (first && second && fields.get(first) !== fields.get(second)) {
    throw invalid(
      fields.name(second),
      `${describe(first)} (${fields.get(first)})`,
      fields.get(second),
      'HOGWILD_INVALID_MODEL',
    )
  }
  const countField = first ?? COUNT_FIELDS[0]
  const count = fields.count(countField, family.defaults.count)
  if (count < EXPERTS.min || count > EXPERTS.max) {
    throw unsupported(`${fields.name(countField)} = ${count}`, `${EXPERTS.min} to ${EXPERTS.max}`)
  }
  const used = fields.count('num_experts_per_tok', family.defaults.used, count)
  // gpt-oss says it twice, and that of its RoPE.
  fields.passOver(['initial_context_length'])
  fields.judge('experts_per_token', (value) => value === used, `"num_experts_per_tok" (${used})`)
  return {
    type: 'experts',
    intermediateSize: fields.count(family.sizeField ?? 'intermediate_size', family.defaults.size),
    count,
    used,
    normalized: family.normalizedOption ? fields.boolean('norm_topk_prob', false) : true,
    routerBias: family.routerBias ?? false,
  }
}

/** Which layers have no experts. */
function readDenseLayers(fields: Fields, family: ExpertsFamily): (layer: number) => boolean {
  if (!family.denseLayers) return () => false
  const dense = new Set(fields.list('mlp_only_layers'))
  const step = fields.count('decoder_sparse_step', 1)
  return (layer) => dense.has(layer) || (layer + 1) % step !== 0
}

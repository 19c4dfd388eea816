// Mixtures of experts in a Hugging Face folder: what config.json says of them, and their tensors, which stand
// there one by one or stacked.

import type { DenseMlp, ExpertsFamily, ExpertsMlp, Family } from '../families'
import { EXPERTS } from '../limits'
import type { Role } from '../roles'
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
  // gpt-oss says it twice.
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

/** Part of a tensor of the files that fills a role. Distances in elements. */
export interface Part {
  role: Role
  offset: number
  strides?: { row: number; col: number }
}

/** A tensor of the files: its name and shape there, and what it holds. */
export interface StoredTensor {
  file: string
  shape: readonly number[]
  parts: readonly Part[]
}

/** A tensor that holds these roles, top to bottom. */
export function rowsOf(file: string, roles: readonly Role[]): StoredTensor {
  const [{ cols, isVector }] = roles as [Role]
  let rows = 0
  const parts = roles.map((role) => {
    const offset = rows * cols
    rows += role.rows
    return { role, offset }
  })
  return { file, shape: isVector ? [cols] : [rows, cols], parts }
}

export function isOfExperts({ name }: Role): boolean {
  return /^(router|experts\.)/.test(name)
}

/**
 * The tensors of the files, without what comes before their names, that hold the experts' roles of a layer, which
 * may be none. `has` says which names there are.
 */
export function expertTensors(
  { names, stacks }: ExpertsFamily,
  roles: readonly Role[],
  has: (file: string) => boolean,
): StoredTensor[] {
  const byName = new Map(roles.map((role) => [role.name, role]))
  if (names === undefined || has('mlp.experts.gate_up_proj')) {
    return stacks === 'gptOss' ? gptOssStacks(byName) : stackedRows(byName)
  }
  return roles.map((role) => {
    const [kind, expert, name] = role.name.split('.')
    const file = names[(name ?? kind) as keyof typeof names]
    return rowsOf(file.replace('*', String(expert)), [role])
  })
}

/** [E, 2 F, H], gate above up, and [E, H, F]. */
function stackedRows(roles: ReadonlyMap<string, Role>): StoredTensor[] {
  const stack = (file: string, names: readonly string[]): StoredTensor[] =>
    stackOf(roles, names[0] as string, ({ rows, cols }) => {
      const height = rows * names.length
      const place = (e: number, i: number) => ({ offset: (e * height + i * rows) * cols })
      return { file, shape: [height, cols], names, place }
    })
  return [
    ...one(roles, 'router', 'mlp.gate.weight'),
    ...stack('mlp.experts.gate_up_proj', ['gate_proj', 'up_proj']),
    ...stack('mlp.experts.down_proj', ['down_proj']),
  ]
}

/** [E, H, 2 F], columns of gate and up in turn, and [E, F, H]; biases [E, 2 F] and [E, H] in the same way. */
function gptOssStacks(roles: ReadonlyMap<string, Role>): StoredTensor[] {
  const stack = (file: string, names: readonly string[]): StoredTensor[] =>
    stackOf(roles, names[0] as string, ({ rows, cols, isVector }) => {
      const n = names.length
      if (isVector) {
        const place = (e: number, i: number) => ({
          offset: e * cols * n + i,
          strides: { row: cols * n, col: n },
        })
        return { file, shape: [cols * n], names, place }
      }
      const place = (e: number, i: number) => ({
        offset: e * cols * rows * n + i,
        strides: { row: n, col: rows * n },
      })
      return { file, shape: [cols, rows * n], names, place }
    })
  return [
    ...one(roles, 'router', 'mlp.router.weight'),
    ...one(roles, 'router_bias', 'mlp.router.bias'),
    ...stack('mlp.experts.gate_up_proj', ['gate_proj', 'up_proj']),
    ...stack('mlp.experts.gate_up_proj_bias', ['gate_bias', 'up_bias']),
    ...stack('mlp.experts.down_proj', ['down_proj']),
    ...stack('mlp.experts.down_proj_bias', ['down_bias']),
  ]
}

function one(roles: ReadonlyMap<string, Role>, name: string, file: string): StoredTensor[] {
  const role = roles.get(name)
  return role === undefined ? [] : [rowsOf(file, [role])]
}

/** What one expert's roles `names` take up in a stack, where the i-th of them lies for expert e. */
interface Slice {
  file: string
  shape: readonly number[]
  names: readonly string[]
  place: (e: number, i: number) => Omit<Part, 'role'>
}

/** The stack of all experts' `name` and what shares its slices; none where there are no such roles. */
function stackOf(
  roles: ReadonlyMap<string, Role>,
  name: string,
  slice: (role: Role) => Slice,
): StoredTensor[] {
  const first = roles.get(`experts.0.${name}`)
  const router = roles.get('router')
  if (first === undefined || router === undefined) return []
  const { file, shape, names, place } = slice(first)
  const parts = Array.from({ length: router.rows }, (_, e) =>
    names.map((of, i) => ({ role: roles.get(`experts.${e}.${of}`) as Role, ...place(e, i) })),
  )
  return [{ file, shape: [router.rows, ...shape], parts: parts.flat() }]
}

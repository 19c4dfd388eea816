// What `quantization_config` of config.json says: 4-bit integers as AWQ, GPTQ and compressed-tensors store them. All
// else is refused by name, before a tensor is looked at.

import { describe } from '../validate'
import { type Fields, isOff, unsupported } from './fields'
import type { Int4 } from './int4'

const FIELD = 'quantization_config'

const GROUP_SIZES = [32, 64, 128] as const

/** Of how the integers were found and of how others run them. Which matrices are integers, their tensors say. */
const HARMLESS_FIELDS = [
  ...['modules_to_not_convert', 'ignore', 'lm_head', 'modules_in_block_to_quantize'],
  ...['block_name_to_quantize', 'module_name_preceding_first_block', 'desc_act', 'static_groups'],
  ...[
    'act_group_aware',
    'hyb_act',
    'true_sequential',
    'damp_percent',
    'damp_auto_increment',
    'mse',
  ],
  ...['dataset', 'tokenizer', 'model_seqlen', 'batch_size', 'pad_token_id', 'max_input_length'],
  ...['cache_block_outputs', 'model_name_or_path', 'model_file_base_name', 'meta', 'backend'],
  ...['use_exllama', 'disable_exllama', 'exllama_config', 'use_cuda_fp16', 'do_fuse'],
  ...['modules_to_fuse', 'fuse_max_seq_len', 'quantization_status', 'global_compression_ratio'],
  ...['version', 'run_compressed', 'dequantize', 'use_optimized_inference'],
]

/** Of a group of compressed-tensors' weights. `actorder` shows in a tensor of its own. */
const HARMLESS_WEIGHT_FIELDS = [
  'observer',
  'observer_kwargs',
  'actorder',
  'scale_dtype',
  'zp_dtype',
]

type Method = 'awq' | 'gptq' | 'compressed-tensors'

const METHODS: Readonly<Record<Method, (fields: Fields) => Int4>> = {
  awq: readAwq,
  gptq: readGptq,
  'compressed-tensors': readCompressedTensors,
}

/** The family's own, which its tensors show. */
const MXFP4 = 'mxfp4'

/**
 * How a folder keeps matrices as integers; undefined where it does not, or the user wants to ignore that it says so.
 * `mxfp4`: whether experts may be in MXFP4.
 *
 * Throws HOGWILD_UNSUPPORTED, naming what is supported; HOGWILD_INVALID_MODEL.
 */
export function readInt4(fields: Fields, mxfp4: boolean): Int4 | undefined {
  const supported = [...Object.keys(METHODS), ...(mxfp4 ? [MXFP4] : [])].join(', ')
  const isObject = (value: unknown) => typeof value === 'object' && value !== null
  fields.judge(FIELD, (value) => isOff(value) || isObject(value), supported)
  if (!fields.isGiven(FIELD) || isOff(fields.get(FIELD))) return undefined
  const config = fields.child(FIELD)
  const method = config.get('quant_method')
  if (mxfp4 && method === MXFP4) return undefined
  if (typeof method !== 'string' || !Object.hasOwn(METHODS, method)) {
    throw fields.refused(FIELD, `with "quant_method" = ${describe(method)}`, supported)
  }
  const int4 = METHODS[method as Method](config)
  config.passOver(HARMLESS_FIELDS)
  config.refuseUnknown(method)
  return int4
}

function readAwq(config: Fields): Int4 {
  oneOf(config, 'bits', [4], 4)
  oneOf(config, 'zero_point', [true], true)
  // transformers 5 calls the version a format, as GPTQ does.
  for (const field of ['version', 'format', 'checkpoint_format']) {
    oneOf(config, field, ['gemm', 'GEMM'], 'gemm')
  }
  oneOf(config, 'method', ['awq'], 'awq')
  oneOf(config, 'pack_dtype', ['int32'], 'int32')
  config.judge('backend', (value) => value !== 'llm-awq', 'any other')
  config.passOver(['sym'])
  return { layout: 'awq', group: groupSize(config, 128), zeros: 'stored' }
}

function readGptq(config: Fields): Int4 {
  oneOf(config, 'bits', [4], undefined)
  const field = config.has('checkpoint_format') ? 'checkpoint_format' : 'format'
  const format = oneOf(config, field, ['gptq', 'gptq_v2'], 'gptq')
  oneOf(config, 'format', [format], format)
  oneOf(config, 'method', ['gptq'], 'gptq')
  oneOf(config, 'pack_dtype', ['int32'], 'int32')
  for (const field of ['is_marlin_format', 'rotation', 'adapter']) {
    config.judge(field, isOff, 'models without it')
  }
  // Modules with bits or groups of their own; those that are left as they are begin with "-:".
  const skipsOnly = (value: unknown) =>
    isOff(value) || Object.keys(Object(value)).every((pattern) => pattern.startsWith('-:'))
  config.judge('dynamic', skipsOnly, 'modules that are left out ("-:…")')
  const isSymmetric = config.boolean('sym', true)
  const stored = format === 'gptq' ? 'lessOne' : 'stored'
  const zeros = isSymmetric ? (`${stored}Or8` as const) : stored
  return { layout: 'gptq', group: groupSize(config, 128), zeros }
}

function readCompressedTensors(config: Fields): Int4 {
  oneOf(config, 'format', ['pack-quantized'], undefined)
  for (const field of ['kv_cache_scheme', 'transform_config']) {
    config.judge(field, isOff, 'models without it')
  }
  const sparsity = config.child('sparsity_config')
  if (!sparsity.isEmpty) oneOf(sparsity, 'format', ['dense'], undefined)
  const groups = config.child('config_groups')
  const [first, ...others] = groups.names().map((name) => readWeightGroup(groups.child(name)))
  if (first === undefined) throw unsupported(`${groups.where} without groups`, 'one or more')
  const other = others.find(({ group, zeros }) => group !== first.group || zeros !== first.zeros)
  if (other !== undefined) {
    throw unsupported(
      `${groups.where} with groups of ${first.group} and ${other.group} columns, ${first.zeros ? 'with' : 'without'} and ${other.zeros ? 'with' : 'without'} zero points,`,
      'the same for all',
    )
  }
  return first
}

/** One of `config_groups`. */
function readWeightGroup(scheme: Fields): Int4 {
  scheme.passOver(['targets'])
  for (const field of ['input_activations', 'output_activations']) {
    scheme.judge(field, isOff, 'activations as they are (null)')
  }
  oneOf(scheme, 'format', ['pack-quantized'], 'pack-quantized')
  const weights = scheme.child('weights')
  oneOf(weights, 'num_bits', [4], undefined)
  oneOf(weights, 'type', ['int'], 'int')
  oneOf(weights, 'strategy', ['group'], 'group')
  for (const field of ['dynamic', 'block_structure']) weights.judge(field, isOff, 'none')
  const group = groupSize(weights, undefined)
  const isSymmetric = weights.boolean('symmetric', true)
  weights.passOver(HARMLESS_WEIGHT_FIELDS)
  weights.refuseUnknown('pack-quantized')
  scheme.refuseUnknown('pack-quantized')
  return { layout: 'compressed-tensors', group, zeros: isSymmetric ? undefined : 'stored' }
}

function groupSize(fields: Fields, byDefault: Int4['group'] | undefined): Int4['group'] {
  return oneOf(fields, 'group_size', GROUP_SIZES, byDefault)
}

/** A field with one of these values; throws HOGWILD_UNSUPPORTED. */
function oneOf<T>(
  fields: Fields,
  field: string,
  values: readonly T[],
  byDefault: T | undefined,
): T {
  const given = fields.get(field) ?? byDefault
  const value = values.find((known) => known === given)
  if (value === undefined) {
    throw unsupported(`${fields.name(field)} = ${describe(given)}`, values.join(', '))
  }
  return value
}

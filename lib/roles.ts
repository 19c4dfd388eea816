// Tensors by role: the names by which native/model/ asks for them, the same for every family, and their
// shapes. Sources map the names of their files to these; the native side checks every shape again.

import type { DenseMlp, ExpertsMlp, LayerSpec, ModelConfig } from './families'

/** A matrix [rows, cols], or a vector [cols] with rows = 1. */
export interface Role {
  name: string
  rows: number
  cols: number
  isVector: boolean
}

/** Roles of the model outside its layers. `lm_head` may be missing where embeddings are tied. */
export function modelRoles({ vocabSize, hiddenSize }: ModelConfig): Role[] {
  return [
    matrix('embed', vocabSize, hiddenSize),
    vector('norm', hiddenSize),
    matrix('lm_head', vocabSize, hiddenSize),
  ]
}

/** Roles of a layer, without the `layers.i.` before their names. */
export function layerRoles(config: ModelConfig, layer: LayerSpec): Role[] {
  const { hiddenSize, headDim } = config
  const { norms, biases, mlp } = layer
  const q = config.queryHeads * headDim
  const kv = config.kvHeads * headDim
  const norm = (name: string, has: boolean, size = hiddenSize): Role[] =>
    has ? [vector(`${name}_norm`, size)] : []
  const hasQkNorm = layer.qkNorm !== 'none'
  const perHead = layer.qkNorm === 'head'
  return [
    ...norm('input', norms.input),
    ...linear('q', q, hiddenSize, biases.qkv),
    ...linear('k', kv, hiddenSize, biases.qkv),
    ...linear('v', kv, hiddenSize, biases.qkv),
    ...norm('q', hasQkNorm, perHead ? headDim : q),
    ...norm('k', hasQkNorm, perHead ? headDim : kv),
    ...(layer.sinks ? [vector('sinks', config.queryHeads)] : []),
    ...linear('o', hiddenSize, q, biases.o),
    ...norm('attention_output', norms.attentionOutput),
    ...norm('mlp', norms.mlp),
    ...(mlp.type === 'experts' ? expertRoles(hiddenSize, mlp, biases.mlp) : []),
    ...(mlp.type === 'dense' ? mlpRoles(hiddenSize, mlp, biases.mlp) : []),
    ...norm('mlp_output', norms.mlpOutput),
  ]
}

function mlpRoles(hiddenSize: number, mlp: DenseMlp | ExpertsMlp, bias: boolean): Role[] {
  const { intermediateSize } = mlp
  return [
    ...linear('gate', intermediateSize, hiddenSize, bias),
    ...linear('up', intermediateSize, hiddenSize, bias),
    ...linear('down', hiddenSize, intermediateSize, bias),
  ]
}

function expertRoles(hiddenSize: number, mlp: ExpertsMlp, bias: boolean): Role[] {
  const one = mlpRoles(hiddenSize, mlp, bias)
  return [
    matrix('router', mlp.count, hiddenSize),
    ...(mlp.routerBias ? [vector('router_bias', mlp.count)] : []),
    ...Array.from({ length: mlp.count }, (_, e) =>
      one.map((role) => ({ ...role, name: `experts.${e}.${role.name}` })),
    ).flat(),
  ]
}

function linear(name: string, rows: number, cols: number, bias: boolean): Role[] {
  return [matrix(`${name}_proj`, rows, cols), ...(bias ? [vector(`${name}_bias`, rows)] : [])]
}

function matrix(name: string, rows: number, cols: number): Role {
  return { name, rows, cols, isVector: false }
}

function vector(name: string, cols: number): Role {
  return { name, rows: 1, cols, isVector: true }
}

// What the package computes, by the definition: float64, plain loops, no cache of rotated keys.
//
// A token holds, for every layer, its key before RoPE and its value, made once when it is processed
// and never again. A block is an array of tokens, so block operations are array operations: append
// is push, fork is slice, insert and forget are splice. Positions exist only inside a step.

import { experts } from './reference-experts'

/** A Hugging Face config.json, read here apart from lib/ so that the two check each other. */
export interface HuggingFaceConfig {
  model_type: string
  vocab_size: number
  hidden_size: number
  intermediate_size: number
  num_hidden_layers: number
  num_attention_heads: number
  num_key_value_heads?: number
  head_dim?: number
  rms_norm_eps: number
  rope_theta?: number
  rope_scaling?: RopeScaling | null
  /** transformers 5 writes rope_theta and rope_scaling as one object; Gemma 3 has one for each kind of layer. */
  rope_parameters?: RopeParameters & Partial<Record<LayerType, RopeParameters>>
  partial_rotary_factor?: number
  tie_word_embeddings?: boolean
  [key: string]: unknown
}

export type LayerType = 'full_attention' | 'sliding_attention'
export type RopeParameters = RopeScaling & { rope_theta?: number; partial_rotary_factor?: number }

export interface RopeScaling {
  rope_type?: string
  type?: string
  factor?: number
  original_max_position_embeddings?: number
  low_freq_factor?: number
  high_freq_factor?: number
  beta_fast?: number
  truncate?: boolean
  beta_slow?: number
  attention_factor?: number
  mscale?: number
  mscale_all_dim?: number
  short_factor?: number[]
  long_factor?: number[]
}

export interface Rope {
  /** [R / 2], radians per position. */
  inverseFrequencies: Float64Array
  /** Multiplies every rotated query and every rotated key: 1, except for YaRN. */
  attentionFactor: number
  /** Pairs are (2u, 2u + 1), else (u, u + R/2). */
  interleaved?: boolean
}

export interface Token {
  readonly id: number
  /** Per layer: [Hkv * D], after bias and k-norm, before RoPE. */
  readonly k: Float64Array[]
  readonly v: Float64Array[]
}

export type Block = Token[]

/** A block in a view; T is what it holds of a token. */
export interface Entry<T = Token> {
  block: readonly T[]
  /** View position of its first token; default: where the entry before ends, 0 at first. */
  at?: number | undefined
  /** 1: without what others append in this very step. */
  lag?: 0 | 1 | undefined
  temperature?: number | undefined
  bias?: number | undefined
}

export interface Worker {
  view: readonly (Block | Entry)[]
  /** One of the view, by identity; its first occurrence counts. Default: the last. */
  target?: Block
  tokens: readonly number[]
}

export interface AttentionShape {
  queryHeads: number
  kvHeads: number
  headDim: number
  scale: number
  /** A query at p sees the places t > p - window alone. */
  window?: number | undefined
  /** Scores become softcap * tanh(score / softcap), before temperature and bias. */
  softcap?: number | undefined
  /** [Hq]: exp(sink) is added to the sum of the weights. */
  sinks?: ArrayLike<number> | undefined
}

/** One token in a view. */
export interface Seen {
  k: Float64Array
  v: Float64Array
  /** View position. */
  position: number
  temperature: number
  bias: number
}

/**
 * All that the last new token of a worker sees, in the order of the list: entries as a whole up to the write entry, and
 * nothing behind it. The new tokens come last. Blocks hold what they do once all have appended; `heldOf`: their lengths
 * when the step began.
 */
export function seen<T extends { k: readonly Float64Array[]; v: readonly Float64Array[] }>(
  view: readonly Entry<T>[],
  target: readonly T[],
  layer: number,
  heldOf: (block: readonly T[]) => number,
): Seen[] {
  const places: Seen[] = []
  let end = 0
  for (const entry of view) {
    const isWritten = entry.block === target
    const isLate = entry.lag === 1 && !isWritten
    const tokens = isLate ? entry.block.slice(0, heldOf(entry.block)) : entry.block
    const start = entry.at ?? end
    tokens.forEach((token, j) => {
      places.push({
        k: token.k[layer]!,
        v: token.v[layer]!,
        position: start + j,
        temperature: entry.temperature ?? 1,
        bias: entry.bias ?? 0,
      })
    })
    end = start + tokens.length
    if (isWritten) return places
  }
  throw new Error('the target is not in the view')
}

// The inner loops' own: a global is slow to reach from inside a test.
const { cos, exp, sin, tanh } = Math

const clamp01 = (x: number): number => Math.min(Math.max(x, 0), 1)

/**
 * Formulas of transformers' modeling_rope_utils; YaRN: Peng et al. 2023, arXiv 2309.00071; LongRoPE: Ding et al. 2024,
 * arXiv 2402.13753. `context`: tokens of the longest view.
 */
export function ropeOf(
  config: HuggingFaceConfig,
  parameters: RopeParameters | undefined = config.rope_parameters,
  context = 1,
): Rope {
  const headDim = config.head_dim ?? config.hidden_size / config.num_attention_heads
  const share = parameters?.partial_rotary_factor ?? config.partial_rotary_factor ?? 1
  const rotaryDim = Math.trunc(headDim * share)
  const scaling: RopeScaling = parameters ?? config.rope_scaling ?? {}
  const kind = scaling.rope_type ?? scaling.type ?? 'default'
  const base = parameters?.rope_theta ?? config.rope_theta ?? 10000
  const plain = Float64Array.from(
    { length: rotaryDim / 2 },
    (_, u) => base ** ((-2 * u) / rotaryDim),
  )
  if (kind === 'default') return { inverseFrequencies: plain, attentionFactor: 1 }

  if (kind === 'longrope') {
    const original = scaling.original_max_position_embeddings!
    const factors = context > original ? scaling.long_factor! : scaling.short_factor!
    const stretch = scaling.factor ?? (config.max_position_embeddings as number) / original
    return {
      inverseFrequencies: plain.map((f, u) => f / factors[u]!),
      attentionFactor: Math.sqrt(1 + Math.log(stretch) / Math.log(original)),
    }
  }
  const factor = scaling.factor!
  if (kind === 'linear') {
    return { inverseFrequencies: plain.map((f) => f / factor), attentionFactor: 1 }
  }
  const trainedLength =
    scaling.original_max_position_embeddings ?? (config.max_position_embeddings as number)
  if (kind === 'llama3') {
    const low = scaling.low_freq_factor!
    const high = scaling.high_freq_factor!
    return {
      inverseFrequencies: plain.map((f) => {
        const turns = (trainedLength * f) / (2 * Math.PI)
        const keep = clamp01((turns - low) / (high - low))
        return (1 - keep) * (f / factor) + keep * f
      }),
      attentionFactor: 1,
    }
  }
  if (kind === 'yarn') {
    const pairOf = (turns: number): number =>
      (rotaryDim * Math.log(trainedLength / (turns * 2 * Math.PI))) / (2 * Math.log(base))
    const [down, up] =
      scaling.truncate === false
        ? [(pair: number) => pair, (pair: number) => pair]
        : [Math.floor, Math.ceil]
    const low = Math.max(down(pairOf(scaling.beta_fast ?? 32)), 0)
    const high = Math.min(up(pairOf(scaling.beta_slow ?? 1)), rotaryDim - 1)
    const magnitude = (scale: number): number =>
      factor > 1 ? 0.1 * scale * Math.log(factor) + 1 : 1
    const { mscale, mscale_all_dim: mscaleAllDim } = scaling
    const attentionFactor =
      scaling.attention_factor ??
      (mscale && mscaleAllDim ? magnitude(mscale) / magnitude(mscaleAllDim) : magnitude(1))
    return {
      inverseFrequencies: plain.map((f, u) => {
        const slow = clamp01((u - low) / Math.max(high - low, 0.001))
        return slow * (f / factor) + (1 - slow) * f
      }),
      attentionFactor,
    }
  }
  throw new Error(`the reference knows no rope type '${kind}'`)
}

/** R(position) x for each head of x [heads * D]: the pairs of the first R dimensions. */
export function rotate(
  x: Float64Array,
  headDim: number,
  position: number,
  rope: Rope,
): Float64Array {
  const out = new Float64Array(x)
  const half = rope.inverseFrequencies.length
  for (let u = 0; u < half; u++) {
    const angle = position * rope.inverseFrequencies[u]!
    const c = rope.attentionFactor * cos(angle)
    const s = rope.attentionFactor * sin(angle)
    const first = rope.interleaved ? 2 * u : u
    const second = rope.interleaved ? first + 1 : first + half
    for (let head = 0; head < x.length; head += headDim) {
      const a = x[head + first]!
      const b = x[head + second]!
      out[head + first] = a * c - b * s
      out[head + second] = b * c + a * s
    }
  }
  return out
}

/**
 * Queries (each [Hq * D], before RoPE) of the last tokens of `view`: each sees its own and all that come before in the
 * list. A query that sees nothing gets out 0, and lse -Infinity unless there are sinks.
 */
export function attend(
  queries: readonly Float64Array[],
  view: readonly Seen[],
  { queryHeads, kvHeads, headDim, scale, window = Infinity, softcap, sinks }: AttentionShape,
  rope: Rope,
  listen?: (query: number, place: number, weight: number) => void,
): { out: Float64Array[]; lse: Float64Array[] } {
  const width = kvHeads * headDim
  const keys = new Float64Array(view.length * width)
  const values = new Float64Array(view.length * width)
  view.forEach(({ k, v, position }, t) => {
    keys.set(rotate(k, headDim, position, rope), t * width)
    values.set(v, t * width)
  })
  const out: Float64Array[] = []
  const lse: Float64Array[] = []
  queries.forEach((query, i) => {
    const own = view.length - queries.length + i
    const { position } = view[own]!
    const q = rotate(query, headDim, position, rope)
    const result = new Float64Array(queryHeads * headDim)
    const logSums = new Float64Array(queryHeads).fill(-Infinity)
    out.push(result)
    lse.push(logSums)
    const weights = new Float64Array(own + 1)
    for (let head = 0; head < queryHeads; head++) {
      const at = head * headDim
      const from = Math.floor((head * kvHeads) / queryHeads) * headDim
      const sink = sinks === undefined ? -Infinity : sinks[head]!
      let max = sink
      for (let t = 0; t < weights.length; t++) {
        let dot = 0
        for (let d = 0; d < headDim; d++) dot += q[at + d]! * keys[t * width + from + d]!
        const score = softcap === undefined ? scale * dot : softcap * tanh((scale * dot) / softcap)
        const key = view[t]!
        weights[t] =
          key.position > position - window ? score / key.temperature + key.bias : -Infinity
        if (weights[t]! > max) max = weights[t]!
      }
      if (max === -Infinity) continue
      let sum = exp(sink - max)
      for (let t = 0; t < weights.length; t++) {
        weights[t] = exp(weights[t]! - max)
        sum += weights[t]!
      }
      logSums[head] = max + Math.log(sum)
      for (let t = 0; t < weights.length; t++) {
        const weight = weights[t]! / sum
        listen?.(i, t, weight)
        for (let d = 0; d < headDim; d++) result[at + d]! += weight * values[t * width + from + d]!
      }
    }
  })
  return { out, lse }
}

/** x [n] -> log softmax(x) [n]. */
export function logSoftmax(x: ArrayLike<number>): Float64Array {
  const values = Float64Array.from(x)
  const max = values.reduce((a, b) => Math.max(a, b), -Infinity)
  const sum = values.reduce((total, value) => total + exp(value - max), 0)
  return values.map((value) => value - max - Math.log(sum))
}

/** Index of the largest value, the lowest where several are equal. */
export function argmax(x: ArrayLike<number>): number {
  let best = 0
  for (let i = 1; i < x.length; i++) if (x[i]! > x[best]!) best = i
  return best
}

/** y [rows] = weight [rows, x.length] x + bias. */
export function linear(weight: Float64Array, x: Float64Array, bias?: Float64Array): Float64Array {
  const out = new Float64Array(weight.length / x.length)
  for (let row = 0; row < out.length; row++) {
    let sum = bias ? bias[row]! : 0
    for (let i = 0; i < x.length; i++) sum += weight[row * x.length + i]! * x[i]!
    out[row] = sum
  }
  return out
}

/** Each run of weight.length elements of x: x / sqrt(mean(x²) + eps) * (weight + offset). */
export function rmsNorm(
  x: Float64Array,
  weight: Float64Array,
  eps: number,
  offset = 0,
): Float64Array {
  const size = weight.length
  const out = new Float64Array(x.length)
  for (let begin = 0; begin < x.length; begin += size) {
    let squares = 0
    for (let i = 0; i < size; i++) squares += x[begin + i]! ** 2
    const inverse = 1 / Math.sqrt(squares / size + eps)
    for (let i = 0; i < size; i++) out[begin + i] = x[begin + i]! * inverse * (weight[i]! + offset)
  }
  return out
}

export const silu = (x: number): number => x / (1 + exp(-x))
export const geluTanh = (x: number): number =>
  0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)))

const add = (a: Float64Array, b: Float64Array): Float64Array => a.map((x, i) => x + b[i]!)

/** What turns nothing. */
const NO_ROPE: Rope = { inverseFrequencies: new Float64Array(0), attentionFactor: 1 }

const GEMMA_NORMS = {
  attentionOutput: 'post_attention_layernorm',
  mlp: 'pre_feedforward_layernorm',
  mlpOutput: 'post_feedforward_layernorm',
}
/** Names of norms beside `input_layernorm`, where they are not a Llama's. */
const NORMS: Record<string, { attentionOutput: string; mlp?: string; mlpOutput: string }> = {
  gemma2: GEMMA_NORMS,
  gemma3_text: GEMMA_NORMS,
  olmo2: {
    attentionOutput: 'post_attention_layernorm',
    mlpOutput: 'post_feedforward_layernorm',
  },
  glm4: {
    attentionOutput: 'post_self_attn_layernorm',
    mlp: 'post_attention_layernorm',
    mlpOutput: 'post_mlp_layernorm',
  },
}

/** Every family of the package, by config.json as transformers 5 writes it. */
export class ReferenceModel {
  readonly shape: AttentionShape
  readonly rope: Rope
  readonly vocabSize: number
  readonly layers: number
  private readonly gemma: boolean
  private readonly layerShapes: AttentionShape[]
  private readonly layerRopes: Rope[]

  /** `context`: tokens of the longest view. */
  constructor(
    readonly config: HuggingFaceConfig,
    private readonly weights: ReadonlyMap<string, Float64Array>,
    context = 1,
  ) {
    const queryHeads = config.num_attention_heads
    const headDim = config.head_dim ?? config.hidden_size / queryHeads
    const kvHeads = config.num_key_value_heads ?? queryHeads
    const scalar = (config.query_pre_attn_scalar as number | undefined) ?? headDim
    const scale = (config.attention_multiplier as number | undefined) ?? scalar ** -0.5
    this.shape = { queryHeads, kvHeads, headDim, scale }
    this.vocabSize = config.vocab_size
    this.layers = config.num_hidden_layers
    this.gemma = config.model_type.startsWith('gemma')

    const window = (config.sliding_window as number | null | undefined) ?? undefined
    const alternating = (i: number) => (i % 2 === 0 ? 'sliding_attention' : 'full_attention')
    const types =
      (config.layer_types as LayerType[] | undefined) ??
      (config.model_type === 'gpt_oss'
        ? Array.from({ length: this.layers }, (_, i) => alternating(i))
        : undefined)
    const usesAlways = ['mistral', 'phi3'].includes(config.model_type)
    const softcap = config.model_type === 'gemma2' ? config.attn_logit_softcapping : undefined
    const indices = Array.from({ length: this.layers }, (_, i) => i)
    this.layerShapes = indices.map((i) => ({
      ...this.shape,
      window: usesAlways || types?.[i] === 'sliding_attention' ? window : undefined,
      softcap: (softcap as number | null | undefined) ?? undefined,
      sinks: weights.get(`model.layers.${i}.self_attn.sinks`),
    }))
    const interleaved = config.model_type.startsWith('glm')
    const ropes = config.rope_parameters
    this.layerRopes = indices.map((i) => {
      if ((config.no_rope_layers as number[] | undefined)?.[i] === 0) return NO_ROPE
      return { ...ropeOf(config, ropes?.[types?.[i] as LayerType] ?? ropes, context), interleaved }
    })
    this.rope = this.layerRopes[0]!
  }

  /** Told of each weight: that the worker's query puts on a place of its view, in each layer and head. */
  listen?: (worker: number, query: number, place: number, weight: number) => void

  /**
   * One simultaneous step; the new tokens are pushed to the targets. Returns the logits of every new
   * token: [workers][tokens] of [V].
   */
  step(workers: readonly Worker[]): Float64Array[][] {
    const held = new Map<readonly Token[], number>()
    const parts = workers.map(({ view, target, tokens }) => {
      const entries = view.map((entry): Entry => ('block' in entry ? entry : { block: entry }))
      for (const { block } of entries) held.set(block, block.length)
      const added = tokens.map((id): Token => ({ id, k: [], v: [] }))
      return {
        entries,
        target: target ?? (entries.at(-1)!.block as Block),
        added,
        x: tokens.map((id) => this.embed(id)),
        q: [] as Float64Array[],
      }
    })
    for (const { target, added } of parts) target.push(...added)
    for (let layer = 0; layer < this.layers; layer++) {
      for (const part of parts) {
        part.q = part.x.map((x, i) => {
          const { q, k, v } = this.project(layer, x)
          part.added[i]!.k.push(k)
          part.added[i]!.v.push(v)
          return q
        })
      }
      for (const [worker, part] of parts.entries()) {
        const { out } = attend(
          part.q,
          seen(part.entries, part.target, layer, (block) => held.get(block)!),
          this.layerShapes[layer]!,
          this.layerRopes[layer]!,
          this.listen && ((query, place, weight) => this.listen!(worker, query, place, weight)),
        )
        part.x = part.x.map((x, i) => this.finish(layer, x, out[i]!))
      }
    }
    return parts.map(({ x }) => x.map((row) => this.logits(row)))
  }

  private weight(name: string): Float64Array {
    const weight = this.weights.get(`${name}.weight`)
    if (!weight) throw new Error(`no tensor ${name}.weight`)
    return weight
  }

  private linear(name: string, x: Float64Array): Float64Array {
    return linear(this.weight(name), x, this.weights.get(`${name}.bias`))
  }

  private norm(name: string, x: Float64Array): Float64Array {
    return rmsNorm(x, this.weight(name), this.config.rms_norm_eps, this.gemma ? 1 : 0)
  }

  private multiplier(field: string): number {
    return (this.config[field] as number | undefined) ?? 1
  }

  private embed(id: number): Float64Array {
    const size = this.config.hidden_size
    const row = this.weight('model.embed_tokens').slice(id * size, (id + 1) * size)
    const scale = this.gemma ? Math.sqrt(size) : this.multiplier('embedding_multiplier')
    return row.map((x) => x * scale)
  }

  private project(
    layer: number,
    x: Float64Array,
  ): { q: Float64Array; k: Float64Array; v: Float64Array } {
    const { queryHeads, kvHeads, headDim } = this.shape
    const attention = `model.layers.${layer}.self_attn`
    const h =
      this.config.model_type === 'olmo2' ? x : this.norm(`model.layers.${layer}.input_layernorm`, x)
    let q: Float64Array
    let k: Float64Array
    let v: Float64Array
    if (this.weights.has(`${attention}.qkv_proj.weight`)) {
      const qkv = this.linear(`${attention}.qkv_proj`, h)
      const [kAt, vAt] = [queryHeads * headDim, (queryHeads + kvHeads) * headDim]
      q = qkv.slice(0, kAt)
      k = qkv.slice(kAt, vAt)
      v = qkv.slice(vAt)
    } else {
      q = this.linear(`${attention}.q_proj`, h)
      k = this.linear(`${attention}.k_proj`, h)
      v = this.linear(`${attention}.v_proj`, h)
    }
    if (this.weights.has(`${attention}.q_norm.weight`)) {
      q = this.norm(`${attention}.q_norm`, q)
      k = this.norm(`${attention}.k_norm`, k)
    }
    return { q, k, v }
  }

  private finish(layer: number, x: Float64Array, attended: Float64Array): Float64Array {
    const name = `model.layers.${layer}`
    const { attentionOutput, mlp, mlpOutput } = NORMS[this.config.model_type] ?? {
      mlp: 'post_attention_layernorm',
    }
    const norm = (part: string | undefined, from: Float64Array) =>
      part === undefined ? from : this.norm(`${name}.${part}`, from)
    const residual = (part: string | undefined, from: Float64Array) =>
      norm(part, from).map((value) => value * this.multiplier('residual_multiplier'))
    const attention = this.linear(`${name}.self_attn.o_proj`, attended)
    const y = add(x, residual(attentionOutput, attention))
    const h = norm(mlp, y)
    const mixed = experts(this.config, this.weights, name, h)
    if (mixed) return add(y, mixed)
    let gate: Float64Array
    let up: Float64Array
    if (this.weights.has(`${name}.mlp.gate_up_proj.weight`)) {
      const both = this.linear(`${name}.mlp.gate_up_proj`, h)
      gate = both.slice(0, both.length / 2)
      up = both.slice(both.length / 2)
    } else {
      gate = this.linear(`${name}.mlp.gate_proj`, h)
      up = this.linear(`${name}.mlp.up_proj`, h)
    }
    const activation = this.gemma ? geluTanh : silu
    const gated = gate.map((g, i) => activation(g) * up[i]!)
    return add(y, residual(mlpOutput, this.linear(`${name}.mlp.down_proj`, gated)))
  }

  private logits(x: Float64Array): Float64Array {
    const head = this.weights.get('lm_head.weight') ?? this.weight('model.embed_tokens')
    const logits = linear(head, this.norm('model.norm', x))
    const cap = this.config.final_logit_softcapping as number | null | undefined
    return logits.map((logit) => {
      const scaled = logit / this.multiplier('logits_scaling')
      return cap ? cap * tanh(scaled / cap) : scaled
    })
  }
}

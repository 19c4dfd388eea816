// A mixture of experts by the definition, in float64, from the tensors as the files of each family name them.

type Weights = ReadonlyMap<string, Float64Array>

interface Config {
  model_type: string
  hidden_size: number
  intermediate_size: number
  [field: string]: unknown
}

const silu = (x: number): number => x / (1 + Math.exp(-x))

/** weight [rows, x.length] x + bias */
function linear(weight: Float64Array, x: Float64Array, bias?: Float64Array): Float64Array {
  return Float64Array.from({ length: weight.length / x.length }, (_, row) =>
    x.reduce((sum, value, i) => sum + weight[row * x.length + i]! * value, bias?.[row] ?? 0),
  )
}

/** What `experts` needs of one layer. */
interface Layer {
  router: Float64Array
  routerBias?: Float64Array | undefined
  /** down(activation(gate(x), up(x))) of one expert. */
  expert(e: number, x: Float64Array): Float64Array
}

/**
 * What the mixture of experts of layer `name` ("model.layers.0") adds for one token [H]; undefined where the layer
 * has none.
 */
export function experts(
  config: Config,
  weights: Weights,
  name: string,
  x: Float64Array,
): Float64Array | undefined {
  const layer =
    separate(weights, `${name}.block_sparse_moe`, ['w1', 'w3', 'w2']) ??
    separate(weights, `${name}.mlp`, ['gate_proj', 'up_proj', 'down_proj']) ??
    gptOss(config, weights, `${name}.mlp`)
  if (layer === undefined) return undefined
  const logits = linear(layer.router, x, layer.routerBias)
  const order = [...logits.keys()].sort((a, b) => logits[b]! - logits[a]! || a - b)
  const used = order.slice(0, config.num_experts_per_tok as number)
  const overAll = config.model_type === 'qwen3_moe' && !config.norm_topk_prob
  const power = (e: number) => Math.exp(logits[e]! - logits[order[0]!]!)
  const sum = (overAll ? order : used).reduce((total, e) => total + power(e), 0)
  const out = new Float64Array(x.length)
  for (const e of used) {
    const y = layer.expert(e, x)
    for (let i = 0; i < out.length; i++) out[i]! += (power(e) / sum) * y[i]!
  }
  return out
}

function separate(
  weights: Weights,
  name: string,
  [gate, up, down]: [string, string, string],
): Layer | undefined {
  const router = weights.get(`${name}.gate.weight`)
  if (router === undefined) return undefined
  return {
    router,
    expert(e, x) {
      const of = (matrix: string) => weights.get(`${name}.experts.${e}.${matrix}.weight`)!
      const ups = linear(of(up), x)
      return linear(
        of(down),
        linear(of(gate), x).map((g, i) => silu(g) * ups[i]!),
      )
    },
  }
}

/** x W with W [E, H, 2 F] and [E, F, H]; columns of gate and up take turns. */
function gptOss(config: Config, weights: Weights, name: string): Layer | undefined {
  const router = weights.get(`${name}.router.weight`)
  if (router === undefined) return undefined
  const { hidden_size: hidden, intermediate_size: size } = config
  const product = (x: Float64Array, stack: string, e: number, cols: number): Float64Array => {
    const matrix = weights.get(`${name}.experts.${stack}`)!
    const out = weights.get(`${name}.experts.${stack}_bias`)!.slice(e * cols, (e + 1) * cols)
    for (let i = 0; i < x.length; i++) {
      for (let j = 0; j < cols; j++) out[j]! += x[i]! * matrix[(e * x.length + i) * cols + j]!
    }
    return out
  }
  return {
    router,
    routerBias: weights.get(`${name}.router.bias`),
    expert(e, x) {
      const both = product(x, 'gate_up_proj', e, 2 * size)
      const gated = Float64Array.from({ length: size }, (_, i) => {
        const gate = Math.min(both[2 * i]!, 7)
        const up = Math.min(Math.max(both[2 * i + 1]!, -7), 7)
        return (gate / (1 + Math.exp(-1.702 * gate))) * (up + 1)
      })
      return product(gated, 'down_proj', e, hidden)
    },
  }
}

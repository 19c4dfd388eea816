// A Llama of random weights, of the shape of SmolLM2-135M: for timing, where no model is given.

import { mkdtemp, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { removedAfterwards } from '../clean-up'
import { type TensorShape, tensorBytes, writeSafetensors } from '../replay/write-safetensors'

const HIDDEN = 576
const LAYERS = 30
const HEADS = 9
const KV_HEADS = 3
const HEAD_DIM = 64
const INTERMEDIATE = 1536
const VOCABULARY = 49152

const CONFIG = {
  architectures: ['LlamaForCausalLM'],
  model_type: 'llama',
  vocab_size: VOCABULARY,
  hidden_size: HIDDEN,
  intermediate_size: INTERMEDIATE,
  num_hidden_layers: LAYERS,
  num_attention_heads: HEADS,
  num_key_value_heads: KV_HEADS,
  head_dim: HEAD_DIM,
  hidden_act: 'silu',
  max_position_embeddings: 8192,
  rms_norm_eps: 1e-5,
  rope_theta: 100000,
  tie_word_embeddings: true,
  attention_bias: false,
  mlp_bias: false,
  torch_dtype: 'bfloat16',
}

function tensorShapes(): TensorShape[] {
  const tensor = (name: string, ...shape: number[]): TensorShape => ({ name, shape, dtype: 'BF16' })
  const layers = Array.from({ length: LAYERS }, (_, layer) => {
    const part = (name: string, ...shape: number[]) =>
      tensor(`model.layers.${layer}.${name}.weight`, ...shape)
    return [
      part('input_layernorm', HIDDEN),
      part('self_attn.q_proj', HEADS * HEAD_DIM, HIDDEN),
      part('self_attn.k_proj', KV_HEADS * HEAD_DIM, HIDDEN),
      part('self_attn.v_proj', KV_HEADS * HEAD_DIM, HIDDEN),
      part('self_attn.o_proj', HIDDEN, HEADS * HEAD_DIM),
      part('post_attention_layernorm', HIDDEN),
      part('mlp.gate_proj', INTERMEDIATE, HIDDEN),
      part('mlp.up_proj', INTERMEDIATE, HIDDEN),
      part('mlp.down_proj', HIDDEN, INTERMEDIATE),
    ]
  })
  return [
    tensor('model.embed_tokens.weight', VOCABULARY, HIDDEN),
    ...layers.flat(),
    tensor('model.norm.weight', HIDDEN),
  ]
}

/** Calls `use` with the folder of the model, 269 MB, which exists until that has settled. */
export async function withRandomLlama<T>(use: (folder: string) => Promise<T>): Promise<T> {
  const folder = await mkdtemp(join(tmpdir(), 'hogwild-bench-'))
  return await removedAfterwards(folder, async () => {
    await writeFile(join(folder, 'config.json'), JSON.stringify(CONFIG))
    const tensors = tensorShapes()
    await writeSafetensors(join(folder, 'model.safetensors'), tensors, weightsOf(tensors))
    return await use(folder)
  })
}

/** Data of the tensors: norms of their own, matrices from one buffer over and over. */
function* weightsOf(tensors: readonly TensorShape[]): Generator<Uint8Array> {
  const norms = randomNumbers(HIDDEN, 1)
  const weights = randomNumbers(1 << 20, 0)
  let at = 0
  for (const tensor of tensors) {
    if (tensor.shape.length === 1) {
      yield norms
      continue
    }
    let left = tensorBytes(tensor)
    while (left > 0) {
      const part = weights.subarray(at, at + left)
      yield part
      left -= part.length
      at = (at + part.length) % weights.length
    }
  }
}

/** bf16 numbers, uniform within 0.04 of `center`, as trained weights are in size. The same ones on every call. */
function randomNumbers(count: number, center: number): Buffer {
  const values = new Float32Array(count)
  let state = 1
  for (let index = 0; index < count; index++) {
    // Linear congruential generator of Numerical Recipes: quality does not matter here.
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    values[index] = center + (state / 2 ** 32 - 0.5) * 0.08
  }
  // bf16 is the upper half of a float32.
  const halves = new Uint16Array(values.buffer)
  return Buffer.from(Uint16Array.from(values, (_, index) => halves[2 * index + 1] as number).buffer)
}

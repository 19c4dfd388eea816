// A Llama of random weights, of the shape of SmolLM2-135M: for timing, where no model is given.

import { mkdtempSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { removedAfterwards } from '../clean-up'
import { writeRandomModel } from '../random-model/weights'

const CONFIG = {
  architectures: ['LlamaForCausalLM'],
  model_type: 'llama',
  vocab_size: 49152,
  hidden_size: 576,
  intermediate_size: 1536,
  num_hidden_layers: 30,
  num_attention_heads: 9,
  num_key_value_heads: 3,
  head_dim: 64,
  hidden_act: 'silu',
  max_position_embeddings: 8192,
  rms_norm_eps: 1e-5,
  rope_theta: 100000,
  tie_word_embeddings: true,
  attention_bias: false,
  mlp_bias: false,
  torch_dtype: 'bfloat16',
}

/** Calls `use` with the folder of the model, 269 MB, which exists until that has settled. */
export async function withRandomLlama<T>(use: (folder: string) => Promise<T>): Promise<T> {
  // At once, so that no signal comes between the folder and what removes it.
  const folder = mkdtempSync(join(tmpdir(), 'hogwild-bench-'))
  return await removedAfterwards(folder, async () => {
    await writeRandomModel(folder, CONFIG, { seed: 1 })
    return await use(folder)
  })
}

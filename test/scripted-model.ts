// A model whose text is known beforehand: each token has one that always follows it, whatever stands before. Its
// tokenizer has a token for each byte and some longer ones, which only the model writes.

import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { byteCharacters } from '../lib/tokenizer/bytes'
import { type Tensor, writeModelFolder } from './fixtures'
import { byteLevelTokenizer } from './tokenizer-fixtures'

export const CHAT_TEMPLATE =
  '{% for m in messages %}<|begin|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|begin|>assistant\n{% endif %}'

export interface Script {
  /** What follows which text of a token. Texts of more than one byte become tokens; '<|end|>' ends a text. */
  follows: Readonly<Record<string, string>>
  /** What follows all others. */
  otherwise?: string
  /** null: none. */
  chatTemplate?: string | null
}

/** A folder with the model and its tokenizer. */
export function writeScriptedModel({
  follows,
  otherwise = '<|end|>',
  chatTemplate = CHAT_TEMPLATE,
}: Script): string {
  const tokenizer = byteLevelTokenizer()
  const { vocab } = tokenizer.model as { vocab: Record<string, number> }
  // As in the vocabulary: an added token that is not in it would get an id behind all of it.
  Object.assign(vocab, { '<|begin|>': 256, '<|end|>': 257 })
  const ids = new Map([['<|end|>', 257]])
  for (const text of [...Object.keys(follows), ...Object.values(follows), otherwise]) {
    if (ids.has(text)) continue
    const characters = byteCharacters(text)
    const id = vocab[characters] ?? Object.keys(vocab).length
    vocab[characters] = id
    ids.set(text, id)
  }
  const size = Object.keys(vocab).length
  const next = new Array<number>(size).fill(ids.get(otherwise)!)
  for (const [text, following] of Object.entries(follows)) {
    next[ids.get(text)!] = ids.get(following)!
  }
  const folder = writeModelFolder(config(size), tensors(next), 'f32')
  writeFileSync(join(folder, 'tokenizer.json'), JSON.stringify(tokenizer))
  const settings = { eos_token: '<|end|>', chat_template: chatTemplate ?? undefined }
  writeFileSync(join(folder, 'tokenizer_config.json'), JSON.stringify(settings))
  return folder
}

const HEAD_DIM = 8

function config(size: number) {
  return {
    architectures: ['LlamaForCausalLM'],
    model_type: 'llama',
    vocab_size: size,
    hidden_size: size,
    intermediate_size: HEAD_DIM,
    num_hidden_layers: 1,
    num_attention_heads: 1,
    num_key_value_heads: 1,
    head_dim: HEAD_DIM,
    hidden_act: 'silu',
    max_position_embeddings: 8192,
    rms_norm_eps: 1e-5,
    rope_theta: 10000,
    tie_word_embeddings: false,
    torch_dtype: 'float32',
  }
}

/** Token u is the u-th unit vector, to which the layer adds nothing; the head finds next[u]. */
function tensors(next: readonly number[]): Map<string, Tensor> {
  const size = next.length
  const zeros = (...shape: number[]): Tensor => ({
    shape,
    data: new Float64Array(shape.reduce((a, b) => a * b)),
  })
  const ones = (): Tensor => ({ shape: [size], data: new Float64Array(size).fill(1) })
  const embedding = zeros(size, size)
  const head = zeros(size, size)
  next.forEach((following, token) => {
    embedding.data[token * size + token] = 1
    head.data[following * size + token] = 1
  })
  const layer = 'model.layers.0'
  return new Map([
    ['model.embed_tokens.weight', embedding],
    ['model.norm.weight', ones()],
    ['lm_head.weight', head],
    [`${layer}.input_layernorm.weight`, ones()],
    [`${layer}.post_attention_layernorm.weight`, ones()],
    [`${layer}.self_attn.q_proj.weight`, zeros(HEAD_DIM, size)],
    [`${layer}.self_attn.k_proj.weight`, zeros(HEAD_DIM, size)],
    [`${layer}.self_attn.v_proj.weight`, zeros(HEAD_DIM, size)],
    [`${layer}.self_attn.o_proj.weight`, zeros(size, HEAD_DIM)],
    [`${layer}.mlp.gate_proj.weight`, zeros(HEAD_DIM, size)],
    [`${layer}.mlp.up_proj.weight`, zeros(HEAD_DIM, size)],
    [`${layer}.mlp.down_proj.weight`, zeros(size, HEAD_DIM)],
  ])
}

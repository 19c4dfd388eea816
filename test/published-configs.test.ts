import { parseConfig } from '../lib/sources/huggingface-config'
import { codeOf } from './fixtures'

// config.json as well-known models have it: which of them load, and why others do not.

type Json = Record<string, unknown>

const llama2 = {
  _name_or_path: 'meta-llama/Llama-2-7b-hf',
  architectures: ['LlamaForCausalLM'],
  bos_token_id: 1,
  eos_token_id: 2,
  hidden_act: 'silu',
  hidden_size: 4096,
  initializer_range: 0.02,
  intermediate_size: 11008,
  max_position_embeddings: 4096,
  model_type: 'llama',
  num_attention_heads: 32,
  num_hidden_layers: 32,
  num_key_value_heads: 32,
  pretraining_tp: 1,
  rms_norm_eps: 1e-5,
  rope_scaling: null,
  tie_word_embeddings: false,
  torch_dtype: 'float16',
  transformers_version: '4.31.0.dev0',
  use_cache: true,
  vocab_size: 32000,
}
const llama3 = {
  ...llama2,
  attention_bias: false,
  attention_dropout: 0,
  mlp_bias: false,
  head_dim: 64,
  hidden_size: 2048,
  num_key_value_heads: 8,
  max_position_embeddings: 131072,
  eos_token_id: [128001, 128008, 128009],
  rope_theta: 500000,
  rope_scaling: {
    factor: 32,
    high_freq_factor: 4,
    low_freq_factor: 1,
    original_max_position_embeddings: 8192,
    rope_type: 'llama3',
  },
  tie_word_embeddings: true,
  vocab_size: 128256,
}
const mistral = {
  ...llama2,
  architectures: ['MistralForCausalLM'],
  model_type: 'mistral',
  attention_dropout: 0,
  num_key_value_heads: 8,
  rope_theta: 1e6,
  sliding_window: null,
}
const qwen2 = {
  architectures: ['Qwen2ForCausalLM'],
  attention_dropout: 0,
  bos_token_id: 151643,
  eos_token_id: 151645,
  hidden_act: 'silu',
  hidden_size: 896,
  initializer_range: 0.02,
  intermediate_size: 4864,
  max_position_embeddings: 32768,
  max_window_layers: 21,
  model_type: 'qwen2',
  num_attention_heads: 14,
  num_hidden_layers: 24,
  num_key_value_heads: 2,
  rms_norm_eps: 1e-6,
  rope_theta: 1e6,
  sliding_window: 32768,
  tie_word_embeddings: true,
  torch_dtype: 'bfloat16',
  transformers_version: '4.43.1',
  use_cache: true,
  use_sliding_window: false,
  vocab_size: 151936,
}
const qwen3 = {
  ...qwen2,
  architectures: ['Qwen3ForCausalLM'],
  model_type: 'qwen3',
  attention_bias: false,
  head_dim: 128,
  num_attention_heads: 16,
  num_key_value_heads: 8,
  rope_scaling: null,
  sliding_window: null,
}
const gemma = {
  ...llama2,
  architectures: ['GemmaForCausalLM'],
  model_type: 'gemma',
  attention_bias: false,
  attention_dropout: 0,
  head_dim: 256,
  hidden_act: 'gelu_pytorch_tanh',
  hidden_activation: null,
  num_attention_heads: 8,
  num_key_value_heads: 1,
}
const phi3 = {
  ...llama2,
  architectures: ['Phi3ForCausalLM'],
  model_type: 'phi3',
  attention_bias: false,
  attention_dropout: 0,
  auto_map: { AutoConfig: 'configuration_phi3.Phi3Config' },
  embd_pdrop: 0,
  resid_pdrop: 0,
  original_max_position_embeddings: 16384,
  max_position_embeddings: 16384,
  pad_token_id: 100349,
  rope_theta: 250000,
  sliding_window: null,
}
const yarn = { factor: 4, original_max_position_embeddings: 32768, type: 'yarn' }

test.each<[string, Json]>([
  ['Llama 2', llama2],
  ['Vicuna', { ...llama2, max_sequence_length: 2048, pad_token_id: 0 }],
  ['Llama 3.2', llama3],
  ['Llama 3.2 of Unsloth', { ...llama3, unsloth_fixed: true, pad_token_id: 128004 }],
  [
    'SmolLM2',
    {
      ...llama2,
      is_llama_config: true,
      rope_interleaved: false,
      'transformers.js_config': { kv_cache_dtype: { q4f16: 'float16' } },
    },
  ],
  ['Mistral 0.3', mistral],
  ['Mistral Nemo', { ...mistral, head_dim: 128, hidden_size: 5120 }],
  ['Qwen2.5', qwen2],
  ['Qwen2.5 over a long context', { ...qwen2, rope_scaling: yarn }],
  ['DeepSeek R1 Distill Qwen', { ...qwen2, use_mrope: false, tie_word_embeddings: false }],
  ['Qwen3', qwen3],
  ['Gemma', gemma],
  ['Phi-4', phi3],
])('%s', (_, config) => {
  expect(parseConfig(config).architecture).toBe((config.architectures as string[])[0])
})

test.each<[string, Json, RegExp, string | null]>([
  ['Mistral 0.1', { ...mistral, sliding_window: 4096 }, /"sliding_window".*4096/, 'sliding_window'],
  ['Phi-3 mini 4k', { ...phi3, sliding_window: 2047 }, /"sliding_window".*2047/, 'sliding_window'],
  ['Phi-3 mini 128k', { ...phi3, rope_scaling: { type: 'su', long_factor: [1] } }, /"su"/, null],
  [
    'Qwen2.5 1M',
    { ...qwen2, dual_chunk_attention_config: { chunk_size: 262144 } },
    /dual_chunk_attention_config/,
    'dual_chunk_attention_config',
  ],
  [
    'one with quantised weights',
    { ...llama3, quantization_config: { quant_method: 'awq', bits: 4 } },
    /quantization_config/,
    'quantization_config',
  ],
  ['the first Gemma', { ...gemma, hidden_act: 'gelu' }, /"hidden_act".*gelu_pytorch_tanh/, null],
])('%s is refused by name', async (_, config, message, field) => {
  expect(() => parseConfig(config)).toThrow(message)
  expect(await codeOf(() => parseConfig(config))).toBe('HOGWILD_UNSUPPORTED')
  const wayOut = field === null ? {} : { ignoreFields: [field] }
  expect(await codeOf(() => parseConfig(config, 'config.json', wayOut))).toBe(
    field === null ? 'HOGWILD_UNSUPPORTED' : 'nothing was thrown',
  )
})

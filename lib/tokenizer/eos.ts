// Tokens that end a turn or a text, known by how they are written. Files often name only one of them.

import type { TokenTable } from './token-table'

const END_TOKENS = [
  '<|im_end|>', // ChatML: Qwen, SmolLM2, Yi, ...
  '<|eot_id|>', // Llama 3
  '<|eom_id|>', // Llama 3, before a tool answers
  '<|end_of_text|>', // Llama 3, Granite
  '<|eot|>', // Llama 4
  '<|eom|>', // Llama 4
  '<end_of_turn>', // Gemma
  '<turn|>', // Gemma 4
  '<|end|>', // Phi 3
  '<|return|>', // gpt-oss
  '<|call|>', // gpt-oss
  '<|endoftext|>', // GPT-2, Phi, Qwen, StableLM
  '<|end_of_turn|>', // OpenChat
  '<｜end▁of▁sentence｜>', // DeepSeek
  '<|END_OF_TURN_TOKEN|>', // Command R
  '[|endofturn|]', // EXAONE 3
  '<EOT>', // DeepSeek Coder
  '<|EOT|>', // DeepSeek Coder
  '<eos>', // Gemma
  '</s>', // Llama, Mistral
] as const

/** Their ids, where they are special tokens of the vocabulary. */
export function endTokenIds(tokens: TokenTable): number[] {
  return END_TOKENS.map((token) => tokens.id(token)).filter(
    (id): id is number => id !== undefined && tokens.isSpecial(id),
  )
}

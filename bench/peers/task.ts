// What run.ts asks a process of an engine for, as JSON in its only argument, and what comes back.

export interface Task {
  /** A GGUF file. */
  path: string
  /** Token ids. */
  prompt: number[]
  /** Tokens per worker. */
  generate: number
  /** hogwild: workers that share the prompt and see each other; node-llama-cpp: sequences. */
  workers: number
  threads: number
  /** node-llama-cpp alone. */
  flashAttention: boolean
  /** Only the logits of the prompt's last token, [vocabulary], are wanted. */
  answer: boolean
}

export interface Measurement {
  /** From a file in the page cache to a model that can step, without tokenizer. */
  loadSeconds: number
  /** One prompt. */
  prefillSeconds: number
  /** All workers' tokens. */
  decodeSeconds: number
  /** Most memory that the process has had, file pages of weights included. */
  peakBytes: number
  /** The same before the first token. */
  baselineBytes: number
  /** hogwild alone: the cache's pool. */
  cacheBytes?: number
  weightBytes?: number
  /** hogwild alone: weights, and keys and values that some worker sees, each counted once. */
  stepBytes?: number
  /** hogwild alone: bytes per second. */
  readBandwidth?: number
}

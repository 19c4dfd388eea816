// A question to a view whose tokens leave no trace.

import type { Block } from '../block'
import type { StepOutput, StepWorker } from '../model'
import type { BlockStore } from './group'

/** What `WorkerRun.probe` found. */
export interface ProbeResult {
  /** `[V]`: after the last token of the question. */
  logits: Float32Array
  /** Natural log of the probability of each answer, its tokens one after the other, by the raw logits. */
  answers: number[]
}

/**
 * The parts of a step that asks a question behind the blocks of a view, and each answer behind the question: each in a
 * block of its own, which `close` takes away again.
 */
export class ProbeStep {
  readonly #question: Int32Array
  readonly #answers: readonly Int32Array[]
  readonly #scratch: Block[] = []

  constructor(question: Int32Array, answers: readonly Int32Array[]) {
    this.#question = question
    this.#answers = answers
  }

  /** Called again, it makes the same of new blocks. */
  parts(view: readonly Block[], store: BlockStore): StepWorker[] {
    this.close()
    const part = (tokens: Int32Array, logits: 'last' | 'all'): StepWorker => {
      const scratch = store.createBlock()
      this.#scratch.push(scratch)
      return { view: { blocks: [...view, scratch] }, tokens, sampler: null, logits }
    }
    return [
      part(this.#question, 'last'),
      ...this.#answers.map((answer) => part(joined(this.#question, answer), 'all')),
    ]
  }

  close(): void {
    for (const block of this.#scratch.splice(0)) block.close()
  }

  result([asked, ...outputs]: readonly StepOutput[], vocabSize: number): ProbeResult {
    const answers = this.#answers.map((answer, i) => {
      const rows = outputs[i]?.logits as Float32Array
      return answer.reduce((sum, token, at) => {
        const row = (this.#question.length - 1 + at) * vocabSize
        return sum + logprob(rows.subarray(row, row + vocabSize), token)
      }, 0)
    })
    return { logits: asked?.logits as Float32Array, answers }
  }
}

function joined(question: Int32Array, answer: Int32Array): Int32Array {
  return Int32Array.from([...question, ...answer])
}

function logprob(logits: Float32Array, token: number): number {
  const most = logits.reduce((a, b) => Math.max(a, b))
  const sum = logits.reduce((all, logit) => all + Math.exp(logit - most), 0)
  return (logits[token] as number) - most - Math.log(sum)
}

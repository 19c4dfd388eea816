// The demo's model and the workers that do its job.

import {
  type DeviceName,
  demoModelPath,
  loadModel,
  loadTokenizer,
  type Model,
  runWorkers,
  type WorkerRun,
} from '../../index'
import { escapeUnsafe } from '../../printable'
import { type Blocks, type DemoTask, HALT, TAKEN_AWAY, type WrittenToken } from './task'

// A prompt has at most 1 + 16 * 12 tokens, and a block of a worker that does all of it 16 * 12 + 2.
const MAX_BLOCK_TOKENS = 400
const CACHE_TOKENS = 2048

export class DemoModel {
  private readonly symbols: readonly string[]

  private constructor(
    readonly model: Model,
    private readonly encode: (text: string) => number[],
    decode: (token: number) => string,
  ) {
    this.symbols = Array.from({ length: model.config.vocabSize }, (_, token) =>
      escapeUnsafe(decode(token)),
    )
  }

  /** On a CPU one thread by default: a matrix of this model is smaller than the wait for a second one. */
  static async load(device: DeviceName = 'cpu', threads = 1): Promise<DemoModel> {
    const tokenizer = await loadTokenizer(demoModelPath)
    const model = await loadModel(
      demoModelPath,
      device === 'cpu' ? { device, threads } : { device },
    )
    return new DemoModel(
      model,
      (text) => tokenizer.encodeSync(text, { addSpecialTokens: false }),
      (token) => tokenizer.decode([token], { skipSpecialTokens: false }),
    )
  }

  /** Each worker sees the prompt, then the others' blocks, then its own: the contiguous layout. */
  start(task: DemoTask, names: readonly string[], share: boolean): WorkerRun {
    return runWorkers({
      model: this.model,
      prompt: this.encode(task.prompt),
      workers: names.map((name) => this.worker(name, name)),
      layout: 'contiguous',
      share,
      stopTokens: this.encode(HALT),
      maxTokens: MAX_BLOCK_TOKENS,
      capacity: CACHE_TOKENS,
    })
  }

  /** `name` is what the model calls the worker, `worker` what the run does. */
  join(run: WorkerRun, name: string, worker = name): void {
    run.join(this.worker(name, worker))
  }

  /** The mark tells the others that the worker's unfinished claim is free again. */
  takeAway(run: WorkerRun, worker: string, mark = true): void {
    run.stop(worker, mark ? { append: this.encode(TAKEN_AWAY) } : {})
  }

  /** The text of a token of the vocabulary, to be shown. */
  symbol(token: number): string {
    return this.symbols[token] ?? ''
  }

  close(): Promise<void> {
    return this.model.close()
  }

  private worker(name: string, worker: string) {
    return { name: worker, prompt: this.encode(name) }
  }
}

export interface Disturbances {
  /** Step in which a worker begins; 0 if not named. Somebody must begin at once. */
  readonly start?: Readonly<Record<string, number>>
  readonly stop?: { readonly name: string; readonly step: number; readonly mark: boolean }
}

export interface FinishedTask {
  readonly blocks: Blocks
  readonly milliseconds: number
}

/** Lets the workers do the whole job, as fast as they can. */
export async function finishTask(
  demo: DemoModel,
  task: DemoTask,
  names: readonly string[],
  share: boolean,
  disturbances: Disturbances = {},
): Promise<FinishedTask> {
  const { start = {}, stop } = disturbances
  const blocks = new Map<string, WrittenToken[]>()
  const begin = performance.now()
  const present = names.filter((name) => !start[name])
  await using run = demo.start(task, present, share)
  for await (const event of run) {
    if (event.type === 'token') {
      const block = blocks.get(event.worker) ?? []
      block.push({ text: demo.symbol(event.token), step: event.step })
      blocks.set(event.worker, block)
    } else if (event.type === 'step') {
      const next = event.step + 1
      for (const name of names) {
        if (start[name] === next) demo.join(run, name)
      }
      if (stop?.step === next) demo.takeAway(run, stop.name, stop.mark)
    }
  }
  return { blocks, milliseconds: performance.now() - begin }
}

// `hogwild run`: workers solve a problem together on a model of the user's.

import {
  type CacheDtype,
  type DeviceName,
  type Dtype,
  type LayoutName,
  type LoadProgress,
  loadModel,
  loadTokenizer,
  runWorkers,
  type SamplerOptions,
  type Tokenizer,
} from '../index'
import { LinePrinter } from './run/line-printer'
import {
  collaborationPrompt,
  OTHERS_HEADING,
  OWN_HEADING,
  RECORD_HEADING,
  turnOpening,
  WORKER_NAMES,
} from './run/prompt'
import { colors, print, printJson } from './terminal'

export interface RunCommandOptions {
  model: string
  workers: number
  layout: LayoutName
  share: boolean
  maxTokens: number
  temperature: number
  topK?: number
  topP?: number
  minP?: number
  seed: number
  device: DeviceName
  dtype: 'auto' | Dtype
  threads?: number
  capacity?: number
  cacheDtype?: CacheDtype
  stop?: string[]
  ignoreField?: string[]
  json?: boolean
}

function showProgress({ loadedBytes, totalBytes }: LoadProgress): void {
  const done = loadedBytes === totalBytes
  const percent = Math.floor((100 * loadedBytes) / totalBytes)
  process.stderr.write(`\rloading the model: ${percent} %${done ? '\n' : ''}`)
}

export async function run(problem: string, options: RunCommandOptions): Promise<void> {
  const { device, dtype, threads, layout, share, maxTokens, capacity, cacheDtype } = options
  const names = WORKER_NAMES.slice(0, options.workers)
  const tokenizer = await loadTokenizer(options.model)
  const encode = (text: string) => tokenizer.encodeSync(text, { addSpecialTokens: false })
  const onProgress = process.stderr.isTTY ? showProgress : undefined
  const model = await loadModel(options.model, {
    device,
    dtype,
    onProgress,
    threads,
    ignoreFields: options.ignoreField,
  })
  try {
    await using session = runWorkers({
      model,
      tokenizer,
      prompt: await encodePrompt(tokenizer, collaborationPrompt(problem, names, share)),
      workers: names.map((name, index) => ({
        name,
        prompt: encode(turnOpening(name, 1)),
        header: encode(OWN_HEADING),
        sampler: samplerOptions(options, index),
      })),
      layout,
      share,
      ...(layout === 'combined' && { sharedHeader: encode(OTHERS_HEADING) }),
      ...(layout !== 'contiguous' && {
        // A paragraph ends with a blank line, in one token or in two.
        turnEnds: (ids: readonly number[]) => /\n\s*\n$/.test(tokenizer.decode(ids.slice(-2))),
        turnHeader: (name: string, turn: number) => encode(turnOpening(name, turn + 1)),
      }),
      stop: options.stop,
      maxTokens,
      capacity,
      cacheDtype,
    })
    const printer = new LinePrinter(names)
    for await (const event of session) {
      if (options.json) printJson(event)
      else if (event.type === 'token') printer.write(event.worker, event.text)
      else if (event.type === 'stop') {
        printer.write(event.worker, event.text ?? '')
        printer.flush(event.worker)
        printer.remark(event.worker, `stopped: ${event.reason}`)
      } else if (event.type === 'end') {
        const { steps, tokens, milliseconds } = event
        print(
          colors.dim(`${tokens} tokens in ${steps} steps, ${(milliseconds / 1e3).toFixed(1)} s`),
        )
      }
    }
  } finally {
    await model.close()
  }
}

function encodePrompt(tokenizer: Tokenizer, text: string): Promise<number[]> {
  return tokenizer.hasChatTemplate
    ? tokenizer.encodeChat([{ role: 'user', content: text }], { answerPrefix: RECORD_HEADING })
    : tokenizer.encode(`${text}\n\n${RECORD_HEADING}`)
}

/** The same for all but for the seed. */
function samplerOptions(options: RunCommandOptions, index: number): SamplerOptions {
  const { temperature, topK, topP, minP, seed } = options
  return {
    temperature,
    seed: seed + index,
    ...(topK !== undefined && { topK }),
    ...(topP !== undefined && { topP }),
    ...(minP !== undefined && { minP }),
  }
}

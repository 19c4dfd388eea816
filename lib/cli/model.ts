// Models that commands work on: found or downloaded, and loaded, with progress on stderr.

import {
  type Device,
  type DeviceName,
  type Dtype,
  download,
  findModel,
  HogwildError,
  inspectModel,
  loadModel,
  loadTokenizer,
  type Model,
  type Tokenizer,
} from '../index'
import { withProgress } from './progress'

/** What the options of all commands have that take a model. */
export interface ModelOptions {
  dtype: 'auto' | Dtype
  threads?: number
  ignoreField?: string[]
  quiet?: boolean
  json?: boolean
}

type Silence = Pick<ModelOptions, 'quiet' | 'json'>

/** The path of a model that is given as a path or as a name of the hub. */
export async function findWithProgress(model: string, silence: Silence): Promise<string> {
  return await bring(findModel, model, silence)
}

export async function downloadWithProgress(name: string, silence: Silence): Promise<string> {
  return await bring(download, name, silence)
}

async function bring(from: typeof download, name: string, { quiet, json }: Silence) {
  return await withProgress(`downloading ${name}`, 'bytes', quiet || json, (show) =>
    from(name, { onProgress: ({ loadedBytes, totalBytes }) => show(loadedBytes, totalBytes) }),
  )
}

export async function loadWithProgress(
  path: string,
  device: Device | DeviceName,
  options: ModelOptions,
): Promise<Model> {
  const { dtype, threads, ignoreField: ignoreFields, quiet, json } = options
  return await withProgress('loading the model', 'bytes', quiet || json, (show) =>
    loadModel(path, {
      device,
      dtype,
      ...(typeof device === 'string' && { threads }),
      ignoreFields,
      onProgress: ({ loadedBytes, totalBytes }) => show(loadedBytes, totalBytes),
    }),
  )
}

/** What is wrong with the model is told first, as `loadModel` tells it: it may be why there is no tokenizer. */
export async function loadTokenizerOf(path: string, options: ModelOptions): Promise<Tokenizer> {
  try {
    return await loadTokenizer(path)
  } catch (error) {
    const { refusals } = await inspectModel(path, { ignoreFields: options.ignoreField })
    const refusal = refusals.find(({ part }) => part === 'model')
    throw refusal === undefined ? error : new HogwildError(refusal.message, refusal.code)
  }
}

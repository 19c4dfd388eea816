// What a caller calls a model: a path, or a name of the hub.

import { lstat } from 'node:fs/promises'
import { HogwildError } from '../errors'
import { checkPath } from '../sources/files'
import { checkOptions, describe, optionKeys } from '../validate'
import { type DownloadOptions, download } from './download'
import { NAME_FORM, parseHubName } from './name'

/** How a model of the hub is brought; see `download`. */
export type ModelDownloadOptions = Pick<
  DownloadOptions,
  'endpoint' | 'cacheFolder' | 'token' | 'offline' | 'onProgress'
>

const KEYS = optionKeys<ModelDownloadOptions>()({
  endpoint: true,
  cacheFolder: true,
  token: true,
  offline: true,
  onProgress: true,
})

/**
 * The path of a model: `model` itself where there is such a file or folder, be it a link that leads nowhere; else that
 * of the model of the hub of this name, brought where it is not there yet. `loadModel`, `loadTokenizer` and
 * `inspectModel` take either and do the same; called first, it makes one path for all of them.
 *
 * Throws HOGWILD_INVALID_MODEL for what is neither, and as `download`.
 */
export async function findModel(model: string, options: DownloadOptions = {}): Promise<string> {
  const path = checkPath(model, 'model')
  if (await isThere(path)) return path
  if (parseHubName(path) === undefined) {
    throw new HogwildError(
      `no model at ${describe(path)}: there is no such file or folder, and it is no name of the hub (${NAME_FORM})`,
      'HOGWILD_INVALID_MODEL',
    )
  }
  return await download(path, options)
}

/** `options.download` of a function that takes a model. Throws HOGWILD_INVALID_ARGUMENT. */
export function checkDownload(options: ModelDownloadOptions | undefined): ModelDownloadOptions {
  return checkOptions(options ?? {}, 'options.download', KEYS)
}

async function isThere(path: string): Promise<boolean> {
  try {
    await lstat(path)
    return true
  } catch (error) {
    // What may not be looked at is there.
    const { code = '' } = error as NodeJS.ErrnoException
    return !['ENOENT', 'ENOTDIR', 'ENAMETOOLONG'].includes(code)
  }
}

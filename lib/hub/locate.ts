// What a caller calls a model: a path, or a name of the hub.

import { lstat } from 'node:fs/promises'
import { HogwildError } from '../errors'
import { checkFolder } from '../sources/files'
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
 * The path of a model. What exists is a path, be it a link that leads nowhere; else a name of the hub is downloaded.
 * Throws HOGWILD_INVALID_MODEL for what is neither, and as `download`.
 */
export async function locateModel(
  model: unknown,
  options: ModelDownloadOptions | undefined,
  rest: Pick<DownloadOptions, 'files' | 'signal' | 'onWarning'>,
): Promise<string> {
  const path = checkFolder(model, 'model')
  const downloadOptions = checkOptions(options ?? {}, 'options.download', KEYS)
  if (await isThere(path)) return path
  if (parseHubName(path) === undefined) {
    throw new HogwildError(
      `no model at ${describe(path)}: there is no such file or folder, and it is no name of the hub (${NAME_FORM})`,
      'HOGWILD_INVALID_MODEL',
    )
  }
  return await download(path, { ...downloadOptions, ...rest })
}

async function isThere(path: string): Promise<boolean> {
  try {
    await lstat(path)
    return true
  } catch (error) {
    // What may not be looked at is there.
    return !['ENOENT', 'ENOTDIR', 'ENAMETOOLONG'].includes(
      (error as NodeJS.ErrnoException).code ?? '',
    )
  }
}

// Where a result goes: checked before anything is computed for it.

import { constants, type Stats } from 'node:fs'
import { access, realpath, stat } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { HogwildError } from '../../errors'

/**
 * The path to write to, links resolved. A regular file that is there will be replaced, but not one of
 * `inputs`, nor one in the folder of the model.
 *
 * @throws HogwildError HOGWILD_INVALID_ARGUMENT
 */
export async function checkOutput(
  path: string,
  inputs: { script: string; model: string },
): Promise<string> {
  const refuse = (reason: string, cause?: unknown) =>
    new HogwildError(`--out ${path}: ${reason}`, 'HOGWILD_INVALID_ARGUMENT', { cause })
  if (/[/\\]$/.test(path)) throw refuse('expected the name of a file, received a folder')
  const found = await stat(path).catch((cause: NodeJS.ErrnoException): Stats | undefined => {
    if (cause.code === 'ENOENT') return undefined
    throw refuse(cause.message, cause)
  })
  if (found && !found.isFile()) throw refuse('is there and no regular file')
  const folder = dirname(found ? await realpath(path) : path)
  try {
    if (!(await stat(folder)).isDirectory()) throw refuse(`${folder} is no folder`)
    await access(folder, constants.W_OK | constants.X_OK)
  } catch (cause) {
    throw cause instanceof HogwildError ? cause : refuse((cause as Error).message, cause)
  }
  const target = join(await realpath(folder), basename(found ? await realpath(path) : path))
  if (found && target === (await resolved(inputs.script))) throw refuse('is the script itself')
  if (found && dirname(target) === (await resolved(inputs.model))) {
    throw refuse("would replace a file in the model's folder")
  }
  return target
}

/** undefined where there is nothing: then whoever reads it says so. */
function resolved(path: string): Promise<string | undefined> {
  return realpath(path).catch(() => undefined)
}

// `hogwild download`: brings a model from the hub and prints its path.

import { escapeUnsafe } from '../printable'
import { downloadWithProgress } from './model'
import { print, printJson } from './terminal'

export async function downloadModel(
  name: string,
  options: { quiet?: boolean; json?: boolean },
): Promise<void> {
  const path = await downloadWithProgress(name, options)
  if (options.json) printJson({ name, path })
  else print(escapeUnsafe(path))
}

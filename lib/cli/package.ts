import { readFileSync } from 'node:fs'
import { join } from 'node:path'

/** The package's folder, seen from lib/cli as well as from dist/cli. */
export const packageRoot = join(__dirname, '..', '..')

export const packageVersion: string = JSON.parse(
  readFileSync(join(packageRoot, 'package.json'), 'utf8'),
).version

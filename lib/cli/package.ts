import { readFileSync } from 'node:fs'
import { join, relative, sep } from 'node:path'

/** The package's folder, seen from lib/cli as well as from dist/cli. */
export const packageRoot = join(__dirname, '..', '..')

export const packageVersion: string = JSON.parse(
  readFileSync(join(packageRoot, 'package.json'), 'utf8'),
).version

/** How one calls the program from where one is: as a dependency, or in a checkout. */
export function commandLine(): string {
  const isInstalled = packageRoot.split(sep).includes('node_modules')
  return isInstalled ? 'npx hogwild' : `node ${seenFromHere(join(packageRoot, 'dist/cli/main.js'))}`
}

/** A path of a file, from the working directory where that is shorter. */
export function seenFromHere(path: string): string {
  const below = relative(process.cwd(), path)
  return below.length < path.length ? below : path
}

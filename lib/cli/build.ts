// `hogwild build`: compiles the addon into the installed package, whatever package manager put it there. Needs no addon
// and no scripts of a package manager.

import { statSync } from 'node:fs'
import { join, relative } from 'node:path'
import { explainAttempts, loadAddon } from '../addon-file'
import { HogwildError } from '../errors'
import { packageRoot } from './package'
import { print } from './terminal'

export interface BuildOptions {
  cuda?: 'auto' | 'on' | 'off'
  cudaArchitectures?: string
}

/** Of scripts/build-native.cjs; returns what went wrong. */
type Build = (options: BuildOptions & { fresh: boolean; clean: boolean }) => string | undefined

export function buildAddon(options: BuildOptions): void {
  const { build } = require(join(packageRoot, 'scripts', 'build-native.cjs')) as { build: Build }
  const problem = build({ ...options, fresh: true, clean: true })
  if (problem !== undefined) throw new HogwildError(problem, 'HOGWILD_UNSUPPORTED')
  const loaded = loadAddon()
  if (loaded.addon === undefined) {
    throw new HogwildError(explainAttempts(loaded.tried), 'HOGWILD_UNSUPPORTED')
  }
  const { file } = loaded
  print()
  print(`${relative(packageRoot, file)}: ${(statSync(file).size / 1e6).toFixed(1)} MB`)
  print('npx hogwild doctor tells what it can use here')
}

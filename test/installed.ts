// The package as a user has it: packed, and unpacked into the node_modules of an empty folder, with the addon that was built
// here. (npm would bring the same files; scripts/check-package.cjs has it do so.)

import { execFileSync } from 'node:child_process'
import { chmodSync, cpSync, mkdirSync, readFileSync, symlinkSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { temporaryFolder } from './fixtures'

const root = join(__dirname, '..')

/** Makes such a folder. `node_modules/.bin` has the command, as npm links it. */
export function installPackage(): string {
  const folder = temporaryFolder()
  const modules = join(folder, 'node_modules')
  const installed = join(modules, 'hogwild')
  const pack = ['pack', '--silent', '--ignore-scripts', '--pack-destination', folder]
  const tarball = execFileSync('npm', pack, { cwd: root, encoding: 'utf8' }).trim()
  mkdirSync(installed, { recursive: true })
  execFileSync('tar', ['-xf', join(folder, tarball), '-C', installed, '--strip-components=1'])
  const addon = join('build', 'Release', 'hogwild.node')
  mkdirSync(dirname(join(installed, addon)), { recursive: true })
  cpSync(join(root, addon), join(installed, addon))

  const { bin, peerDependencies } = manifest(installed)
  for (const name of dependenciesOf(installed)) copy(name, modules)
  // Optional, for grammars and plots: the documents say to install them.
  for (const name of Object.keys(peerDependencies ?? {})) link(name, modules)
  mkdirSync(join(modules, '.bin'))
  const main = bin?.hogwild as string
  chmodSync(join(installed, main), 0o755)
  symlinkSync(join('..', 'hogwild', main), join(modules, '.bin', 'hogwild'))
  return folder
}

interface Manifest {
  dependencies?: Record<string, string>
  peerDependencies?: Record<string, string>
  bin?: Record<string, string>
}

const manifest = (folder: string): Manifest =>
  JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8'))

/** Of a package, and theirs. In this lock file each is there once. */
function dependenciesOf(folder: string, known = new Set<string>()): Set<string> {
  for (const name of Object.keys(manifest(folder).dependencies ?? {})) {
    if (known.has(name)) continue
    known.add(name)
    dependenciesOf(join(root, 'node_modules', name), known)
  }
  return known
}

function copy(name: string, modules: string): void {
  cpSync(join(root, 'node_modules', name), join(modules, name), { recursive: true })
}

/** With the packages that it needs itself. */
function link(name: string, modules: string): void {
  mkdirSync(dirname(join(modules, name)), { recursive: true })
  symlinkSync(join(root, 'node_modules', name), join(modules, name))
}

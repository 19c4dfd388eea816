// node-llama-cpp, in a folder apart from the package's own dependencies.

import { execFileSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { root } from '../machine'

export const peerFolder = join(root, 'bench/peers/node-llama-cpp')

export function installPeer(): void {
  if (existsSync(join(peerFolder, 'node_modules/node-llama-cpp'))) return
  process.stderr.write('installing node-llama-cpp into bench/peers/node-llama-cpp/node_modules\n')
  // Its prebuilt binaries for GPUs, hundreds of megabytes, are optional dependencies.
  const flags = ['--omit=optional', '--ignore-scripts', '--no-package-lock', '--no-audit']
  execFileSync('npm', ['install', ...flags], { cwd: peerFolder, stdio: ['ignore', 2, 2] })
}

export function peerVersion(): string {
  const manifest = readFileSync(join(peerFolder, 'package.json'), 'utf8')
  return JSON.parse(manifest).dependencies['node-llama-cpp']
}

// node-llama-cpp, in a folder apart from the package's own dependencies.

import { execFileSync } from 'node:child_process'
import { cpSync, existsSync, readFileSync, rmSync } from 'node:fs'
import { basename, join } from 'node:path'
import { root } from '../machine'

export const peerFolder = join(root, 'bench/peers/node-llama-cpp')

export function installPeer(): void {
  if (existsSync(join(peerFolder, 'node_modules/node-llama-cpp'))) return
  process.stderr.write('installing node-llama-cpp into bench/peers/node-llama-cpp/node_modules\n')
  // Its prebuilt binaries for GPUs, hundreds of megabytes, are optional dependencies.
  const flags = ['--omit=optional', '--ignore-scripts', '--no-package-lock', '--no-audit']
  execFileSync('npm', ['install', ...flags], { cwd: peerFolder, stdio: ['ignore', 2, 2] })
}

/** A copy of it whose binaries use no more than AVX2: of those for other processors it chooses the best that runs. */
const avx2Folder = join(root, 'build/node-llama-cpp-avx2')
const AVX2_BINARY = 'libggml-cpu-haswell.so'

/** What measures it. */
export function peerScript(simd: 'avx2' | undefined): string {
  return join(simd === undefined ? peerFolder : avx2Folder, 'measure.mjs')
}

/** Once it is installed. */
export function limitPeer(): void {
  rmSync(avx2Folder, { recursive: true, force: true })
  for (const name of ['measure.mjs', 'package.json', 'node_modules']) {
    cpSync(join(peerFolder, name), join(avx2Folder, name), {
      recursive: true,
      filter: (path) =>
        !basename(path).startsWith('libggml-cpu-') || basename(path) === AVX2_BINARY,
    })
  }
}

export function peerVersion(): string {
  const manifest = readFileSync(join(peerFolder, 'package.json'), 'utf8')
  return JSON.parse(manifest).dependencies['node-llama-cpp']
}

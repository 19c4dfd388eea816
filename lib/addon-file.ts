// Finds and loads the addon. Where none loads, tells what was looked for and why each file does not serve here.
//
// node-gyp-build chooses the file: build/Release/hogwild.node, compiled on this machine, else
// prebuilds/<platform>-<arch>/hogwild[.<libc>].node, as prebuildify names it. Where its choice does not load, the other
// one is tried. HOGWILD_PREBUILD names another folder for both.

import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join, relative } from 'node:path'

/** What helps wherever no addon loads. */
export const BUILD_COMMAND = 'npx hogwild build'
export const BUILD_NEEDS = 'CMake 3.22, make and a C++20 compiler'

/** A file that does not serve, as it is seen from the package's folder, and why. */
export interface Attempt {
  file: string
  reason: string
}

export type LoadedAddon = { addon: object; file: string } | { addon: undefined; tried: Attempt[] }

type Libc = 'glibc' | 'musl'

/** e_machine of an ELF header. */
const MACHINES: ReadonlyMap<number, string> = new Map([
  [3, 'ia32'],
  [40, 'arm'],
  [62, 'x64'],
  [183, 'arm64'],
  [243, 'riscv64'],
])

export const platform = `${process.platform}-${process.arch}`

/** E.g. 'linux-x64 (glibc)'. */
export function describePlatform(): string {
  const libc = processLibc()
  return libc === undefined ? platform : `${platform} (${libc})`
}

export function loadAddon(): LoadedAddon {
  const root = process.env.HOGWILD_PREBUILD || join(__dirname, '..')
  const libc = processLibc()
  const prebuilt = join(
    root,
    'prebuilds',
    platform,
    libc === undefined ? 'hogwild.node' : `hogwild.${libc}.node`,
  )
  const tried: Attempt[] = []
  const compiled = join(root, 'build', 'Release', 'hogwild.node')
  for (const file of new Set([choose(root, libc) ?? compiled, compiled, prebuilt])) {
    const found = attempt(file, libc)
    if (typeof found === 'object') return { addon: found, file }
    tried.push({ file: relative(root, file), reason: found })
  }
  const others = prebuiltFor(root)
  if (!existsSync(prebuilt) && others.length > 0) {
    const last = tried.at(-1) as Attempt
    last.reason += `; there is one for ${others.join(', ')}`
  }
  return { addon: undefined, tried }
}

/** The file that node-gyp-build takes. It knows musl by Alpine's release file alone, unless LIBC tells. */
function choose(root: string, libc: Libc | undefined): string | undefined {
  const before = process.env.LIBC
  if (libc !== undefined) process.env.LIBC ??= libc
  try {
    const { path } = require('node-gyp-build') as typeof import('node-gyp-build')
    return path(root)
  } catch {
    return undefined
  } finally {
    if (before === undefined) delete process.env.LIBC
  }
}

/** The addon, or why the file does not serve. */
function attempt(file: string, libc: Libc | undefined): object | string {
  try {
    if (!existsSync(file)) return 'not there'
    return misfit(file, libc) ?? require(file)
  } catch (error) {
    return explain(error as Error)
  }
}

/** One line: what was looked for, why it does not serve, and what helps. */
export function explainAttempts(tried: readonly Attempt[]): string {
  const list = tried.map(({ file, reason }) => `${file}: ${reason}`).join('; ')
  return (
    `no addon for ${describePlatform()} can be loaded (${list}); ` +
    `\`${BUILD_COMMAND}\` compiles it (needs ${BUILD_NEEDS})`
  )
}

/** Platforms that this package was prebuilt for, e.g. 'linux-x64 (musl)'. */
function prebuiltFor(root: string): string[] {
  const list = (folder: string) => (existsSync(folder) ? readdirSync(folder).sort() : [])
  return list(join(root, 'prebuilds')).flatMap((name) =>
    list(join(root, 'prebuilds', name))
      .filter((file) => file.endsWith('.node'))
      .map((file) => {
        const [, libc] = /\.(glibc|musl)\./.exec(file) ?? []
        return libc === undefined ? name : `${name} (${libc})`
      }),
  )
}

/** The C library that this process runs on: what Linux has mapped into it. Undefined on other systems. */
function processLibc(): Libc | undefined {
  if (process.platform !== 'linux') return undefined
  try {
    const maps = readFileSync('/proc/self/maps', 'utf8')
    // glibc before 2.34 shows its version, libc-2.31.so; musl is ld-musl-x86_64.so.1 or libc.so.
    return /\/libc(\.so\.6|-2\.\d+\.so)$/m.test(maps) ? 'glibc' : 'musl'
  } catch {
    return existsSync('/etc/alpine-release') ? 'musl' : 'glibc'
  }
}

/**
 * Why a file must not be loaded: dlopen says of another architecture that there is no such file, crashes on a file
 * that was cut off, and might take a binary for glibc on musl.
 */
function misfit(file: string, libc: Libc | undefined): string | undefined {
  if (libc === undefined) return undefined
  const bytes = readFileSync(file)
  if (bytes.length < 64 || bytes.readUInt32BE(0) !== 0x7f454c46) return 'damaged: no ELF file'
  const machine = bytes.readUInt16LE(18)
  const arch = MACHINES.get(machine) ?? `machine ${machine}`
  if (arch !== process.arch) return `for ${arch}, this process is ${process.arch}`
  // The section headers are the last in a file.
  const end = Number(bytes.readBigUInt64LE(40)) + bytes.readUInt16LE(58) * bytes.readUInt16LE(60)
  if (bytes.length < end) return `damaged: cut off after ${bytes.length} of ${end} bytes`
  const needs = bytes.includes('libc.so.6\0') ? 'glibc' : 'musl'
  return needs === libc ? undefined : `for ${needs}, this process runs on ${libc}`
}

/** What dlopen says, and first what it means. */
function explain({ message }: Error): string {
  const said = message.split('\n')[0] ?? ''
  const [, version] = /version [`']GLIBC_([\d.]+)' not found/.exec(said) ?? []
  if (version !== undefined) {
    return `needs glibc ${version}, which is newer than this system's (${said})`
  }
  const [, library] = /^(\S+): cannot open shared object file/.exec(said) ?? []
  return library === undefined ? said : `needs ${library}, which this system lacks (${said})`
}

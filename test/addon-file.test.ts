// Why a file does not serve as the addon.

import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { describePlatform, explainAttempts, loadAddon, platform } from '../lib/addon-file'
import { temporaryFolder } from './fixtures'

const built = join(__dirname, '..', 'build', 'Release', 'hogwild.node')
const BUILD = 'build/Release/hogwild.node'
const { HOGWILD_PREBUILD } = process.env
afterEach(() => {
  if (HOGWILD_PREBUILD === undefined) delete process.env.HOGWILD_PREBUILD
  else process.env.HOGWILD_PREBUILD = HOGWILD_PREBUILD
})

/** Loads from a folder with these files; why each of the two that are looked for does not serve. */
function reasons(files: Record<string, Uint8Array | string>): string[] {
  const folder = temporaryFolder()
  for (const [name, bytes] of Object.entries(files)) {
    mkdirSync(join(folder, dirname(name)), { recursive: true })
    writeFileSync(join(folder, name), bytes)
  }
  process.env.HOGWILD_PREBUILD = folder
  const loaded = loadAddon()
  if (loaded.addon !== undefined) throw new Error(`${loaded.file} was loaded`)
  expect(explainAttempts(loaded.tried)).toContain('`npx hogwild build`')
  return loaded.tried.map(({ reason }) => reason)
}

test('nothing there', () => {
  expect(reasons({})).toEqual(['not there', 'not there'])
})

test('prebuilt for other systems only', () => {
  const files = {
    'prebuilds/aix-ppc64/hogwild.node': '',
    'prebuilds/aix-s390/hogwild.musl.node': '',
  }
  expect(reasons(files)[1]).toBe('not there; there is one for aix-ppc64, aix-s390 (musl)')
})

const linux =
  process.platform === 'linux' && describePlatform().includes('glibc') ? test : test.skip
describe('files of Linux', () => {
  const bytes = () => new Uint8Array(readFileSync(built))
  /** The same binary with a text replaced by another of its length. */
  const changed = (from: string, to: string) => {
    const text = Buffer.from(bytes()).toString('latin1').replaceAll(from, to)
    return Buffer.from(text, 'latin1')
  }

  linux('the second is taken where the first does not load', () => {
    const folder = temporaryFolder()
    for (const [name, content] of [
      [BUILD, 'damaged'],
      [`prebuilds/${platform}/hogwild.glibc.node`, bytes()],
    ] as const) {
      mkdirSync(join(folder, dirname(name)), { recursive: true })
      writeFileSync(join(folder, name), content)
    }
    process.env.HOGWILD_PREBUILD = folder
    const { addon } = loadAddon()
    expect(Object.keys(addon ?? {})).toContain('probe')
    expect(readdirSync(folder)).toHaveLength(2)
  })

  linux('damaged', () => {
    expect(reasons({ [BUILD]: 'no binary' })[0]).toMatch(/no ELF file/)
    expect(reasons({ [BUILD]: '' })[0]).toMatch(/no ELF file/)
    expect(reasons({ [BUILD]: bytes().subarray(0, 500_000) })[0]).toMatch(
      /^damaged: cut off after 500000 of \d+ bytes$/,
    )
  })

  linux('another architecture', () => {
    const other = bytes()
    other[18] = 243
    expect(reasons({ [BUILD]: other })[0]).toBe(`for riscv64, this process is ${process.arch}`)
    other[18] = 1
    expect(reasons({ [BUILD]: other })[0]).toBe(`for machine 1, this process is ${process.arch}`)
  })

  linux('another C library', () => {
    expect(reasons({ [BUILD]: changed('libc.so.6\0', 'libc.so\0\0\0') })[0]).toBe(
      'for musl, this process runs on glibc',
    )
  })

  linux('a library that is not there', () => {
    expect(reasons({ [BUILD]: changed('libm.so.6\0', 'libn.so.6\0') })[0]).toMatch(
      /^needs libn\.so\.6, which this system lacks \(libn\.so\.6: cannot open shared object file/,
    )
  })
})

import { spawnSync } from 'node:child_process'
import { chmodSync, mkdirSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { loadModel, loadTokenizer } from '../lib'
import { MAX_BYTES, optional, readJson, readText } from '../lib/sources/files'
import { codeOf, temporaryFolder } from './fixtures'

function file(content: string | Uint8Array): string {
  const path = join(temporaryFolder(), 'file.json')
  writeFileSync(path, content)
  return path
}

describe('a file of a model folder', () => {
  test('is read through links', async () => {
    const folder = temporaryFolder()
    symlinkSync(file('{"a": 1}'), join(folder, 'link'))
    symlinkSync('link', join(folder, 'second'))
    expect(await readJson(join(folder, 'second'))).toEqual({ a: 1 })
  })

  test('may be absent where it is optional', async () => {
    const folder = temporaryFolder()
    expect(await optional(readJson, join(folder, 'none'))).toBeUndefined()
    symlinkSync('nowhere', join(folder, 'link'))
    expect(await optional(readJson, join(folder, 'link'))).toBeUndefined()
    expect(await codeOf(() => readJson(join(folder, 'none')))).toBe('HOGWILD_INVALID_MODEL')
  })

  const inFolder = (make: (path: string) => unknown) => async () => {
    const path = join(temporaryFolder(), 'x')
    await make(path)
    return path
  }
  const socket = (path: string) =>
    new Promise<void>((resolve) => {
      const server = createServer().listen(path, () => resolve())
      server.unref()
    })
  test.each<[string, () => Promise<string>, RegExp]>([
    ['a folder', inFolder(mkdirSync), /not a regular file/],
    ['a pipe', inFolder((path) => spawnSync('mkfifo', [path])), /not a regular file/],
    ['a socket', inFolder(socket), /not a regular file/],
    ['a device', inFolder((path) => symlinkSync('/dev/zero', path)), /not a regular file/],
    ['a link to itself', inFolder((path) => symlinkSync('x', path)), /ELOOP/],
    ['a path through a file', async () => join(file(''), 'x'), /ENOTDIR/],
    [
      'more bytes than are read',
      inFolder((path) => {
        writeFileSync(path, '')
        truncateSync(path, MAX_BYTES.config + 1)
      }),
      /has 4194305 bytes; at most 4194304/,
    ],
  ])('%s is refused without waiting', async (_, make, message) => {
    const path = await make()
    await expect(readJson(path)).rejects.toThrow(message)
    await expect(optional(readJson, path)).rejects.toThrow(path)
    expect(await codeOf(() => readJson(path))).toBe('HOGWILD_INVALID_MODEL')
  })

  const asRoot = process.getuid?.() === 0
  ;(asRoot ? test.skip : test)('one without permission is refused', async () => {
    const path = file('{}')
    chmodSync(path, 0)
    await expect(readJson(path)).rejects.toThrow(/EACCES/)
    expect(await codeOf(() => readJson(path))).toBe('HOGWILD_INVALID_MODEL')
  })

  test('is not read after the signal', async () => {
    const signal = AbortSignal.abort('enough')
    expect(await codeOf(() => readJson(file('{}'), { signal }))).toBe('HOGWILD_ABORTED')
  })

  test('text is UTF-8, whatever it begins with', async () => {
    expect(await readText(file('\uFEFFä\r\n'))).toBe('\uFEFFä\r\n')
    await expect(readText(file(Uint8Array.of(0x61, 0xff)))).rejects.toThrow(/not UTF-8/)
  })
})

describe('JSON', () => {
  test.each<[string, unknown]>([
    ['[NaN, Infinity, -Infinity, -1]', [Number.NaN, Infinity, -Infinity, -1]],
    ['{"NaN": "Infinity", "a": "\\"NaN", "b": NaN}', { NaN: 'Infinity', a: '"NaN', b: Number.NaN }],
    ['{"a\\\\": NaN}', { 'a\\': Number.NaN }],
    ['1e999', Infinity],
    ['{"a": 1, "a": 2}', { a: 2 }],
    [`${'['.repeat(64)}${']'.repeat(64)}`, expect.any(Array)],
    [JSON.stringify({ brackets: '['.repeat(1000) }), { brackets: '['.repeat(1000) }],
  ])('%s is read as Python does', async (text, expected) => {
    expect(await readJson(file(text))).toEqual(expected)
  })

  test('keys are only keys', async () => {
    const json = (await readJson(file('{"__proto__": {"a": 1}, "b": NaN}'))) as object
    expect(Object.keys(json)).toEqual(['__proto__', 'b'])
    expect(Object.getPrototypeOf(json)).toBe(Object.prototype)
  })

  test.each<[string, string, RegExp]>([
    ['65 lists', `${'['.repeat(65)}${']'.repeat(65)}`, /nested deeper than 64/],
    ['2 million lists', '['.repeat(2e6), /nested deeper than 64/],
    ['500,000 objects', '{"a":'.repeat(5e5), /nested deeper than 64/],
    ['a byte order mark', '\uFEFF{}', /byte order mark/],
    ['a constant in a number', '[1Infinity]', /not JSON/],
    ['a constant cut short', '[Infinit]', /not JSON/],
    ['a plus sign', '[+Infinity]', /not JSON/],
    ['a string that never ends', '["NaN', /not JSON/],
    ['nothing', '', /not JSON/],
  ])('%s is refused', async (_, text, message) => {
    const path = file(text)
    const start = performance.now()
    await expect(readJson(path)).rejects.toThrow(message)
    expect(performance.now() - start).toBeLessThan(500)
    expect(await codeOf(() => readJson(path))).toBe('HOGWILD_INVALID_MODEL')
  })
})

test.each<[unknown, string]>([
  [5, 'HOGWILD_INVALID_ARGUMENT'],
  [null, 'HOGWILD_INVALID_ARGUMENT'],
  [undefined, 'HOGWILD_INVALID_ARGUMENT'],
  [['models/demo'], 'HOGWILD_INVALID_ARGUMENT'],
  ['models\0demo', 'HOGWILD_INVALID_ARGUMENT'],
  ['', 'HOGWILD_INVALID_MODEL'],
  ['x'.repeat(10000), 'HOGWILD_INVALID_MODEL'],
  [__filename, 'HOGWILD_INVALID_MODEL'],
])('%j is no model folder', async (folder, code) => {
  expect(await codeOf(() => loadModel(folder as string))).toBe(code)
  expect(await codeOf(() => loadTokenizer(folder as string))).toBe(code)
})

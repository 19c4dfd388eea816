// Models from the hub: a local server that speaks its API, the cache as Python's huggingface_hub lays it out.

import {
  cpSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { demoModelPath, download, loadModel, loadTokenizer } from '../lib'
import type { DownloadOptions, DownloadProgress } from '../lib/hub/download'
import { locked } from '../lib/hub/file-lock'
import { parseHubName } from '../lib/hub/name'
import { hubSettings } from '../lib/hub/settings'
import type { Warning } from '../lib/warnings'
import { codeOf, Random, temporaryFolder } from './fixtures'
import { COMMIT, cut, gitId, HubServer, type Repo, sha256 } from './hub-server'

const bytes = (length: number, seed = 1) => {
  const random = new Random(seed)
  return Buffer.from(Uint8Array.from({ length }, () => random.int(0, 255)))
}

const demo = (): Repo['files'] =>
  Object.fromEntries(
    readdirSync(demoModelPath).map((file) => [file, readFileSync(join(demoModelPath, file))]),
  )

/** A GGUF repository: several quantisations, one of them in parts, and what is no model. */
const quantised = {
  'README.md': 'read me',
  'config.json': '{}',
  'tiny-Q4_K_M.gguf': bytes(3000, 2),
  'tiny-Q8_0.gguf': bytes(5000, 3),
  'tiny-Q4_0.gguf': bytes(2000, 4),
  'UD-Q4_K_XL/tiny-UD-Q4_K_XL-00001-of-00002.gguf': bytes(1500, 5),
  'UD-Q4_K_XL/tiny-UD-Q4_K_XL-00002-of-00002.gguf': bytes(1600, 6),
  'mmproj-tiny-Q8_0.gguf': bytes(1700, 7),
}

let hub: HubServer
let cacheFolder: string
let options: DownloadOptions

beforeAll(async () => {
  hub = await HubServer.start()
})

afterAll(() => hub.close())

beforeEach(() => {
  cacheFolder = join(temporaryFolder(), 'hub')
  options = { endpoint: hub.endpoint, cacheFolder, token: '' }
  hub.repos.clear()
  hub.faults.clear()
  hub.requests.length = 0
  hub.down = undefined
  hub.repos.set('org/demo', { files: demo() })
  hub.repos.set('org/quantised', { files: quantised })
})

const repoFolder = (repo: string) => join(cacheFolder, `models--${repo.replace('/', '--')}`)
const paths = (server: 'hub' | 'content') =>
  hub.requests.filter((one) => one.server === server).map(({ path }) => path)
const message = (work: Promise<unknown>): Promise<string> =>
  work.then(
    () => 'done',
    (error: Error) => error.message,
  )

/** Of a server that was there. */
async function unusedAddress(): Promise<string> {
  const other = await HubServer.start()
  await other.close()
  return other.endpoint
}

describe('names', () => {
  test.each([
    ['Qwen/Qwen3-0.6B', 'Qwen/Qwen3-0.6B', 'main', undefined],
    ['Qwen/Qwen3-0.6B-GGUF:Q4_K_M', 'Qwen/Qwen3-0.6B-GGUF', 'main', 'Q4_K_M'],
    ['a/b@v1.0', 'a/b', 'v1.0', undefined],
    ['a/b@refs/pr/1:model-00001-of-00002.gguf', 'a/b', 'refs/pr/1', 'model-00001-of-00002.gguf'],
    ['a/b:UD/x-Q4_0', 'a/b', 'main', 'UD/x-Q4_0'],
  ])('%s', (text, repo, revision, quantisation) => {
    expect(parseHubName(text)).toEqual({ repo, revision, quantisation })
  })

  test.each([
    ...['name', 'a/b/c', './a/b', '../a', '/a/b', 'a/', '/b', 'a/.b', 'a/b.', 'a--b/c', 'a/b..c'],
    ...['a/b:', 'a/b@', 'a/b@../x', 'a/b@x/../y', 'a/b@/x', 'a/b:Q4@main', 'a b/c', 'a/b\n', ''],
    ...['a/b@.x/y', 'https://huggingface.co/a/b', 'a/b:\u202e'],
  ])('%j is none', async (text) => {
    expect(parseHubName(text)).toBeUndefined()
    expect(await codeOf(() => download(text, options))).toBe('HOGWILD_INVALID_ARGUMENT')
  })
})

describe('settings', () => {
  const of = (env: Record<string, string>) => hubSettings({}, { HF_HOME: '/none', ...env })

  test('where the cache is', async () => {
    const cases = [
      [{ HF_HUB_CACHE: '/c', HUGGINGFACE_HUB_CACHE: '/d' }, '/c'],
      [{ HUGGINGFACE_HUB_CACHE: '/d' }, '/d'],
      [{ HF_HOME: '/h', XDG_CACHE_HOME: '/x' }, '/h/hub'],
      [{ HF_HOME: '', XDG_CACHE_HOME: '/x' }, '/x/huggingface/hub'],
    ] as const
    for (const [env, folder] of cases) expect((await of(env)).cacheFolder).toBe(folder)
  })

  test('the token: HF_TOKEN, a file, none', async () => {
    const home = temporaryFolder()
    writeFileSync(join(home, 'token'), ' from-file\n')
    writeFileSync(join(home, 'other'), 'from-other')
    const other = join(home, 'other')
    const token = async (env: Record<string, string>) => (await of({ HF_HOME: home, ...env })).token
    expect(await token({ HF_TOKEN: 'a' })).toEqual({ value: 'a', from: 'HF_TOKEN' })
    expect(await token({})).toEqual({ value: 'from-file', from: join(home, 'token') })
    expect(await token({ HF_TOKEN_PATH: other })).toEqual({ value: 'from-other', from: other })
    expect(await token({ HF_HUB_DISABLE_IMPLICIT_TOKEN: '1', HF_TOKEN: 'a' })).toBeUndefined()
    expect(await message(token({ HF_TOKEN: 'secret\u0001' }))).toMatch(
      /^the token of the hub \(HF_TOKEN\)/,
    )
    expect(await message(token({ HF_TOKEN: 'secret\u0001' }))).not.toContain('secret')
  })

  test('offline, endpoint', async () => {
    expect(await of({})).toMatchObject({ offline: false, endpoint: 'https://huggingface.co' })
    expect(await of({ HF_HUB_OFFLINE: '1', HF_ENDPOINT: 'http://mirror:80/hf/' })).toMatchObject({
      offline: true,
      endpoint: 'http://mirror/hf',
    })
    for (const HF_ENDPOINT of ['mirror', 'ftp://mirror', 'http://user:pass@mirror']) {
      expect(await codeOf(() => of({ HF_ENDPOINT }))).toBe('HOGWILD_INVALID_ARGUMENT')
    }
  })
})

describe('a folder of safetensors', () => {
  test('is brought with what is read of it, and laid out as huggingface_hub does', async () => {
    const folder = await download('org/demo', options)
    const repo = repoFolder('org/demo')
    expect(folder).toBe(join(repo, 'snapshots', COMMIT))
    const files = hub.repos.get('org/demo')?.files as Record<string, Buffer>
    const wanted = [
      ...['config.json', 'generation_config.json', 'model.safetensors'],
      ...['tokenizer.json', 'tokenizer_config.json'],
    ]
    expect(readdirSync(folder).sort()).toEqual(wanted)
    expect(readFileSync(join(repo, 'refs', 'main'), 'utf8')).toBe(COMMIT)
    for (const file of wanted) {
      const content = files[file] as Buffer
      const blob = content.length < 1000 ? gitId(content) : sha256(content)
      expect(readlinkSync(join(folder, file))).toBe(`../../blobs/${blob}`)
      expect(sha256(readFileSync(join(repo, 'blobs', blob)))).toBe(sha256(content))
      expect(existsSync(join(cacheFolder, '.locks', 'models--org--demo', `${blob}.lock`))).toBe(
        true,
      )
    }
    expect(readdirSync(join(repo, 'blobs'))).toHaveLength(wanted.length)
    expect(readdirSync(repo).sort()).toEqual(['blobs', 'refs', 'snapshots'])
    await using model = await loadModel(folder, { device: 'cpu', threads: 1 })
    expect(model.config.architecture).toBe('LlamaForCausalLM')
  })

  test('a second time only the listing is asked for; a commit that is there not even that', async () => {
    const folder = await download('org/demo', options)
    hub.requests.length = 0
    expect(await download('org/demo', options)).toBe(folder)
    expect(paths('hub')).toEqual(['/api/models/org/demo/revision/main?blobs=true'])
    hub.requests.length = 0
    expect(await download(`org/demo@${COMMIT}`, options)).toBe(folder)
    expect(hub.requests).toEqual([])
  })

  test('a new commit shares what has not changed', async () => {
    await download('org/demo', options)
    const files = { ...demo(), 'generation_config.json': '{"eos_token_id": 3}' }
    const commit = 'd'.repeat(40)
    hub.repos.set('org/demo', { files, commit, revisions: { main: commit, v1: commit } })
    hub.requests.length = 0
    const folder = await download('org/demo@v1', options)
    expect(folder.endsWith(commit)).toBe(true)
    expect(paths('content')).toEqual([])
    expect(paths('hub').slice(1)).toEqual([`/org/demo/resolve/${commit}/generation_config.json`])
    expect(readFileSync(join(repoFolder('org/demo'), 'refs', 'v1'), 'utf8')).toBe(commit)
    expect(readFileSync(join(repoFolder('org/demo'), 'refs', 'main'), 'utf8')).toBe(COMMIT)
  })

  test('shards: those that the index names, and no others', async () => {
    const shard = (i: number) => `model-0000${i}-of-00002.safetensors`
    const index = { weight_map: { a: shard(1), b: shard(2), c: shard(1) } }
    const files = {
      'config.json': '{}',
      'consolidated.safetensors': bytes(3000),
      'model.safetensors.index.json': JSON.stringify(index),
      [shard(1)]: bytes(2000, 8),
      [shard(2)]: bytes(2100, 9),
      'additional_chat_templates/tool_use.jinja': 'template',
      'original/params.json': '{}',
    }
    hub.repos.set('org/sharded', { files })
    const folder = await download('org/sharded', options)
    const found = readdirSync(folder, { recursive: true }).sort()
    const expected = Object.keys(files).filter((file) => !/consolidated|original/.test(file))
    expect(found).toEqual([...expected, 'additional_chat_templates'].sort())
    expect(await download('org/sharded', { ...options, offline: true })).toBe(folder)
    const { [shard(2)]: _, ...incomplete } = files
    hub.repos.set('org/incomplete', { files: incomplete })
    const said = await message(download('org/incomplete', options))
    expect(said).toContain(`lacks ${shard(2)}`)
  })

  test('the tokenizer alone', async () => {
    const folder = await download('org/demo', { ...options, files: 'tokenizer' })
    expect(existsSync(join(folder, 'model.safetensors'))).toBe(false)
    const offline = { ...options, offline: true }
    expect(await download('org/demo', { ...offline, files: 'tokenizer' })).toBe(folder)
    expect(await codeOf(() => download('org/demo', offline))).toBe('HOGWILD_DOWNLOAD')
  })

  test('other formats are refused with what there is', async () => {
    hub.repos.set('org/other', { files: { 'config.json': '{}', 'pytorch_model.bin': 'x' } })
    expect(await message(download('org/other', options))).toMatch(
      /org\/other holds no model\.safetensors, .* or GGUF file; it holds config\.json, pytorch_model\.bin$/,
    )
    expect(await codeOf(() => download('org/other', options))).toBe('HOGWILD_UNSUPPORTED')
  })
})

describe('GGUF files', () => {
  const snapshot = () => join(repoFolder('org/quantised'), 'snapshots', COMMIT)

  test.each([
    ['Q4_K_M', 'tiny-Q4_K_M.gguf', 1],
    ['q8_0', 'tiny-Q8_0.gguf', 1],
    ['UD-Q4_K_XL', 'UD-Q4_K_XL/tiny-UD-Q4_K_XL-00001-of-00002.gguf', 2],
    ['Q4_K_XL', 'UD-Q4_K_XL/tiny-UD-Q4_K_XL-00001-of-00002.gguf', 2],
    ['tiny-Q4_0.gguf', 'tiny-Q4_0.gguf', 1],
  ])('%s', async (quantisation, file, parts) => {
    const path = await download(`org/quantised:${quantisation}`, options)
    expect(path).toBe(join(snapshot(), file))
    expect(paths('content')).toHaveLength(parts)
    expect(sha256(readFileSync(path))).toBe(
      sha256(Buffer.from(quantised[file as keyof typeof quantised])),
    )
    const offline = { ...options, offline: true }
    expect(await download(`org/quantised:${quantisation}`, offline)).toBe(path)
  })

  test('none, an unknown one, several: an error that lists what there is', async () => {
    const list = 'UD-Q4_K_XL, Q4_K_M, Q8_0, Q4_0'.split(', ')
    for (const name of ['org/quantised', 'org/quantised:Q4_K', 'org/quantised:Q5_K_M']) {
      const said = await message(download(name, options))
      for (const one of list) expect(said).toContain(one)
      expect(said).not.toContain('mmproj')
      expect(await codeOf(() => download(name, options))).toBe('HOGWILD_INVALID_ARGUMENT')
    }
    hub.repos.set('org/two', { files: { 'a-Q4_0.gguf': 'a', 'b-Q4_0.gguf': 'b' } })
    expect(await message(download('org/two:Q4_0', options))).toContain('a-Q4_0, b-Q4_0')
    expect(readFileSync(await download('org/two:b-Q4_0.gguf', options), 'utf8')).toBe('b')
    expect(paths('content')).toEqual([])
  })

  test('the only one needs no name; a part that is missing is named', async () => {
    hub.repos.set('org/one', { files: { 'one-F16.gguf': 'gguf', 'README.md': '' } })
    expect(await download('org/one', options)).toMatch(/one-F16\.gguf$/)
    hub.repos.set('org/part', { files: { 'a-Q4_0-00001-of-00002.gguf': 'x' } })
    expect(await message(download('org/part', options))).toContain('no a-Q4_0-00002-of-00002.gguf')
  })
})

describe('transfers', () => {
  const file = 'model.safetensors'
  const content = () => (hub.repos.get('org/demo') as Repo).files[file] as Buffer
  const ranges = () =>
    hub.requests
      .filter((one) => one.server === 'content' && /(safetensors|gguf)$/.test(one.path))
      .map(({ range }) => range)
  const partial = () => join(repoFolder('org/demo'), 'blobs', `${sha256(content())}.incomplete`)
  const blob = () => join(repoFolder('org/demo'), 'blobs', sha256(content()))

  test('go on where they were cut', async () => {
    hub.faults.set(file, cut(100_000, 2))
    const folder = await download('org/demo', options)
    expect(sha256(readFileSync(join(folder, file)))).toBe(sha256(content()))
    const [first, second, third, ...more] = ranges()
    expect([first, more]).toEqual([undefined, []])
    const begin = (range = '') => Number(/^bytes=(\d+)-$/.exec(range)?.[1])
    expect(begin(second)).toBeGreaterThan(0)
    expect(begin(third)).toBeGreaterThan(begin(second))
    expect(existsSync(partial())).toBe(false)
  })

  test('go on where an earlier process was ended', async () => {
    mkdirSync(join(repoFolder('org/demo'), 'blobs'), { recursive: true })
    writeFileSync(partial(), content().subarray(0, 700_000))
    const told: DownloadProgress[] = []
    await download('org/demo', { ...options, onProgress: (progress) => told.push(progress) })
    expect(ranges()).toEqual(['bytes=700000-'])
    expect(sha256(readFileSync(blob()))).toBe(sha256(content()))
    const last = told.at(-1) as DownloadProgress
    expect(last.loadedBytes).toBe(last.totalBytes)
    expect(last.totalBytes).toBeGreaterThan(content().length)
  })

  test('what lay there is not trusted: damaged, too long or complete', async () => {
    mkdirSync(join(repoFolder('org/demo'), 'blobs'), { recursive: true })
    for (const [there, requests] of [
      [bytes(700_000), ['bytes=700000-', undefined]],
      [Buffer.concat([content(), Buffer.from('x')]), [undefined]],
      [bytes(content().length), [undefined]],
      [content(), []],
    ] as const) {
      writeFileSync(partial(), there)
      hub.requests.length = 0
      const folder = await download('org/demo', options)
      expect(ranges()).toEqual(requests)
      expect(sha256(readFileSync(join(folder, file)))).toBe(sha256(content()))
      rmSync(join(folder, file))
      rmSync(blob())
    }
  })

  test('a server that knows no ranges, or answers 416, sends all', async () => {
    for (const status of [200, 416]) {
      mkdirSync(join(repoFolder('org/demo'), 'blobs'), { recursive: true })
      writeFileSync(partial(), bytes(1000))
      hub.faults.set(file, (response, all, from) => {
        if (from === 0) return false
        response.writeHead(status).end(status === 200 ? all : '')
        return true
      })
      const folder = await download('org/demo', options)
      expect(sha256(readFileSync(join(folder, file)))).toBe(sha256(content()))
      rmSync(repoFolder('org/demo'), { recursive: true })
    }
  })

  test.each([
    ['config.json', 'sha-1'],
    [file, 'sha-256'],
  ])('a wrong checksum is refused, and nothing of it is kept: %s', async (damagedFile) => {
    hub.faults.set(damagedFile, (response, all) => {
      const wrong = Buffer.from(all)
      wrong[7] = (wrong[7] as number) ^ 1
      response.writeHead(200).end(wrong)
      return true
    })
    const said = await message(download('org/demo', options))
    expect(said).toMatch(new RegExp(`${damagedFile} of org/demo came with the checksum [0-9a-f]+`))
    // What has come of the others is kept: the next attempt goes on there.
    const sent = (hub.repos.get('org/demo') as Repo).files[damagedFile] as Buffer
    const etag = damagedFile === file ? sha256(sent) : gitId(sent)
    const blobs = readdirSync(join(repoFolder('org/demo'), 'blobs'))
    expect(blobs.filter((name) => name.startsWith(etag))).toEqual([])
    expect(existsSync(join(repoFolder('org/demo'), 'refs'))).toBe(false)
    const snapshot = join(repoFolder('org/demo'), 'snapshots', COMMIT)
    expect(existsSync(join(snapshot, damagedFile))).toBe(false)
    hub.faults.clear()
    expect(sha256(readFileSync(join(await download('org/demo', options), file)))).toBe(
      sha256(content()),
    )
  })

  test('more bytes than announced are refused', async () => {
    hub.faults.set(file, (response, all) => {
      response.writeHead(200).end(Buffer.concat([all, all]))
      return true
    })
    expect(await message(download('org/demo', options))).toContain('has more than')
  })

  test('a busy server is asked again, one that stays away is named', async () => {
    let busy = 2
    hub.faults.set(file, (response) => {
      if (busy-- <= 0) return false
      response.writeHead(503, { 'Retry-After': '0' }).end()
      return true
    })
    await download('org/demo', options)
    expect(ranges()).toHaveLength(3)
    hub.faults.set('tiny-Q8_0.gguf', (response) => {
      response.writeHead(429, { 'Retry-After': '0' }).end()
      return true
    })
    hub.requests.length = 0
    const said = await message(download('org/quantised:Q8_0', options))
    expect(said).toBe(`cannot get org/quantised from ${hub.endpoint}: it answers 429`)
    expect(ranges()).toHaveLength(6)
  })

  test('silence ends an attempt', async () => {
    let silent = 1
    hub.faults.set(file, (response, all) => {
      if (silent-- <= 0) return false
      response.writeHead(200, { 'Content-Length': all.length }).write(all.subarray(0, 100_000))
      return true
    })
    process.env.HF_HUB_DOWNLOAD_TIMEOUT = '0.3'
    try {
      const folder = await download('org/demo', options)
      expect(sha256(readFileSync(join(folder, file)))).toBe(sha256(content()))
      expect(ranges()).toHaveLength(2)
    } finally {
      delete process.env.HF_HUB_DOWNLOAD_TIMEOUT
    }
  })

  test('an abort keeps what has come', async () => {
    const controller = new AbortController()
    hub.faults.set(file, (response, all) => {
      response.writeHead(200, { 'Content-Length': all.length }).write(all.subarray(0, 100_000))
      setTimeout(() => controller.abort('enough'), 300)
      return true
    })
    const work = download('org/demo', { ...options, signal: controller.signal })
    await expect(work).rejects.toMatchObject({ code: 'HOGWILD_ABORTED', cause: 'enough' })
    expect(sha256(readFileSync(partial()))).toBe(sha256(content().subarray(0, 100_000)))
    hub.faults.clear()
    await download('org/demo', options)
    expect(ranges().at(-1)).toBe('bytes=100000-')
    const aborted = download('org/demo', { ...options, signal: AbortSignal.abort() })
    expect(await codeOf(() => aborted)).toBe('HOGWILD_ABORTED')
  })

  test('what onProgress throws ends the download and is thrown', async () => {
    const onProgress = () => {
      throw new RangeError('no more')
    }
    await expect(download('org/demo', { ...options, onProgress })).rejects.toThrow(RangeError)
  })

  test('two at once bring one file once', async () => {
    const [one, other] = await Promise.all([
      download('org/demo', options),
      download('org/demo', options),
    ])
    expect(one).toBe(other)
    expect(ranges()).toHaveLength(1)
  })

  test('a lock that somebody else holds is waited for', async () => {
    const path = join(cacheFolder, '.locks', 'models--org--demo', `${sha256(content())}.lock`)
    let isFree = false
    const held = locked(path, undefined, async () => {
      await new Promise((resolve) => setTimeout(resolve, 400))
      isFree = true
    })
    await download('org/demo', options)
    expect(isFree).toBe(true)
    await held
    const signal = AbortSignal.timeout(100)
    const waiting = locked(path, undefined, () => locked(path, signal, async () => {}))
    expect(await codeOf(() => waiting)).toBe('HOGWILD_ABORTED')
  })

  test('no more is begun than the disk holds', async () => {
    const large = { sha256: 'b'.repeat(64), size: 4e15 }
    const listing = JSON.stringify({
      sha: COMMIT,
      siblings: [{ rfilename: 'huge-Q4_0.gguf', size: 1, blobId: 'a'.repeat(40), lfs: large }],
    })
    hub.repos.set('org/huge', { files: {}, listing })
    const said = await message(download('org/huge', options))
    expect(said).toMatch(/has room for .*, and 4000 TB are to come; HF_HUB_CACHE/)
    expect(paths('content')).toEqual([])
  })
})

describe('without links', () => {
  test('snapshots hold the files themselves', async () => {
    process.env.HF_HUB_DISABLE_SYMLINKS = '1'
    try {
      const folder = await download('org/demo', options)
      const files = demo() as Record<string, Buffer>
      for (const file of readdirSync(folder)) {
        expect(lstatSync(join(folder, file)).isFile()).toBe(true)
        expect(sha256(readFileSync(join(folder, file)))).toBe(sha256(files[file] as Buffer))
      }
      expect(readdirSync(join(repoFolder('org/demo'), 'blobs'))).toEqual([])
      hub.requests.length = 0
      expect(await download('org/demo', options)).toBe(folder)
      expect(hub.requests).toHaveLength(1)
    } finally {
      delete process.env.HF_HUB_DISABLE_SYMLINKS
    }
  })
})

describe('tokens', () => {
  test('go to the hub and not to where it redirects', async () => {
    hub.repos.set('org/private', { files: demo(), token: 'secret-token' })
    await download('org/private', { ...options, token: 'secret-token' })
    for (const { server, authorization } of hub.requests) {
      expect(authorization).toBe(server === 'hub' ? 'Bearer secret-token' : undefined)
    }
    expect(paths('content')).toHaveLength(2)
  })

  test.each([
    ['org/private', '', /has no org\/private, or a private one needs a token: set HF_TOKEN/],
    ['org/private', 'secret-no', /the token of options\.token is not accepted or may not read it/],
    ['org/nothing', '', /has no org\/nothing, or a private one/],
    ['org/gated', '', /^org\/gated is gated: ask for access at .*\/org\/gated, then set HF_TOKEN/],
    ['org/gated', 'secret-no', /is gated: .* with the account of your token \(options\.token\)/],
    ['org/demo@v2', '', /has no such revision of org\/demo/],
  ])('%s, token "%s": an error that helps', async (name, token, said) => {
    hub.repos.set('org/private', { files: demo(), token: 'secret-token' })
    hub.repos.set('org/gated', { files: demo(), token: 'secret-token', gated: true })
    const work = () => download(name, { ...options, token })
    expect(await message(work())).toMatch(said)
    expect(await message(work())).not.toContain('secret')
    expect(await codeOf(work)).toBe('HOGWILD_DOWNLOAD')
  })
})

describe('offline', () => {
  test('takes what the cache holds, asks nobody, and says what is missing', async () => {
    const offline = { ...options, offline: true }
    expect(await message(download('org/demo', offline))).toMatch(/does not hold all of org\/demo/)
    const folder = await download('org/demo', options)
    hub.requests.length = 0
    expect(await download('org/demo', offline)).toBe(folder)
    expect(hub.requests).toEqual([])
    expect(await codeOf(() => download('org/demo@v9', offline))).toBe('HOGWILD_DOWNLOAD')
    await download('org/quantised:Q4_0', options)
    expect(await message(download('org/quantised:Q8_0', offline))).toContain('there are Q4_0')
  })

  test('the environment says so, too', async () => {
    process.env.HF_HUB_OFFLINE = 'true'
    try {
      expect(await message(download('org/demo', options))).toContain('HF_HUB_OFFLINE')
      expect(hub.requests).toEqual([])
    } finally {
      delete process.env.HF_HUB_OFFLINE
    }
  })

  test('a hub that does not answer: the cache, with a warning; else the reason', async () => {
    const warned: Warning[] = []
    const onWarning = (warning: Warning) => warned.push(warning)
    const gone = { ...options, endpoint: await unusedAddress(), onWarning }
    expect(await message(download('org/demo', gone))).toBe(
      `cannot get org/demo from ${gone.endpoint}: ECONNREFUSED`,
    )
    const folder = await download('org/demo', options)
    expect(await download('org/demo', gone)).toBe(folder)
    expect(warned.map(({ code }) => code)).toEqual(['HOGWILD_HUB_UNREACHABLE'])
  })
})

describe('what a server may not do', () => {
  const file = `"rfilename":"config.json","size":2,"blobId":"${'a'.repeat(40)}"`

  test.each([
    ['<html>', /does not answer as the hub does/],
    ['{}', /expected sha to be a string/],
    ['{"sha":"../../x","siblings":[]}', /sha is no commit/],
    [`{"sha":"${COMMIT}"}`, /siblings is no list/],
    [`{"sha":"${COMMIT}","siblings":[{"rfilename":"a"}]}`, /the checksum of a/],
    [`{"sha":"${COMMIT}","siblings":[{${file.replace('aaaa', '../.')}}]}`, /checksum/],
    [`{"sha":"${COMMIT}","siblings":[{${file.replace('2,', '-2,')}}]}`, /the size of config/],
    [
      `{"sha":"${COMMIT}","siblings":[{${file.replace('config.json', '../../x.gguf')}}]}`,
      /holds no/,
    ],
  ])('%s', async (listing, said) => {
    hub.repos.set('org/odd', { files: {}, listing })
    expect(await message(download('org/odd', options))).toMatch(said)
  })
})

test.each([
  ['ftp://127.0.0.1/config.json', 1],
  ['http://', 1],
  [undefined, 1],
  ['itself', 21],
])('a redirect to %s is refused at once', async (location, requests) => {
  hub.faults.set('config.json', (response, _, __, { url }) => {
    const to = location === 'itself' ? url : location
    response.writeHead(302, to === undefined ? {} : { location: to }).end()
    return true
  })
  expect(await message(download('org/demo', options))).toMatch(
    new RegExp(`^${hub.endpoint} (does not answer as the hub does: |answers 302$)`),
  )
  const asked = paths('hub').filter((path) => path.endsWith('/config.json'))
  expect(asked).toHaveLength(requests)
})

describe('loadModel and loadTokenizer', () => {
  test('take a name where there is no such path', async () => {
    const hubOptions = { endpoint: hub.endpoint, cacheFolder, token: '' }
    const told: DownloadProgress[] = []
    const onProgress = (progress: DownloadProgress) => told.push(progress)
    await using model = await loadModel('org/demo', {
      device: 'cpu',
      threads: 1,
      download: { ...hubOptions, onProgress },
    })
    expect(model.config.layers).toHaveLength(4)
    expect(told.length).toBeGreaterThan(0)
    await using tokenizer = await loadTokenizer('org/demo', { download: hubOptions })
    expect(tokenizer.encodeSync('a').length).toBeGreaterThan(0)
  })

  test('what is there is a path', async () => {
    const here = process.cwd()
    const folder = temporaryFolder()
    cpSync(demoModelPath, join(folder, 'org', 'other'), { recursive: true })
    process.chdir(folder)
    try {
      const unused = { endpoint: hub.endpoint, cacheFolder }
      const load = { device: 'cpu', threads: 1, download: unused } as const
      await using model = await loadModel('org/other', load)
      expect(model.closed).toBe(false)
      symlinkSync('nowhere', join(folder, 'org', 'link'))
      expect(await message(loadModel('org/link', load))).toMatch(
        /^no model at "org\/link": expected/,
      )
    } finally {
      process.chdir(here)
    }
    expect(hub.requests).toEqual([])
  })

  test.each(['./org/demo', '/none/at/all', 'nothing', 'a/b/c', '../no such model'])(
    'neither: %s',
    async (name) => {
      for (const load of [loadModel, loadTokenizer]) {
        const work = () => load(name, { download: options })
        expect(await codeOf(work)).toBe('HOGWILD_INVALID_MODEL')
        expect(await message(work())).toMatch(/no such file or folder.*org\/name/)
      }
    },
  )
})

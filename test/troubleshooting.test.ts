// docs/troubleshooting.md has every code of the package, no other, and messages as they come.

import { spawnSync } from 'node:child_process'
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import {
  createCache,
  demoModelPath,
  type HogwildError,
  loadModel,
  loadTokenizer,
  ropeFrequencies,
  runWorkers,
  Sampler,
  type Warning,
} from '../lib'
import { findPackage } from '../lib/optional-package'

const root = join(__dirname, '..')
const read = (...path: string[]) => readFileSync(join(root, ...path), 'utf8')
const document = read('docs', 'troubleshooting.md')

function sources(folder: string, pattern: RegExp): string {
  const names = readdirSync(join(root, folder), { recursive: true }).map(String)
  return names
    .filter((name) => pattern.test(name))
    .map((name) => read(folder, name))
    .join('\n')
}

const typescript = sources('lib', /\.ts$/)
const native = sources('native', /\.(cc|h|cu|cuh)$/)

const found = (text: string, pattern: RegExp) =>
  [...new Set([...text.matchAll(pattern)].map(([, code = '']) => code))].sort()

const errors = found(read('lib', 'errors.ts'), /^ {2}\| '(HOGWILD_[A-Z_]+)'$/gm)
const warnings = found(typescript, /\bwarn\(\s*'(HOGWILD_[A-Z_]+)'/g)

/** The codes of the table whose header begins with `title`. */
function listed(title: string): string[] {
  const table = document.slice(document.indexOf(`| ${title} |`)).split('\n\n')[0] as string
  return found(table, /^\| `(HOGWILD_[A-Z_]+)` \|/gm)
}

/** Every section of a code: the code, and the messages that are shown. */
const sections = [
  ...document.matchAll(/^### `(HOGWILD_[A-Z_]+)`.*\n\n```\n([^`][\s\S]*?)\n```/gm),
].map(([, code = '', examples = '']) => ({ code, messages: examples.split('\n') }))
const examples = sections.flatMap(({ code, messages }) =>
  messages.map((message) => ({ code, message })),
)

test('the tables have every code and no other', () => {
  expect(errors.length).toBeGreaterThan(10)
  expect(warnings.length).toBeGreaterThan(3)
  expect(listed('Error')).toEqual(errors)
  expect(listed('Warning')).toEqual(warnings)
})

test('whatever the code calls a code is an error or a warning', () => {
  const quoted = found(typescript, /['"](HOGWILD_[A-Z_]+)['"]/g)
  expect(quoted.filter((code) => !errors.includes(code) && !warnings.includes(code))).toEqual([])
})

test('the codes of the native code are codes of the interface', () => {
  const codes = found(read('native', 'core', 'error.h'), /= "(HOGWILD_[A-Z_]+)";/g)
  expect(codes.length).toBeGreaterThan(8)
  expect(codes.filter((code) => !errors.includes(code))).toEqual([])
})

test('every code has a section with a message, and what to do', () => {
  expect([...new Set(sections.map(({ code }) => code))].sort()).toEqual(
    [...errors, ...warnings].sort(),
  )
  const texts = document.split(/^### `/m).slice(1)
  expect(texts).toHaveLength(sections.length)
  expect(
    texts.filter((text) => !/[Ww]hen/.test(text) || !text.includes('**What to do.**')),
  ).toEqual([])
})

// ---- messages

/** Source text in which a message that is put together from several strings stands in one piece. */
const joined = `${typescript}\n${native}`
  .replace(/\\(["'`])/g, '$1')
  .replace(/["'`]\s*\+?\s*\n\s*["'`]/g, '')

/** Whether all that stands between the values of a message stands in the code. */
function isInCode(message: string): boolean {
  return message
    .split('…')
    .map((part) => part.trim().replace(/`/g, ''))
    .every((part) => joined.replace(/`/g, '').includes(part))
}

/** What a call throws or rejects with. */
async function refusal(call: () => unknown): Promise<{ code: string; message: string }> {
  try {
    await call()
  } catch (error) {
    return error as HogwildError
  }
  throw new Error('nothing was refused')
}

test('messages are those that come', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'hogwild-trouble-'))
  const own = join(folder, 'model')
  cpSync(demoModelPath, own, { recursive: true })
  const config = JSON.parse(readFileSync(join(own, 'config.json'), 'utf8'))
  const told: Warning[] = []
  const onWarning = (warning: Warning) => told.push(warning)
  const withConfig = (text: string) => {
    writeFileSync(join(own, 'config.json'), text)
    return loadModel(own, { device: 'cpu', threads: 1, onWarning })
  }
  const refused: { code: string; message: string }[] = []
  const expectRefusal = async (call: () => unknown) => {
    refused.push(await refusal(call))
  }

  const model = await loadModel(demoModelPath, { device: 'cpu', threads: 1, onWarning })
  const tokenizer = await loadTokenizer(demoModelPath)
  // Models.
  await expectRefusal(() => loadModel(demoModelPath, { devise: 'cpu' } as object))
  await expectRefusal(() => loadModel('./nothing-here'))
  writeFileSync(join(folder, 'model.gguf'), 'GGUF')
  await expectRefusal(() => loadModel(join(folder, 'model.gguf')))
  await expectRefusal(() => loadModel(folder))
  await expectRefusal(() =>
    withConfig(JSON.stringify({ ...config, architectures: ['MambaForCausalLM'] })),
  )
  await expectRefusal(() => withConfig(JSON.stringify({ ...config, attention_sparsity: 0.5 })))
  await expectRefusal(() => withConfig('{'))
  await (await withConfig(JSON.stringify({ ...config, eos_token_id: 99999 }))).close()
  const weights = readFileSync(join(own, 'model.safetensors'))
  writeFileSync(join(own, 'model.safetensors'), weights.subarray(0, -100))
  await expectRefusal(() => withConfig(JSON.stringify(config)))
  await expectRefusal(() =>
    loadModel('Qwen/Qwen3-0.6B', { download: { offline: true, cacheFolder: join(folder, 'hub') } }),
  )

  // Cache and steps.
  await expectRefusal(() => model.createCache({ capacity: 2 ** 34 }))
  const cache = model.createCache({ capacity: 128 })
  const [block, other] = [cache.createBlock(), cache.createBlock()]
  const view = { blocks: [block] }
  await expectRefusal(() => model.prefill(block, new Int32Array(300).fill(3)))
  await expectRefusal(() => model.step([{ view, tokens: [999999] }]))
  await expectRefusal(() =>
    model.step([
      { view, tokens: [3] },
      { view: { blocks: [other, block] }, tokens: [3] },
    ]),
  )
  const sampler = new Sampler({ temperature: 1 })
  const step = model.step([{ view, tokens: [3], sampler }])
  await expectRefusal(() => block.truncate(0))
  await expectRefusal(() => model.step([{ view: { blocks: [other] }, tokens: [3], sampler }]))
  await step
  await expectRefusal(() => model.step([{ view, tokens: [3] }], { signal: AbortSignal.abort() }))
  const large = model.createCache({ capacity: 2048 })
  await model.prefill(large.createBlock(), new Int32Array(2000).fill(3), { sampler: null })

  // Runs.
  const workers = [{ name: 'Alice', prompt: [3] }]
  const options = { model, tokenizer, prompt: [1], workers, maxTokens: 1 }
  await expectRefusal(() => runWorkers({ ...options, layout: 'contigous' as 'contiguous' }))
  const run = runWorkers({ ...options, layout: 'contiguous' })
  for await (const _ of run);
  await expectRefusal(() => run.join({ name: 'Bob', prompt: [3] }))

  // Sessions.
  const file = join(folder, 'prefix.blocks')
  await expectRefusal(() => cache.export([block], join(folder, 'no', 'such', 'prefix.blocks')))
  await cache.export([block], file)
  const bytes = readFileSync(file)
  const importing = (name: string, content: Uint8Array | string, into = cache) => {
    writeFileSync(join(folder, name), content)
    return into.import(join(folder, name))
  }
  await expectRefusal(() => importing('cut.blocks', bytes.subarray(0, 200)))
  const changed = Buffer.from(bytes)
  changed[bytes.length - 50] = (changed[bytes.length - 50] as number) ^ 1
  await expectRefusal(() => importing('changed.blocks', changed))
  await expectRefusal(() =>
    importing('text.blocks', 'a text that is no file of blocks, and long enough'),
  )
  const later = Buffer.from(bytes)
  later.writeUInt32LE(9, 8)
  await expectRefusal(() => importing('version.blocks', later))
  const wide = model.createCache({ capacity: 128, dtype: 'f32' })
  await expectRefusal(() => importing('prefix.blocks', bytes, wide))

  // Packages that are not there.
  for (const needs of ['grammars need', 'plots need']) {
    await expectRefusal(() => findPackage('no-such-package', needs))
  }

  // What is closed.
  await cache.close()
  await expectRefusal(() => cache.createBlock())
  const rope = ropeFrequencies({ type: 'default', theta: 10_000, rotaryDim: 8 })
  const engine = createCache({ layers: 1, kvHeads: 2, headDim: 8, rope, capacity: 64 })
  const pass = engine.beginPass([{ view: { blocks: [engine.createBlock()] }, tokens: 1 }])
  pass.abort()
  await expectRefusal(() => pass.commit())
  await engine.close()
  await model.close()
  await expectRefusal(() => model.createCache({ capacity: 64 }))
  await tokenizer.close()

  // The paths of the temporary folder and other values of this machine stand as … in the document.
  const come = [...refused, ...told].map(({ code, message }) => ({ code, message }))
  const matches = (shown: { code: string; message: string }, one: (typeof come)[number]) => {
    const parts = shown.message
      .split('…')
      .map((part) => part.replace(/[.*+?^${}()|[\]\\]/g, '\\$&'))
    return shown.code === one.code && new RegExp(`^${parts.join('[\\s\\S]+')}$`).test(one.message)
  }
  expect(come.filter((one) => !examples.some((shown) => matches(shown, one)))).toEqual([])
  // What no call here provokes (hubs, GPUs, full machines) has its words from the code.
  const rest = examples.filter((shown) => !come.some((one) => matches(shown, one)))
  expect(rest.filter(({ message }) => !isInCode(message))).toEqual([])
  expect(rest.length).toBeLessThan(examples.length / 2)
  rmSync(folder, { recursive: true })
})

test('lines of wrong usage are those of the command line', () => {
  const lines = [...document.matchAll(/^error: .*$/gm)].map(([line]) => line)
  const hogwild = (...args: string[]) =>
    spawnSync(process.execPath, [join(root, 'dist', 'cli', 'main.js'), ...args], {
      encoding: 'utf8',
    })
  const runs = [hogwild('demo', '--wrokers', '3'), hogwild('run', '--model', 'models/demo')]
  expect(runs.map(({ status }) => status)).toEqual([2, 2])
  expect(runs.map(({ stderr }) => stderr.split('\n')[0])).toEqual(lines)
})

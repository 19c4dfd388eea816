// The declarations that users get: they name every class and let none be made past its factory.

import { existsSync } from 'node:fs'
import { join } from 'node:path'
import * as ts from 'typescript'

const declarations = join(__dirname, '../dist/index.d.ts')

const CLASSES = [
  'Cache',
  'Block',
  'Pass',
  'Model',
  'Device',
  'WorkerRun',
  'Tokenizer',
  'TextStream',
  'Grammar',
  'GrammarMatcher',
]

/** Modules of a user's. */
const MODULES = {
  types: CLASSES.map((name) => `export type Of${name} = import('hogwild').${name}`).join('\n'),
  calls: `import { ${CLASSES.join(', ')} } from 'hogwild'
    ${CLASSES.map((name) => `new ${name}()`).join('\n')}`,
  use: `import { createCache, loadModel, ropeFrequencies, runWorkers, Sampler } from 'hogwild'
    export async function example() {
      const sampler = new Sampler({ temperature: 0.5, seed: 1n })
      const model = await loadModel('x', { onWarning: ({ code, message }) => console.log(code, message) })
      const cache = model.createCache({ capacity: 64 })
      const block = cache.createBlock()
      const [output] = await model.step([{ view: { blocks: [block] }, tokens: [1], sampler }])
      const run = runWorkers({ model, prompt: [1], workers: [{ name: 'a', prompt: [1], stop: ['x'] }] })
      for await (const event of run) if (event.type === 'stop') console.log(event.reason, event.text)
      return [output?.token, run.workers[0]?.state === 'joining']
    }
    export const rope = ropeFrequencies({ type: 'default', theta: 1e4, rotaryDim: 8 })
    createCache({ layers: 1, kvHeads: 1, headDim: 8, rope, dtpye: 'f32' })
    new Sampler({ top_k: 1 })`,
} as const

const fileOf = (name: string) => join(__dirname, `${name}.user.ts`)
const messages: Record<string, string[]> = {}

beforeAll(() => {
  const sources = new Map(Object.entries(MODULES).map(([name, source]) => [fileOf(name), source]))
  const options: ts.CompilerOptions = {
    strict: true,
    noEmit: true,
    skipLibCheck: true,
    target: ts.ScriptTarget.ES2022,
    lib: ['lib.es2023.d.ts', 'lib.esnext.disposable.d.ts'],
    module: ts.ModuleKind.Node20,
    types: ['node'],
    paths: { hogwild: [declarations] },
  }
  const host = ts.createCompilerHost(options)
  const { getSourceFile, fileExists } = host
  host.fileExists = (name) => sources.has(name) || fileExists(name)
  host.getSourceFile = (name, ...rest) => {
    const source = sources.get(name)
    return source === undefined
      ? getSourceFile(name, ...rest)
      : ts.createSourceFile(name, source, ts.ScriptTarget.ES2022)
  }
  const program = ts.createProgram([...sources.keys()], options, host)
  for (const name of Object.keys(MODULES)) {
    messages[name] = ts
      .getPreEmitDiagnostics(program, program.getSourceFile(fileOf(name)))
      .map(({ messageText }) => ts.flattenDiagnosticMessageText(messageText, '\n'))
  }
}, 120_000)

test('the package is built', () => {
  expect(existsSync(declarations)).toBe(true)
})

test('classes are types of users’ own code', () => {
  expect(messages.types).toEqual([])
})

test('only their factories make them', () => {
  expect(messages.calls).toHaveLength(CLASSES.length)
  for (const [i, name] of CLASSES.entries()) {
    expect(messages.calls?.[i]).toMatch(new RegExp(`'${name}' cannot be used as a value`))
  }
})

test('samplers are made with new; options are checked by name', () => {
  expect(messages.use).toHaveLength(2)
  expect(messages.use?.[0]).toMatch(/'dtpye' does not exist/)
  expect(messages.use?.[1]).toMatch(/'top_k' does not exist/)
})

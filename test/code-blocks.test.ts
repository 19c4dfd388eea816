// All code of the README, of docs/ and of examples/ runs as it stands, from an installed package. Models of the hub are tiny
// ones, which a local hub has under the names that the documents use.

import { type ExecFileException, execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import * as ts from 'typescript'
import { writeGgufModel } from './gguf-models'
import { array, type Metadata, string } from './gguf-writer'
import { HubServer } from './hub-server'
import { installPackage } from './installed'
import { writeScriptedModel } from './scripted-model'

const root = join(__dirname, '..')
const documents = [
  'README.md',
  'examples/README.md',
  ...readdirSync(join(root, 'docs'))
    .filter((name) => name.endsWith('.md'))
    .map((name) => `docs/${name}`),
]

interface CodeBlock {
  document: string
  line: number
  language: string
  code: string
}

/** Experiments and scripts of clusters: experiment.test.ts runs them. */
const isOfExperiments = ({ document, language }: CodeBlock) =>
  document === 'docs/experiments.md' && ['json', 'js', 'bash', 'yaml'].includes(language)

const all: CodeBlock[] = documents.flatMap((document) => {
  const text = readFileSync(join(root, document), 'utf8')
  return [...text.matchAll(/^```(\w*)\n([\s\S]*?)^```$/gm)].map(
    ({ index, 1: language = '', 2: code = '' }) => ({
      ...{ document, language, code },
      line: text.slice(0, index).split('\n').length,
    }),
  )
})
const blocks = all.filter((block) => !isOfExperiments(block))
const of = (language: string) => blocks.filter((block) => block.language === language)

/** Programs: a block without imports goes on with the one before it in its document. */
const programs: CodeBlock[] = []
for (const block of blocks.filter(({ language }) => ['ts', 'js'].includes(language))) {
  const last = programs.at(-1)
  if (block.code.includes('import ')) programs.push({ ...block })
  else if (last?.document === block.document) last.code += block.code
  else throw new Error(`${block.document}:${block.line} has no imports`)
}
const fileOf = ({ document, line }: CodeBlock, extension: string) =>
  `${document.replace(/\W/g, '-')}-${line}.${extension}`

/** Commands of shell blocks that no test of this file runs, and what does. */
const ELSEWHERE: readonly [RegExp, string][] = [
  [/^npm install hogwild$/, 'scripts/check-package.cjs'],
  [/^npm (ci|start|test)( |$)/, '.ci/run'],
  [/^npx hogwild build$/, 'npm run test:long -- package'],
  [/^npx hogwild bench$/, 'test/bench.test.ts, with a smaller model'],
  [/^npx hogwild experiment .*\/graph\.mjs /, 'test/experiment.test.ts, a part of it'],
]
const commands = of('sh').flatMap(({ document, line, code }) =>
  code
    .split('\n')
    .map((text) => text.replace(/\s+#.*$/, ''))
    .filter((text) => text !== '')
    .flatMap((text) => text.split(' && '))
    .map((command) => ({ where: `${document}:${line}`, command })),
)

let folder: string
let hub: HubServer

interface Outcome {
  status: number
  stdout: string
  stderr: string
}

function environment(): NodeJS.ProcessEnv {
  const { HOGWILD_PREBUILD: _, ...inherited } = process.env
  return {
    ...inherited,
    PATH: `${join(folder, 'node_modules', '.bin')}:${process.env.PATH}`,
    HF_ENDPOINT: hub.endpoint,
    HF_HUB_CACHE: join(folder, 'hub'),
    HF_TOKEN: '',
  }
}

/** Runs a program in the user's folder. Not to be waited for in this thread, in which the hub answers. */
function run(program: string, args: readonly string[], input = ''): Promise<Outcome> {
  const env = environment()
  return new Promise((resolve) => {
    const ended = (error: ExecFileException | null, stdout: string, stderr: string) =>
      resolve({ status: error === null ? 0 : Number(error.code), stdout, stderr })
    const child = execFile(program, args, { cwd: folder, env, timeout: 50_000 }, ended)
    // One that reads nothing may have ended by now.
    child.stdin?.on('error', () => {}).end(input)
  })
}
const node = (file: string, args: readonly string[] = [], input = '') =>
  run(process.execPath, [file, ...args], input)

/** Every paragraph gives the answer 42, and so does the finisher, behind whose brace stands 42 too. */
const FOLLOWS = {
  ...{ ':': ' no', '*': ' no', e: ' no', l: ' no', ' no': '\\boxed{', '.': '\n\n', '\n\n': ' no' },
  ...{ '\\boxed{': '4', '{': '4', '4': '2', '2': '}', '}': '.' },
}

/** The tokens of a byte-level tokenizer, as a GGUF file has them. */
function tokenizerMetadata(model: string): Metadata {
  const { vocab } = JSON.parse(readFileSync(join(model, 'tokenizer.json'), 'utf8')).model
  return [
    ['tokenizer.ggml.model', string('gpt2')],
    ['tokenizer.ggml.pre', string('qwen2')],
    ['tokenizer.ggml.tokens', array('string', Object.keys(vocab))],
    ['tokenizer.ggml.merges', array('string', [])],
  ]
}

beforeAll(async () => {
  folder = installPackage()
  hub = await HubServer.start()
  const model = writeScriptedModel({ follows: FOLLOWS })
  const files = Object.fromEntries(
    readdirSync(model).map((name) => [name, readFileSync(join(model, name))]),
  )
  for (const name of ['Qwen/Qwen3-0.6B', 'HuggingFaceTB/SmolLM2-135M-Instruct']) {
    hub.repos.set(name, { files })
  }
  const gguf = join(folder, 'model.gguf')
  await writeGgufModel(model, gguf, { type: 'F32', metadata: tokenizerMetadata(model) })
  hub.repos.set('Qwen/Qwen3-0.6B-GGUF', {
    files: { 'Qwen3-0.6B-Q8_0.gguf': readFileSync(gguf) },
  })
}, 120_000)

afterAll(() => hub.close())

test('blocks have a language that is known here, or none where they are drawings and output', () => {
  const known = ['', 'ts', 'js', 'sh', 'json']
  expect(blocks.filter(({ language }) => !known.includes(language))).toEqual([])
  expect(programs.length).toBeGreaterThan(10)
  expect(commands.length).toBeGreaterThan(10)
})

test('types of the programs, against the declarations that users get', () => {
  const files = programs
    .filter(({ language }) => language === 'ts')
    .map((program) => {
      const file = join(folder, fileOf(program, 'mts'))
      writeFileSync(file, program.code)
      return file
    })
  const options: ts.CompilerOptions = {
    strict: true,
    noUncheckedIndexedAccess: true,
    noEmit: true,
    skipLibCheck: true,
    target: ts.ScriptTarget.ES2022,
    lib: ['lib.es2023.d.ts', 'lib.esnext.disposable.d.ts'],
    module: ts.ModuleKind.Node20,
    typeRoots: [join(root, 'node_modules', '@types')],
    types: ['node'],
  }
  const diagnostics = ts.getPreEmitDiagnostics(ts.createProgram(files, options))
  const messages = diagnostics.map(({ file, start = 0, messageText }) => {
    const line = (file?.getLineAndCharacterOfPosition(start).line ?? 0) + 1
    return `${file?.fileName}:${line}: ${ts.flattenDiagnosticMessageText(messageText, '\n')}`
  })
  expect(messages).toEqual([])
})

test.each(
  programs.map((program): [string, CodeBlock] => [`${program.document}:${program.line}`, program]),
)('the program in %s', async (_where, program) => {
  const compilerOptions = { module: ts.ModuleKind.ESNext, target: ts.ScriptTarget.ES2022 }
  const file = join(folder, fileOf(program, 'mjs'))
  const javascript = () => ts.transpileModule(program.code, { compilerOptions }).outputText
  writeFileSync(file, program.language === 'js' ? program.code : javascript())
  const { status, stdout, stderr } = await node(file)
  expect({ status, stderr }).toEqual({ status: 0, stderr: '' })
  if (program.code.includes('console.log')) expect(stdout).not.toBe('')
})

test.each(
  commands
    .filter(({ command }) => !ELSEWHERE.some(([pattern]) => pattern.test(command)))
    .map(({ where, command }): [string, string] => [command, where]),
)('the command %s in %s', async (command) => {
  expect(command).toMatch(/^(echo '[^']*' \| )?npx hogwild /)
  const line = command
    .replace('npx ', '')
    .replace(/\bMODEL\b/, 'HuggingFaceTB/SmolLM2-135M-Instruct')
  const { status, stdout, stderr } = await run('sh', ['-c', line])
  expect({ status, stderr }).toEqual({ status: 0, stderr: expect.anything() })
  expect(stdout).not.toBe('')
})

test.each(
  of('json').map((block): [string, string] => [`${block.document}:${block.line}`, block.code]),
)('the script in %s', async (_where, code) => {
  const script = join(folder, 'script.json')
  writeFileSync(script, code)
  const model = join('node_modules', 'hogwild', 'models', 'demo')
  const { stdout } = await run('hogwild', ['replay', script, '--model', model])
  const steps = JSON.parse(code).ops.filter(({ op }: { op: string }) => /prefill|step/.test(op))
  expect(stdout.trim().split('\n')).toHaveLength(steps.length)
})

describe('examples', () => {
  const example = (name: string) => join('node_modules', 'hogwild', 'examples', name)
  const succeeded = async (outcome: Promise<Outcome>) => {
    const { status, stdout, stderr } = await outcome
    expect({ status, stderr }).toEqual({ status: 0, stderr: '' })
    return stdout
  }

  test('chat.mjs: workers discuss each message, and one answers', async () => {
    const args = ['HuggingFaceTB/SmolLM2-135M-Instruct', '40']
    const said = await succeeded(node(example('chat.mjs'), args, 'What is 6 x 7?\nAnd again?\n'))
    for (const name of ['Ann', 'Ben', 'Cleo'])
      expect(said).toContain(`**${name} [1]:** ${name} here.`)
    expect(said.match(/^= 42$/gm)).toHaveLength(2)
  })

  test('own-transformer.mjs writes what the package’s model writes', async () => {
    const said = await succeeded(node(example('own-transformer.mjs')))
    expect(said).toContain('A=many')
    expect(said).toContain('The same tokens')
  })

  test('replay.mjs: what a worker owes to the other one', async () => {
    const said = await succeeded(node(example('replay.mjs')))
    const [, differ, steps] = /in (\d+) of (\d+) steps/.exec(said) ?? []
    expect(Number(differ)).toBeGreaterThan(0)
    expect(Number(differ)).toBeLessThan(Number(steps))
  })

  test('server.mjs: what it says to try works; why it cannot start is one line', async () => {
    const model = 'HuggingFaceTB/SmolLM2-135M-Instruct'
    const script = example(join('server', 'server.mjs'))
    const server = spawn(process.execPath, [script, model, '0'], {
      ...{ cwd: folder, env: environment() },
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    let said = ''
    for await (const piece of server.stdout as AsyncIterable<Buffer>) {
      said += piece
      if (said.endsWith("'\n")) break
    }
    const [, port = ''] = / listens on http:\/\/127\.0\.0\.1:(\d+)\/v1\n/.exec(said) ?? []
    const [, url = '', body = ''] = /\ntry: curl -N (\S+) -d '(.*)'\n$/.exec(said) ?? []
    const streamed = await (await fetch(url, { method: 'POST', body })).text()
    for (const worker of ['Alice', 'Bob', 'Carol']) {
      expect(streamed).toContain(`"worker":"${worker}"`)
    }
    expect(streamed).toMatch(/\n\ndata: \[DONE\]\n\n$/)

    const plain = { model, messages: [{ role: 'user', content: 'What is 6 x 7?' }] }
    const answer = await fetch(url, { method: 'POST', body: JSON.stringify(plain) })
    expect(await answer.json()).toMatchObject({
      choices: [{ finish_reason: expect.stringMatching(/^(stop|length)$/) }],
    })

    const refusals: [string[], RegExp][] = [
      [[model, port], /^listen EADDRINUSE.*\n$/],
      [[model, '65536'], /^.*65536.*\n$/],
      [['./nowhere.gguf'], /^no model at .*\n$/],
      [[], /^usage: node server\.mjs MODEL \[PORT\]\n$/],
    ]
    for (const [args, message] of refusals) {
      expect(await node(script, args)).toEqual({
        ...{ status: 1, stdout: '' },
        stderr: expect.stringMatching(message),
      })
    }
    server.kill('SIGINT')
    expect(await once(server, 'exit')).toEqual([0, null])
  })

  test('visibility.mjs: the sooner others are seen, the fewer steps', async () => {
    const said = await succeeded(node(example('visibility.mjs'), ['3']))
    const steps = [...said.matchAll(/^(?:in|one|once) [^\d]*([\d.]+)/gm)].map(([, number]) =>
      Number(number),
    )
    expect(steps).toHaveLength(3)
    expect(steps).toEqual(steps.toSorted((one, other) => one - other))
  })

  test.each(readdirSync(join(root, 'examples', 'schemes')))('schemes/%s', async (name) => {
    await succeeded(node(example(join('schemes', name))))
  })
})

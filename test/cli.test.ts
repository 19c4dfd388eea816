// The command line as a user meets it: built, in a process of its own, without a terminal.

import { spawn } from 'node:child_process'
import { closeSync, existsSync, openSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { createColors } from 'picocolors'
import { demoModelPath as demoFolder, type HogwildError, loadModel } from '../lib'
import { drawFrame } from '../lib/cli/demo/frame'
import {
  createTask,
  holderOf,
  parseSentence,
  readLines,
  score,
  type WrittenToken,
} from '../lib/cli/demo/task'
import { codeOf, oracleFolder, readSafetensors, temporaryFolder, writeModel } from './fixtures'
import { type Fault, HubServer } from './hub-server'

const main = join(__dirname, '..', 'dist', 'cli', 'main.js')
const ESCAPE = '\x1b'

interface Result {
  code: number | null
  stdout: string
  stderr: string
}

function hogwild(...args: string[]): Promise<Result> {
  return hogwildIn({}, ...args)
}

function hogwildIn(environment: NodeJS.ProcessEnv, ...args: string[]): Promise<Result> {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [main, ...args], {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...process.env, ...environment },
    })
    let stdout = ''
    let stderr = ''
    child.stdout.on('data', (chunk) => {
      stdout += chunk
    })
    child.stderr.on('data', (chunk) => {
      stderr += chunk
    })
    child.on('error', reject)
    child.on('close', (code) => resolve({ code, stdout, stderr }))
  })
}

function jsonLines(text: string): Record<string, never>[] {
  return text
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line))
}

beforeAll(() => {
  if (!existsSync(main)) throw new Error('npm run build:ts first: the tests run the built command')
})

describe('usage', () => {
  test.each([
    'demo',
    'run',
    'generate',
    'replay',
    'experiment',
    'bench',
    'inspect',
    'download',
    'random-model',
    'doctor',
    'demo-eval',
  ])('%s --help', async (name) => {
    const { code, stdout } = await hogwild(name, '--help')
    expect(code).toBe(0)
    expect(stdout).toContain(`Usage: hogwild ${name}`)
  })

  test('--help lists the commands for users, --version the version', async () => {
    const { code, stdout } = await hogwild('--help')
    expect(code).toBe(0)
    for (const name of [
      'demo',
      'run',
      'generate',
      'replay',
      'experiment',
      'bench',
      'inspect',
      'download',
      'random-model',
      'doctor',
    ])
      expect(stdout).toContain(`  ${name} `)
    expect(stdout).not.toContain('demo-eval')
    expect((await hogwild('--version')).stdout.trim()).toBe(require('../package.json').version)
  })

  test.each([
    [['demo', '--workers', '5'], 'Expected an integer from 1 to 4'],
    [['demo', '--pace', 'fast'], 'Expected a number of at least 0'],
    [['demo-eval', 'one'], 'too many arguments'],
    [['run', 'a problem'], "required option '--model"],
    [['run', 'a problem', '--model', '.', '--layout', 'star'], 'contiguous, interleaved, combined'],
    [['bench', '--workers', '1,,2'], 'Expected an integer of at least 1'],
    [['replay', '--model', '.'], "missing required argument 'script'"],
    [['run', 'x', '--model', '.', '--top-p', '0'], 'Expected a number above 0, at most 1'],
    [['run', 'x', '--model', '.', '--top-k', '0x10'], 'Expected an integer from 1'],
    [['run', 'x', '--model', '.', '--seed', '1.5'], 'Expected an integer from 0'],
    [['run', 'x', '--model', '.', '--temperature', '-1'], 'Expected a number of at least 0'],
    [['run', 'x', '--model', '.', '--temperature', 'Infinity'], 'Expected a number of at least 0'],
    [['run', 'x', '--model', '.', '--max-tokens', '0'], 'Expected an integer of at least 1'],
    [['run', 'x', '--model', '.', '--capacity', '9e99'], 'Expected an integer from 1'],
    [['run', 'x', '--model', '.', '--threads', '1025'], 'Expected an integer from 1 to 1024'],
    [['run', 'x', '--model', '.', '--workers', '17'], 'Expected an integer from 1 to 16'],
    [['run', 'x', '--model', '.', '--stop', ''], 'Expected a text that is not empty'],
    [['run', 'x', '--model', '.', '--names', 'Ann,Ann'], 'Expected up to 16 different names'],
    [['run', 'x', '--model', '.', '--names', 'Ann,'], 'Expected up to 16 different names'],
    [['run', 'x', '--model', '.', '--names', 'A\u202en'], 'Expected up to 16 different names'],
    [['run', 'x', '--model', '.', '--names', 'A', '--workers', '1'], 'cannot be used with option'],
    [['run', 'x', '--model', '.', '--budget', '8,8'], 'Expected each number once'],
    [['run', 'x', '--model', '.', '--finish', '-1'], 'Expected an integer of at least 0'],
    [['run', 'x', '--model', '.', '--check-every', 'x'], 'Expected an integer of at least 0'],
    [['run', 'x', '--model', ''], 'Expected a text that is not empty'],
    [['run', '', '--model', '.'], 'Expected a text that is not empty'],
    [['run', 'x', '--model', '.', '--dtype', 'f8'], 'Allowed choices are auto, f32'],
    [['run', 'x', '--model', '.', '--temprature', '1'], "unknown option '--temprature'"],
    [['replay', 's.json', '--model', '.', '--device', 'gpu'], 'Expected auto, cpu, cuda or cuda:N'],
    [['replay', 's.json', '--model', '.', '--out', ''], 'Expected a text that is not empty'],
    [['bench', '--workers', '2,2'], 'Expected each number once'],
    [['doctor', '--reuse'], "'--reuse' needs '--model <model>'"],
    [['doctor', '--model', '.'], "'--reuse' needs '--model <model>'"],
    [['doctor', '--device', 'cpu'], "'--model' and '--device' are for it"],
    [['inspect'], "missing required argument 'model'"],
    [['inspect', '.', '--context', '0'], 'Expected an integer from 1'],
    [['download', ''], 'Expected a text that is not empty'],
    [['fly'], "unknown command 'fly'"],
    [[], 'Usage: hogwild'],
  ])('%j: exit code 2 and the reason', async (args, reason) => {
    const { code, stderr, stdout } = await hogwild(...args)
    expect(stderr).toContain(reason)
    expect(stdout).toBe('')
    expect(code).toBe(2)
  })
})

describe('what goes wrong', () => {
  test('arguments and paths with control characters do not steer the terminal', async () => {
    const name = '\x1b]0;title\x07\u202e\x9b2Jx'
    const results = await Promise.all([
      hogwild(`--${name}`),
      hogwild(name),
      hogwild('demo', '--workers', name),
      hogwild('demo', name),
      hogwild('run', 'x', '--model', name),
      hogwild('replay', name, '--model', name),
    ])
    for (const { code, stdout, stderr } of results) {
      expect(stdout).toBe('')
      expect(stderr).toContain('title')
      expect(stderr).not.toMatch(/(?!\n)[\p{Cc}\p{Bidi_Control}]/u)
      expect(code).toBeGreaterThan(0)
    }
  })

  test('without the addon: help and usage errors, and one line for what needs it', async () => {
    const run = (...args: string[]) => hogwildIn({ HOGWILD_PREBUILD: temporaryFolder() }, ...args)
    expect(await run('--version')).toMatchObject({ code: 0, stderr: '' })
    expect(await run('run', '--help')).toMatchObject({ code: 0, stderr: '' })
    expect(await run('demo', '--workers', '5')).toMatchObject({ code: 2, stdout: '' })
    const line =
      /^hogwild: no addon for .*: not there.*`npx hogwild build`.*\[HOGWILD_UNSUPPORTED\]\n$/
    for (const args of [['demo'], ['bench']]) {
      const { code, stdout, stderr } = await run(...args)
      expect(stderr).toMatch(line)
      expect(stdout).toBe('')
      expect(code).toBe(1)
    }
    const plain = await run('doctor')
    expect(plain.stdout).toMatch(/^no addon +build\/Release\/hogwild\.node: not there$/m)
    expect(plain.stdout).toMatch(/^what helps npx hogwild build/m)
    const json = await run('doctor', '--json')
    expect(JSON.parse(json.stdout)).toMatchObject({ addon: null, build: 'npx hogwild build' })
    for (const { code, stderr } of [plain, json]) {
      expect(stderr).toMatch(line)
      expect(code).toBe(1)
    }
  })

  const full = existsSync('/dev/full') ? test : test.skip
  full('an output that takes no more: one line, exit code 1', async () => {
    const output = openSync('/dev/full', 'w')
    const child = spawn(process.execPath, [main, 'doctor'], { stdio: ['ignore', output, 'pipe'] })
    closeSync(output)
    let stderr = ''
    child.stderr?.on('data', (chunk) => {
      stderr += chunk
    })
    const code = await new Promise((resolve) => child.on('close', resolve))
    expect(stderr).toMatch(/^hogwild: ENOSPC.*\n$/)
    expect(code).toBe(1)
  })
})

describe('demo', () => {
  const sentence = 'Many hands make light work!'

  test('plain lines, the sentence and the race where there is no terminal', async () => {
    const { code, stdout, stderr } = await hogwild('demo', sentence)
    expect(stderr).toBe('')
    expect(code).toBe(0)
    expect(stdout).not.toContain(ESCAPE)
    expect(stdout).toContain('A:ynam  B:sdnah  C:ekam  D:thgil  E:krow')
    expect(stdout).toMatch(/^ {2}step +\d+ {2}Alice A=many$/m)
    expect(stdout).toMatch(/^ {2}many hands make light work$/m)
    const race = stdout.slice(stdout.indexOf('workers  shared'))
    expect(race.match(/^ {2}[124] .*5\/5/gm)).toHaveLength(4)
  })

  test('--json: the figures of the race', async () => {
    const { code, stdout } = await hogwild('demo', sentence, '--json')
    expect(code).toBe(0)
    const { runs } = JSON.parse(stdout)
    const alone = { workers: 1, shared: true, done_twice: 0, undone: 0, right: 5, items: 5 }
    const off = { workers: 4, shared: false, done_twice: 5, undone: 0, right: 5 }
    expect(runs).toMatchObject([alone, { ...alone, workers: 2 }, { ...alone, workers: 4 }, off])
    const [one, two, four, unshared] = runs
    expect(two.steps).toBeLessThan(one.steps)
    expect(four.steps).toBeLessThan(two.steps)
    expect(unshared).toMatchObject({ steps: one.steps, tokens: 4 * one.tokens })
  })

  test('a sentence may be one argument or several, and the end says what to try next', async () => {
    const { code, stdout } = await hogwild('demo', 'many', 'hands', 'make light', 'work')
    expect(code).toBe(0)
    expect(stdout).toMatch(/^ {2}many hands make light work$/m)
    const [see, use, build] = stdout.trim().split('\n').slice(-3)
    expect(see).toMatch(/See it: +node .*main\.js run --model/)
    for (const line of [use, build]) {
      const [, file = ''] = /(?:Use|Build) it: +(.*\.md)$/.exec(line ?? '') ?? []
      expect(existsSync(file)).toBe(true)
    }
  })

  test('--no-share: everybody writes the whole list', async () => {
    const { code, stdout } = await hogwild('demo', sentence, '--workers', '2', '--no-share')
    expect(code).toBe(0)
    expect(stdout.match(/A=many/g)).toHaveLength(2)
  })

  test.each([
    ['twenty words', 'a '.repeat(20), '1 to 16 words, received 20'],
    ['no word', ' , ', '1 to 16 words, received 0'],
    ['a long word', 'incomprehensible', 'received "incomprehensible"'],
    ['a digit', 'route 66', 'received "66"'],
    ['an umlaut', 'größe', 'received "größe"'],
  ])('%s: a coded error that names the limits', async (_, text, reason) => {
    const { code, stderr, stdout } = await hogwild('demo', text)
    expect(stderr).toContain(reason)
    expect(stderr).toContain('1 to 16 words of 1 to 9 letters a-z')
    expect(stderr).toContain('[HOGWILD_INVALID_ARGUMENT]')
    expect(stderr).not.toContain('    at ')
    expect(stdout).toBe('')
    expect(code).toBe(1)
  })

  test('a reader that leaves early is no error', async () => {
    const child = spawn(process.execPath, [main, 'demo', '--pace', '50'], {
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    let stderr = ''
    child.stderr.on('data', (chunk) => {
      stderr += chunk
    })
    child.stdout.once('data', () => child.stdout.destroy())
    const code = await new Promise((resolve) => child.on('close', resolve))
    expect(stderr).toBe('')
    expect(code).toBe(0)
  })
})

describe("the demo's task", () => {
  const written = (text: string, start = 0): WrittenToken[] =>
    (text.match(/Alice|Bob|Carol|Dave|./g) ?? []).map((part, index) => ({
      text: part,
      step: start + index,
    }))
  const blocks = (texts: Record<string, string>) =>
    new Map(Object.entries(texts).map(([name, text]) => [name, written(text)]))
  /** Of terminals, down to nothing. */
  const sizes = () =>
    Array.from({ length: 13 }, (_, i) => [1 + 8 * i, 1 + 3 * ((5 * i) % 13)] as const)

  test('a sentence becomes words, a prompt and labels', () => {
    const words = parseSentence("  Don't panic: it is well-known… ")
    expect(words).toEqual(['dont', 'panic', 'it', 'is', 'well', 'known'])
    expect(createTask(['ab', 'c']).prompt).toBe('<s>A:ba\nB:c\n')
    expect(createTask(['ab', 'c'], ['P', 'D']).prompt).toBe('<s>P:ba\nD:c\n')
  })

  test('lines: answered, yielded, open, taken away, halted', () => {
    const states = (text: string) =>
      readLines('Alice', written(text)).map(({ label, answer, state }) => [label, answer, state])
    expect(states('AliceA=abAliceB~AliceC=d')).toEqual([
      ['A', 'ab', 'answered'],
      ['B', undefined, 'yielded'],
      ['C', 'd', 'open'],
    ])
    expect(states('AliceA=a#')).toEqual([['A', 'a', 'taken away']])
    expect(states('AliceA=aAlice.')).toEqual([
      ['A', 'a', 'answered'],
      [undefined, undefined, 'halted'],
    ])
    expect(states('AliceAAlice.')[0]).toEqual(['A', undefined, 'open'])
    expect(states('')).toEqual([])
  })

  test('the score of a good run', () => {
    const run = blocks({ Alice: 'AliceA=abAlice.', Bob: 'BobB=cBobA~Bob.' })
    expect(score(createTask(['ab', 'c']), run)).toEqual({
      items: 2,
      answeredIn: 5,
      steps: 9,
      tokens: 16,
      yields: 1,
      twice: 0,
      undone: 0,
      right: 2,
    })
  })

  test('the score of a bad run: wrong, twice, undone, unfinished, a label that is not in the list', () => {
    const run = blocks({ Alice: 'AliceA=baAliceC=x#', Bob: 'BobA=abBobK=zBob.' })
    const found = score(createTask(['ab', 'c', 'x']), run)
    expect(found).toMatchObject({ answeredIn: undefined, twice: 1, undone: 2, right: 0 })
  })

  test('who holds a claim: the earlier one, in the same step the first in the list', () => {
    const run = blocks({ Alice: 'AliceB~', Bob: 'BobB=', Carol: 'CarolA=' })
    const [line] = readLines('Alice', run.get('Alice') ?? [])
    if (!line) throw new Error('a line was expected')
    expect(holderOf(line, 'Alice', run)).toBe('Bob')
    expect(holderOf({ ...line, label: 'C' }, 'Alice', run)).toBeUndefined()
  })

  test('a frame fits the terminal, with and without colour', () => {
    const words = parseSentence('one two three four five six seven eight nine ten eleven twelve')
    const scene = {
      title: 'hogwild: 3 workers write into one shared cache',
      job: 'The job: write each word the right way round, once.',
      task: createTask(words),
      members: [
        { name: 'Alice', state: 'active' as const },
        { name: 'Bob', state: 'active' as const },
        { name: 'Carol', state: 'halted' as const },
        { name: 'Dave', state: 'absent' as const },
      ],
      blocks: blocks({
        Alice: `${'AliceC=three'.repeat(30)}AliceA=on`,
        Bob: 'BobB=twoBobC~',
        Carol: 'Carol.',
      }),
      notes: ['a', 'b', 'c'].map((text) => ({ name: 'Bob', text })),
      step: 1,
      pace: '4/s',
      hasKeys: true,
    }
    for (const [width, height] of [...sizes(), [80, 24], [50, 12], [200, 50]] as const) {
      const plain = drawFrame(scene, createColors(false), width, height)
      expect(plain.join('\n')).not.toContain(ESCAPE)
      expect(Math.max(...plain.map((line) => line.length))).toBeLessThanOrEqual(width)
      expect(plain.length).toBeLessThanOrEqual(height)
      const text = plain.join('\n')
      if (width >= 50 && height >= 12) {
        for (const part of ['C:', 'three', 'A=on▌', 'C~', '(press 4)', 'c', 'q quits'])
          expect(text).toContain(part)
      }
      const painted = drawFrame(scene, createColors(true), width, height).join('\n')
      // biome-ignore lint/suspicious/noControlCharactersInRegex: escape codes are what is looked for
      expect(painted.replace(/\x1b\[\d+m/g, '')).toBe(text)
    }
  })

  test('an error has a code', async () => {
    expect(await codeOf(() => parseSentence(''))).toBe('HOGWILD_INVALID_ARGUMENT')
  })
})

describe('run', () => {
  /** A tiny model with a tokenizer whose tokens are bytes, and a chat template. */
  function writeChatModel(chatTemplate?: string): string {
    const folder = writeModel({ vocabSize: 257, seed: 3 })
    // The usual mapping of bytes to printable characters (GPT-2's).
    const printable = (byte: number) =>
      (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174
    let next = 256
    const vocab: Record<string, number> = {}
    for (let byte = 0; byte < 256; byte++) {
      vocab[String.fromCodePoint(printable(byte) ? byte : next++)] = byte
    }
    const end = { id: 256, content: '<end>', single_word: false, lstrip: false, rstrip: false }
    const byteLevel = {
      type: 'ByteLevel',
      add_prefix_space: false,
      trim_offsets: true,
      use_regex: true,
    }
    const tokenizer = {
      version: '1.0',
      truncation: null,
      padding: null,
      added_tokens: [{ ...end, normalized: false, special: true }],
      normalizer: null,
      pre_tokenizer: byteLevel,
      post_processor: null,
      decoder: byteLevel,
      model: { type: 'BPE', vocab, merges: [], unk_token: null },
    }
    const settings = { tokenizer_class: 'PreTrainedTokenizerFast', eos_token: '<end>' }
    writeFileSync(join(folder, 'tokenizer.json'), JSON.stringify(tokenizer))
    writeFileSync(
      join(folder, 'tokenizer_config.json'),
      JSON.stringify({ ...settings, ...(chatTemplate && { chat_template: chatTemplate }) }),
    )
    return folder
  }
  const template =
    '{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}{% if add_generation_prompt %}[me] {% endif %}'

  test.each([
    ['contiguous', undefined],
    ['interleaved', template],
    ['combined', template],
  ])('%s: every worker writes its tokens', async (layout, chatTemplate) => {
    const model = writeChatModel(chatTemplate)
    const args = ['run', 'What is 2 + 2?', '--model', model, '--layout', layout, '--workers', '3']
    const { code, stdout, stderr } = await hogwild(...args, '--max-tokens', '30', '--json')
    expect(stderr).toBe('')
    expect(code).toBe(0)
    const events = jsonLines(stdout)
    for (const name of ['Alice', 'Bob', 'Carol']) {
      const tokens = events.filter(({ type, worker }) => type === 'token' && worker === name)
      expect(tokens.length).toBeGreaterThan(10)
      const text = tokens.map((event) => event.text).join('')
      expect(text.startsWith(`\n\n**${name} [1]:** ${name} here.`)).toBe(true)
      expect(events.some(({ type, worker }) => type === 'stop' && worker === name)).toBe(true)
    }
    expect(events.at(-1)).toMatchObject({ type: 'end' })
  })

  test('a seed decides what is sampled; lines carry names and no escape codes', async () => {
    const model = writeChatModel(template)
    const run = (seed: string) =>
      hogwild(
        ...['run', 'Hello', '--model', model, '--temperature', '1', '--top-k', '50'],
        ...['--seed', seed, '--max-tokens', '40'],
      )
    const [one, same, other] = await Promise.all([run('1'), run('1'), run('2')])
    const text = ({ stdout }: Result) => stdout.replace(/[\d.]+ s$/m, '')
    expect(one.code).toBe(0)
    expect(one.stdout).not.toContain(ESCAPE)
    expect(one.stdout).toMatch(/^Alice \| \*\*Alice \[1\]:\*\* Alice here\./m)
    expect(one.stdout).toMatch(/^Bob {3}· stopped: max-tokens$/m)
    expect(text(same)).toBe(text(one))
    expect(text(other)).not.toBe(text(one))
  })

  test('--stop: the text ends before it', async () => {
    const model = writeChatModel(template)
    const args = [
      'run',
      'Hello',
      '--model',
      model,
      '--workers',
      '1',
      '--max-tokens',
      '60',
      '--json',
    ]
    const sampled = (stdout: string) =>
      jsonLines(stdout)
        .filter(({ type, forced }) => (type === 'token' && !forced) || type === 'stop')
        .map(({ text }) => text ?? '')
        .join('')
    const all = sampled((await hogwild(...args)).stdout)
    const word = /[!-~]{2}/.exec(all.slice(3))?.[0] ?? ''
    expect(word).toHaveLength(2)
    const { code, stdout } = await hogwild(...args, '--stop', 'not in it', '--stop', word)
    expect(code).toBe(0)
    expect(sampled(stdout)).toBe(all.slice(0, all.indexOf(word)))
    const stops = jsonLines(stdout).filter(({ type }) => type === 'stop')
    expect(stops).toMatchObject([{ worker: 'Alice', reason: 'stop-string' }])
  })

  test('--ignore-field lets a model pass that is refused otherwise, naming it', async () => {
    const model = writeChatModel(template)
    const config = join(model, 'config.json')
    const fields = { unheard_of: 1, further_unknown: 2 }
    writeFileSync(
      config,
      JSON.stringify({ ...JSON.parse(readFileSync(config, 'utf8')), ...fields }),
    )
    const args = ['run', 'Hello', '--model', model, '--workers', '1', '--max-tokens', '2']
    const refused = await hogwild(...args, '--ignore-field', 'unheard_of')
    expect(refused).toMatchObject({ code: 1, stdout: '' })
    expect(refused.stderr).toMatch(
      /^hogwild: .*"further_unknown".*--ignore-field.*UNSUPPORTED\]\n$/,
    )
    const each = ['--ignore-field', 'unheard_of', '--ignore-field', 'further_unknown']
    expect(await hogwild(...args, ...each)).toMatchObject({ code: 0, stderr: '' })
  })

  test('what is wrong with a model is told as loadModel tells it', async () => {
    const withConfig = (config: string) => {
      const folder = temporaryFolder()
      writeFileSync(join(folder, 'config.json'), config)
      return folder
    }
    const file = join(temporaryFolder(), 'model.gguf')
    writeFileSync(file, 'GGUF')
    const models = [
      temporaryFolder(),
      join(temporaryFolder(), 'nowhere'),
      file,
      withConfig('{'),
      withConfig('{"architectures":["DeepseekV3ForCausalLM"],"model_type":"deepseek_v3"}'),
      withConfig(readFileSync(join(demoFolder, 'config.json'), 'utf8')),
    ]
    for (const model of models) {
      const error = await loadModel(model).catch((thrown: HogwildError) => thrown)
      const { message, code } = error as HogwildError
      const command = model === file ? 'generate' : 'run'
      const result = await hogwild(command, 'Hello', '--model', model)
      expect(result.stderr).toBe(`hogwild: ${message} [${code}]\n`)
      expect(result).toMatchObject({ code: 1, stdout: '' })
    }
  })

  test('a model without a tokenizer: a coded error that says so', async () => {
    const { code, stderr } = await hogwild('run', 'Hello', '--model', oracleFolder('llama'))
    expect(stderr).toMatch(/^hogwild: .*tokenizer\.json.* \[HOGWILD_INVALID_MODEL\]\n$/)
    expect(code).toBe(1)
  })
})

describe('replay', () => {
  const scenario = join(__dirname, 'oracle', 'goldens', 'llama', 'join_leave.json')

  test('a line per prefill and step, and the logits as a file', async () => {
    const out = join(temporaryFolder(), 'logits.safetensors')
    const model = oracleFolder('llama')
    const { code, stdout, stderr } = await hogwild(
      ...['replay', scenario, '--model', model, '--dtype', 'f32', '--device', 'cpu', '--out', out],
    )
    expect(stderr).toBe('')
    expect(code).toBe(0)
    const { ops } = require(scenario)
    const golden = ops.filter(({ op }: { op: string }) => op === 'prefill' || op === 'step')
    const lines = jsonLines(stdout)
    const tensors = readSafetensors(out)
    expect(lines).toHaveLength(golden.length)
    lines.forEach((line, index) => {
      const { op, logits, argmax, top8_ids, top8_values } = golden[index]
      expect(line).toMatchObject({ op: Number(logits), kind: op, argmax, top8_ids })
      const values = (line.top8_values as unknown as number[][]).flat()
      values.forEach((value, place) => {
        expect(Math.abs(value - top8_values.flat()[place])).toBeLessThan(2e-4)
      })
      const { shape, data } = tensors.get(logits) ?? { shape: [], data: [] }
      expect(shape[0]).toBe(argmax.length)
      expect(data[top8_ids[0][0]]).toBeCloseTo(values[0] ?? Number.NaN, 5)
    })
  })

  test('errors: no such script, no JSON, an op that fails', async () => {
    const model = oracleFolder('llama')
    const file = join(temporaryFolder(), 'script.json')
    const run = (path: string) => hogwild('replay', path, '--model', model)
    expect(await run('nowhere.json')).toMatchObject({ code: 1, stdout: '' })
    writeFileSync(file, '{')
    expect((await run(file)).stderr).toContain('expected a JSON file')
    writeFileSync(file, JSON.stringify({ ops: [{ op: 'clear', block: 'x' }] }))
    const { code, stderr } = await run(file)
    expect(stderr).toContain('op 0 (clear): unknown block "x"')
    expect(stderr).toContain('[HOGWILD_INVALID_ARGUMENT]')
    expect(code).toBe(1)
  })
})

describe('figures', () => {
  test('doctor --reuse', async () => {
    const args = ['doctor', '--reuse', '--model', demoFolder, '--device', 'cpu']
    const { code, stdout } = await hogwild(...args, '--json')
    expect(code).toBe(0)
    const { model, texts, cases } = JSON.parse(stdout)
    expect([model, texts, cases.length]).toEqual([demoFolder, 'english', 4 * 6])
    const table = (await hogwild(...args)).stdout
    expect(table).toMatch(
      /^reuse, computed afresh +f32 +0\.0 +0\.0 +0\.0 +16 of 16 +no bit may differ$/m,
    )
    expect(table).toMatch(/^moved, computed afresh +int8 .* saw another context$/m)
    expect(table).toMatch(/^moved, keys turned +bf16 .* at most 0\.15 σ$/m)
  }, 60_000)

  test('doctor', async () => {
    const { code, stdout } = await hogwild('doctor', '--json')
    expect(code).toBe(0)
    const report = JSON.parse(stdout)
    expect(report.device).toMatchObject({
      type: expect.stringMatching(/cpu|cuda/),
      threads: expect.any(Number),
    })
    expect(report.simd_available).toContain(report.device.simd)
    expect(report.cuda.cards.length > 0 || report.cuda.reason.length > 0).toBe(true)
    const text = (await hogwild('doctor')).stdout
    expect(text).toContain(report.device.simd)
    expect(text).not.toContain(ESCAPE)
  })

  test('bench on a model of our own', async () => {
    const model = writeModel({ vocabSize: 300 })
    const sizes = [
      '--workers',
      '1,3',
      '--prompt',
      '20',
      '--generate',
      '5',
      '--repeat',
      '2',
      '--threads',
      '1',
    ]
    const { code, stdout, stderr } = await hogwild(
      ...['bench', '--model', model, ...sizes, '--profile', '--json'],
    )
    expect(stderr).toBe('')
    expect(code).toBe(0)
    const report = JSON.parse(stdout)
    expect(report).toMatchObject({ prompt: 20, generate: 5, repeat: 2, threads: 1 })
    expect(report.read_gb_per_s).toBeGreaterThan(0)
    expect(report.runs.map(({ workers }: { workers: number }) => workers)).toEqual([1, 3])
    for (const run of report.runs) {
      const { profile, ...figures } = run
      for (const value of Object.values(figures)) expect(value).toBeGreaterThanOrEqual(0)
      const share = profile.reduce((sum: number, op: { share: number }) => sum + op.share, 0)
      expect(share).toBeCloseTo(1, 2)
      expect(profile.map(({ op }: { op: string }) => op)).toContain('attention')
      const perSecond = (run.workers * 1e3) / run.step_ms
      expect(run.decode_tokens_per_s / perSecond).toBeCloseTo(1, 1)
    }
    expect(report.runs[0].step_over_one).toBe(1)
  })

  test('bench leaves nothing behind when it is ended', async () => {
    const folder = temporaryFolder()
    const child = spawn(process.execPath, [main, 'bench'], {
      stdio: 'ignore',
      env: { ...process.env, TMPDIR: folder },
    })
    while (readdirSync(folder).length === 0) await new Promise((resolve) => setTimeout(resolve, 20))
    child.kill('SIGINT')
    const code = await new Promise((resolve) => child.on('close', resolve))
    expect(code).toBe(130)
    expect(readdirSync(folder)).toEqual([])
  })

  test('demo-eval', async () => {
    const { code, stdout } = await hogwild('demo-eval', '--prompts', '2', '--json')
    expect(code).toBe(0)
    const { rows, prompts } = JSON.parse(stdout)
    expect(prompts).toBe(2)
    const row = (section: string, title: string) =>
      rows.find((one: Record<string, string>) => one.section === section && one.title === title)
    expect(row('shared cache', '12 words, 4 workers').speed_up).toBeGreaterThan(2)
    expect(row('cache off', '12 words, 4 workers').done_twice).toBeGreaterThan(0.9)
    expect(row('a worker stopped', '12 words, 2 workers, one stopped with `#`')).toBeDefined()
  })
})

describe('models of the hub', () => {
  let hub: HubServer
  let environment: NodeJS.ProcessEnv

  beforeAll(async () => {
    hub = await HubServer.start()
    hub.repos.set('org/demo', {
      files: Object.fromEntries(
        readdirSync(demoFolder).map((file) => [file, readFileSync(join(demoFolder, file))]),
      ),
    })
    environment = { HF_ENDPOINT: hub.endpoint, HF_HOME: temporaryFolder(), HF_TOKEN: '' }
  })

  afterAll(() => hub.close())

  test('download prints the path; a second time also offline', async () => {
    const first = await hogwildIn(environment, 'download', 'org/demo')
    expect(first).toMatchObject({ code: 0, stderr: '' })
    const path = first.stdout.trim()
    expect(readdirSync(path)).toContain('model.safetensors')
    const offline = { ...environment, HF_HUB_OFFLINE: '1' }
    expect(await hogwildIn(offline, 'download', 'org/demo')).toEqual(first)
    const { stdout } = await hogwildIn(offline, 'download', 'org/demo', '--json')
    expect(JSON.parse(stdout)).toEqual({ name: 'org/demo', path })
  })

  test('every command that takes a model takes a name', async () => {
    const name = ['--model', 'org/demo']
    const script = join(temporaryFolder(), 'script.json')
    writeFileSync(
      script,
      JSON.stringify({
        ops: [
          { op: 'block', name: 'a' },
          { op: 'prefill', block: 'a', tokens: [1] },
        ],
      }),
    )
    const results = await Promise.all([
      hogwildIn(environment, 'run', 'a', ...name, '--max-tokens', '2'),
      hogwildIn(environment, 'inspect', 'org/demo'),
      hogwildIn(environment, 'bench', ...name, '--prompt', '4', '--generate', '2', '--repeat', '1'),
      hogwildIn(environment, 'replay', script, ...name),
    ])
    for (const { code, stdout } of results) {
      expect(stdout).not.toBe('')
      expect(code).toBe(0)
    }
  })

  test('what fails is one line', async () => {
    const cases: [string[], RegExp][] = [
      [['download', 'org/none'], /has no org\/none, or .* \[HOGWILD_DOWNLOAD\]/],
      [['run', 'a', '--model', 'org/none'], /has no org\/none, or .* \[HOGWILD_DOWNLOAD\]/],
      [
        ['run', 'a', '--model', './org/none'],
        /no model at .* no such file .*\[HOGWILD_INVALID_MODEL\]/,
      ],
      [['inspect', 'org/demo:Q4_0'], /holds no GGUF file; it holds .*\[HOGWILD_UNSUPPORTED\]/],
      [['download', '../x'], /expected a name of the hub, org\/name/],
    ]
    for (const [args, line] of cases) {
      const { code, stdout, stderr } = await hogwildIn(environment, ...args)
      expect(stderr).toMatch(line)
      expect(stderr.trim().split('\n')).toHaveLength(1)
      expect(stdout).toBe('')
      expect(code).toBe(1)
    }
  })

  test('a download of more than a second shows how far it is, without a terminal in plain lines', async () => {
    const slow: Fault = (response, content, from) => {
      response.writeHead(from > 0 ? 206 : 200, { 'Content-Length': content.length - from })
      const half = content.subarray(0, content.length / 2)
      response.write(half)
      setTimeout(() => response.write(content.subarray(half.length, half.length + 1000)), 1500)
      setTimeout(() => response.end(content.subarray(half.length + 1000)), 1600)
      return true
    }
    hub.faults.set('model.safetensors', slow)
    const fresh = () => ({ ...environment, HF_HOME: temporaryFolder() })
    const [shown, quiet] = await Promise.all([
      hogwildIn(fresh(), 'download', 'org/demo'),
      hogwildIn(fresh(), 'download', 'org/demo', '--quiet'),
    ])
    hub.faults.clear()
    expect(shown.stderr).toMatch(/^downloading org\/demo: \d+ % of 1\.21 MB, .*\/s, .* left\n$/)
    expect(quiet).toMatchObject({ code: 0, stderr: '' })
  })
})

describe('inspect', () => {
  test('tells what a model is; --json as the API does', async () => {
    const { code, stdout, stderr } = await hogwild('inspect', demoFolder, '--workers', '2')
    expect([code, stderr]).toEqual([0, ''])
    expect(stdout).toMatch(/^family +LlamaForCausalLM$/m)
    expect(stdout).toMatch(/^cache, 1024 tokens, 2 workers +\d/m)
    expect(stdout).toMatch(/^down_proj +bf16 +4 +262 kB$/m)
    const json = JSON.parse((await hogwild('inspect', demoFolder, '--json')).stdout)
    expect(json.model.config.vocabSize).toBe(68)
    expect(json.refusals).toEqual([])
  })

  test('exit code 1 where something would be refused', async () => {
    const { code, stdout } = await hogwild('inspect', oracleFolder('llama'))
    expect(stdout).toMatch(/^refused +tokenizer: .*tokenizer\.json.*\[HOGWILD_INVALID_MODEL\]$/m)
    expect(code).toBe(1)
  })
})

describe('generate', () => {
  const prompt = 'A:ynam\nB:sdnah\n'
  const args = ['--model', demoFolder, '--max-tokens', '12']

  /** With `input` on stdin. */
  function withInput(input: string | Buffer, ...rest: string[]): Promise<Result> {
    return new Promise((resolve) => {
      const child = spawn(process.execPath, [main, ...rest])
      const result = { stdout: '', stderr: '' }
      child.stdout.on('data', (chunk) => {
        result.stdout += chunk
      })
      child.stderr.on('data', (chunk) => {
        result.stderr += chunk
      })
      child.on('close', (code) => resolve({ code, ...result }))
      child.stdin.end(input)
    })
  }

  test('prints what one worker writes, and nothing of the prompt', async () => {
    const { code, stdout, stderr } = await hogwild('generate', prompt, ...args)
    expect([code, stderr]).toEqual([0, ''])
    const lines = jsonLines((await hogwild('generate', prompt, ...args, '--json')).stdout)
    const tokens = lines.slice(0, -1)
    expect(tokens.map(({ type }) => type)).toEqual(tokens.map(() => 'token'))
    const result = lines.at(-1)!
    expect(result).toMatchObject({ type: 'result', reason: 'max-tokens' })
    expect(tokens.map(({ text }) => text).join('')).toBe(result.text)
    expect(stdout).toBe(`${result.text}\n`)
  })

  test('a prompt of several words, which nobody has put in quotes', async () => {
    for (const command of [['generate'], ['run', '--workers', '1']]) {
      expect(await hogwild(...command, 'ab', 'cd', ...args)).toEqual(
        await hogwild(...command, 'ab cd', ...args),
      )
    }
  })

  test('-: the prompt from stdin, also of run', async () => {
    const given = await hogwild('generate', 'A:ynam', ...args)
    expect(await withInput('A:ynam\n', 'generate', '-', ...args)).toEqual(given)
    const run = ['run', '-', ...args, '--workers', '1']
    const { code, stdout } = await withInput('abc', ...run)
    expect([code, stdout]).toEqual([
      0,
      (await hogwild('run', 'abc', ...args, '--workers', '1')).stdout,
    ])
    for (const input of ['', '\n', Buffer.of(0xff, 0xfe)]) {
      const { code, stderr } = await withInput(input, 'generate', '-', ...args)
      expect(stderr).toMatch(
        /^hogwild: expected (a text that is not empty|text in UTF-8) on stdin \[/,
      )
      expect(code).toBe(1)
    }
  })
})

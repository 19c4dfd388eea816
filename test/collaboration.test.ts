// Collaboration: the texts in each block, where turns end, checks, transcripts, the finisher, thinker and writer.

import { execFileSync } from 'node:child_process'
import { join } from 'node:path'
import {
  type Block,
  type Collaboration,
  type CollaborationOptions,
  collaborate,
  collaborationTexts,
  type EarlyAnswer,
  endsParagraph,
  extractAnswer,
  findAnswer,
  finish,
  loadModel,
  loadTokenizer,
  type Model,
  paragraphEnds,
  type RunOptions,
  runWorkers,
  type Snapshot,
  type Tokenizer,
  Transcript,
  thinkAndWrite,
  thinkerView,
  thinkerWriterTexts,
  type WorkerEvent,
  writerView,
} from '../lib'
import { codeOf, Random, writeModel } from './fixtures'
import { CHAT_TEMPLATE, writeScriptedModel } from './scripted-model'
import { byteLevelFolder } from './tokenizer-fixtures'

let tokenizer: Tokenizer

beforeAll(async () => {
  tokenizer = await loadTokenizer(byteLevelFolder({ chat_template: CHAT_TEMPLATE }))
})
afterAll(() => tokenizer.close())

const problem = 'What is 2 + 2?'
const prepare = (options: Partial<CollaborationOptions> = {}) =>
  collaborate({ tokenizer, problem, ...options })
const textOf = (ids: ArrayLike<number> | undefined) => tokenizer.decode(ids ?? [])
const textsOf = ({ run }: Collaboration) => ({
  prompt: textOf(run.prompt),
  shared: textOf(run.sharedHeader),
  headers: run.workers.map(({ header }) => textOf(header)),
  openings: run.workers.map(({ prompt }) => textOf(prompt)),
})

describe('texts', () => {
  test('one worker: a plain conversation', async () => {
    const team = await prepare({ workers: 1 })
    expect(textsOf(team)).toEqual({
      prompt: `<|begin|>user
Solve the following problem step by step, in short paragraphs. Once you are sure of the result, write it inside \\boxed{} and stop.

The problem:

What is 2 + 2?<|end|>
<|begin|>assistant
`,
      shared: '',
      headers: [''],
      openings: ['Step by step:'],
    })
    expect(team).toMatchObject({ names: ['Alice'], share: false })
    expect(team.run.turnEnds).toBeUndefined()
    // So is each of several that do not see one another.
    const apart = await prepare({ workers: 3, share: false })
    expect(apart.run.prompt).toEqual(team.run.prompt)
    expect(textsOf(apart).openings).toEqual(new Array(3).fill('Step by step:'))
  })

  test('two workers, combined', async () => {
    const team = await prepare()
    expect(textsOf(team)).toEqual({
      prompt: `<|begin|>user
Alice and Bob solve the problem below together, all at the same time. You are one of these 2: the one whose text comes last.

How the text is laid out:
- Everyone writes paragraphs. Each begins with its writer and its number, as in **Bob [2]:**, and ends with a blank line.
- Finished paragraphs of all of you stand under "# Finished paragraphs", in the order in which they were finished.
- Under "# What the others are writing" stands what the others have written so far. It grows while you write; "[...]" marks where it goes on.
- What you write comes last, under "# What I am writing".

How to work together:
- Share the work: say early which part you take, and take one that nobody has. Where proposals differ, that of Alice counts.
- Where there is nothing to share, go different ways to the same result, or check what another one has found and nobody has checked.
- Read what the others have written before you go on. Build on their results, answer their questions, tell them their mistakes by name: "Bob, the sign in your second line is wrong."
- Never do what another one has done or is doing. As soon as you notice it, stop in the middle of the sentence, say so ("Alice has this already") and take up something else.
- Once the result is sure, one of you writes it inside \\boxed{}. That ends the work: nobody can change it afterwards.

The problem:

What is 2 + 2?<|end|>
<|begin|>assistant
# Finished paragraphs`,
      shared: '\n\n# What the others are writing',
      headers: new Array(2).fill(' [...]\n\n# What I am writing'),
      openings: [
        '\n\n**Alice [1]:** Alice here. I suggest that we',
        '\n\n**Bob [1]:** Bob here. I will',
      ],
    })
    expect(team).toMatchObject({ names: ['Alice', 'Bob'], layout: 'combined', share: true })
    expect(textOf(team.run.turnHeader?.('Bob', 1))).toBe('**Bob [2]:**')
  })

  test.each([
    ['combined', '# Finished paragraphs', '\n\n# What the others are writing', ' [...]\n\n'],
    ['interleaved', '# Finished paragraphs', '', '\n\n'],
    ['contiguous', '# What the others are writing', '', ' [...]\n\n'],
  ] as const)('four workers, %s', async (layout, end, shared, mark) => {
    const names = ['Ann', 'Ben', 'Cleo', 'Dirk']
    const team = await prepare({ workers: names, layout })
    const texts = textsOf(team)
    expect(texts.prompt.startsWith('<|begin|>user\nAnn, Ben, Cleo and Dirk solve ')).toBe(true)
    expect(texts.prompt).toContain('You are one of these 4:')
    expect(texts.prompt.endsWith(`\nWhat is 2 + 2?<|end|>\n<|begin|>assistant\n${end}`)).toBe(true)
    expect(texts.shared).toBe(shared)
    expect(texts.headers).toEqual(new Array(4).fill(`${mark}# What I am writing`))
    expect(texts.openings).toEqual([
      '\n\n**Ann [1]:** Ann here. I suggest that we',
      ...names.slice(1).map((name) => `\n\n**${name} [1]:** ${name} here. I will`),
    ])
    // The rules speak of the parts that this layout has.
    for (const heading of ['# Finished paragraphs', '# What the others are writing']) {
      const isThere = texts.prompt.includes(`"${heading}"`)
      expect([heading, isThere]).toEqual([heading, [end, shared.trim()].includes(heading)])
    }
    expect(team.run.turnEnds === undefined).toBe(layout === 'contiguous')
  })

  test('rules as a message of their own, a template of its own, words in place of ours', async () => {
    const own = await prepare({
      rulesAs: 'system',
      texts: { rules: ({ names }) => `RULES for ${names.length}`, record: 'RECORD' },
    })
    expect(textOf(own.run.prompt)).toBe(
      '<|begin|>system\nRULES for 2<|end|>\n<|begin|>user\nWhat is 2 + 2?<|end|>\n<|begin|>assistant\nRECORD',
    )
    expect(own.texts.own).toBe(collaborationTexts.own)
    const folder = byteLevelFolder({ chat_template: '{{ messages[0].content }}|{{ mood }}|' })
    await using other = await loadTokenizer(folder)
    const team = await collaborate({
      ...{ tokenizer: other, problem, workers: 1, chat: { variables: { mood: 'calm' } } },
    })
    expect(textOf(team.run.prompt).endsWith('2 + 2?|calm|')).toBe(true)
  })

  test('without a chat template: one text, with what the model puts before texts', async () => {
    await using plain = await loadTokenizer(byteLevelFolder())
    const team = await collaborate({ tokenizer: plain, problem: 'x <|end|>' })
    const text = plain.decode(team.run.prompt)
    expect(text.startsWith('<|begin|>Alice and Bob solve')).toBe(true)
    expect(text.endsWith('The problem:\n\nx <|end|>\n\n# Finished paragraphs')).toBe(true)
    // What is written in the problem is no special token, with a template neither.
    for (const { run } of [team, await prepare({ problem: 'x <|end|>' })]) {
      const ends = Array.from(run.prompt).filter((id) => id === tokenizer.tokenId('<|end|>'))
      expect(ends).toHaveLength(run === team.run ? 0 : 1)
    }
  })

  test.each<[string, Partial<Record<keyof CollaborationOptions, unknown>>]>([
    ['options has no "worker"', { worker: 2 } as object],
    ['options.workers', { workers: 17 }],
    ['options.workers', { workers: [] }],
    ['options.workers', { workers: ['Ann', 'Ann'] }],
    ['options.workers[1]', { workers: ['Ann', 'B\nC'] }],
    ['options.workers[0]', { workers: [' Ann'] }],
    ['options.workers[0]', { workers: ['<|end|>'] }],
    ['options.layout', { layout: 'star' }],
    ['options.checkEvery', { checkEvery: -1 }],
    ["0 in layout 'contiguous'", { layout: 'contiguous', checkEvery: 5 }],
    ['options.problem', { problem: 5 }],
    ['options.tokenizer', { tokenizer: {} }],
    ['options.texts has no "rule"', { texts: { rule: '' } }],
    ['options.texts.turn', { texts: { turn: 'x' } }],
    ['options.texts.answer', { texts: { answer: null } }],
    ['options.texts.answer.closing', { texts: { answer: { opening: '(', closing: '' } } }],
    ['the result of options.texts.rules', { texts: { rules: () => 5 } }],
    ['options.rulesAs', { rulesAs: 'tool' }],
    ['options.chat has no "tools"', { chat: { tools: [] } }],
    ['options.signal', { signal: 1 }],
  ])('refused: %s', async (message, options) => {
    const refused = () => prepare(options as Partial<CollaborationOptions>)
    await expect(refused()).rejects.toThrow(message)
    expect(await codeOf(refused)).toBe('HOGWILD_INVALID_ARGUMENT')
  })

  test('an aborted signal', async () => {
    expect(await codeOf(() => prepare({ signal: AbortSignal.abort() }))).toBe('HOGWILD_ABORTED')
  })

  test('docs/layouts.md and docs/prompting.md show them', () => {
    const script = join(__dirname, '..', 'scripts', 'layouts.cjs')
    execFileSync(process.execPath, [script, '--check'], { stdio: 'pipe' })
  })
})

describe('the end of a turn', () => {
  test.each([
    ['So it is 4.\n\n', true],
    ['So it is 4.\n \n', true],
    ['So it is 4.\r\n\r\n', true],
    ['So it is 4.\n\n\n   ', true],
    ['So it is 4.', false],
    ['So it is 4.\n', false],
    ['So it is 4.\n\nThen', false],
    ['It follows that:\n\n', false],
    ['It follows that\n\n', false],
    ['"Is it?"\n\n', true],
    ['(It is.)\n\n', true],
    ['**It is!**\n\n', true],
    ['So on…\n\n', true],
    ['答えは四です。\n\n', true],
    ['चार है।\n\n', true],
    ['\n\n', false],
    ['', false],
    ['As follows.\n```\nx = 1.\n\n', false],
    ['As follows.\n```\nx = 1.\n\n```\nDone.\n\n', true],
    ['Here $$ x = 1.\n\n', false],
    ['Here $$ x = 1 $$ it is.\n\n', true],
  ])('%j: %s', (text, ends) => {
    expect(endsParagraph(text)).toBe(ends)
  })

  /** Tokens are pieces of a text. */
  const piecewise = (pieces: readonly string[]) => ({
    decode: (ids: ArrayLike<number>) => Array.from(ids, (id) => pieces[id]).join(''),
  })

  test('a blank line as a token, within one, and over several', () => {
    const pieces = ['It is', '.', '\n\n', '.\n\n', '\n', ' ', '\n\nSo', ' \n', '!\n', ':\n\n']
    const ends = paragraphEnds(piecewise(pieces))
    const ids = (...texts: string[]) => texts.map((text) => pieces.indexOf(text))
    expect(ends(ids('It is', '.', '\n\n'))).toBe(true)
    expect(ends(ids('It is', '.\n\n'))).toBe(true)
    expect(ends(ids('It is', '.', '\n', '\n'))).toBe(true)
    expect(ends(ids('It is', '!\n', '\n'))).toBe(true)
    expect(ends(ids('It is', '.', '\n', ' ', ' ', ' ', '\n'))).toBe(true)
    expect(ends(ids('It is', '!\n', ' \n'))).toBe(true)
    expect(ends(ids('It is', '.\n\n', ' ', ' '))).toBe(true)
    expect(ends(ids('It is', '.', '\n\nSo'))).toBe(false)
    expect(ends(ids('It is', '.\n\n', 'It is'))).toBe(false)
    expect(ends(ids('It is', ':\n\n'))).toBe(false)
    expect(ends(ids('\n\n'))).toBe(false)
    expect(ends([])).toBe(false)
  })

  test('is where the text has it, however it is cut into tokens', () => {
    const seed = Date.now() % 2 ** 31
    const random = new Random(seed)
    const parts = ['It is', '.', '!', ':', '\n', '\n\n', ' ', '\u3000', '…', '```', '$$', '。', '’']
    let ended = 0
    for (let i = 0; i < 2000; i++) {
      const text = Array.from({ length: random.int(1, 12) }, () => random.pick(parts)).join('')
      const pieces: string[] = []
      for (let at = 0; at < text.length; ) {
        const end = at + random.int(1, 4)
        pieces.push(text.slice(at, end))
        at = end
      }
      const ends = paragraphEnds(piecewise(pieces))([...pieces.keys()])
      expect([seed, text, ends]).toEqual([seed, text, endsParagraph(text)])
      // Tokens of bytes, so that characters are cut too.
      expect([seed, text, paragraphEnds(tokenizer)(tokenizer.encodeSync(text))]).toEqual([
        ...[seed, text, ends],
      ])
      if (ends) ended++
    }
    expect(ended).toBeGreaterThan(20)
  })

  test('looks at no more tokens than it takes', () => {
    const counts: number[] = []
    const counting = {
      decode: (ids: ArrayLike<number>) => {
        counts.push(ids.length)
        return Array.from(ids, () => 'a').join('')
      },
    }
    expect(paragraphEnds(counting)(new Array(10_000).fill(0))).toBe(false)
    expect(counts).toEqual([1])
  })
})

describe('answers', () => {
  const boxed = collaborationTexts.answer
  test.each([
    ['It is \\boxed{4}.', '4'],
    ['\\boxed{3}, no, \\boxed{ 4 }', '4'],
    ['\\boxed{\\frac{1}{2}} is half', '\\frac{1}{2}'],
    ['\\boxed{4} or \\boxed{5', '4'],
    ['\\boxed{4} as \\boxed{...}', '4'],
    ['\\boxed{...}', undefined],
    ['\\boxed{}', undefined],
    ['\\boxed{4', undefined],
    ['4}', undefined],
    ['', undefined],
  ])('%j', (text, answer) => {
    expect(findAnswer(text, boxed)).toBe(answer)
  })

  test('of other forms', () => {
    const code = { opening: '```ts\n', closing: '```' }
    expect(findAnswer('```ts\nlet a = {}\n```', code)).toBe('let a = {}')
    expect(findAnswer('Answer: 4\nmore', { opening: 'Answer:', closing: '\n' })).toBe('4')
  })
})

/** Runs to the end; what happens on the way is up to `onEvent`. */
async function collect(
  team: Collaboration,
  options: Partial<RunOptions> & { model: Model },
  onEvent: (event: WorkerEvent, transcript: Transcript) => void | Promise<void> = () => {},
) {
  const transcript = new Transcript(team)
  const events: WorkerEvent[] = []
  await using run = runWorkers({ ...team.run, capacity: 4096, ...options })
  for await (const event of run) {
    transcript.push(event)
    await onEvent(event, transcript)
    events.push(event)
  }
  return { events, transcript, workers: run.workers }
}

/** Each paragraph is " no.", then a blank line; in the finisher's braces stands 42. */
const FOLLOWS = {
  ':': ' no',
  '*': ' no',
  // The last letters of the greetings.
  e: ' no',
  l: ' no',
  ' no': '.',
  '.': '\n\n',
  '\n\n': ' no',
  '{': '4',
  '4': '2',
  '2': '}',
}

describe('checks', () => {
  let model: Model
  let scripted: Tokenizer
  beforeAll(async () => {
    const folder = writeScriptedModel({ follows: FOLLOWS })
    model = await loadModel(folder, { device: 'cpu', threads: 1 })
    scripted = await loadTokenizer(folder)
  })
  afterAll(async () => {
    await model.close()
    await scripted.close()
  })

  /** What stands in a worker's blocks. */
  const written = (tokens: readonly number[]) => scripted.decode(tokens)

  test.each(['combined', 'interleaved'] as const)('come with a paragraph, %s', async (layout) => {
    const team = await collaborate({ tokenizer: scripted, problem, layout, checkEvery: 7 })
    const { transcript, workers } = await collect(team, { model, maxTokens: 30 })
    const check = collaborationTexts.check
    // A paragraph has three tokens, so a check comes after every third.
    const paragraphs = (name: string, first: number) =>
      Array.from({ length: 30 }, (_, i) => {
        const turn = i + 2
        const heading = `**${name} [${turn}]:**`
        return (turn - first) % 3 === 0 ? `${heading}${check} no.\n\n` : `${heading} no.\n\n`
      }).join('')
    const [alice, bob] = workers.map(({ tokens }) => written(tokens))
    const opening = '\n\n**Alice [1]:** Alice here. I suggest that we no.\n\n'
    expect(alice).toBe((opening + paragraphs('Alice', 4)).slice(0, alice?.length))
    expect(alice?.split(check)).toHaveLength(4)
    const bobs = '\n\n**Bob [1]:** Bob here. I will no.\n\n'
    expect(bob).toBe((bobs + paragraphs('Bob', 4)).slice(0, bob?.length))
    expect(transcript.checks.map(({ worker }) => worker).sort()).toEqual([
      ...new Array(3).fill('Alice'),
      ...new Array(3).fill('Bob'),
    ])
    expect(transcript.checks.every(({ redundant }) => redundant === false)).toBe(true)
  })

  test('0: never; and a yes is told from a no', async () => {
    const never = await collaborate({ tokenizer: scripted, problem, checkEvery: 0 })
    expect((await collect(never, { model, maxTokens: 30 })).transcript.checks).toEqual([])
    const texts = { check: ' Is this redundant? Then yes, else no.. yes' }
    const team = await collaborate({ tokenizer: scripted, problem, checkEvery: 1, texts })
    const transcript = new Transcript(team)
    const token = (text: string, forced = false, step = 0): WorkerEvent => ({
      ...{ type: 'token', worker: 'Bob', step, token: 1, text, forced },
    })
    for (const text of [' y', 'es', ', it is']) {
      if (text === ' y') transcript.push(token(`**Bob [2]:**${texts.check}`, true, 5))
      transcript.push(token(text))
    }
    transcript.push(token(texts.check, true, 9))
    transcript.push(token(' nobody knows'))
    expect(transcript.checks).toEqual([
      { worker: 'Bob', step: 5, redundant: true },
      { worker: 'Bob', step: 9, redundant: undefined },
    ])
  })

  test('transcripts hold what the blocks hold', async () => {
    const team = await collaborate({ tokenizer: scripted, problem, workers: 3, checkEvery: 5 })
    const snapshots: Snapshot[] = []
    const { events, transcript, workers } = await collect(
      team,
      { model, maxTokens: 20 },
      (event, seen) => {
        if (event.type === 'step') snapshots.push(seen.snapshot())
      },
    )
    const last = transcript.snapshot()
    expect(last).toEqual(snapshots.at(-1))
    expect([last.tokens, last.steps]).toEqual([20, snapshots.length])
    expect(snapshots.map(({ steps }) => steps)).toEqual([...snapshots.keys()].map((i) => i + 1))
    // All that a worker wrote is in its finished paragraphs, in their order, and then in its own block.
    const turns = new Map<string, number[][]>(team.names.map((name) => [name, [[]]]))
    const record: number[] = []
    for (const event of events) {
      if (event.type === 'token') turns.get(event.worker)?.at(-1)?.push(event.token)
      if (event.type !== 'turn') continue
      record.push(...(turns.get(event.worker)?.at(-1) ?? []))
      turns.get(event.worker)?.push([])
    }
    expect(last.record).toEqual(record)
    for (const [i, { name, tokens }] of workers.entries()) {
      expect(last.workers[i]).toEqual({ name, tokens: turns.get(name)?.at(-1) })
      expect(tokens).toEqual(turns.get(name)?.flat())
    }
    expect(JSON.parse(JSON.stringify(last))).toEqual(last)
  })

  test('the finisher finds the answer, or the one that a worker gave', async () => {
    const team = await collaborate({ tokenizer: scripted, problem })
    const { transcript } = await collect(team, { model, maxTokens: 9 })
    expect(transcript.answer).toBeUndefined()
    const snapshot = transcript.snapshot()
    const early = await finish({ model, collaboration: team, snapshot })
    expect(early).toEqual({ answer: '42', text: '42}', tokens: expect.anything() })
    expect(early.tokens).toHaveLength(3)
    expect(await finish({ model, collaboration: team, snapshot, maxTokens: 2 })).toMatchObject({
      ...{ answer: undefined, text: '42' },
    })
    const given = { ...snapshot, answer: { worker: 'Bob', answer: '5' } }
    expect(await finish({ model, collaboration: team, snapshot: given })).toEqual({
      ...{ answer: '5', text: '', tokens: [] },
    })
    const refused = finish({ model, collaboration: team, snapshot, worker: 'Bob' })
    await expect(refused).rejects.toThrow('absent where workers see one another')
  })

  test('workers that see nobody else have answers of their own', async () => {
    const team = await collaborate({ tokenizer: scripted, problem, workers: 2, share: false })
    const { transcript } = await collect(team, { model, maxTokens: 4 })
    const snapshot = transcript.snapshot()
    expect(snapshot.record).toEqual([])
    snapshot.workers[0]!.answer = '7'
    const ask = (worker?: string) => finish({ model, collaboration: team, snapshot, worker })
    expect((await ask()).answer).toBe('7')
    expect((await ask('Bob')).answer).toBe('42')
    await expect(ask('Carol')).rejects.toThrow("one of 'Alice', 'Bob'")
  })

  test('a worker that gives an answer', async () => {
    const follows = { ...FOLLOWS, ' no': '\\', '\\': 'boxed{', 'boxed{': '4', '}': '.' }
    const folder = writeScriptedModel({ follows })
    await using own = await loadModel(folder, { device: 'cpu', threads: 1 })
    await using texts = await loadTokenizer(folder)
    const team = await collaborate({ tokenizer: texts, problem })
    const { transcript } = await collect(team, { model: own, maxTokens: 12 })
    expect(transcript.answer).toEqual({ worker: 'Alice', answer: '42' })
    expect(transcript.answerOf('Bob')).toBe('42')
    expect(() => transcript.answerOf('Carol')).toThrow("one of 'Alice', 'Bob'")
  })

  test.each<[string, object]>([
    ['options.snapshot', { snapshot: 5 }],
    ['options.snapshot.workers', { snapshot: { steps: 0, tokens: 0, record: [], workers: [] } }],
    [
      'options.snapshot.record',
      { snapshot: { steps: 0, tokens: 0, record: 'x', workers: [{ name: 'A', tokens: [] }] } },
    ],
    ['options.collaboration', { collaboration: undefined }],
    ['options.maxTokens', { maxTokens: 0 }],
    ['options.model', { model: {} }],
    ['options has no "modle"', { modle: 1 }],
  ])('finish refuses %s', async (message, changes) => {
    const team = await collaborate({ tokenizer: scripted, problem })
    const snapshot = new Transcript(team).snapshot()
    const call = () => finish({ model, collaboration: team, snapshot, ...changes })
    await expect(call()).rejects.toThrow(message)
    expect(await codeOf(call)).toBe('HOGWILD_INVALID_ARGUMENT')
  })
})

describe('the finisher leaves all as it was', () => {
  let model: Model
  beforeAll(async () => {
    model = await loadModel(writeModel({ vocabSize: 258, seed: 5 }), { device: 'cpu', threads: 1 })
  })
  afterAll(() => model.close())

  test('in a run: the same events', async () => {
    const team = () => prepare({ workers: 3 })
    const options = async (collaboration: Collaboration) => ({
      model,
      maxTokens: 40,
      stopTokens: [],
      workers: collaboration.run.workers.map((worker, i) => ({
        ...worker,
        sampler: { temperature: i, seed: i },
      })),
    })
    const plain = await team()
    const alone = await collect(plain, await options(plain))
    const asked = await team()
    const answers: string[] = []
    const beside = await collect(asked, await options(asked), async (event, transcript) => {
      if (event.type !== 'step' || event.step % 7 !== 3) return
      const snapshot = transcript.snapshot()
      const { text } = await finish({ model, collaboration: asked, snapshot, maxTokens: 8 })
      answers.push(text)
    })
    const untimed = ({ events }: { events: WorkerEvent[] }) =>
      events.map((event) => ('milliseconds' in event ? { ...event, milliseconds: 0 } : event))
    expect(untimed(beside)).toEqual(untimed(alone))
    expect(answers.length).toBeGreaterThan(3)
    expect(answers.every((text) => text.length > 0)).toBe(true)
  })

  test('behind the blocks of a run: the same events', async () => {
    const events = async (suffix?: string) => {
      const team = await prepare({ workers: 3 })
      const run = runWorkers({ model, ...team.run, capacity: 8192, maxTokens: 15, stopTokens: [] })
      const seen: WorkerEvent[] = []
      for await (const event of run) {
        seen.push('milliseconds' in event ? { ...event, milliseconds: 0 } : event)
        if (suffix === undefined || event.type !== 'step') continue
        const { common, shared, workers } = run.blocks
        const own = team.names.map((name) => workers[name]?.own)
        const blocks = [common, shared, ...own].filter((block) => block !== undefined)
        const { answer } = team.texts
        const early = await extractAnswer({
          model,
          tokenizer,
          blocks,
          suffix,
          answer,
          maxTokens: 3,
        })
        expect(early.tokens.length).toBeGreaterThan(0)
      }
      return seen
    }
    expect(await events(collaborationTexts.finisher)).toEqual(await events())
  })

  test('behind blocks: the same bits, and the tokens that a worker would write there', async () => {
    const suffix = ' So it is \\boxed{'
    const answer = collaborationTexts.answer
    /** Logits of the blocks' next token, with what was stored in them before. */
    const go = async (ask: (blocks: Block[]) => Promise<void>) => {
      await using cache = model.createCache({ capacity: 1024 })
      const random = new Random(7)
      const blocks = [cache.createBlock(), cache.createBlock(), cache.createBlock()]
      const [common, ...workers] = blocks as [Block, Block, Block]
      await model.prefill(common, random.tokens(30, 256))
      for (const block of workers) {
        await model.step([{ view: { blocks: [common, block] }, tokens: random.tokens(20, 256) }])
      }
      const { freePages } = cache.stats
      await ask(blocks)
      expect(cache.stats.freePages).toBe(freePages)
      const stored = blocks.map((block) => [block.tokens(), block.read(0), block.read(1)])
      const step = { view: { blocks }, tokens: [65], logits: 'last' } as const
      const [output] = await model.step([step])
      return { stored, logits: output?.logits }
    }
    const asked: EarlyAnswer[] = []
    const written: number[] = []
    const plain = await go(async () => {})
    const beside = await go(async (blocks) => {
      const options = { model, tokenizer, blocks, suffix, answer, maxTokens: 12 }
      asked.push(await extractAnswer(options), await extractAnswer(options))
    })
    expect(beside).toEqual(plain)
    await go(async (blocks) => {
      const own = (blocks[0] as Block).cache.createBlock()
      let tokens = tokenizer.encodeSync(suffix, { addSpecialTokens: false })
      while (written.length < 12) {
        const [output] = await model.step([{ view: { blocks: [...blocks, own] }, tokens }])
        tokens = [output?.token as number]
        if (tokens[0] === tokenizer.tokenId('<|end|>')) break
        written.push(...tokens)
      }
      own.close()
    })
    expect(asked[1]).toEqual(asked[0])
    const { tokens, answer: found } = asked[0] as EarlyAnswer
    expect(tokens).toEqual(written.slice(0, tokens.length))
    expect(tokens.length > 0 && (found !== undefined || tokens.length === written.length)).toBe(
      true,
    )
  })

  test('a full cache and an aborted call give their block back', async () => {
    await using cache = model.createCache({ capacity: 64 })
    const block = cache.createBlock()
    await model.prefill(block, new Random(1).tokens(60, 256))
    const { freePages } = cache.stats
    const ask = (suffix: string, signal?: AbortSignal) =>
      extractAnswer({
        ...{ model, tokenizer, blocks: [block], suffix, answer: collaborationTexts.answer, signal },
      })
    expect(await codeOf(() => ask('{'))).toBe('HOGWILD_OUT_OF_PAGES')
    expect(await codeOf(() => ask('{', AbortSignal.abort()))).toBe('HOGWILD_ABORTED')
    expect(await codeOf(() => ask(''))).toBe('HOGWILD_INVALID_ARGUMENT')
    expect([cache.stats.freePages, block.length]).toEqual([freePages, 60])
  })
})

describe('thinker and writer', () => {
  const ready = (options = {}) => thinkAndWrite({ tokenizer, problem, ...options })

  test('their texts', async () => {
    const { blocks, question } = await ready()
    const texts = Object.fromEntries(
      Object.entries(blocks).map(([name, ids]) => [name, textOf(ids)]),
    )
    const { thinkerRules } = thinkerWriterTexts
    expect(texts).toEqual({
      thinkerPrompt: `<|begin|>user\n${thinkerRules}\n\nThe problem:\n\nWhat is 2 + 2?<|end|>\n<|begin|>assistant\n`,
      thinkerHeading: '\n\n[the reply goes on here]\n\nMy thoughts:\n\n',
      writerPrompt: '<|begin|>user\nWhat is 2 + 2?<|end|>\n<|begin|>assistant\nMy thoughts:\n\n',
      writerHeading: '\n\n[more thoughts come here]\n\nMy reply:',
      thoughts: 'Let me think step by step.',
      reply: '\n\n',
    })
    // The answers share their space.
    expect(textOf(question.tokens)).toBe(`${thinkerWriterTexts.question} `)
    expect([question.yes, question.no].map((id) => textOf([id]))).toEqual(['y', 'n'])
  })

  test('what each sees', () => {
    const names = {
      ...{ thinkerPrompt: 'thinkerPrompt', thinkerHeading: 'thinkerHeading', reply: 'reply' },
      ...{ writerPrompt: 'writerPrompt', writerHeading: 'writerHeading', thoughts: 'thoughts' },
    }
    expect(thinkerView(names)).toEqual(['thinkerPrompt', 'reply', 'thinkerHeading', 'thoughts'])
    expect(writerView(names)).toEqual(['writerPrompt', 'thoughts', 'writerHeading', 'reply'])
    const late = { ...names, inputs: 'inputs' }
    expect(thinkerView(late).slice(-2)).toEqual(['inputs', 'thoughts'])
    expect(writerView(late).slice(0, 3)).toEqual(['writerPrompt', 'inputs', 'thoughts'])
  })

  test('when the question is due, and when the writer waits', async () => {
    const { asks, waits } = await ready({ askEvery: 5 })
    const ids = (text: string) => tokenizer.encodeSync(text, { addSpecialTokens: false })
    const due = [...'abcdefghijkl'].map((_, i) => asks(ids('abcdefghijkl'.slice(0, i + 1))))
    expect(due.flatMap((isDue, i) => (isDue ? [i + 1] : []))).toEqual([5, 10])
    expect([asks([]), asks(ids('ab\n\n'))]).toEqual([false, true])
    expect([waits(ids('ab:\n\n')), waits(ids('ab')), waits([])]).toEqual([true, false, false])
  })

  test('models that have tags for thoughts, and templates that open them', async () => {
    const template = `${CHAT_TEMPLATE}{% if add_generation_prompt %}{{ opening }}{% endif %}`
    const scripted = { follows: { '<think>': 'x' }, chatTemplate: template }
    await using tagged = await loadTokenizer(writeScriptedModel(scripted))
    expect(tagged.tokenId('<think>')).toBeDefined()
    const blocksOf = async (opening: string) => {
      const chat = { variables: { opening } }
      const { blocks } = await thinkAndWrite({ tokenizer: tagged, problem, chat })
      return blocks
    }
    const closed = await blocksOf('')
    expect(tagged.decode(closed.writerPrompt).endsWith('<|begin|>assistant\n<think>\n')).toBe(true)
    expect(tagged.decode(closed.writerHeading)).toBe('\n\n[more thoughts come here]\n</think>')
    expect(tagged.decode(closed.thinkerHeading).endsWith('here]\n\n<think>\n')).toBe(true)
    const open = await blocksOf('<think>\n')
    expect(tagged.decode(open.writerPrompt).split('<think>')).toHaveLength(2)
    expect(tagged.decode(open.thinkerHeading)).toBe('\n\n[the reply goes on here]\n\n')
  })

  test.each<[string, object]>([
    ['differ in a token', { texts: { yes: ' a', no: ' a' } }],
    ['differ in a token', { texts: { question: '', yes: 'a', no: 'b' } }],
    ['options.askEvery', { askEvery: 0 }],
    ['options.texts.reply', { texts: { reply: 1 } }],
    ['options has no "every"', { every: 1 }],
  ])('refused: %s', async (message, options) => {
    await expect(ready(options)).rejects.toThrow(message)
    expect(await codeOf(() => ready(options))).toBe('HOGWILD_INVALID_ARGUMENT')
  })

  test('a question leaves no trace in what is written', async () => {
    const model = await loadModel(writeModel({ vocabSize: 258, seed: 9 }), { threads: 1 })
    const { blocks: texts, question } = await ready()
    const write = async (asking: boolean) => {
      await using cache = model.createCache({ capacity: 4096 })
      const blocks = Object.fromEntries(
        Object.keys(texts).map((name) => [name, cache.createBlock()]),
      ) as { [name in keyof typeof texts]: ReturnType<typeof cache.createBlock> }
      for (const name of [
        'thinkerPrompt',
        'writerPrompt',
        'thinkerHeading',
        'writerHeading',
      ] as const) {
        await model.prefill(blocks[name], texts[name], { sampler: null })
      }
      let next = [texts.thoughts, texts.reply]
      const written: number[][] = [[], []]
      for (let step = 0; step < 12; step++) {
        const outputs = await model.step(
          [thinkerView(blocks), writerView(blocks)].map((list, i) => ({
            ...{ view: { blocks: list }, tokens: next[i] as number[] },
          })),
        )
        next = outputs.map(({ token }) => [token as number])
        for (const [i, [token]] of next.entries()) written[i]?.push(token as number)
        if (!asking) continue
        const view = { blocks: [...thinkerView(blocks), cache.createBlock()] }
        const [output] = await model.step([{ view, tokens: question.tokens, logits: 'last' }])
        expect(output?.logits?.[question.yes]).not.toBe(output?.logits?.[question.no])
        view.blocks.at(-1)?.close()
      }
      return written
    }
    expect(await write(true)).toEqual(await write(false))
    await model.close()
  })
})

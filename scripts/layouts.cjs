#!/usr/bin/env node
// Draws what workers see into docs/layouts.md and docs/prompting.md, behind their markers: the blocks of a view from top to
// bottom with their texts, which are those of lib/collaboration/. Needs a build.
//
//   node scripts/layouts.cjs [--check]
//
// --check: changes nothing and fails where a document is not in step.
'use strict'
const { readFileSync, writeFileSync } = require('node:fs')
const path = require('node:path')

const root = path.join(__dirname, '..')
const { collaborationTexts: texts, thinkerWriterTexts, thinkerView, writerView, viewOf } = require(
  path.join(root, 'dist', 'index.js'),
)
const { blockTexts } = require(path.join(root, 'dist', 'collaboration', 'texts.js'))

const NAMES = ['Alice', 'Bob', 'Carol']
/** Whose view is drawn. */
const SEEN_BY = 1
const CURSOR = '▮'
/** Characters of a line of text. */
const WIDTH = 130

/** Blocks of a view, one below the other, each with its name and its text. */
function draw(blocks) {
  const width = Math.max(...blocks.map(({ name }) => name.length))
  const parts = blocks.map(({ name, text }) =>
    text
      .split('\n')
      .map((line, i) => `${(i === 0 ? name : '').padStart(width)} │ ${line}`.trimEnd())
      .join('\n'),
  )
  const rule = `\n${'─'.repeat(width)}─┼${'─'.repeat(60)}\n`
  return parts.join(rule)
}

const paragraph = (name, turn, text) => `${texts.turn(name, turn)} ${text}`
const greeting = (name, text) =>
  `${texts.turn(name, 1)}${texts.greeting(name, NAMES.indexOf(name))}${text}`

const ALICE = greeting('Alice', ' each take a third: the numbers up to 33 are mine.')
const CAROL = greeting('Carol', ' look for a formula instead')

/** Paragraphs that have ended, and the texts of the others' own blocks. */
const SCENES = {
  contiguous: {
    record: [],
    own: { Alice: `\n\n${ALICE}\n\nFrom 1 to 33: the pairs are`, Carol: `\n\n${CAROL}` },
  },
  interleaved: { record: [ALICE], own: {} },
  combined: {
    record: [ALICE],
    own: {
      Alice: `\n\n${paragraph('Alice', 2, 'From 1 to 33: the pairs are')}`,
      Carol: `\n\n${CAROL}`,
    },
  },
}

function drawLayout(layout) {
  const { commonEnd, sharedHeader, header } = blockTexts(texts, { names: NAMES, layout }, true)
  const { record, own } = SCENES[layout]
  const seen = greeting(NAMES[SEEN_BY], ' add up the numbers from 34 to 66')
  const content = {
    common: [`(rules, problem)\n${commonEnd}`, ...record].join('\n\n'),
    shared: sharedHeader,
    header,
    ...own,
    [NAMES[SEEN_BY]]: `\n\n${seen}${CURSOR}`,
  }
  const workers = NAMES.map((name) => ({ own: name, header: 'header' }))
  const shared = layout === 'combined' ? 'shared' : undefined
  const view = viewOf(layout, { common: 'common', shared, workers }, SEEN_BY)
  return draw(view.map((name) => ({ name, text: content[name] })))
}

function drawThinkerWriter(view) {
  const words = thinkerWriterTexts
  const reply = `${words.reply}The sum has fifty pairs.`
  const thoughts = `${words.thoughts} There are fifty pairs of 101 each. So`
  const isThinker = view === thinkerView
  const content = {
    thinkerPrompt: '(rules, problem)',
    thinkerHeading: words.thinkerHeading + words.thinkOpening,
    writerPrompt: `(problem)\n${words.thinkOpening}`,
    writerHeading: words.writerHeading + words.thinkClosing,
    thoughts: isThinker ? thoughts + CURSOR : thoughts,
    reply: isThinker ? reply : reply + CURSOR,
  }
  const names = Object.fromEntries(Object.keys(content).map((name) => [name, name]))
  return draw(view(names).map((name) => ({ name, text: content[name] })))
}

const parts = {
  contiguous: () => drawLayout('contiguous'),
  interleaved: () => drawLayout('interleaved'),
  combined: () => drawLayout('combined'),
  thinker: () => drawThinkerWriter(thinkerView),
  writer: () => drawThinkerWriter(writerView),
  rules: () => wrapped(texts.rules({ names: NAMES, layout: 'combined' })),
}

/** Lines of the rules are long: they are broken as the document's are. */
function wrapped(text) {
  const lines = []
  for (const line of text.split('\n')) {
    const [first, ...words] = line.split(' ')
    lines.push(first)
    for (const word of words) {
      const longer = `${lines.at(-1)} ${word}`
      if (longer.length <= WIDTH) lines[lines.length - 1] = longer
      else lines.push(line.startsWith('- ') ? `  ${word}` : word)
    }
  }
  return lines.join('\n')
}

for (const name of ['layouts.md', 'prompting.md']) {
  const file = path.join(root, 'docs', name)
  const before = readFileSync(file, 'utf8')
  const after = before.replace(
    /(<!-- (?:drawing|text):(\w+) -->\n```\n)[\s\S]*?(^```$)/gm,
    (_, begin, key, end) => `${begin}${parts[key]()}\n${end}`,
  )
  if (!process.argv.includes('--check')) writeFileSync(file, after)
  else if (before !== after) {
    console.error(`docs/${name} is not in step with lib/collaboration: node scripts/layouts.cjs`)
    process.exitCode = 1
  }
}

#!/usr/bin/env node
// Draws docs/demo.svg, the README's picture, from a run of the demo: what `hogwild demo` shows in a terminal, step by
// step, in colours that can be read on light and on dark pages. Needs the built package.
//
//   node scripts/demo-picture.cjs [--check]
//
// --check: changes nothing and fails where the picture is not what is drawn now. Nothing in it is measured.
'use strict'
const { readFileSync, writeFileSync } = require('node:fs')
const path = require('node:path')
const { createColors } = require('picocolors')

const root = path.join(__dirname, '..')
const built = (name) => require(path.join(root, 'dist', 'cli', 'demo', `${name}.js`))
const { drawFrame, drawLast } = built('frame')
const { Pace } = built('pace')
const { formatRace, race } = built('race')
const { Show } = built('show')
const { createTask, parseSentence } = built('task')
const { DemoModel } = built('team')

const SENTENCE = 'many hands make light work when they see at once what is done already'
const COMMAND = 'npx hogwild demo'
const COLUMNS = 81
const ROWS = 24
/** Of the first picture, of a step, and of the end. */
const [FIRST_MS, STEP_MS, LAST_MS] = [1500, 250, 6000]

// In pixels.
const [CHARACTER, LINE, FONT, PADDING] = [8.4, 19, 14, 18]

/** Colours of text and of the ground, each readable on it (WCAG AA). */
const PALETTES = {
  light: {
    ...{ ground: '#f6f8fa', text: '#1f2328', dim: '#59636e', red: '#b3261e' },
    ...{ cyan: '#0b6b74', yellow: '#7a5200', magenta: '#8b2fa8', green: '#1a6b2c' },
  },
  dark: {
    ...{ ground: '#161b22', text: '#d7dae0', dim: '#9198a1', red: '#ff7b72' },
    ...{ cyan: '#56b6c2', yellow: '#e5c07b', magenta: '#d19ae8', green: '#98c379' },
  },
}

/** What the escape codes of picocolors set, and to what. */
const CODES = {
  ...{ 0: {}, 1: { bold: true }, 2: { ink: 'dim' }, 7: { inverse: true } },
  ...{ 22: { bold: false, ink: 'text' }, 27: { inverse: false }, 39: { ink: 'text' } },
  ...{ 31: { ink: 'red' }, 32: { ink: 'green' }, 33: { ink: 'yellow' } },
  ...{ 35: { ink: 'magenta' }, 36: { ink: 'cyan' } },
}

/** The characters of a line with how each looks, without spaces: [column, character, look]. */
function cellsOf(line) {
  const cells = []
  let look = { ink: 'text', bold: false, inverse: false }
  let column = 0
  // biome-ignore lint/suspicious/noControlCharactersInRegex: escape codes are what is looked for
  for (const part of line.split(/(\x1b\[\d+m)/)) {
    // biome-ignore lint/suspicious/noControlCharactersInRegex: as above
    const [, code] = /^\x1b\[(\d+)m$/.exec(part) ?? []
    if (code !== undefined) {
      if (!(code in CODES)) throw new Error(`no look for the escape code ${code}`)
      look = { ...look, ...CODES[code] }
      continue
    }
    for (const character of part) {
      if (character !== ' ' || look.inverse) cells.push([column, character, look])
      column += 1
    }
  }
  return cells
}

/** A view that keeps what a terminal would show. */
class Recorder {
  constructor(scene, colors) {
    // Taken at full speed, shown as slow as a person sees it.
    const live = { pace: String(new Pace(1000 / STEP_MS)), hasKeys: true }
    this.draw = () => drawFrame({ ...scene(), ...live }, colors, COLUMNS, ROWS)
    this.last = () => drawLast(scene(), colors, COLUMNS + 1)
    this.frames = []
  }
  open() {
    this.frames.push(this.draw())
  }
  line() {}
  note() {}
  show() {
    this.frames.push(this.draw())
  }
  close() {
    this.frames.pop()
    this.frames.push(this.last())
  }
}

/** The lines of each picture, and those that come below the last one. */
async function record() {
  const colors = createColors(true)
  const task = createTask(parseSentence(SENTENCE))
  const team = await DemoModel.load('cpu')
  try {
    let recorder
    const show = new Show(team, task, {
      ...{ workers: 4, share: true, pace: 0, firstPauseMs: 0, hasKeys: false },
      view: (scene) => {
        recorder = new Recorder(scene, colors)
        return recorder
      },
    })
    await show.play()
    const width = COLUMNS - 1
    const { table, summary } = formatRace(await race(team, task), width, false)
    const rows = table.map((line, index) => (index < 2 ? colors.dim(line) : line))
    const end = [
      ...['', ...show.conclusion(colors, width), '', ...rows],
      ...['', colors.dim(summary.at(-1))],
    ]
    return { frames: recorder.frames, end: end.map((line) => line && ` ${line}`) }
  } finally {
    await team.close()
  }
}

/** Runs of characters that look alike and are there from one picture on up to another: text elements. */
function textsOf(pictures) {
  const alive = new Map()
  const dead = []
  pictures.forEach((lines, picture) => {
    const now = new Map()
    lines.forEach((line, row) => {
      for (const [column, character, look] of cellsOf(line)) {
        const key = `${row} ${column} ${character} ${JSON.stringify(look)}`
        const cell = { row, column, character, look, begin: picture }
        now.set(key, alive.get(key) ?? cell)
      }
    })
    for (const [key, cell] of alive) if (!now.has(key)) dead.push({ ...cell, end: picture })
    alive.clear()
    for (const [key, cell] of now) alive.set(key, cell)
  })
  const cells = [...dead, ...[...alive.values()].map((cell) => ({ ...cell, end: pictures.length }))]
  cells.sort((a, b) => a.begin - b.begin || a.end - b.end || a.row - b.row || a.column - b.column)
  const texts = []
  for (const cell of cells) {
    const last = texts.at(-1)
    const goesOn =
      last !== undefined &&
      ['begin', 'end', 'row'].every((key) => last[key] === cell[key]) &&
      cell.column === last.column + last.text.length &&
      JSON.stringify(cell.look) === JSON.stringify(last.look)
    if (goesOn) last.text += cell.character
    else texts.push({ ...cell, text: cell.character })
  }
  return texts
}

const escapeXml = (text) =>
  text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;')

function element({ row, column, text, look }) {
  const x = (PADDING + column * CHARACTER).toFixed(1)
  const y = PADDING + row * LINE
  const width = (text.length * CHARACTER).toFixed(1)
  const ground = `<rect x="${x}" y="${y + 1}" width="${width}" height="${LINE - 1}" class="${look.ink}"/>`
  const ink = look.inverse ? 'ground' : look.ink
  const classes = look.bold ? `${ink} bold` : ink
  const place = `x="${x}" y="${y + 14}" textLength="${width}"`
  return `${look.inverse ? ground : ''}<text ${place} class="${classes}">${escapeXml(text)}</text>`
}

function styleOf(palette) {
  return Object.entries(palette)
    .map(([name, colour]) => `.${name}{fill:${colour}}`)
    .join('')
}

/** An SVG in which each text appears and goes when its time has come; without motion, the last picture. */
function drawSvg(pictures) {
  const count = pictures.length
  const starts = pictures.map((_, i) => (i === 0 ? 0 : FIRST_MS + (i - 1) * STEP_MS))
  const total = starts[count - 1] + LAST_MS
  const percent = (i) => `${((100 * starts[i]) / total).toFixed(2)}%`
  const groups = new Map()
  for (const text of textsOf(pictures)) {
    const key = `${text.begin}-${text.end}`
    groups.set(key, [...(groups.get(key) ?? []), text])
  }
  const frames = []
  const body = []
  for (const [key, texts] of groups) {
    const [begin, end] = key.split('-').map(Number)
    const elements = texts.map(element).join('')
    if (begin === 0 && end === count) {
      body.push(`<g>${elements}</g>`)
      continue
    }
    const from = begin === 0 ? '' : `0%{visibility:hidden}`
    const until = end === count ? '' : `${percent(end)}{visibility:hidden}`
    frames.push(`@keyframes k${key}{${from}${percent(begin)}{visibility:visible}${until}}`)
    const still = end === count ? '' : ' class="past"'
    body.push(`<g${still} style="animation-name:k${key}">${elements}</g>`)
  }
  const width = Math.ceil(2 * PADDING + COLUMNS * CHARACTER)
  const height = 2 * PADDING + Math.max(...pictures.map((lines) => lines.length)) * LINE
  const font = "ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace"
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" font-family="${font}" font-size="${FONT}">
<title>Four workers write the words of a sentence the right way round, each taking what nobody else has taken</title>
<style>
${styleOf(PALETTES.light)}
@media(prefers-color-scheme:dark){${styleOf(PALETTES.dark)}}
.bold{font-weight:bold}
.past{visibility:hidden}
g{animation:${total / 1000}s step-end infinite}
${frames.join('\n')}
@media(prefers-reduced-motion){g{animation:none}}
</style>
<rect width="100%" height="100%" rx="8" class="ground"/>
${body.join('\n')}
</svg>
`
}

async function main() {
  const { frames, end } = await record()
  const command = ` ${createColors(true).dim('$')} ${COMMAND}`
  const pictures = frames.map((lines, i) => [
    ...[command, '', ...lines],
    ...(i === frames.length - 1 ? end : []),
  ])
  const file = path.join(root, 'docs', 'demo.svg')
  const svg = drawSvg(pictures)
  if (!process.argv.includes('--check')) {
    writeFileSync(file, svg)
    return
  }
  if (readFileSync(file, 'utf8') === svg) return
  console.error('docs/demo.svg is not what the demo shows now: npm run demo:picture')
  process.exitCode = 1
}

module.exports = { PALETTES }
if (require.main === module) void main()

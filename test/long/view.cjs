// Pages of traces (`hogwild view`) in a headless Chromium, opened from the disk: on a desk and on a phone, light and dark, with
// 1 to 60 workers, without a step, and with text that means harm. No page has an error, is wider than the window or asks for
// anything; everything can be reached by keys; how long 50,000 tokens take to be drawn is printed. What the pages look like is
// left in build/view.
'use strict'
const { mkdirSync, writeFileSync } = require('node:fs')
const path = require('node:path')
const { withPage } = require('../../scripts/chromium.cjs')
const { hostileTrace, syntheticTrace } = require('../timeline/traces.cjs')

const root = path.join(__dirname, '..', '..')
const { traceToHtml } = require(path.join(root, 'dist', 'index.js'))
const out = path.join(root, 'build', 'view')

const WINDOWS = {
  desk: { width: 1280, height: 800 },
  dark: { width: 1280, height: 800, dark: true },
  phone: { width: 390, height: 844, mobile: true },
}
const BIG = 'fifty-thousand-tokens'
const TRACES = {
  'four-workers': syntheticTrace({ workers: 4, steps: 60, attention: true, turn: 17 }),
  'one-worker': syntheticTrace({ workers: 1, steps: 30 }),
  'sixteen-workers': syntheticTrace({ workers: 16, steps: 200, attention: true }),
  'sixty-workers': syntheticTrace({ workers: 60, steps: 100, attention: true }),
  hostile: hostileTrace(),
  script: JSON.stringify({
    ops: [
      ...['p', 'a', 'b'].map((name) => ({ op: 'block', name })),
      { op: 'prefill', block: 'p', tokens: [1, 2, 3] },
      {
        op: 'worker',
        name: 'A',
        view: ['p', { block: 'b', lag: 1, bias: -1 }, { block: 'a', at: 40 }],
      },
      { op: 'worker', name: 'B', view: ['p', 'a', 'b'] },
      { op: 'step', workers: ['A', 'B'], inputs: [[4, 5], [6]] },
      { op: 'step', workers: ['A', 'B'], inputs: [[7], [8]] },
    ],
  }),
  empty: '{"ops": []}',
  [BIG]: syntheticTrace({ workers: 16, steps: 3125, attention: true }),
}

const text = (id) => `document.getElementById('${id}').textContent`
const focused = 'document.activeElement.id'

async function main(page) {
  mkdirSync(out, { recursive: true })
  const fileOf = (name) => path.join(out, `${name}.html`)
  for (const [name, trace] of Object.entries(TRACES)) {
    writeFileSync(fileOf(name), traceToHtml(trace, { title: name }))
  }
  const drawn = []
  for (const [window, size] of Object.entries(WINDOWS)) {
    await page.resize(size)
    for (const name of Object.keys(TRACES)) {
      page.current = `${name}, ${window}`
      await page.open(fileOf(name))
      await page.drawn()
      const { title, wide, at } = await page.evaluate(`({
        title: document.title,
        wide: document.documentElement.scrollWidth - innerWidth,
        at: performance.getEntriesByName('hogwild-drawn')[0]?.startTime,
      })`)
      if (title !== name) page.fault(`the title is ${title}`)
      if (wide > 0) page.fault(`wider than the window by ${wide} pixels`)
      if (at === undefined) page.fault('was not drawn')
      else if (name === BIG) drawn.push(Math.round(at))
      await page.screenshot(path.join(out, `${name}-${window}.png`))
    }
  }
  await page.resize(WINDOWS.desk)
  const checks = (await keysOnly(page, fileOf('four-workers'))) + (await pointer(page))
  for (const fault of page.faults) console.error(fault)
  const names = `${Object.keys(TRACES).length} traces in ${Object.keys(WINDOWS).length} windows`
  console.log(
    `${names}, 50,000 tokens drawn after ${drawn.join(', ')} ms, ${checks} checks of keys and pointer, ${page.faults.length} faults`,
  )
  process.exitCode = page.faults.length > 0 ? 1 : 0
}

/** Expects that an expression has a value after keys. */
function checker(page) {
  let count = 0
  const expect = async (keys, expression, expected) => {
    count++
    await page.press(...keys)
    const found = await page.evaluate(expression)
    const isRight = expected instanceof RegExp ? expected.test(found) : found === expected
    if (!isRight) page.fault(`${keys.join(' ')}: ${expression} is ${JSON.stringify(found)}`)
  }
  return { expect, count: () => count }
}

async function keysOnly(page, file) {
  page.current = 'keys'
  await page.open(file)
  const { expect, count } = checker(page)
  await expect([], text('where'), /^step 59 /)
  await expect(['Home'], text('where'), /^step 0 /)
  await expect(['ArrowRight', 'ArrowRight'], text('where'), /^step 2 /)
  await expect(['Shift+ArrowRight'], text('where'), /^step 12 /)
  await expect(['PageDown', 'ArrowLeft'], text('where'), /^step 31 /)
  await expect(['End'], text('where'), /^step 59 /)
  await expect(['Home', ']'], text('where'), /^step 3 /)
  await expect(['['], text('where'), /^step 0 /)
  await expect(['ArrowDown', 'ArrowDown'], text('panel'), /^What Carol saw/)
  await expect(
    ['ArrowUp'],
    text('panel'),
    /^What Bob sawstep 0 .*common.*0–199.*Alice.*writes here/s,
  )
  await expect(['t'], `document.getElementById('time').ariaPressed`, 'true')
  await expect(['t'], `document.getElementById('steps').ariaPressed`, 'true')
  await expect(['a'], `document.getElementById('flow-sight').ariaPressed`, 'true')
  await expect(['+', '+', '+', '.', ',', '-', '0'], text('where'), /^step 0 /)
  await expect(['/'], focused, 'query')
  await expect([...'th', 'Enter'], text('found'), /^2 of \d+$/)
  await expect(['Shift+Enter'], text('found'), /^1 of \d+$/)
  await expect([...'qzx'], text('found'), 'not found')
  await expect(['Escape'], focused, 'plot')
  await expect(['/', ...'the'], `document.querySelectorAll('#panel mark').length > 0`, true)
  await expect(['Tab'], focused, 'previous')
  await expect(['n', 'n'], text('found'), /^3 of \d+$/)
  await expect(['Shift+N'], text('found'), /^2 of \d+$/)
  await expect(['Escape'], text('found'), '')
  await expect(['?'], `document.getElementById('help').open`, true)
  await page.screenshot(path.join(out, 'help.png'))
  await expect(['Enter'], `document.getElementById('help').open`, false)
  await expect(['?', 'Escape'], `document.getElementById('help').open`, false)
  // Tab reaches all there is, in order, and what has the focus shows it.
  await page.evaluate('document.activeElement.blur()')
  const reached = new Set()
  for (let i = 0; i < 40; i++) {
    await page.press('Tab')
    const { id, outline } = await page.evaluate(`((element) => ({
      id: element.id || (element.localName === 'button' ? 'lane' : ''),
      outline: getComputedStyle(element).outlineStyle,
    }))(document.activeElement)`)
    reached.add(id)
    if (outline === 'none' && id !== '') page.fault(`Tab: ${id} has the focus and does not show it`)
  }
  for (const id of [
    'back',
    'forth',
    'closer',
    'steps',
    'query',
    'ask',
    'lane',
    'plot',
    'map',
    'panel',
  ]) {
    if (!reached.has(id)) page.fault(`Tab does not reach ${id}`)
  }
  return count()
}

/** On the page that `keysOnly` has left. */
async function pointer(page) {
  page.current = 'pointer'
  const { expect, count } = checker(page)
  await page.press('0')
  const { left, top } = await page.evaluate(
    `document.getElementById('plot').getBoundingClientRect().toJSON()`,
  )
  await page.point(left + 300, top + 100, true)
  await expect([], text('where'), /^step (?!0 )\d+ /)
  await page.point(left + 200, top + 100)
  await expect([], `document.getElementById('tip').hidden`, false)
  await page.screenshot(path.join(out, 'tip.png'))
  const map = await page.evaluate(`document.getElementById('map').getBoundingClientRect().toJSON()`)
  await page.point(map.right - 2, map.top + 10, true)
  await expect([], text('where'), /^step 59 /)
  await page.point(map.left + map.width / 2, map.top + 10, true)
  await expect([], text('where'), /^step (29|30) /)
  return count()
}

withPage(main).catch((error) => {
  console.error(error.message)
  process.exitCode = 1
})

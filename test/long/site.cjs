// The docs site (`npm run docs`) in a headless Chromium, opened from the disk as a reader opens it, on a desk and on a phone:
// no page has an error or is wider than the window, and a search finds a page and an export.
'use strict'
const { existsSync, readdirSync } = require('node:fs')
const path = require('node:path')
const { withPage } = require('../../scripts/chromium.cjs')

const WINDOWS = [
  { width: 1280, height: 800, mobile: false },
  { width: 390, height: 844, mobile: true },
]
/** Pages of the reference, beside all documents. */
const REFERENCE = [
  'index.html',
  'modules/API.html',
  'functions/API.runWorkers.html',
  'interfaces/API.Model.html',
  'interfaces/API.RunOptions.html',
  'types/API.WorkerEvent.html',
]
const SEARCHES = [
  ['runWorkers', /runWorkers/],
  ['finisher', /Prompting/],
]

const site = path.join(__dirname, '..', '..', 'build', 'docs')
if (!existsSync(site)) throw new Error(`no ${site}: npm run docs makes it`)

/** In a page: drawings whose lines are broken, and blocks and tables that reach out of the text. */
function faultsOfText() {
  return [...document.querySelectorAll('.tsd-typography pre, .tsd-typography table')].flatMap(
    (one) => {
      const text = one.closest('.tsd-typography').getBoundingClientRect()
      const what = `${one.tagName} "${one.textContent.trim().slice(0, 30)}"`
      const faults = []
      if (one.getBoundingClientRect().right > text.right + 1)
        faults.push(`${what} reaches out of the text`)
      if (one.tagName === 'PRE' && getComputedStyle(one).whiteSpace !== 'pre') {
        faults.push(`${what} breaks its lines`)
      }
      return faults
    },
  )
}

/** In a page on a phone: the middle of the button of the navigation. */
function placeOfButton() {
  const button = document.querySelector('#tsd-toolbar-menu-trigger').getBoundingClientRect()
  return [button.left + button.width / 2, button.top + button.height / 2]
}

/** In a page on a phone: whether the navigation comes once its button is pressed. */
async function showsMenu() {
  await new Promise((resolve) => setTimeout(resolve, 600)) // it slides in
  const link = document.querySelector('.tsd-navigation a, #tsd-nav-container a')
  const { left, right } = link?.getBoundingClientRect() ?? { left: 0, right: 0 }
  return right > left && left >= 0 && right <= innerWidth
}

async function main(page) {
  const documents = readdirSync(path.join(site, 'documents')).map((file) => `documents/${file}`)
  const pages = [...REFERENCE, ...documents]
  let searches = 0
  for (const { width, height, mobile } of WINDOWS) {
    await page.resize({ width, height, mobile })
    for (const file of pages) {
      page.current = `${file} at ${width}x${height}`
      await page.open(path.join(site, file))
      const { title, wide } = await page.evaluate(
        '({ title: document.title, wide: document.documentElement.scrollWidth - innerWidth })',
      )
      if (!/hogwild/.test(title)) page.fault(`the title is ${title}`)
      if (wide > 0) page.fault(`wider than the window by ${wide} pixels`)
      for (const fault of await page.evaluate(`(${faultsOfText})()`)) page.fault(fault)
      if (!mobile) continue
      const [x, y] = await page.evaluate(`(${placeOfButton})()`)
      await page.point(x, y, true) // the button follows the pointer: no call of click() presses it
      if (!(await page.evaluate(`(${showsMenu})()`))) page.fault('no menu opens')
    }
    for (const [text, expected] of SEARCHES) {
      page.current = `search for ${text} at ${width}x${height}`
      const found = await page.evaluate(`(async () => {
        document.querySelector('#tsd-search-trigger').click()
        const input = document.querySelector('#tsd-search-input')
        input.value = ${JSON.stringify(text)}
        for (let i = 0; i < 10; i++) {
          input.dispatchEvent(new Event('input', { bubbles: true }))
          await new Promise((resolve) => setTimeout(resolve, 500)) // it searches 200 ms behind the last input
          const results = document.querySelector('#tsd-search-results')?.textContent ?? ''
          if (results !== '') return results
        }
        return ''
      })()`)
      if (!expected.test(found)) page.fault(`found "${found.slice(0, 100)}"`)
      searches++
    }
  }
  for (const fault of page.faults) console.error(fault)
  console.log(
    `${pages.length} pages in ${WINDOWS.length} windows, ${searches} searches, ${page.faults.length} faults`,
  )
  process.exitCode = page.faults.length > 0 ? 1 : 0
}

withPage(main).catch((error) => {
  console.error(error.message)
  process.exitCode = 1
})

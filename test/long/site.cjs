// The docs site (`npm run docs`) in a headless Chromium, opened from the disk as a reader opens it, on a desk and on a phone:
// no page has an error or is wider than the window, and a search finds a page and an export. Needs `chromium` on the PATH
// (Debian: apt-get install chromium); CHROMIUM names another one.
'use strict'
const { spawn } = require('node:child_process')
const { existsSync, mkdtempSync, readdirSync, rmSync } = require('node:fs')
const { tmpdir } = require('node:os')
const path = require('node:path')
const { pathToFileURL } = require('node:url')

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
const LIMIT_MS = 20_000

const site = path.join(__dirname, '..', '..', 'build', 'docs')
if (!existsSync(site)) throw new Error(`no ${site}: npm run docs makes it`)
const profile = mkdtempSync(path.join(tmpdir(), 'hogwild-site-'))

// ---- the browser, by its protocol over two pipes: messages of JSON, each ended by a zero byte

const browser = spawn(
  process.env.CHROMIUM ?? 'chromium',
  ['--headless', '--no-sandbox', '--remote-debugging-pipe', `--user-data-dir=${profile}`],
  { stdio: ['ignore', 'ignore', 'ignore', 'pipe', 'pipe'] },
)
const [, , , toBrowser, fromBrowser] = browser.stdio
const calls = new Map()
const listeners = new Set()
let lastId = 0
let received = ''
fromBrowser.setEncoding('utf8').on('data', (text) => {
  const messages = (received + text).split('\0')
  received = messages.pop()
  for (const message of messages.map((one) => JSON.parse(one))) {
    if (message.id === undefined) for (const listen of listeners) listen(message)
    else calls.get(message.id)?.(message)
  }
})

function call(method, params = {}, sessionId = undefined) {
  const id = ++lastId
  toBrowser.write(`${JSON.stringify({ id, method, params, sessionId })}\0`)
  return within(method, (resolve, reject) => {
    calls.set(id, ({ result, error }) =>
      error === undefined ? resolve(result) : reject(new Error(`${method}: ${error.message}`)),
    )
  })
}

function event(method) {
  return within(method, (resolve) => {
    const listen = (message) => {
      if (message.method !== method) return
      listeners.delete(listen)
      resolve(message.params)
    }
    listeners.add(listen)
  })
}

function within(what, executor) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(
      () => reject(new Error(`${what}: nothing in ${LIMIT_MS} ms`)),
      LIMIT_MS,
    )
    executor((value) => {
      clearTimeout(timer)
      resolve(value)
    }, reject)
  })
}

/** What a page logs or throws as an error. */
function faultOf({ method, params }) {
  if (method === 'Runtime.exceptionThrown') return params.exceptionDetails.text
  if (method === 'Log.entryAdded' && params.entry.level === 'error') return params.entry.text
  if (method === 'Runtime.consoleAPICalled' && params.type === 'error') {
    return params.args.map(({ value }) => value).join(' ')
  }
  return undefined
}

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

/** In a page on a phone: whether the navigation comes where its button is pressed. */
async function opensMenu() {
  document.querySelector('#tsd-toolbar-menu-trigger').click()
  await new Promise((resolve) => setTimeout(resolve, 600)) // it slides in
  const link = document.querySelector('.tsd-navigation a, #tsd-nav-container a')
  const { left, right } = link?.getBoundingClientRect() ?? { left: 0, right: 0 }
  return right > left && left >= 0 && right <= innerWidth
}

async function main() {
  const { targetId } = await call('Target.createTarget', { url: 'about:blank' })
  const { sessionId } = await call('Target.attachToTarget', { targetId, flatten: true })
  const page = (method, params) => call(method, params, sessionId)
  const evaluate = async (expression) => {
    const options = { expression, awaitPromise: true, returnByValue: true }
    return (await page('Runtime.evaluate', options)).result.value
  }
  for (const domain of ['Page', 'Runtime', 'Log']) await page(`${domain}.enable`)
  const faults = []
  let current = ''
  listeners.add((message) => {
    const fault = faultOf(message)
    if (fault !== undefined) faults.push(`${current}: ${fault}`)
  })

  const documents = readdirSync(path.join(site, 'documents')).map((file) => `documents/${file}`)
  const pages = [...REFERENCE, ...documents]
  let searches = 0
  for (const { width, height, mobile } of WINDOWS) {
    await page('Emulation.setDeviceMetricsOverride', {
      width,
      height,
      mobile,
      deviceScaleFactor: 1,
    })
    for (const file of pages) {
      current = `${file} at ${width}x${height}`
      const loaded = event('Page.loadEventFired')
      await page('Page.navigate', { url: pathToFileURL(path.join(site, file)).href })
      await loaded
      const { title, wide } = await evaluate(
        '({ title: document.title, wide: document.documentElement.scrollWidth - innerWidth })',
      )
      if (!/hogwild/.test(title)) faults.push(`${current}: the title is ${title}`)
      if (wide > 0) faults.push(`${current}: wider than the window by ${wide} pixels`)
      for (const fault of await evaluate(`(${faultsOfText})()`)) faults.push(`${current}: ${fault}`)
      if (mobile && !(await evaluate(`(${opensMenu})()`))) faults.push(`${current}: no menu opens`)
    }
    for (const [text, expected] of SEARCHES) {
      current = `search for ${text} at ${width}x${height}`
      const found = await evaluate(`(async () => {
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
      if (!expected.test(found)) faults.push(`${current}: found "${found.slice(0, 100)}"`)
      searches++
    }
  }
  for (const fault of faults) console.error(fault)
  console.log(
    `${pages.length} pages in ${WINDOWS.length} windows, ${searches} searches, ${faults.length} faults`,
  )
  process.exitCode = faults.length > 0 ? 1 : 0
}

async function all() {
  const ended = new Promise((resolve) => browser.on('close', resolve))
  const failed = new Promise((_, reject) => browser.on('error', reject))
  try {
    await Promise.race([main(), failed])
  } finally {
    browser.kill()
    if (browser.pid !== undefined) await ended
    rmSync(profile, { recursive: true, force: true, maxRetries: 5 })
  }
}

all().catch((error) => {
  console.error(error.message)
  process.exitCode = 1
})

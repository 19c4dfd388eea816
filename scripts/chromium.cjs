// A page in a headless Chromium, by the browser's protocol over two pipes: messages of JSON, each ended by a zero byte. Needs
// `chromium` on the PATH (Debian: apt-get install chromium); CHROMIUM names another one.
'use strict'
const { spawn } = require('node:child_process')
const { mkdtempSync, rmSync, writeFileSync } = require('node:fs')
const { tmpdir } = require('node:os')
const path = require('node:path')
const { pathToFileURL } = require('node:url')

const LIMIT_MS = 30_000

class Browser {
  #process
  #calls = new Map()
  #lastId = 0
  listeners = new Set()

  constructor(profile) {
    this.#process = spawn(
      process.env.CHROMIUM ?? 'chromium',
      ['--headless', '--no-sandbox', '--remote-debugging-pipe', `--user-data-dir=${profile}`],
      { stdio: ['ignore', 'ignore', 'ignore', 'pipe', 'pipe'] },
    )
    this.failed = new Promise((_, reject) => this.#process.on('error', reject))
    let received = ''
    this.#process.stdio[4].setEncoding('utf8').on('data', (text) => {
      const messages = (received + text).split('\0')
      received = messages.pop()
      for (const message of messages.map((one) => JSON.parse(one))) {
        if (message.id === undefined) for (const listen of this.listeners) listen(message)
        else this.#calls.get(message.id)?.(message)
      }
    })
  }

  call(method, params = {}, sessionId = undefined) {
    const id = ++this.#lastId
    this.#process.stdio[3].write(`${JSON.stringify({ id, method, params, sessionId })}\0`)
    return within(method, (resolve, reject) => {
      this.#calls.set(id, ({ result, error }) =>
        error === undefined ? resolve(result) : reject(new Error(`${method}: ${error.message}`)),
      )
    })
  }

  event(method) {
    return within(method, (resolve) => {
      const listen = (message) => {
        if (message.method !== method) return
        this.listeners.delete(listen)
        resolve(message.params)
      }
      this.listeners.add(listen)
    })
  }

  async close() {
    const ended = new Promise((resolve) => this.#process.on('close', resolve))
    this.#process.kill()
    if (this.#process.pid !== undefined) await ended
  }
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
  if (method === 'Runtime.exceptionThrown') {
    return params.exceptionDetails.exception?.description ?? params.exceptionDetails.text
  }
  if (method === 'Log.entryAdded' && params.entry.level === 'error') return params.entry.text
  if (method === 'Runtime.consoleAPICalled' && params.type === 'error') {
    return params.args.map(({ value }) => value).join(' ')
  }
  return undefined
}

/** One tab. */
class Page {
  /** What went wrong in it, each with what `current` was then. */
  faults = []
  /** What is being done. */
  current = ''
  #call
  #browser

  constructor(browser, sessionId) {
    this.#browser = browser
    this.#call = (method, params) => browser.call(method, params, sessionId)
    browser.listeners.add((message) => {
      const fault = faultOf(message)
      if (fault !== undefined) this.fault(fault)
    })
  }

  async enable() {
    for (const domain of ['Page', 'Runtime', 'Log']) await this.#call(`${domain}.enable`)
  }

  fault(what) {
    this.faults.push(`${this.current}: ${what}`)
  }

  async resize({ width, height, mobile = false, dark = false }) {
    const metrics = { width, height, mobile, deviceScaleFactor: 1 }
    await this.#call('Emulation.setDeviceMetricsOverride', metrics)
    const features = [{ name: 'prefers-color-scheme', value: dark ? 'dark' : 'light' }]
    await this.#call('Emulation.setEmulatedMedia', { features })
  }

  /** A file, until it has loaded. */
  async open(file) {
    const loaded = this.#browser.event('Page.loadEventFired')
    await this.#call('Page.navigate', { url: pathToFileURL(file).href })
    await loaded
  }

  async evaluate(expression) {
    const options = { expression, awaitPromise: true, returnByValue: true }
    const { result, exceptionDetails } = await this.#call('Runtime.evaluate', options)
    if (exceptionDetails !== undefined) throw new Error(exceptionDetails.exception?.description)
    return result.value
  }

  /** Presses keys, by the names of KeyboardEvent.key; 'Shift+X' with Shift. */
  async press(...keys) {
    for (const name of keys) {
      const key = name.replace(/^Shift\+(?=.)/, '')
      const event = {
        ...{ key, code: CODES[key]?.code ?? '', modifiers: key === name ? 0 : 8 },
        windowsVirtualKeyCode: CODES[key]?.number ?? 0,
        ...(key.length === 1 ? { text: key } : key === 'Enter' ? { text: '\r' } : {}),
      }
      await this.#call('Input.dispatchKeyEvent', { type: 'keyDown', ...event })
      await this.#call('Input.dispatchKeyEvent', { type: 'keyUp', ...event })
    }
    await this.drawn()
  }

  /** Moves the mouse there and, where asked for, clicks. */
  async point(x, y, clicks = false) {
    const at = { x, y, button: clicks ? 'left' : 'none', clickCount: clicks ? 1 : 0 }
    await this.#call('Input.dispatchMouseEvent', { type: 'mouseMoved', x, y })
    if (clicks) {
      await this.#call('Input.dispatchMouseEvent', { type: 'mousePressed', ...at })
      await this.#call('Input.dispatchMouseEvent', { type: 'mouseReleased', ...at })
    }
    await this.drawn()
  }

  /** Until two frames have passed. */
  async drawn() {
    await this.evaluate(
      'new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))',
    )
  }

  async screenshot(file) {
    await this.drawn()
    const { data } = await this.#call('Page.captureScreenshot', { format: 'png' })
    writeFileSync(file, Buffer.from(data, 'base64'))
  }
}

/** Of keys that are no characters: what a keyboard sends beside the name. */
const CODES = {
  Tab: { code: 'Tab', number: 9 },
  Enter: { code: 'Enter', number: 13 },
  Escape: { code: 'Escape', number: 27 },
  PageUp: { code: 'PageUp', number: 33 },
  PageDown: { code: 'PageDown', number: 34 },
  End: { code: 'End', number: 35 },
  Home: { code: 'Home', number: 36 },
  ArrowLeft: { code: 'ArrowLeft', number: 37 },
  ArrowUp: { code: 'ArrowUp', number: 38 },
  ArrowRight: { code: 'ArrowRight', number: 39 },
  ArrowDown: { code: 'ArrowDown', number: 40 },
}

/** Calls `use` with a page; the browser is gone afterwards. */
async function withPage(use) {
  const profile = mkdtempSync(path.join(tmpdir(), 'hogwild-chromium-'))
  const browser = new Browser(profile)
  const work = async () => {
    const { targetId } = await browser.call('Target.createTarget', { url: 'about:blank' })
    const { sessionId } = await browser.call('Target.attachToTarget', { targetId, flatten: true })
    const page = new Page(browser, sessionId)
    await page.enable()
    return await use(page)
  }
  try {
    return await Promise.race([work(), browser.failed])
  } finally {
    await browser.close()
    rmSync(profile, { recursive: true, force: true, maxRetries: 5 })
  }
}

module.exports = { withPage }

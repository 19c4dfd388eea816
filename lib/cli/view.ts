// `hogwild view`: the page of a trace (docs/trace-view.md).

import { spawn } from 'node:child_process'
import { writeFile } from 'node:fs/promises'
import { basename, resolve } from 'node:path'
import { pathToFileURL } from 'node:url'
import { HogwildError } from '../errors'
import { traceToHtml } from '../index'
import { escapeUnsafe } from '../printable'
import { readReplayText } from '../replay/read'
import { print } from './terminal'

export interface ViewOptions {
  /** '-': to stdout. */
  out?: string
  open?: boolean
}

export async function viewTrace(path: string, options: ViewOptions): Promise<void> {
  const html = traceToHtml(await readReplayText(path), { title: basename(path) })
  const out = options.out ?? `${path}.html`
  if (out === '-') {
    process.stdout.write(html)
    return
  }
  if (resolve(out) === resolve(path)) {
    throw new HogwildError(`--out ${out}: is the trace itself`, 'HOGWILD_INVALID_ARGUMENT')
  }
  await write(out, html)
  print(escapeUnsafe(out))
  if (options.open) await openInBrowser(resolve(out))
}

async function write(path: string, text: string): Promise<void> {
  try {
    await writeFile(path, text)
  } catch (cause) {
    const message = `cannot write ${path}: ${(cause as Error).message}`
    throw new HogwildError(message, 'HOGWILD_NOT_WRITTEN', { cause })
  }
}

/** What opens an address as its owner wishes, by system. */
const OPENERS: Partial<Record<NodeJS.Platform, [string, ...string[]]>> = {
  darwin: ['open'],
  win32: ['explorer'],
}

async function openInBrowser(path: string): Promise<void> {
  const [program, ...args] = OPENERS[process.platform] ?? ['xdg-open']
  const url = pathToFileURL(path).href
  await new Promise<void>((done, fail) => {
    const opener = spawn(program, [...args, url], { detached: true, stdio: 'ignore' })
    opener.on('error', (cause) => {
      const message = `--open: cannot start ${program}: ${cause.message}`
      fail(new HogwildError(message, 'HOGWILD_UNSUPPORTED', { cause }))
    })
    opener.on('spawn', () => {
      opener.unref()
      done()
    })
  })
}

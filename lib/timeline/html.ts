// The page of a trace: one HTML file with all that it needs in it, made from a template that the build puts together
// (scripts/build-page.cjs). It opens from the disk and asks for nothing.

import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { escapeUnsafe } from '../printable'
import { checkOptions, checkString, optionKeys } from '../validate'
import type { TimelineData } from './data'
import { readTimeline } from './read'

/** From lib (the tests) and from dist alike. */
const TEMPLATE = join(__dirname, '..', '..', 'dist', 'timeline', 'page.html')

/** What is filled in. */
const NO_DATA = '<script type="application/json" id="data">null</script>'
const PLACES = new RegExp(`%TITLE%|${NO_DATA}`, 'g')

/** Options of `traceToHtml`. */
export interface TraceToHtmlOptions {
  /** What the page is called. Default 'hogwild'. */
  title?: string | undefined
}

const KEYS = optionKeys<TraceToHtmlOptions>()({ title: true })

/**
 * A page that shows a run: workers as lanes over steps or time, the tokens as they came, what each worker saw, and where it
 * looked (docs/trace-view.md). The result is the text of one HTML file that needs no server and no network; nothing in
 * the trace is run or read as HTML.
 *
 *     await writeFile('run.html', traceToHtml(await readFile('run.jsonl', 'utf8')))
 *
 * `text`: that of a trace (`RunOptions.trace`), or of a replay script. Of a trace that was cut the complete lines are shown.
 *
 * Throws HOGWILD_INVALID_ARGUMENT, HOGWILD_WRITE_CONFLICT (a script in which two workers write one block in a step),
 * HOGWILD_UNSUPPORTED for a version of the trace that is not known.
 */
export function traceToHtml(text: string, options: TraceToHtmlOptions = {}): string {
  const { title = 'hogwild' } = checkOptions(options, 'options', KEYS)
  checkString(title, 'options.title')
  const data: TimelineData = { title, ...readTimeline(checkString(text, 'text')) }
  const parts: Record<string, string> = {
    '%TITLE%': escapeHtml(escapeUnsafe(title)),
    [NO_DATA]: NO_DATA.replace('null', () => toScriptJson(data)),
  }
  return readFileSync(TEMPLATE, 'utf8').replace(PLACES, (place) => parts[place] as string)
}

/** JSON that ends no script element, whatever is in it, and in which nothing is that cannot be seen. */
function toScriptJson(value: unknown): string {
  return escapeUnsafe(JSON.stringify(value)).replace(
    /[<>&]/g,
    (character) => `\\u00${character.charCodeAt(0).toString(16)}`,
  )
}

function escapeHtml(text: string): string {
  return text.replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`)
}

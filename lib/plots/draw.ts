// Draws a plot with Vega, an optional peer dependency that needs no DOM, and turns drawings into PNG with resvg, another.

import { pathToFileURL } from 'node:url'
import { HogwildError } from '../errors'
import { findPackage } from '../optional-package'
import type { Plot } from './plot'
import { darkStyle } from './theme'

interface Logger {
  level(level?: number): Logger | number
  error(...messages: unknown[]): Logger
  warn(...messages: unknown[]): Logger
  info(...messages: unknown[]): Logger
  debug(...messages: unknown[]): Logger
}

interface View {
  toSVG(): Promise<string>
  finalize(): void
}

/** What is used of `vega`. */
interface Vega {
  parse(spec: unknown): unknown
  View: new (runtime: unknown, options: { renderer: 'none'; logger: Logger }) => View
}

/** What is used of `vega-lite`. */
interface VegaLite {
  compile(spec: unknown, options: { logger: Logger }): { spec: unknown }
}

/** What is used of `@resvg/resvg-js`. */
interface Resvg {
  Resvg: new (
    svg: string,
    options: { fitTo: { mode: 'zoom'; value: number }; font: { loadSystemFonts: boolean } },
  ) => { render(): { asPng(): Uint8Array } }
}

/** Draws one plot: as SVG in light colours alone, `width` and `height` in pixels. */
export type Draw = (plot: Plot) => Promise<string>

/** Throws HOGWILD_UNSUPPORTED where vega or vega-lite is not installed or not one that can be used. */
export async function loadDraw(): Promise<Draw> {
  const needs = 'plots need'
  const [vega, vegaLite] = [
    await load<Vega>(findPackage('vega', needs, 'vega vega-lite')),
    await load<VegaLite>(findPackage('vega-lite', needs, 'vega vega-lite')),
  ]
  if (typeof vega.View !== 'function' || typeof vegaLite.compile !== 'function') {
    throw unknownRelease('vega and vega-lite', '6')
  }
  return async ({ spec }) => {
    const logger = silent()
    const { spec: compiled } = vegaLite.compile(spec, { logger })
    const view = new vega.View(vega.parse(compiled), { renderer: 'none', logger })
    try {
      return await view.toSVG()
    } finally {
      view.finalize()
    }
  }
}

/** An SVG as PNG. */
export type Rasterise = (svg: string) => Uint8Array

/** Pixels of a PNG for one of the drawing. */
const SCALE = 2

/** Throws HOGWILD_UNSUPPORTED where @resvg/resvg-js is not installed or not one that can be used. */
export async function loadRasterise(): Promise<Rasterise> {
  const { Resvg } = await load<Resvg>(findPackage('@resvg/resvg-js', 'PNG files need'))
  if (typeof Resvg !== 'function') throw unknownRelease('@resvg/resvg-js', '2')
  const options = {
    fitTo: { mode: 'zoom', value: SCALE },
    font: { loadSystemFonts: true },
  } as const
  return (svg) => new Resvg(svg, options).render().asPng()
}

/** ES modules and CommonJS alike. */
async function load<Exports>(file: string): Promise<Exports> {
  return await import(pathToFileURL(file).href)
}

function unknownRelease(packages: string, known: string): HogwildError {
  const message = `the installed release of ${packages} is not one that can be used; ${known} is`
  return new HogwildError(message, 'HOGWILD_UNSUPPORTED')
}

/** Releases to come may find something old-fashioned in a specification, which is nothing for a user. */
function silent(): Logger {
  const logger: Logger = {
    level: (level) => (level === undefined ? 0 : logger),
    error: (...messages) => {
      throw messages[0] instanceof Error ? messages[0] : new Error(messages.join(' '))
    },
    warn: () => logger,
    info: () => logger,
    debug: () => logger,
  }
  return logger
}

/** The drawing with its name, and with the colours that its reader prefers. */
export function finished(svg: string, { title }: Plot): string {
  const escaped = title.replaceAll('&', '&amp;').replaceAll('<', '&lt;')
  return svg.replace(
    /^<svg ([^>]*)>/,
    (_, attributes) =>
      `<svg role="img" ${attributes}>\n<title>${escaped}</title>\n${darkStyle(svg)}\n`,
  )
}

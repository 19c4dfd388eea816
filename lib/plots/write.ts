// Plots as files: what is drawn as CSV and as a specification of Vega-Lite, and drawings.

import { join } from 'node:path'
import { formatCsv } from '../experiment/csv'
import { makeFolder, replaceFile } from '../experiment/files'
import { finished, loadDraw, loadRasterise } from './draw'
import type { Plot } from './plot'
import { darkened } from './theme'

export interface WritePlotsOptions {
  /** Also NAME.png and NAME.dark.png. Default false. */
  png?: boolean | undefined
}

/**
 * Writes OUT/NAME.csv, OUT/NAME.vl.json and OUT/NAME.svg for each plot, and returns the names of the drawings. Without the
 * packages that draw, it throws HOGWILD_UNSUPPORTED when the other files are there.
 *
 * Throws HOGWILD_NOT_WRITTEN.
 */
export async function writePlots(
  plots: readonly Plot[],
  out: string,
  { png = false }: WritePlotsOptions = {},
): Promise<string[]> {
  await makeFolder(out)
  for (const { name, rows, spec } of plots) {
    const columns = Object.keys(rows[0] ?? {})
    const lines = rows.map((row) => columns.map((column) => row[column]))
    await replaceFile(join(out, `${name}.csv`), formatCsv([columns, ...lines]))
    await replaceFile(join(out, `${name}.vl.json`), formatSpec(spec))
  }
  const draw = await loadDraw()
  const rasterise = png ? await loadRasterise() : undefined
  const drawings: string[] = []
  const put = async (name: string, content: string | Uint8Array) => {
    await replaceFile(join(out, name), content)
    drawings.push(name)
  }
  for (const plot of plots) {
    const svg = await draw(plot)
    await put(`${plot.name}.svg`, `${finished(svg, plot)}\n`)
    if (rasterise !== undefined) {
      await put(`${plot.name}.png`, rasterise(svg))
      await put(`${plot.name}.dark.png`, rasterise(darkened(svg)))
    }
  }
  return drawings
}

/** As JSON, with a line for each row of data. */
function formatSpec(spec: Plot['spec']): string {
  const { values } = spec.data as { values: readonly object[] }
  const mark = '"(rows)"'
  const text = JSON.stringify({ ...spec, data: { values: '(rows)' } }, undefined, 2)
  const rows = values.map((row) => `      ${JSON.stringify(row)}`).join(',\n')
  return `${text.replace(mark, () => `[\n${rows}\n    ]`)}\n`
}

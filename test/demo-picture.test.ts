// The README's picture of the demo: drawn from a real run, and readable on light and on dark pages.

import { execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'

const root = join(__dirname, '..')
const script = join(root, 'scripts', 'demo-picture.cjs')
const picture = readFileSync(join(root, 'docs', 'demo.svg'), 'utf8')

test('it is what the demo shows', () => {
  execFileSync(process.execPath, [script, '--check'])
})

/** WCAG 2: (lighter + 0.05) / (darker + 0.05) of relative luminances. */
function contrast(one: string, other: string): number {
  const luminance = (colour: string) =>
    [1, 3, 5]
      .map((at) => Number.parseInt(colour.slice(at, at + 2), 16) / 255)
      .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
      .reduce((sum, value, i) => sum + value * ([0.2126, 0.7152, 0.0722][i] as number), 0)
  const [lighter, darker] = [luminance(one), luminance(other)].sort((a, b) => b - a)
  return ((lighter as number) + 0.05) / ((darker as number) + 0.05)
}

const { PALETTES } = require(script) as { PALETTES: Record<string, Record<string, string>> }
test.each(Object.entries(PALETTES))('every colour of the %s palette can be read', (_, palette) => {
  const { ground = '', ...inks } = palette
  for (const [name, ink] of Object.entries(inks)) {
    expect(picture).toContain(`.${name}{fill:${ink}}`)
    expect(contrast(ink, ground)).toBeGreaterThanOrEqual(4.5)
  }
})

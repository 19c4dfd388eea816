// Grouped bars with their spread, as SVG.

import type { Spread } from '../machine'

interface Chart {
  title: string
  subtitle: string
  groups: readonly string[]
  series: readonly { name: string; color: string; values: readonly Spread[] }[]
}

const WIDTH = 640
const HEIGHT = 320
const LEFT = 24
const TOP = 84
const BOTTOM = 36
const PLOT = HEIGHT - TOP - BOTTOM
const BASE = TOP + PLOT

export function barChart({ title, subtitle, groups, series }: Chart): string {
  const most = Math.max(...series.flatMap(({ values }) => values.map(({ max }) => max)))
  const y = (value: number) => round(BASE - (PLOT * value) / most)
  const groupWidth = (WIDTH - 2 * LEFT) / groups.length
  const barWidth = (0.7 * groupWidth) / series.length

  const bar = (group: number, index: number) => {
    const { color, values } = series[index] as Chart['series'][number]
    const { median, min, max } = values[group] as Spread
    const left = LEFT + groupWidth * (group + 0.15) + barWidth * index
    const middle = round(left + barWidth / 2)
    return [
      `<rect x="${round(left + 2)}" y="${y(median)}" width="${round(barWidth - 4)}" height="${round(BASE - y(median))}" fill="${color}"/>`,
      `<line x1="${middle}" x2="${middle}" y1="${y(min)}" y2="${y(max)}" stroke="#57606a"/>`,
      `<text x="${middle}" y="${round(y(max) - 6)}" text-anchor="middle">${Math.round(median)}</text>`,
    ]
  }
  const legend = series.flatMap(({ name, color }, index) => {
    const left = LEFT + 130 * index
    return [
      `<rect x="${left}" y="56" width="10" height="10" fill="${color}"/>`,
      `<text x="${left + 16}" y="65">${escapeText(name)}</text>`,
    ]
  })
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${HEIGHT}" font-family="system-ui, sans-serif" font-size="12" fill="#24292f">`,
    `<rect width="${WIDTH}" height="${HEIGHT}" rx="6" fill="#fff"/>`,
    `<text x="${LEFT}" y="26" font-size="15" font-weight="600">${escapeText(title)}</text>`,
    `<text x="${LEFT}" y="44" fill="#57606a">${escapeText(subtitle)}</text>`,
    ...legend,
    ...groups.flatMap((_, group) => series.flatMap((_, index) => bar(group, index))),
    `<line x1="${LEFT}" x2="${WIDTH - LEFT}" y1="${BASE}" y2="${BASE}" stroke="#57606a"/>`,
    ...groups.map(
      (name, group) =>
        `<text x="${round(LEFT + groupWidth * (group + 0.5))}" y="${BASE + 20}" text-anchor="middle">${escapeText(name)}</text>`,
    ),
    '</svg>\n',
  ].join('\n')
}

function round(value: number): number {
  return Math.round(value * 10) / 10
}

function escapeText(text: string): string {
  return text.replaceAll('&', '&amp;').replaceAll('<', '&lt;')
}

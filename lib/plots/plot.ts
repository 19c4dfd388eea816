// A plot: what is drawn as data, and how as a specification of Vega-Lite.

import { color, FONT_SIZE } from './theme'

export type Row = Readonly<Record<string, string | number | null>>

export interface Plot {
  /** Of its files, without an end. */
  name: string
  title: string
  /** What is drawn: all rows have the same fields. */
  rows: readonly Row[]
  /** Plain data. */
  spec: Readonly<Record<string, unknown>>
}

/** Things of one kind, with the colour by which they are known. */
export interface Series {
  name: string
  color: string
}

/** Pixels of a letter, in a wide font as well. */
const LETTER = 0.6 * FONT_SIZE

/** Room for a text, in pixels. */
export function textWidth(text: string): number {
  return Math.ceil(LETTER * text.length)
}

/** The name of a file: of the words in all parts. */
export function fileName(...parts: readonly string[]): string {
  const words = parts.flatMap((part) => part.toLowerCase().match(/[a-z0-9]+/g) ?? [])
  return words.join('-')
}

export const SCHEMA = 'https://vega.github.io/schema/vega-lite/v6.json'
/** Of a drawing; two stand beside each other in a README, and one fits a phone. */
export const WIDTH = 400
export const BOTTOM = 46
export const MARGIN = 12

/** Of a title, with the margin above it. */
const TITLE_HEIGHT = 21
const LINE_HEIGHT = 15
/** Between the heading and what stands below it. */
const HEADING_GAP = 14
/** Of the title of the axis above the plot. */
export const UPPER_TITLE_HEIGHT = 24

/** Room for the heading of a plot, and for what stands so high above it. */
export function topOf(subtitle: readonly string[], above: number): number {
  return TITLE_HEIGHT + LINE_HEIGHT * subtitle.length + HEADING_GAP + above
}

/**
 * The heading of a plot whose left end is `left` pixels from that of the drawing, above all that is in it; what is too long
 * ends with "…".
 */
export function heading(title: string, subtitle: readonly string[], left: number) {
  return {
    ...{ text: title, subtitle: subtitle.map(clipped), subtitleLineHeight: LINE_HEIGHT },
    ...{ offset: HEADING_GAP, dx: MARGIN - left },
  }
}

function clipped(text: string): string {
  const most = Math.floor((WIDTH - 2 * MARGIN) / LETTER)
  return text.length <= most ? text : `${text.slice(0, most - 1)}…`
}

/** An axis title above the upper end of the axis, which is read without turning one's head. */
export function upperTitle(title: string, left: number) {
  return { title, titleAngle: 0, titleAlign: 'left', titleX: MARGIN - left, titleY: -12 }
}

/** Labels of an axis as expressions of Vega: numbers with k for 1000, shares in percent, and sizes with k for 1024. */
export const LABELS = {
  number: "datum.value < 1 ? format(datum.value, '~g') : format(datum.value, '~s')",
  percent: "format(100 * datum.value, '.0f') + ' %'",
  binary: "datum.value < 1024 ? datum.value : datum.value / 1024 + 'k'",
}

/** The axis along the lower edge. */
export const LOWER_AXIS = {
  ...{ grid: false, domain: true, domainColor: color('faint') },
  ...{
    ticks: true,
    tickColor: color('faint'),
    tickSize: 4,
    titlePadding: 7,
    labelOverlap: 'greedy',
  },
}

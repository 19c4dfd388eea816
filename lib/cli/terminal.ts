// What the commands print, in which colours and how wide.

import pc from 'picocolors'
import { escapeUnsafe } from '../printable'

const stdout = process.stdout

/** Colours for stdout: none without a terminal or where NO_COLOR is set. */
// (isTTY is undefined without a terminal, and createColors takes undefined for "decide yourself".)
export const colors = pc.createColors(stdout.isTTY === true && pc.isColorSupported)

/** Where lines end, so that a terminal need not break them. */
export function lineColumns(): number {
  return stdout.columns ?? Number.POSITIVE_INFINITY
}

export function print(line = ''): void {
  write(`${line}\n`)
}

/** A part of a line. */
export function write(text: string): void {
  stdout.write(text)
}

/** One line of JSON; what a terminal would obey stands in it as escapes. */
export function printJson(value: unknown): void {
  print(escapeUnsafe(JSON.stringify(value)))
}

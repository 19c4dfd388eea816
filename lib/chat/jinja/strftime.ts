// Python's strftime in the C locale, of a local time.

import { TemplateError } from './text'

const DAYS = ['Sunday', 'Monday', 'Tuesday', 'Wednesday', 'Thursday', 'Friday', 'Saturday']
const MONTHS = [
  'January',
  'February',
  'March',
  'April',
  'May',
  'June',
  'July',
  'August',
  'September',
  'October',
  'November',
  'December',
]

/** `format` with glibc's flags '-' (no padding), '_' (blanks), '0' (zeros) and '^' (upper case). */
export function strftime(date: Date, format: string): string {
  return format.replace(
    /%([-_0^]?)([\s\S])|%$/g,
    (all, flag: string | undefined, code: string | undefined) => {
      const field = code === undefined ? undefined : FIELDS[code]
      if (field === undefined) throw new TemplateError(`strftime_now: '${all}' is not supported`)
      const value = field(date)
      if (typeof value === 'string') {
        return flag === '^' ? value.toUpperCase() : value
      }
      const [number, width, padding = '0'] = value
      const fill = flag === '_' ? ' ' : flag === '0' ? '0' : padding
      return flag === '-' ? String(number) : String(number).padStart(width, fill)
    },
  )
}

// A number is padded to a width.
type Field = (date: Date) => string | [number: number, width: number, padding?: string]

const FIELDS: Readonly<Record<string, Field>> = {
  a: (date) => day(date).slice(0, 3),
  A: (date) => day(date),
  b: (date) => month(date).slice(0, 3),
  B: (date) => month(date),
  c: (date) => strftime(date, '%a %b %e %H:%M:%S %Y'),
  C: (date) => [Math.floor(date.getFullYear() / 100), 2],
  d: (date) => [date.getDate(), 2],
  D: (date) => strftime(date, '%m/%d/%y'),
  e: (date) => [date.getDate(), 2, ' '],
  f: (date) => `${String(date.getMilliseconds()).padStart(3, '0')}000`,
  F: (date) => strftime(date, '%Y-%m-%d'),
  G: (date) => [isoWeek(date).year, 4],
  h: (date) => month(date).slice(0, 3),
  H: (date) => [date.getHours(), 2],
  I: (date) => [date.getHours() % 12 || 12, 2],
  j: (date) => [dayOfYear(date), 3],
  k: (date) => [date.getHours(), 2, ' '],
  l: (date) => [date.getHours() % 12 || 12, 2, ' '],
  m: (date) => [date.getMonth() + 1, 2],
  M: (date) => [date.getMinutes(), 2],
  n: () => '\n',
  p: (date) => (date.getHours() < 12 ? 'AM' : 'PM'),
  P: (date) => (date.getHours() < 12 ? 'am' : 'pm'),
  r: (date) => strftime(date, '%I:%M:%S %p'),
  R: (date) => strftime(date, '%H:%M'),
  S: (date) => [date.getSeconds(), 2],
  t: () => '\t',
  T: (date) => strftime(date, '%H:%M:%S'),
  u: (date) => [date.getDay() || 7, 1],
  U: (date) => [Math.floor((dayOfYear(date) + 6 - date.getDay()) / 7), 2],
  V: (date) => [isoWeek(date).week, 2],
  w: (date) => [date.getDay(), 1],
  W: (date) => [Math.floor((dayOfYear(date) + 6 - ((date.getDay() + 6) % 7)) / 7), 2],
  x: (date) => strftime(date, '%m/%d/%y'),
  X: (date) => strftime(date, '%H:%M:%S'),
  y: (date) => [date.getFullYear() % 100, 2],
  Y: (date) => [date.getFullYear(), 4],
  // A local time without a zone, as datetime.now() gives it.
  z: () => '',
  Z: () => '',
  '%': () => '%',
}

function day(date: Date): string {
  return DAYS[date.getDay()] as string
}

function month(date: Date): string {
  return MONTHS[date.getMonth()] as string
}

/** Days since 1970 of the local date, free of summer time. */
function dayNumber(date: Date): number {
  return Date.UTC(date.getFullYear(), date.getMonth(), date.getDate()) / 86_400_000
}

function dayOfYear(date: Date): number {
  return dayNumber(date) - dayNumber(new Date(date.getFullYear(), 0, 1)) + 1
}

// The week that has the Thursday, in the year of that Thursday.
function isoWeek(date: Date): { year: number; week: number } {
  const fromMonday = (date.getDay() + 6) % 7
  const thursday = new Date(date.getFullYear(), date.getMonth(), date.getDate() - fromMonday + 3)
  return { year: thursday.getFullYear(), week: Math.floor((dayOfYear(thursday) - 1) / 7) + 1 }
}

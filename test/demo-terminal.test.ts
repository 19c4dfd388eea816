// The demo as a person sees it, in a terminal of its own: what is drawn, what keys do, what is left behind.

import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { isDeepStrictEqual } from 'node:util'
import { demoModelPath } from '../lib'
import { temporaryFolder } from './fixtures'
import { hasPseudoTerminals, PseudoTerminal } from './pseudo-terminal'

const main = join(__dirname, '..', 'dist', 'cli', 'main.js')
const node = `"${process.execPath}" "${main}"`
/** How a terminal is when a program has left it as it should. */
const SANE = /(?<!-)icanon[\s\S]*(?<!-)echo /
const NAMES = ['Alice', 'Bob', 'Carol', 'Dave']

let terminal: PseudoTerminal

/** The demo, and after it its exit code and the terminal's modes. */
function demo(columns: number, rows: number, options = '', environment: NodeJS.ProcessEnv = {}) {
  const command = `${node} demo ${options}; echo "exit $?"; stty -a`
  terminal = new PseudoTerminal(command, columns, rows, { NO_COLOR: '1', ...environment })
  return terminal
}

const linesWith = (text: string) => terminal.screen.filter((line) => line.includes(text))

/** Waits until this is seen, and nothing that was drawn before the latest picture. */
async function settled(fitting: RegExp): Promise<void> {
  await terminal.until(fitting)
  await terminal.until(async function nothingIsStale() {
    const latest = await terminal.latestPicture()
    return fitting.test(latest.join('\n')) && isDeepStrictEqual(terminal.screen, latest)
  })
}

/** Waits until steps are made, then holds the demo. */
async function hold(): Promise<void> {
  await terminal.until(/step ([5-9]|\d\d)/)
  terminal.press(' ')
  await terminal.until(/· held/)
}

afterEach(() => terminal.close())

const withTerminal = hasPseudoTerminals ? describe : describe.skip
withTerminal('in a terminal (script of util-linux)', () => {
  test.each([
    [80, 24, /space waits/],
    [50, 12, /stop\/call {2}\+ - pace/],
    [200, 50, /A:ynam.*N:ydaerla/],
    [30, 8, /held {2}1-4 \+ - q/],
  ])('%dx%d: all of it is seen, and is gone in the end', async (columns, rows, fitting) => {
    demo(columns, rows, '--pace 8')
    await hold()
    expect(terminal.isAlternate).toBe(true)
    await settled(fitting)
    for (const name of NAMES) expect(linesWith(name)).toHaveLength(1)
    expect(linesWith(' step ')).toHaveLength(1)
    expect(terminal.screen.join('\n')).toMatch(/A=m/)
    terminal.press('++++')
    await terminal.ended()
    expect(terminal.isAlternate).toBe(false)
    const { everything } = terminal
    expect(everything).toContain('14 of 14 words in 28 steps')
    expect(everything.match(/^ +4 .*14\/14/gm)).toHaveLength(2)
    for (const next of ['See it: ', 'Use it: ', 'Build it: ']) expect(everything).toContain(next)
    expect(everything).toContain('exit 0')
    expect(everything).toMatch(SANE)
  })

  test('after each change of the size no line of before is seen', async () => {
    demo(80, 24, '--pace 8')
    await hold()
    const sizes: [number, number, RegExp][] = [
      [50, 12, /stop\/call {2}\+ - pace/],
      [200, 50, /A:ynam.*N:ydaerla/],
      [30, 8, /held {2}1-4 \+ - q/],
      [80, 24, /hogwild: 4 workers[\s\S]*space waits/],
      [10, 4, /at least/],
      [50, 12, /A:ma\w*/],
    ]
    for (const [columns, rows, fitting] of sizes) {
      terminal.resize(columns, rows)
      await settled(fitting)
      if (columns > 10) for (const name of NAMES) expect(linesWith(name)).toHaveLength(1)
    }
    terminal.press('q')
    await terminal.ended()
    expect(terminal.everything).toContain('exit 0')
  })

  test('the size changes again and again while the workers write', async () => {
    demo(80, 24, '--pace 12')
    await terminal.until(/step [1-9]/)
    for (let round = 0; round < 12; round++) {
      const [columns, rows] = [20 + 37 * (round % 5), 6 + 11 * (round % 3)]
      terminal.resize(columns, rows)
      await new Promise((resolve) => setTimeout(resolve, 30))
    }
    terminal.resize(54, 16)
    terminal.press(' ')
    await settled(/^ step \d+ · held {2}1-4 stop\/call {2}\+ - pace {2}q quits$/m)
    for (const name of NAMES) expect(linesWith(`${name} `).length).toBeLessThanOrEqual(1)
    terminal.press('q')
    await terminal.ended()
  })

  test('a worker is stopped and called back; all words are written', async () => {
    demo(80, 24)
    await terminal.until(/B=h/)
    terminal.press('2')
    await terminal.until(/Bob is taken away: what was begun is free again/)
    await terminal.until(/B=h\w*#[\s\S]*\(press 2\)/)
    terminal.press('2')
    await terminal.until(/Bob is back/)
    await terminal.until(() => !terminal.screen.join('\n').includes('(press 2)'))
    terminal.press('++++')
    await terminal.ended()
    expect(terminal.everything).toContain('14 of 14 words in')
    expect(terminal.everything).toMatch(/^ {2}many hands make light work/m)
  })

  test('workers who do not begin are called; the last one stays', async () => {
    demo(80, 24, 'many hands make light work --workers 1')
    await terminal.until(/\(press 2\) +\(press 3\) +\(press 4\)/)
    terminal.press('1')
    await terminal.until(/Alice stays: nobody else is at work/)
    terminal.press('3')
    await terminal.until(/Carol joins/)
    await terminal.until(/[A-E]=\w+.* +[A-E]=/)
    terminal.press('q')
    await terminal.ended()
  })

  test('keys make it faster and slower, and hold it', async () => {
    demo(80, 24)
    await terminal.until(/· 4\/s/)
    for (const [key, pace] of [
      ['+', '8/s'],
      ['-', '4/s'],
      ['\x1b[B', '2/s'],
      ['\x1b[A', '4/s'],
      [' ', 'held'],
      [' ', '4/s'],
    ]) {
      terminal.press(key as string)
      await terminal.until(new RegExp(`· ${pace} `))
    }
    terminal.press('q')
    await terminal.ended()
    expect(terminal.isAlternate).toBe(false)
    expect(terminal.everything).toMatch(/exit 0[\s\S]*(?<!-)icanon/)
  })

  test('a key ends the first pause', async () => {
    demo(80, 24, '--pace 0.5')
    await terminal.until(/step 0 /)
    terminal.press('+')
    await terminal.until(/step 1 · 1\/s/)
    terminal.press('q')
    await terminal.ended()
  })

  test('Ctrl-C: exit code 130, and a terminal as it was', async () => {
    demo(80, 24)
    await terminal.until(/A=m/)
    terminal.press('\x03')
    await terminal.ended()
    expect(terminal.isAlternate).toBe(false)
    // Lines wrap again, and the cursor is seen.
    expect(terminal.output).toContain('\x1b[?7h\x1b[?25h')
    expect(terminal.everything).toMatch(/A=m[\s\S]*exit 130/)
    expect(terminal.everything).toMatch(SANE)
  })

  test.each([
    ['SIGTERM', 143],
    ['SIGINT', 130],
    ['SIGHUP', 129],
  ] as const)('%s: a terminal as it was', async (signal, code) => {
    const pid = join(temporaryFolder(), 'pid')
    const command = `sh -c 'echo $$ > ${pid}; exec ${node} demo'; echo "exit $?"; stty -a`
    terminal = new PseudoTerminal(command, 80, 24)
    await terminal.until(/A=m/)
    process.kill(Number(readFileSync(pid, 'utf8')), signal)
    await terminal.ended()
    expect(terminal.isAlternate).toBe(false)
    expect(terminal.everything).toContain(`exit ${code}`)
    expect(terminal.everything).toMatch(SANE)
  })

  test('Ctrl-Z where nobody could wake it: it goes on', async () => {
    demo(80, 24, '--pace 0.5')
    await terminal.until(/step 1 /)
    terminal.press('\x1a')
    await terminal.until(() => terminal.output.split('\x1b[?1049h').length === 3)
    await terminal.until(() => terminal.isAlternate)
    await terminal.until(/step 1 /)
    terminal.press('q')
    await terminal.ended()
    expect(terminal.everything).toContain('exit 0')
  })

  test('stopped by Ctrl-Z, then from outside, it leaves and takes the modes that it needs', async () => {
    const folder = temporaryFolder()
    const [script, pid] = [join(folder, 'script'), join(folder, 'pid')]
    const start = `sh -c 'echo $$ > ${pid}; exec ${node} demo --pace 8'`
    // A shell that changes no modes of the terminal by itself.
    const lines = ['set -m', start, 'stty -a', 'fg', 'stty sane', 'fg', 'echo "exit $?"']
    writeFileSync(script, lines.join('\n'))
    terminal = new PseudoTerminal(`sh ${script}`, 80, 24, { NO_COLOR: '1' })
    await hold()
    terminal.press('\x1a')
    await terminal.until(() => terminal.output.split('\x1b[?1049h').length === 3)
    expect(terminal.output.split('\x1b[?1049l')[1]).toMatch(SANE)
    await settled(/· held/)
    process.kill(Number(readFileSync(pid, 'utf8')), 'SIGSTOP')
    await terminal.until(() => terminal.output.split('\x1b[?1049h').length === 4)
    await settled(/· held/)
    terminal.press('q')
    await terminal.ended()
    expect(terminal.everything).toContain('exit 0')
  })

  test('colours, but where NO_COLOR is set', async () => {
    demo(80, 24, '', { NO_COLOR: undefined, FORCE_COLOR: '1' })
    await terminal.until(/A=m/)
    expect(terminal.output).toContain('\x1b[36m')
    terminal.close()
    demo(80, 24)
    await terminal.until(/A=m/)
    expect(terminal.output).not.toContain('\x1b[3')
  })

  test('plain lines and no pause on a terminal that cannot move its cursor', async () => {
    demo(80, 24, '', { TERM: 'dumb' })
    await terminal.ended()
    expect(terminal.everything).toMatch(/step +\d+ {2}Alice A=many/)
    expect(terminal.output).not.toContain('\x1b')
  })
})

const withPrompt = hasPseudoTerminals ? test : test.skip
withPrompt('a prompt that is typed ends with Ctrl-D', async () => {
  const command = `${node} generate - --model "${demoModelPath}" --max-tokens 4; echo "exit $?"`
  terminal = new PseudoTerminal(command, 80, 24)
  await terminal.until(/The prompt, then Ctrl-D:/)
  terminal.press('A:ynam\r\x04')
  await terminal.ended()
  expect(terminal.everything).toContain('exit 0')
})

const shell = '/bin/bash'
const withShell = hasPseudoTerminals && existsSync(shell) ? test : test.skip
withShell(
  'Ctrl-Z gives the terminal back to the shell (bash), fg goes on where it was',
  async () => {
    terminal = new PseudoTerminal(`PS1='ready> ' ${shell} --norc --noprofile -i`, 80, 24, {
      NO_COLOR: '1',
    })
    await terminal.until(/ready>/)
    terminal.press(`${node} demo\r`)
    await hold()
    const before = terminal.screen
    for (const times of [1, 2]) {
      terminal.press('\x1a')
      await terminal.until(/Stopped[\s\S]*ready>\s*$/)
      expect(terminal.isAlternate).toBe(false)
      terminal.press(`stty -a; echo ${times}st\r`)
      await terminal.until(new RegExp(`^${times}st`, 'm'))
      expect(terminal.everything).toMatch(SANE)
      // Another size, while it cannot see it.
      terminal.resize(50, 12)
      terminal.resize(80, 24)
      terminal.press('fg\r')
      await settled(/step \d+ · held/)
      expect(terminal.screen).toEqual(before)
    }
    terminal.press(' ')
    await terminal.until(/step \d\d · 4\/s/)
    terminal.press('q')
    await terminal.until(() => !terminal.isAlternate)
    terminal.press('echo "code $?"; exit\r')
    await terminal.ended()
    expect(terminal.everything).toContain('code 0')
  },
)

// What two processes that hold one model share: the pages of its file, by what Linux says of each mapping
// (/proc/PID/smaps). docs/architecture.md, "Memory".

import { type ChildProcess, spawn } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { type BenchFormat, writeRandomGguf } from '../bench/peers/random-gguf'
import { loadModel } from '../lib'
import { temporaryFolder } from './fixtures'

const whereLinux = process.platform === 'linux' ? test : test.skip
const where = process.platform === 'linux' ? '' : ' (needs /proc/PID/smaps of Linux)'

const SHAPE = {
  name: 'tiny',
  layers: 4,
  hiddenSize: 512,
  intermediateSize: 2048,
  queryHeads: 8,
  kvHeads: 2,
  headDim: 64,
  vocabSize: 8192,
}

/** Bytes of a process. */
interface Memory {
  /** Pages of the model's file in its mappings. */
  file: number
  /** The same, each divided by the number of processes that have it mapped. */
  fileShare: number
  /** Pages of the model's file that it has changed, and so has alone. */
  fileCopied: number
  /** Pages that it has alone, whatever they hold. */
  private: number
}

function memoryOf(pid: number, path: string): Memory {
  const memory: Memory = { file: 0, fileShare: 0, fileCopied: 0, private: 0 }
  let isFile = false
  for (const line of readFileSync(`/proc/${pid}/smaps`, 'utf8').split('\n')) {
    if (/^[0-9a-f]+-[0-9a-f]+ /.test(line)) isFile = line.endsWith(path)
    const [, key, kilobytes] = /^(\w+): +(\d+) kB$/.exec(line) ?? []
    const bytes = 1024 * Number(kilobytes)
    if (key === 'Private_Dirty') memory.private += bytes
    if (!isFile) continue
    if (key === 'Rss') memory.file += bytes
    if (key === 'Pss') memory.fileShare += bytes
    if (key === 'Anonymous') memory.fileCopied += bytes
  }
  return memory
}

/** Two processes hold the model at once: what each has, `private` without what it had before it loaded. */
async function hold(path: string, options: object): Promise<Memory[]> {
  const children: ChildProcess[] = []
  const script = join(__dirname, 'memory', 'holder.cjs')
  try {
    const holders = [0, 1].map(() => {
      const child = spawn(process.execPath, [script, path, JSON.stringify(options)], {
        stdio: ['pipe', 'pipe', 'inherit'],
      })
      children.push(child)
      const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]()
      const expectLine = async (text: string) => expect((await lines.next()).value).toBe(text)
      return { child, pid: child.pid as number, expectLine }
    })
    const before: number[] = []
    for (const { child, pid, expectLine } of holders) {
      await expectLine('started')
      before.push(memoryOf(pid, path).private)
      child.stdin.write('load\n')
      await expectLine('ready')
    }
    return holders.map(({ pid }, i) => {
      const memory = memoryOf(pid, path)
      return { ...memory, private: memory.private - (before[i] as number) }
    })
  } finally {
    for (const child of children) {
      const ended = new Promise((resolve) => child.once('close', resolve))
      child.stdin?.end()
      await ended
    }
  }
}

async function modelIn(format: BenchFormat): Promise<{ path: string; bytes: number }> {
  const path = join(temporaryFolder(), `${format}.gguf`)
  await writeRandomGguf(path, SHAPE, format, { repeated: true })
  await using model = await loadModel(path, { device: 'cpu', threads: 1 })
  const bytes = Object.values(model.weights).reduce((sum, bytes) => sum + bytes, 0)
  return { path, bytes }
}

// Rows of q and k are put in order at load (a twelfth of these matrices), and V8 is never quite still.
const REST = 0.4

whereLinux.each<[string, BenchFormat, object]>([
  ['plain matrices', 'bf16', {}],
  ['quantised ones with repack: false', 'q8_0', { repack: false }],
])(
  `%s are read from the file's pages, which processes share${where}`,
  async (_, format, options) => {
    const { path, bytes } = await modelIn(format)
    for (const memory of await hold(path, options)) {
      expect(memory.file).toBeGreaterThan(0.8 * bytes)
      expect(memory.fileShare).toBeLessThan(0.55 * memory.file)
      expect(memory.fileCopied).toBe(0)
      expect(memory.private).toBeLessThan(REST * bytes)
    }
  },
)

whereLinux.each<[string, BenchFormat, object]>([
  ['quantised matrices', 'q8_0', {}],
  ['mapped: false', 'bf16', { mapped: false }],
  ['a dtype of its own', 'bf16', { dtype: 'f16' }],
])(
  `%s: each process has panels or copies of its own, and no page of the file${where}`,
  async (_, format, options) => {
    const { path, bytes } = await modelIn(format)
    for (const memory of await hold(path, options)) {
      expect(memory.file).toBeLessThan(0.1 * bytes)
      expect(memory.private).toBeGreaterThan(0.9 * bytes)
      expect(memory.private).toBeLessThan((1 + REST) * bytes)
    }
  },
)

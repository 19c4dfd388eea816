// `npm run bench:sessions`: how long a session of 16k tokens takes to a file and back, beside what the disk takes for as many
// bytes. The shape is that of SmolLM2-135M, the cache in bf16; keys and values are random. Writes
// bench/results/sessions.json.

import { randomFillSync } from 'node:crypto'
import { mkdir, open, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { type Block, type Cache, createCache, createDevice, ropeFrequencies } from 'hogwild'
import { machine, round, spread } from './machine'

const LAYERS = 30
const KV_HEADS = 3
const HEAD_DIM = 64
const WORKERS = 4
/** Bytes that the disk is given at once. */
const PIECE = 4 * 2 ** 20

const { values } = parseArgs({
  options: {
    tokens: { type: 'string', default: '16384' },
    repeat: { type: 'string', default: '5' },
    /** Where the files go. */
    folder: { type: 'string', default: tmpdir() },
    out: { type: 'string', default: 'bench/results' },
  },
})

async function main(): Promise<void> {
  const about = machine()
  const repeat = Number(values.repeat)
  using device = createDevice({ type: 'cpu' })
  const open = () =>
    createCache({
      ...{ layers: LAYERS, kvHeads: KV_HEADS, headDim: HEAD_DIM, dtype: 'bf16', device },
      rope: ropeFrequencies({ type: 'default', theta: 10_000, rotaryDim: HEAD_DIM }),
      capacity: 2 * Number(values.tokens),
    })
  await using cache = open()
  await using other = open()
  const blocks = await fill(cache, Number(values.tokens))
  const path = join(values.folder, `hogwild-bench-${process.pid}.blocks`)
  const disk: number[] = []
  const save: number[] = []
  const load: number[] = []
  try {
    let bytes = 0
    for (let i = 0; i < repeat; i++) {
      // In turn, so that all see the same disk.
      save.push(await seconds(async () => (bytes = await cache.export(blocks, path))))
      load.push(
        await seconds(async () => {
          const { blocks: imported } = await other.import(path)
          for (const block of imported) block.close()
        }),
      )
      disk.push(await seconds(() => writePlain(`${path}.plain`, bytes)))
    }
    const { size } = await stat(path)
    const speed = (times: readonly number[]) =>
      spread(
        times.map((time) => size / time / 1e9),
        3,
      )
    const report = {
      tokens: Number(values.tokens),
      bytes: size,
      save_gb_per_s: speed(save),
      load_gb_per_s: speed(load),
      disk_write_gb_per_s: speed(disk),
      save_of_disk: round(speed(save).median / speed(disk).median, 3),
      simd: device.info.simd,
      threads: device.info.threads,
      command: `npm run bench:sessions -- ${process.argv.slice(2).join(' ')}`.trim(),
      machine: about,
    }
    await mkdir(values.out, { recursive: true })
    const json = `${JSON.stringify(report, null, 1)}\n`
    await writeFile(join(values.out, 'sessions.json'), json)
    process.stdout.write(json)
  } finally {
    await rm(path, { force: true })
    await rm(`${path}.plain`, { force: true })
  }
}

/** A prompt of three quarters of the tokens, and workers that share it and go on. */
async function fill(cache: Cache, tokens: number): Promise<Block[]> {
  const prompt = cache.createBlock()
  await append(cache, prompt, (tokens * 3) / 4)
  const workers = Array.from({ length: WORKERS }, () => prompt.fork())
  for (const worker of workers) await append(cache, worker, tokens / 4 / WORKERS)
  return [prompt, ...workers]
}

async function append(cache: Cache, block: Block, tokens: number): Promise<void> {
  const pass = cache.beginPass([{ view: { blocks: [block] }, tokens }])
  const floats = new Float32Array(tokens * KV_HEADS * HEAD_DIM)
  for (let i = 0; i < floats.length; i++) floats[i] = Math.sin(i)
  for (let layer = 0; layer < LAYERS; layer++) await pass.append(layer, floats, floats)
  pass.commit()
}

async function seconds(work: () => Promise<unknown>): Promise<number> {
  const begin = performance.now()
  await work()
  return (performance.now() - begin) / 1e3
}

/** As many bytes, none like another piece's, as a file that is on the disk afterwards. */
async function writePlain(path: string, bytes: number): Promise<void> {
  const piece = randomFillSync(Buffer.alloc(PIECE))
  const file = await open(path, 'w')
  try {
    for (let at = 0; at < bytes; at += PIECE) {
      await file.write(piece, 0, Math.min(PIECE, bytes - at), at)
    }
    await file.sync()
  } finally {
    await file.close()
  }
}

void main()

// `npm run bench:sessions`: how long a session of 16k tokens takes to a file and back, beside what the disk takes for as many
// bytes: as blocks, and as a run in its middle. The shape is that of SmolLM2-135M, the cache in bf16; keys and values are
// random, and so is the model. Writes bench/results/sessions.json.

import { randomFillSync } from 'node:crypto'
import { mkdir, open, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import {
  type Block,
  type Cache,
  createDevice,
  loadModel,
  type Model,
  restoreRun,
  runWorkers,
} from 'hogwild'
import { machine, round, spread } from './machine'
import { withRandomLlama } from './random-llama'

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
  await withRandomLlama(bench)
}

async function bench(folder: string): Promise<void> {
  const about = machine()
  const repeat = Number(values.repeat)
  using device = createDevice({ type: 'cpu' })
  await using model = await loadModel(folder, { device, onWarning: () => {} })
  const open = () =>
    model.createCache({ dtype: 'bf16', capacity: 2 * Number(values.tokens), onWarning: () => {} })
  await using cache = open()
  await using other = open()
  const blocks = await fill(cache, Number(values.tokens))
  const path = join(values.folder, `hogwild-bench-${process.pid}`)
  const files = { blocks: `${path}.blocks`, run: `${path}.run`, plain: `${path}.plain` }
  const disk: number[] = []
  const save: number[] = []
  const load: number[] = []
  try {
    let bytes = 0
    for (let i = 0; i < repeat; i++) {
      // In turn, so that all see the same disk.
      save.push(await seconds(async () => (bytes = await cache.export(blocks, files.blocks))))
      load.push(
        await seconds(async () => {
          const { blocks: imported } = await other.import(files.blocks)
          for (const block of imported) block.close()
        }),
      )
      disk.push(await seconds(() => writePlain(files.plain, bytes)))
    }
    const run = await saveRun(model, cache, other, blocks, files.run)
    const { size } = await stat(files.blocks)
    const report = {
      tokens: Number(values.tokens),
      bytes: size,
      save_gb_per_s: speed(size, save),
      load_gb_per_s: speed(size, load),
      ...run,
      disk_write_gb_per_s: speed(size, disk),
      save_of_disk: round(speed(size, save).median / speed(size, disk).median, 3),
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
    for (const file of Object.values(files)) await rm(file, { force: true })
  }
}

const speed = (bytes: number, times: readonly number[]) =>
  spread(
    times.map((time) => bytes / time / 1e9),
    3,
  )

/** Workers that go on in the blocks, between two of their steps. */
async function saveRun(
  model: Model,
  cache: Cache,
  other: Cache,
  [common, ...owns]: readonly Block[],
  path: string,
) {
  const workers = owns.map((own, seed) => {
    return { name: `${seed}`, own, prompt: [1], sampler: { temperature: 1, seed } }
  })
  await using run = runWorkers({ model, cache, common, prompt: [], workers, maxTokens: 8 })
  const events = run[Symbol.asyncIterator]()
  for (;;) {
    const next = await events.next()
    if (next.done || next.value.type === 'step') break
  }
  const save: number[] = []
  const load: number[] = []
  let bytes = 0
  for (let i = 0; i < Number(values.repeat); i++) {
    save.push(await seconds(async () => (bytes = await run.save(path))))
    let taken: Block[] = []
    load.push(
      await seconds(async () => {
        const { run: restored } = await restoreRun(path, { model, cache: other })
        const { common: prompt, workers: found } = restored.blocks
        taken = [prompt as Block, ...Object.values(found).map(({ own }) => own)]
        await restored.close()
      }),
    )
    for (const block of taken) block.close()
  }
  return {
    run_bytes: bytes,
    run_save_gb_per_s: speed(bytes, save),
    run_restore_gb_per_s: speed(bytes, load),
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
  const { layers, kvHeads, headDim } = cache.shape
  const floats = new Float32Array(tokens * kvHeads * headDim)
  for (let i = 0; i < floats.length; i++) floats[i] = Math.sin(i)
  for (let layer = 0; layer < layers; layer++) await pass.append(layer, floats, floats)
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

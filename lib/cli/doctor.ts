// `hogwild doctor`: what was found on this machine, what will be used, and whether it computes what it should. Works
// without the addon, and then tells why there is none.

import { availableParallelism, cpus, release, totalmem } from 'node:os'
import {
  BUILD_COMMAND,
  BUILD_NEEDS,
  describePlatform,
  explainAttempts,
  loadAddon,
  platform,
} from '../addon-file'
import type { DeviceName } from '../device-name'
import { HogwildError } from '../errors'
import { escapeUnsafe } from '../printable'
import type { Row } from './doctor/devices'
import type { ReuseCase } from './doctor/reuse'
import { packageVersion } from './package'
import { formatTable } from './table'
import { colors, print, printJson } from './terminal'

export interface ReuseOptions {
  model: string
  device: DeviceName
  json?: boolean
}

/** `doctor --reuse`. Rejects where blocks that are used again give other logits than they may. */
export async function doctorReuse(options: ReuseOptions): Promise<void> {
  const { device, json } = options
  const { compareReuse, isWrong } = await import('./doctor/reuse.js')
  const { findWithProgress, loadWithProgress } = await import('./model.js')
  const path = await findWithProgress(options.model, options)
  await using model = await loadWithProgress(path, device, { ...options, dtype: 'auto' })
  const report = await compareReuse(model, path)
  if (json)
    printJson({ version: packageVersion, model: path, device: model.device.info, ...report })
  else {
    const rows = report.cases.map((one) => [
      `${one.case}, ${one.against === 'afresh' ? 'computed afresh' : 'keys turned'}`,
      one.cache,
      one.difference.toPrecision(2),
      one.deviations.toPrecision(2),
      one.kl.toPrecision(2),
      `${one.sameArgmax} of ${one.tokens}`,
      verdict(one, isWrong(one)),
    ])
    const header = ['blocks, against', 'cache', '|difference|', 'in σ', 'KL', 'argmax', '']
    for (const line of formatTable(header, rows)) print(line)
  }
  const wrong = report.cases.filter(isWrong)
  if (wrong.length === 0) return
  const list = wrong.map((one) => `${one.case} (${one.cache}, ${one.against})`)
  throw new HogwildError(
    `blocks that are used again give other logits than they may: ${list.join(', ')}`,
    'HOGWILD_INTERNAL',
  )
}

function verdict({ allowed }: ReuseCase, isWrong: boolean): string {
  if (allowed === null) return 'saw another context'
  const rule = allowed === 0 ? 'no bit may differ' : `at most ${allowed} σ`
  return isWrong ? `WRONG: ${rule}` : rule
}

/** Rejects where there is no addon, and where a device computes wrong numbers. */
export async function doctor({ json = false }: { json?: boolean }): Promise<void> {
  const show = (report: object, rows: readonly Row[]) => {
    if (json) printJson(report)
    else
      for (const [name, value] of rows)
        print(`${colors.bold(name.padEnd(10))} ${escapeUnsafe(value)}`)
  }
  const { report, rows } = machine()
  const loaded = loadAddon()
  if (loaded.addon === undefined) {
    const { tried } = loaded
    const missing = tried.map(({ file, reason }): Row => ['no addon', `${file}: ${reason}`])
    const help: Row = ['what helps', `${BUILD_COMMAND} (needs ${BUILD_NEEDS})`]
    show({ ...report, addon: null, tried, build: BUILD_COMMAND }, [...rows, ...missing, help])
    throw new HogwildError(explainAttempts(tried), 'HOGWILD_UNSUPPORTED')
  }
  const { file } = loaded
  const { inspect } = await import('./doctor/devices.js')
  const found = await inspect()
  show({ ...report, addon: file, ...found.report }, [...rows, ['addon', file], ...found.rows])
  if (found.wrong.length > 0) {
    const list = found.wrong.map(({ device, problem }) => `${device} (${problem})`)
    throw new HogwildError(`wrong numbers on this machine: ${list.join(', ')}`, 'HOGWILD_INTERNAL')
  }
}

function machine(): { report: object; rows: Row[] } {
  const { node } = process.versions
  const processor = cpus()[0]?.model.trim() ?? 'unknown'
  const processors = availableParallelism()
  const memory = Number((totalmem() / 1e9).toFixed(1))
  return {
    report: {
      version: packageVersion,
      platform,
      release: release(),
      node,
      processor,
      processors,
      memory_gb: memory,
    },
    rows: [
      ['hogwild', packageVersion],
      ['platform', `${describePlatform()}, ${release()}`],
      ['node', node],
      ['processor', `${processor}, ${processors} available to this process`],
      ['memory', `${memory} GB`],
    ],
  }
}

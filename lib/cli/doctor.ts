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
import { HogwildError } from '../errors'
import { escapeUnsafe } from '../printable'
import type { Row } from './doctor/devices'
import { packageVersion } from './package'
import { colors, print, printJson } from './terminal'

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

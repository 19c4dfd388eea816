// `hogwild doctor`: what was found on this machine and what will be used.

import { availableParallelism, cpus, release, totalmem } from 'node:os'
import { createDevice, probe } from '../index'
import { escapeUnsafe } from '../printable'
import { packageVersion } from './package'
import { colors, print, printJson } from './terminal'

export function doctor(options: { json?: boolean }): void {
  const found = probe()
  const device = createDevice({ type: 'auto' })
  const used = device.info
  device.close()
  const report = {
    version: packageVersion,
    platform: `${process.platform}-${process.arch}`,
    release: release(),
    node: process.versions.node,
    processor: cpus()[0]?.model.trim() ?? 'unknown',
    processors: availableParallelism(),
    memory_gb: Number((totalmem() / 1e9).toFixed(1)),
    device: used,
    simd_available: found.simd,
    cuda: found.cuda,
  }
  if (options.json) {
    printJson(report)
    return
  }
  const cards = found.cuda.cards.map(({ name, memory, computeCapability, reason }, index) => [
    `cuda:${index}`,
    reason === ''
      ? `${name}, ${(memory / 2 ** 30).toFixed(1)} GiB, compute capability ${computeCapability.toFixed(1)}`
      : `${name || 'unknown'}, not used: ${reason}`,
  ])
  const rows = [
    ['hogwild', report.version],
    ['platform', `${report.platform}, ${report.release}`],
    ['node', report.node],
    ['processor', `${report.processor}, ${report.processors} available to this process`],
    ['memory', `${report.memory_gb} GB`],
    ['device', `${used.type} (${used.name})`],
    ['SIMD', `${used.simd || 'none'} in use; available: ${found.simd.join(', ')}`],
    ['threads', String(found.threads)],
    ...(cards.length > 0 ? cards : [['CUDA', `not used: ${found.cuda.reason}`]]),
  ]
  for (const [name = '', value = ''] of rows) {
    print(`${colors.bold(name.padEnd(10))} ${escapeUnsafe(value)}`)
  }
}

// What the addon finds on this machine. Loads the addon.

import { createDevice, demoModelPath, probe } from '../../index'
import { type Check, check, devices } from './check'

export type Row = [name: string, value: string]

export interface Inspection {
  report: object
  rows: Row[]
  /** The devices that compute wrong numbers, or none. */
  wrong: Check[]
}

export async function inspect(): Promise<Inspection> {
  const { simd, threads, cuda } = probe()
  const device = createDevice()
  const used = device.info
  device.close()
  const checks: Check[] = []
  for (const options of devices({ simd, cuda })) {
    checks.push(await check(options, demoModelPath))
  }
  return {
    report: { device: used, simd_available: simd, cuda, checks },
    rows: [
      ['device', `${used.type} (${used.name})`],
      ['SIMD', `${used.simd || 'none'} in use; available: ${simd.join(', ')}`],
      ['threads', String(threads)],
      ...cudaRows(cuda),
      ...checks.map(({ device, error, problem }): Row => {
        const right = `right (logits within ${error?.toPrecision(2)})`
        return ['check', `${device}: ${problem === '' ? right : `WRONG, ${problem}`}`]
      }),
    ],
    wrong: checks.filter(({ problem }) => problem !== ''),
  }
}

function cudaRows({ cards, reason }: ReturnType<typeof probe>['cuda']): Row[] {
  if (cards.length === 0) return [['CUDA', `not used: ${reason}`]]
  return cards.map(({ name, memory, computeCapability, reason }, index) => [
    `cuda:${index}`,
    reason === ''
      ? `${name}, ${(memory / 2 ** 30).toFixed(1)} GiB, compute capability ${computeCapability.toFixed(1)}`
      : `${name || 'unknown'}, not used: ${reason}`,
  ])
}

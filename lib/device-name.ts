// Names of devices. Without the addon: whoever only reads a name does not load it.

import { invalid } from './validate'

/** What computes. */
export type DeviceType = 'cpu' | 'cuda'

/** By name: 'auto' is the first CUDA card that can be used, else the CPU; 'cuda:1' is the second card. */
export type DeviceName = 'auto' | DeviceType | `cuda:${number}`

/** The options that a name stands for. Throws HOGWILD_INVALID_ARGUMENT. */
export function parseDevice(name: unknown): { type: 'auto' | DeviceType; index?: number } {
  const card = typeof name === 'string' ? /^cuda:(\d{1,5})$/.exec(name) : null
  if (card) return { type: 'cuda', index: Number(card[1]) }
  if (name !== 'auto' && name !== 'cpu' && name !== 'cuda') {
    throw invalid('options.device', "a Device, 'auto', 'cpu', 'cuda' or 'cuda:N'", name)
  }
  return { type: name }
}

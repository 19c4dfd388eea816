// What a scheduler does, for `node:diagnostics_channel`. Nothing is put together where nobody listens.

import { channel } from 'node:diagnostics_channel'

/** Of 'hogwild:step': a step has ended. */
export interface StepMessage {
  groups: number
  workers: number
  /** Of lock steps, and of blocks that are filled. */
  tokens: number
  prefilledTokens: number
  milliseconds: number
}

/** Of 'hogwild:group:wait', 'hogwild:group:begin', 'hogwild:group:end'. */
export interface GroupMessage {
  workers: number
  promptTokens: number
  /** Its budget; undefined: no bound but the cache. */
  pages: number | undefined
  priority: number
}

interface Messages {
  'hogwild:step': StepMessage
  'hogwild:group:wait': GroupMessage
  'hogwild:group:begin': GroupMessage
  'hogwild:group:end': GroupMessage
}

const channels = {
  'hogwild:step': channel('hogwild:step'),
  'hogwild:group:wait': channel('hogwild:group:wait'),
  'hogwild:group:begin': channel('hogwild:group:begin'),
  'hogwild:group:end': channel('hogwild:group:end'),
}

export function publish<Name extends keyof Messages>(
  name: Name,
  message: () => Messages[Name],
): void {
  if (channels[name].hasSubscribers) channels[name].publish(message())
}

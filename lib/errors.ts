import { escapeUnsafe } from './printable'

/**
 * Why a call was refused. The codes are part of the public interface; messages are for people.
 *
 * - `HOGWILD_INVALID_ARGUMENT`: a value of the wrong type, shape or range; the message names what is expected.
 * - `HOGWILD_INVALID_MODEL`: model files that are damaged, incomplete or contradict each other.
 * - `HOGWILD_INVALID_SESSION`: a file of blocks or of a run that is damaged, cut short, something else, or of another model or cache; the message says what was found.
 * - `HOGWILD_UNSUPPORTED`: a model, device or option that this build or machine does not offer; the message names what it does.
 * - `HOGWILD_OUT_OF_PAGES`: the cache's page pool cannot hold the new tokens.
 * - `HOGWILD_OUT_OF_MEMORY`: the system or the device has no memory left.
 * - `HOGWILD_WRITE_CONFLICT`: two workers of one step write to the same block.
 * - `HOGWILD_BUSY`: the cache is in use by a step that has not ended.
 * - `HOGWILD_CLOSED`: a model, cache, block, pass, run or scheduler that was closed before.
 * - `HOGWILD_ABORTED`: stopped by an AbortSignal (its reason is the `cause`) or by `close()`.
 * - `HOGWILD_TIMEOUT`: work on text that took longer than its deadline.
 * - `HOGWILD_DOWNLOAD`: a model that could not be brought from the hub: not there, no access, no connection, a wrong checksum, no room on the disk.
 * - `HOGWILD_NOT_WRITTEN`: a file that could not be written: no folder, no access, no room on the disk; the system's error is the `cause`, and what was there before is still there.
 * - `HOGWILD_INTERNAL`: a bug in this package.
 *
 * After any of them the cache is as it was before the call.
 */
export type HogwildErrorCode =
  | 'HOGWILD_INVALID_ARGUMENT'
  | 'HOGWILD_INVALID_MODEL'
  | 'HOGWILD_INVALID_SESSION'
  | 'HOGWILD_UNSUPPORTED'
  | 'HOGWILD_OUT_OF_PAGES'
  | 'HOGWILD_OUT_OF_MEMORY'
  | 'HOGWILD_WRITE_CONFLICT'
  | 'HOGWILD_BUSY'
  | 'HOGWILD_CLOSED'
  | 'HOGWILD_ABORTED'
  | 'HOGWILD_TIMEOUT'
  | 'HOGWILD_DOWNLOAD'
  | 'HOGWILD_NOT_WRITTEN'
  | 'HOGWILD_INTERNAL'

/** Longest message, in UTF-16 code units: names in model files and scripts may be megabytes. */
const MAX_MESSAGE = 2000

/**
 * Every error that this package throws on purpose. Test `code`, not the message. A message is one line and
 * safe to print: control and other invisible characters of names stand in it as escapes.
 */
export class HogwildError extends Error {
  /**
   * Tells it from other errors where `instanceof` does not reach: from another copy of the package, or another realm.
   */
  override readonly name = 'HogwildError'
  /** For programs: docs/troubleshooting.md has each with when, why and what to do. */
  readonly code: HogwildErrorCode

  /** Control characters in the message become escapes; `options.cause` is what the error follows from. */
  constructor(message: string, code: HogwildErrorCode, options?: ErrorOptions) {
    super(escapeUnsafe(shorten(message)), options)
    this.code = code
  }
}

function shorten(message: string): string {
  return message.length > MAX_MESSAGE ? `${message.slice(0, MAX_MESSAGE - 1)}…` : message
}

/** The code of what was thrown, which may be anything; undefined where it has none. */
export function errorCode(error: unknown): unknown {
  return (error as { code?: unknown } | null | undefined)?.code
}

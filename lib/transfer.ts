// What users say of a transfer to a file or from one, and are told. Apart from session-file.ts, so that the package's types
// need none of Node.js.

/** Bytes of the data that are in the file. */
export interface SessionProgress {
  /** So far. */
  bytes: number
  /** Of all of them. */
  totalBytes: number
}

/** What files of blocks have in common. */
export interface TransferOptions {
  /** Rejects with HOGWILD_ABORTED, and nothing has changed. */
  signal?: AbortSignal | undefined
  /** Called behind each piece of 4 MiB. What it throws ends the transfer. */
  onProgress?: ((progress: SessionProgress) => void) | undefined
}

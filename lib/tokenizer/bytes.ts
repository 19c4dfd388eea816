// Byte-level BPE writes each byte of a text as one printable character (GPT-2).

/** The character of each byte. */
export const BYTE_CHARACTERS: readonly string[] = (() => {
  const printable = (byte: number) =>
    (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae
  let next = 256
  return Array.from({ length: 256 }, (_, byte) =>
    String.fromCharCode(printable(byte) ? byte : next++),
  )
})()

const BYTES = new Map(BYTE_CHARACTERS.map((character, byte) => [character, byte]))

const encoder = new TextEncoder()

/** The bytes of a text as characters. */
export function byteCharacters(text: string): string {
  let characters = ''
  for (let i = 0; i < text.length; i++) {
    const unit = text.charCodeAt(i)
    if (unit >= 0x80) return characters + bytesOf(text.slice(i))
    characters += BYTE_CHARACTERS[unit]
  }
  return characters
}

function bytesOf(text: string): string {
  let characters = ''
  for (const byte of encoder.encode(text)) characters += BYTE_CHARACTERS[byte]
  return characters
}

/** The bytes that a token's characters stand for; those of its UTF-8 if one of them stands for none. */
export function tokenBytes(token: string): Uint8Array {
  const bytes = new Uint8Array(token.length)
  for (let i = 0; i < token.length; i++) {
    const byte = BYTES.get(token.charAt(i))
    if (byte === undefined) return encoder.encode(token)
    bytes[i] = byte
  }
  return bytes
}

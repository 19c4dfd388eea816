// The vocabulary of a GGUF file as a tokenizer.json: what the model's original one says, as far as the file tells it.

import { textsIn } from '../sources/gguf'
import { PieceScores } from './models/bpe'

/** Plain data, so that it can be sent to a worker thread. Arrays have one element for each token. */
export interface GgufVocabulary {
  /** 'gpt2': byte-level BPE with merges. 'llama': SentencePiece's BPE, whose merges follow from the scores. */
  model: GgufTokenizerModel
  /** How the words of a byte-level BPE are found. */
  pre: PreTokenizerName | undefined
  /** Texts as in the file, each behind its length in 8 bytes. */
  tokens: SharedArrayBuffer
  /** The same; each is two tokens with a space between them. */
  merges: SharedArrayBuffer | undefined
  scores: Float32Array | undefined
  /** TOKEN_TYPES; undefined: all are normal. */
  types: Uint8Array | undefined
  /** Ids of tokens before and behind a text. */
  before: readonly number[]
  behind: readonly number[]
  unknownId: number | undefined
  /** Puts a space before a text. */
  spacePrefix: boolean
}

export const GGUF_TOKENIZER_MODELS = ['gpt2', 'llama'] as const

export type GgufTokenizerModel = (typeof GGUF_TOKENIZER_MODELS)[number]

/** llama.cpp's numbers. */
export const TOKEN_TYPES = {
  normal: 1,
  unknown: 2,
  control: 3,
  user: 4,
  unused: 5,
  byte: 6,
} as const

interface PreTokenizer {
  /** Patterns that split a text one after the other, and then into bytes; 'digits' are single numbers. */
  splits: readonly string[]
  /** The original tokenizer composes characters first. */
  composes?: true
  /** A word that is a token is that token, whatever its merges give. */
  ignoresMerges?: true
  /** A token for the beginning of a text comes first where the file does not say. */
  begins?: true
}

const ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
const REST = '\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+'
const LETTERS = '[^\\r\\n\\p{L}\\p{N}]?\\p{L}+'
const SYMBOLS = ' ?[^\\s\\p{L}\\p{N}]+'
const UPPER = '[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]'
const LOWER = '[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]'
const CASED = (endings: string) =>
  `[^\\r\\n\\p{L}\\p{N}]?${UPPER}*${LOWER}+${endings}|[^\\r\\n\\p{L}\\p{N}]?${UPPER}+${LOWER}*${endings}`

const GPT2 = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
const DIGIT = '\\p{N}'
const LLAMA3 = `${ENDINGS}|${LETTERS}|\\p{N}{1,3}|${SYMBOLS}[\\r\\n]*|${REST}`
const QWEN2 = `${ENDINGS}|${LETTERS}|\\p{N}|${SYMBOLS}[\\r\\n]*|${REST}`
const TEKKEN = `${CASED('')}|\\p{N}|${SYMBOLS}[\\r\\n/]*|${REST}`
const GPT4O = `${CASED(`${ENDINGS}?`)}|\\p{N}{1,3}|${SYMBOLS}[\\r\\n/]*|${REST}`
const SEED = `${ENDINGS}|${LETTERS}|\\p{N}{1}| ?[^\\s\\p{L}\\p{N}\\r\\n]+|${REST}`
/** Letters with a case, but not those of all scripts. */
const DEEPSEEK_LETTERS = [
  'A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af',
  '\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1',
  '\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd',
  '\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d',
  '\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4',
  '\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec',
  '\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128',
  '\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b',
  '\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787',
  '\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a',
  '\u{10400}-\u{1044f}\u{104b0}-\u{104d3}\u{104d8}-\u{104fb}\u{10c80}-\u{10cb2}',
  '\u{10cc0}-\u{10cf2}\u{118a0}-\u{118df}\u{1e900}-\u{1e943}',
].join('')
const CJK = '[一-龥ࠀ-一가-퟿]+'
const DEEPSEEK3 = `[!"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_\`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|${REST}`

const llama3: PreTokenizer = { splits: [LLAMA3], ignoresMerges: true, begins: true }
const digits: PreTokenizer = { splits: [DIGIT, GPT2] }
const gpt4o: PreTokenizer = { splits: [GPT4O] }

/** By the names of `tokenizer.ggml.pre`: those of the families that are computed here, as their tokenizer.json has them. */
const PRE_TOKENIZERS = {
  'gpt-2': { splits: [GPT2] },
  smollm: digits,
  starcoder: digits,
  refact: digits,
  'llama-bpe': llama3,
  llama3,
  'llama-v3': llama3,
  falcon3: llama3,
  pixtral: llama3,
  'smaug-bpe': { splits: [LLAMA3] },
  dbrx: { splits: [LLAMA3] },
  glm4: { splits: [LLAMA3] },
  'chatglm-bpe': { splits: [LLAMA3] },
  qwen2: { splits: [QWEN2], composes: true },
  'deepseek-r1-qwen': { splits: [QWEN2] },
  tekken: { splits: [TEKKEN], ignoresMerges: true, begins: true },
  'gpt-4o': gpt4o,
  llama4: gpt4o,
  'deepseek-llm': {
    splits: [
      '[\\r\\n]',
      `\\s?[${DEEPSEEK_LETTERS}]+`,
      '\\s?[!-/:-~！-／：-～‘-‟　-。]+',
      '\\s+$',
      CJK,
      DIGIT,
    ],
  },
  'deepseek-coder': { splits: ['[\\r\\n]', '\\s?\\p{L}+', '\\s?\\p{P}+', CJK, DIGIT] },
  'deepseek-v3': { splits: ['\\p{N}{1,3}', '[一-龥぀-ゟ゠-ヿ]+', DEEPSEEK3] },
  'seed-coder': { splits: [SEED] },
} as const satisfies Record<string, PreTokenizer>

export type PreTokenizerName = keyof typeof PRE_TOKENIZERS

export const PRE_TOKENIZER_NAMES = Object.keys(PRE_TOKENIZERS) as readonly PreTokenizerName[]

/** Whether texts get a token for their beginning where the file does not say. */
export function beginsTexts(model: GgufTokenizerModel, pre: PreTokenizerName | undefined): boolean {
  return model === 'llama' || (pre !== undefined && 'begins' in PRE_TOKENIZERS[pre])
}

/** A tokenizer.json, as an object. Throws HOGWILD_INVALID_MODEL. */
export function tokenizerOf(vocabulary: GgufVocabulary): Record<string, unknown> {
  const tokens = textsIn(Buffer.from(vocabulary.tokens), 'the vocabulary')
  const types = vocabulary.types ?? new Uint8Array(tokens.length).fill(TOKEN_TYPES.normal)
  const { names, parts } =
    vocabulary.model === 'gpt2'
      ? byteLevel(vocabulary, tokens)
      : sentencePiece(vocabulary, tokens, types)
  const present = (id: number) => types[id] !== TOKEN_TYPES.unused
  return {
    ...parts,
    model: {
      type: 'BPE',
      vocab: new Map(names.map((name, id) => [name, id] as const).filter(([, id]) => present(id))),
      ...parts.model,
    },
    added_tokens: names.flatMap((content, id) => addedToken(content, id, types[id] as number)),
    post_processor: surroundings(vocabulary, names),
  }
}

interface Parts {
  /** The tokens as tokenizer.json spells them. */
  names: readonly string[]
  parts: { model: object; normalizer: object | null; pre_tokenizer: object | null; decoder: object }
}

function byteLevel({ pre = 'gpt-2', merges, spacePrefix }: GgufVocabulary, names: string[]): Parts {
  const { splits, ...options }: PreTokenizer = PRE_TOKENIZERS[pre]
  const bytes = { type: 'ByteLevel', add_prefix_space: spacePrefix, use_regex: false }
  return {
    names,
    parts: {
      model: {
        merges: merges === undefined ? [] : textsIn(Buffer.from(merges), 'the merges'),
        ignore_merges: options.ignoresMerges ?? false,
      },
      normalizer: options.composes ? { type: 'NFC' } : null,
      pre_tokenizer: {
        type: 'Sequence',
        pretokenizers: [
          ...splits.map((pattern) => ({
            type: 'Split',
            pattern: { Regex: pattern },
            behavior: 'Isolated',
          })),
          bytes,
        ],
      },
      decoder: bytes,
    },
  }
}

const SPACE = '▁'

function sentencePiece(
  { scores, unknownId, spacePrefix }: GgufVocabulary,
  tokens: string[],
  types: Uint8Array,
): Parts {
  const { user, normal } = TOKEN_TYPES
  const known = new Set(tokens)
  // Files spell pieces of spaces with spaces, where the original has U+2581.
  const names = tokens.map((token, id) => {
    const spelt = token.replaceAll(' ', SPACE)
    return (types[id] === user || types[id] === normal) && !known.has(spelt) ? spelt : token
  })
  const replace = { type: 'Replace', pattern: { String: ' ' }, content: SPACE }
  const prepend = { type: 'Prepend', prepend: SPACE }
  return {
    names,
    parts: {
      model: {
        merges: scoresOf(types, scores),
        unk_token: unknownId === undefined ? null : names[unknownId],
        fuse_unk: true,
        byte_fallback: true,
      },
      normalizer: { type: 'Sequence', normalizers: [...(spacePrefix ? [prepend] : []), replace] },
      pre_tokenizer: null,
      decoder: {
        type: 'Sequence',
        decoders: [
          { type: 'Replace', pattern: { String: SPACE }, content: ' ' },
          { type: 'ByteFallback' },
          { type: 'Fuse' },
          ...(spacePrefix ? [{ type: 'Strip', content: ' ', start: 1, stop: 0 }] : []),
        ],
      },
    },
  }
}

/** Pieces of users have the score 0, which is better than any that was learned. */
function scoresOf(types: Uint8Array, scores: Float32Array | undefined): PieceScores {
  const { normal, user } = TOKEN_TYPES
  return new PieceScores(
    Float64Array.from(types, (type, id) => {
      if (type === user) return 0
      return type === normal ? (scores?.[id] ?? 0) : Number.NaN
    }),
  )
}

function addedToken(content: string, id: number, type: number): object[] {
  const { control, unknown, user } = TOKEN_TYPES
  if (type !== control && type !== unknown && type !== user) return []
  return [{ id, content, special: type !== user, normalized: false }]
}

function surroundings({ before, behind }: GgufVocabulary, names: readonly string[]): object | null {
  if (before.length === 0 && behind.length === 0) return null
  const tokens = (ids: readonly number[]) =>
    ids.map((id) => ({ SpecialToken: { id: names[id] as string } }))
  return {
    type: 'TemplateProcessing',
    single: [...tokens(before), { Sequence: { id: 'A' } }, ...tokens(behind)],
    special_tokens: Object.fromEntries(
      [...before, ...behind].map((id) => [names[id] as string, { ids: [id] }]),
    ),
  }
}

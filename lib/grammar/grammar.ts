// Grammars: which tokens may come next, so that a worker's text is JSON of a schema, or what an EBNF grammar says.

import { HogwildError } from '../errors'
import { Tokenizer } from '../tokenizer/tokenizer'
import {
  checkInstance,
  checkObject,
  checkOneOf,
  checkOptions,
  checkString,
  checkTokens,
  invalid,
  optionKeys,
} from '../validate'
import { TextMasks, type TextState } from './text-masks'
import {
  type CompiledGrammar,
  type Compiler,
  loadXGrammar,
  type Matcher,
  type XGrammar,
} from './xgrammar'

/** Options of `createGrammar`: one of `jsonSchema` and `ebnf`. */
export interface GrammarOptions {
  /** Whose tokens they are: that of the model. */
  tokenizer: Tokenizer
  /** A JSON schema, or its text; `{}`: any JSON. Properties and items that it does not name are not allowed. */
  jsonSchema?: object | string | undefined
  /** A grammar whose first rule is `root`, e.g. `root ::= "yes" | "no"`. Either this or `jsonSchema`. */
  ebnf?: string | undefined
  /**
   * Where JSON may have spaces. 'line': it is one line, with a space behind each colon and comma; 'any': anywhere, as
   * many as the model likes. Default 'line'.
   */
  whitespace?: 'line' | 'any' | undefined
  /** Token ids of which one ends the text, once it is complete; default: the tokenizer's `eosTokenIds`. */
  stopTokens?: ArrayLike<number> | undefined
}

const KEYS = optionKeys<GrammarOptions>()({
  tokenizer: true,
  jsonSchema: true,
  ebnf: true,
  whitespace: true,
  stopTokens: true,
})

/**
 * Compiles a grammar, for any number of workers at once: each gets a matcher of its own (`grammar.matcher()`).
 *
 * Needs the package @mlc-ai/web-xgrammar (an optional peer dependency). It works on the calling thread: large schemas
 * take seconds, and a schema of a stranger as long as it likes.
 *
 * Throws HOGWILD_UNSUPPORTED where the package is not installed, and for tokenizers whose tokens' text depends on their
 * neighbours (WordPiece, BPE with suffixes, CTC); HOGWILD_INVALID_ARGUMENT for a schema or a grammar that cannot be
 * read, saying why.
 */
export async function createGrammar(options: GrammarOptions): Promise<Grammar> {
  options = checkOptions(options, 'options', KEYS)
  const tokenizer = checkInstance(options.tokenizer, 'options.tokenizer', Tokenizer)
  const { jsonSchema, ebnf } = options
  if ((jsonSchema === undefined) === (ebnf === undefined)) {
    throw invalid('options', 'either a jsonSchema or an ebnf', { jsonSchema, ebnf })
  }
  const whitespace = checkOneOf(options.whitespace ?? 'line', 'options.whitespace', ['line', 'any'])
  const schema = jsonSchema === undefined ? undefined : checkSchema(jsonSchema)
  if (ebnf !== undefined) checkString(ebnf, 'options.ebnf')
  const stopTokens = checkTokens(
    options.stopTokens ?? tokenizer.eosTokenIds,
    'options.stopTokens',
    tokenizer.size,
  )
  if (stopTokens.length === 0) {
    throw invalid('options.stopTokens', 'at least one token that ends the text', stopTokens)
  }
  const engine = await engineOf(tokenizer, stopTokens)
  const compiled = await engine.compile(
    schema === undefined ? 'options.ebnf' : 'options.jsonSchema',
    (compiler) =>
      schema === undefined
        ? compiler.compileGrammar(ebnf as string, 'root')
        : compiler.compileJSONSchema(schema, whitespace === 'any', -1, [', ', ': '], true),
  )
  const kind = schema === undefined ? 'text' : whitespace
  return new Grammar(engine, compiled, engine.masks(kind))
}

function checkSchema(schema: object | string): string {
  if (typeof schema === 'string') return schema
  checkObject(schema, 'options.jsonSchema')
  let text: string | undefined
  let cause: unknown
  try {
    text = JSON.stringify(schema)
  } catch (error) {
    cause = error
  }
  if (typeof text === 'string') return text
  const message = 'options.jsonSchema cannot be written as JSON'
  throw new HogwildError(message, 'HOGWILD_INVALID_ARGUMENT', { cause })
}

/** An EBNF's text, or JSON by where it may have spaces: lines may end in JSON of any whitespace. */
type MaskKind = 'text' | 'line' | 'any'
const REFUSED_BYTES: Record<MaskKind, (byte: number) => boolean> = {
  text: () => false,
  line: (byte) => byte < 0x20,
  any: (byte) => byte < 0x20 && byte !== 0x0a && byte !== 0x0d,
}

/** An instance of the package with the tokens of one tokenizer, which take their time to be brought. */
class Engine {
  /** Whether it ended a call in the middle: what it was working on is lost, what is compiled works on. */
  hasFailed = false
  readonly stopTokens: Int32Array
  readonly #library: XGrammar
  readonly #compiler: Compiler
  readonly #tokens: readonly Uint8Array[]
  readonly #masks = new Map<MaskKind, TextMasks>()

  private constructor(
    library: XGrammar,
    compiler: Compiler,
    tokens: readonly Uint8Array[],
    stopTokens: Int32Array,
  ) {
    this.stopTokens = stopTokens
    this.#library = library
    this.#compiler = compiler
    this.#tokens = tokens
  }

  get size(): number {
    return this.#tokens.length
  }

  static async create(tokenizer: Tokenizer, stopTokens: Int32Array): Promise<Engine> {
    const library = loadXGrammar()
    const tokens = tokenizer.tokenBytes()
    if (tokens === undefined) {
      throw new HogwildError(
        'grammars need a tokenizer of bytes (ByteLevel) or pieces (SentencePiece), whose tokens have texts of their own',
        'HOGWILD_UNSUPPORTED',
      )
    }
    const info = await library.TokenizerInfo.createTokenizerInfo(
      tokens,
      'raw',
      false,
      tokens.length,
      Array.from(stopTokens),
    )
    const compiler = await library.GrammarCompiler.createGrammarCompiler(info)
    return new Engine(library, compiler, tokens, stopTokens)
  }

  async compile(
    name: string,
    compile: (compiler: Compiler) => Promise<CompiledGrammar>,
  ): Promise<CompiledGrammar> {
    this.#library.takeMessages()
    try {
      return await compile(this.#compiler)
    } catch (cause) {
      this.hasFailed = true
      const reasons = this.#library.takeMessages().flatMap(reasonOf)
      throw new HogwildError(
        `${name} cannot be compiled: ${reasons[0] ?? 'no reason is given'}`,
        'HOGWILD_INVALID_ARGUMENT',
        { cause },
      )
    }
  }

  masks(kind: MaskKind): TextMasks {
    const masks = this.#masks.get(kind) ?? new TextMasks(this.#tokens, REFUSED_BYTES[kind])
    this.#masks.set(kind, masks)
    return masks
  }

  async match(grammar: CompiledGrammar): Promise<Matcher> {
    return await this.#library.GrammarMatcher.createGrammarMatcher(grammar)
  }
}

/** "[FATAL] /where/it/was/built/file.cc:12: Check failed: ...: why" */
function reasonOf(line: string): string[] {
  const reason = /^\[FATAL\] \S+?:\d+: (?:Check failed: .*? is false: )?(.*)$/s.exec(line)?.[1]
  return reason === undefined ? [] : [reason]
}

const engines = new WeakMap<Tokenizer, Map<string, Promise<Engine>>>()

async function engineOf(tokenizer: Tokenizer, stopTokens: Int32Array): Promise<Engine> {
  const known = engines.get(tokenizer) ?? new Map<string, Promise<Engine>>()
  engines.set(tokenizer, known)
  const key = stopTokens.join()
  const kept = known.get(key)
  if (kept !== undefined) {
    const engine = await kept.catch(() => undefined)
    if (engine !== undefined && !engine.hasFailed) return engine
  }
  const created = Engine.create(tokenizer, stopTokens)
  known.set(key, created)
  return await created
}

/** Memory of the package's that nobody can reach any more is given back. */
const unreachable = new FinalizationRegistry<{ dispose(): void }>((object) => {
  try {
    object.dispose()
  } catch {
    // Its instance is gone with all that was in it.
  }
})

/** A compiled grammar. Made by `createGrammar`. */
export class Grammar {
  readonly #engine: Engine
  readonly #compiled: CompiledGrammar
  readonly #masks: TextMasks

  /** @internal */
  constructor(engine: Engine, compiled: CompiledGrammar, masks: TextMasks) {
    this.#engine = engine
    this.#compiled = compiled
    this.#masks = masks
    unreachable.register(this, compiled)
  }

  /** @internal */
  static is(value: unknown): value is Grammar {
    return typeof value === 'object' && value !== null && #compiled in value
  }

  /** @internal Whether the token ends a text. */
  isStop(token: number): boolean {
    return this.#engine.stopTokens.includes(token)
  }

  /**
   * A matcher for one worker, at the text's beginning, or behind `tokens`, e.g. those of another matcher that is saved or
   * forked. Throws HOGWILD_INVALID_ARGUMENT where the grammar does not allow them.
   */
  async matcher(tokens: ArrayLike<number> = []): Promise<GrammarMatcher> {
    const ids = checkTokens(tokens, 'tokens', this.#engine.size)
    const matcher = this.newMatcher()
    await matcher.begin(ids)
    return matcher
  }

  /** @internal The same at the text's beginning, at once: what takes its time is done when a step first uses it. */
  newMatcher(): GrammarMatcher {
    return new GrammarMatcher(this, () => this.#engine.match(this.#compiled), this.#masks)
  }
}

/**
 * How far one worker's text is in a grammar. A step that is given it (`StepWorker.grammar`) chooses among the tokens
 * that may come next and goes on behind the one that it chose; a step that fails leaves it where it was. One step at a
 * time uses it: another one meanwhile is refused with HOGWILD_BUSY. Made by `Grammar.matcher`.
 */
export class GrammarMatcher {
  /** It keeps what it was compiled to. */
  readonly grammar: Grammar
  readonly #make: () => Promise<Matcher>
  #making: Promise<Matcher> | undefined
  /** undefined before its first use. */
  #matcher: Matcher | undefined
  readonly #masks: TextMasks
  readonly #tokens: number[] = []
  /** How many of the tokens `#matcher` is behind: it goes on while the next step computes. */
  #followed = 0
  #state: TextState = TextMasks.begin
  #busy = false

  /** @internal */
  constructor(grammar: Grammar, make: () => Promise<Matcher>, masks: TextMasks) {
    this.grammar = grammar
    this.#make = make
    this.#masks = masks
  }

  /** @internal Goes behind the tokens. Throws HOGWILD_INVALID_ARGUMENT where the grammar does not allow them. */
  async begin(tokens: Int32Array): Promise<void> {
    const matcher = await this.#made()
    for (const [i, token] of tokens.entries()) {
      if (this.hasEnded || !this.#append(token) || !this.#follow(matcher)) {
        throw invalid(`tokens[${i}]`, 'a token that the grammar allows there', token)
      }
    }
  }

  /** @internal */
  static is(value: unknown): value is GrammarMatcher {
    return typeof value === 'object' && value !== null && #matcher in value
  }

  /** Those that were chosen, a stop token included: `grammar.matcher(tokens)` is where this one is. */
  get tokens(): number[] {
    return [...this.#tokens]
  }

  /** Whether a stop token has ended the text; a step is refused then. */
  get hasEnded(): boolean {
    const last = this.#tokens.at(-1)
    return last !== undefined && this.grammar.isStop(last)
  }

  /** @internal A step uses it from now on. Throws HOGWILD_BUSY, HOGWILD_INVALID_ARGUMENT once the text has ended. */
  acquire(): void {
    if (this.#busy) {
      throw new HogwildError(
        'the grammar matcher is in use by a step that has not ended',
        'HOGWILD_BUSY',
      )
    }
    if (this.hasEnded) {
      throw new HogwildError(
        'the text of the grammar matcher has ended with a stop token',
        'HOGWILD_INVALID_ARGUMENT',
      )
    }
    this.#busy = true
  }

  /**
   * @internal The ids that may come next, and behind each of the drafts up to one that may not come: bit id % 32 of element
   * id / 32. No draft is a stop token.
   */
  async allowed(drafts: ArrayLike<number> = []): Promise<Int32Array[]> {
    const matcher = await this.#made()
    this.#follow(matcher)
    const masks: Int32Array[] = []
    let state = this.#state
    let accepted = 0
    try {
      for (;;) {
        const mask = await matcher.getNextTokenBitmask()
        this.#masks.apply(state, mask)
        masks.push(mask)
        const draft = drafts[accepted]
        const next = draft === undefined ? undefined : this.#masks.after(state, draft)
        if (next === undefined || !matcher.acceptToken(draft as number)) return masks
        state = next
        accepted++
      }
    } finally {
      if (accepted > 0) matcher.rollBack(accepted)
    }
  }

  /** @internal The step has ended. `tokens`: those that it chose. */
  release(tokens: readonly number[]): void {
    this.#busy = false
    for (const token of tokens) this.#append(token)
  }

  async #made(): Promise<Matcher> {
    this.#making ??= this.#make()
    const matcher = await this.#making
    if (this.#matcher === undefined) {
      this.#matcher = matcher
      unreachable.register(this, matcher)
    }
    return matcher
  }

  #append(token: number): boolean {
    const state = this.#masks.after(this.#state, token)
    if (state === undefined) return false
    this.#state = state
    this.#tokens.push(token)
    return true
  }

  /** Whether the grammar allows all tokens. */
  #follow(matcher: Matcher): boolean {
    while (this.#followed < this.#tokens.length) {
      if (!matcher.acceptToken(this.#tokens[this.#followed] as number)) return false
      this.#followed++
    }
    return true
  }
}

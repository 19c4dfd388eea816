// Loads @mlc-ai/web-xgrammar, an optional peer dependency: WebAssembly in one file.
//
// As published (0.1.27) the package calls its file an ES module, but it is a CommonJS one (UMD), which fails when Node.js
// loads it as what it is called. So its text is compiled here as what it is. It gets a console of its own: what it has to
// say about a grammar that it cannot read it prints.

import { readFileSync } from 'node:fs'
import Module from 'node:module'
import { dirname } from 'node:path'
import { HogwildError } from '../errors'
import { findPackage } from '../optional-package'

export const PACKAGE = '@mlc-ai/web-xgrammar'

interface Disposable {
  dispose(): void
}

export type TokenizerInfo = Disposable
export type CompiledGrammar = Disposable

export interface Compiler extends Disposable {
  compileJSONSchema(
    schema: string,
    anyWhitespace: boolean,
    indent: number,
    separators: [string, string] | undefined,
    strictMode: boolean,
  ): Promise<CompiledGrammar>
  compileGrammar(ebnf: string, rootRule: string): Promise<CompiledGrammar>
}

export interface Matcher extends Disposable {
  acceptToken(token: number): boolean
  rollBack(tokens: number): void
  getNextTokenBitmask(): Promise<Int32Array>
}

interface Exports {
  TokenizerInfo: {
    createTokenizerInfo(
      vocabulary: readonly (Uint8Array | string)[],
      type: 'raw',
      prependsSpace: boolean,
      vocabSize: number,
      stopTokens: number[],
    ): Promise<TokenizerInfo>
  }
  GrammarCompiler: { createGrammarCompiler(tokens: TokenizerInfo): Promise<Compiler> }
  GrammarMatcher: { createGrammarMatcher(grammar: CompiledGrammar): Promise<Matcher> }
}

type Line = (...values: unknown[]) => void
type Factory = (
  exports: Partial<Exports>,
  module: object,
  console: Record<'log' | 'warn' | 'error', Line>,
) => void

/** One instance, with memory of its own. */
export interface XGrammar extends Exports {
  /** What it has printed since the last call. */
  takeMessages(): string[]
}

let factory: Factory | undefined

/** A new instance. Throws HOGWILD_UNSUPPORTED where the package is not there or is another than this file knows. */
export function loadXGrammar(): XGrammar {
  factory ??= readFactory()
  const messages: string[] = []
  const print: Line = (...values) => void messages.push(values.map(String).join(' '))
  const exports: Partial<Exports> = {}
  factory(exports, { exports }, { log: print, warn: print, error: print })
  const { TokenizerInfo, GrammarCompiler, GrammarMatcher } = exports
  if (!TokenizerInfo || !GrammarCompiler || !GrammarMatcher) throw unknownRelease()
  const takeMessages = () => messages.splice(0)
  return { TokenizerInfo, GrammarCompiler, GrammarMatcher, takeMessages }
}

function readFactory(): Factory {
  const file = findPackage(PACKAGE, 'grammars need')
  const source = readFileSync(file, 'utf8')
  try {
    const module = new Module(file) as Module & { _compile(source: string, file: string): void }
    module.filename = file
    module.paths = [dirname(file)]
    // (on one line, so that the lines of its errors are those of the file)
    module._compile(`module.exports = (exports, module, console) => {${source}\n}`, file)
    return module.exports as Factory
  } catch (cause) {
    throw unknownRelease(cause)
  }
}

function unknownRelease(cause?: unknown): HogwildError {
  return new HogwildError(
    `the installed release of ${PACKAGE} is not one that can be loaded; 0.1.27 is`,
    'HOGWILD_UNSUPPORTED',
    { cause },
  )
}

// Tokens to a syntax tree: Jinja2's grammar with the loop controls and the generation tag that transformers
// adds. Left out are the statements that join several templates (extends, block, include, import).

import type {
  Arguments,
  Comparison,
  Expression,
  MacroBody,
  Operator,
  Parameter,
  Statement,
  Target,
} from './ast'
import { type Token, type TokenType, tokenize } from './lexer'
import { TemplateError } from './text'

export interface Template {
  body: Statement[]
}

export function parseTemplate(source: string): Template {
  return { body: new Parser(tokenize(source)).template() }
}

/** Deepest nesting of expressions and statements. */
const MAX_DEPTH = 200

const COMPARISONS: ReadonlySet<string> = new Set(['==', '!=', '<', '<=', '>', '>='])
const CONSTANTS: ReadonlyMap<string, null | boolean> = new Map<string, null | boolean>([
  ['true', true],
  ['True', true],
  ['false', false],
  ['False', false],
  ['none', null],
  ['None', null],
])
const NO_ARGUMENTS: Arguments = { positional: [], named: [] }

class Parser {
  readonly #tokens: readonly Token[]
  #at = 0
  #depth = 0
  // Loops around the present statement, within the present macro: break and continue need one.
  #loops = 0
  // Of the bodies of macros around the present statement, the innermost last: the special names they read.
  readonly #special: Set<string>[] = []

  constructor(tokens: readonly Token[]) {
    this.#tokens = tokens
  }

  template(): Statement[] {
    const body = this.#statements([])
    if (this.#token.type !== 'end') this.#unexpected()
    return body
  }

  // Tokens

  get #token(): Token {
    return this.#tokens[this.#at] as Token
  }

  #is(type: TokenType, value?: string): boolean {
    const token = this.#token
    return token.type === type && (value === undefined || token.value === value)
  }

  #isOperator(value: string): boolean {
    return this.#is('operator', value)
  }

  #isName(value: string): boolean {
    return this.#is('name', value)
  }

  #next(): Token {
    return this.#tokens[this.#at++] as Token
  }

  #skip(type: TokenType, value?: string): boolean {
    if (!this.#is(type, value)) return false
    this.#at++
    return true
  }

  #expect(type: TokenType, value?: string): Token {
    if (!this.#is(type, value)) this.#unexpected(value ?? type)
    return this.#next()
  }

  #unexpected(expected?: string): never {
    const { type, value } = this.#token
    const found = type === 'name' || type === 'operator' ? `'${value}'` : type
    this.#fail(
      expected === undefined ? `unexpected ${found}` : `expected ${expected}, found ${found}`,
    )
  }

  #fail(message: string): never {
    throw new TemplateError(`line ${this.#token.line}: ${message}`)
  }

  #nested<T>(parse: () => T): T {
    if (++this.#depth > MAX_DEPTH) this.#fail(`nested deeper than ${MAX_DEPTH}`)
    const result = parse()
    this.#depth--
    return result
  }

  // Statements

  // As far as a tag whose name is one of `ends`, which is left as the present token.
  #statements(ends: readonly string[]): Statement[] {
    const result: Statement[] = []
    for (;;) {
      if (this.#is('data')) {
        result.push({ type: 'data', text: this.#next().value })
      } else if (this.#skip('output begin')) {
        result.push({ type: 'output', expression: this.#tuple() })
        this.#expect('output end')
      } else if (this.#is('block begin')) {
        this.#next()
        if (this.#is('name') && ends.includes(this.#token.value)) return result
        result.push(...this.#nested(() => this.#statement()))
        this.#expect('block end')
      } else {
        if (ends.length > 0) this.#fail(`expected {% ${ends.join(' %} or {% ')} %}`)
        return result
      }
    }
  }

  // After a tag's head: its body, as far as one of `ends`.
  #body(...ends: string[]): Statement[] {
    this.#skip('operator', ':')
    this.#expect('block end')
    return this.#statements(ends)
  }

  #bodyToEnd(end: string): Statement[] {
    const body = this.#body(end)
    this.#next()
    return body
  }

  #statement(): Statement[] {
    const { value } = this.#expect('name')
    switch (value) {
      case 'if':
        return [this.#if()]
      case 'for':
        return [this.#for()]
      case 'set':
        return [this.#set()]
      case 'macro':
        return [this.#macro()]
      case 'call':
        return [this.#callBlock()]
      case 'generation':
        return [this.#generation()]
      case 'filter':
        return [
          {
            type: 'filter block',
            filter: this.#filters(undefined, true),
            body: this.#bodyToEnd('endfilter'),
          },
        ]
      case 'with':
        return [this.#with()]
      case 'print':
        return this.#print()
      case 'break':
      case 'continue':
        if (this.#loops === 0) this.#fail(`'${value}' outside of a loop`)
        return [{ type: value }]
      default:
        this.#at--
        return this.#fail(`the statement '${value}' is not known here`)
    }
  }

  #if(): Statement {
    const branches: { test: Expression; body: Statement[] }[] = []
    for (;;) {
      const test = this.#tuple({ conditions: false })
      branches.push({ test, body: this.#body('elif', 'else', 'endif') })
      const end = this.#next().value
      if (end === 'endif') return { type: 'if', branches, otherwise: [] }
      if (end === 'else') return { type: 'if', branches, otherwise: this.#bodyToEnd('endif') }
    }
  }

  #for(): Statement {
    const target = this.#target({ end: 'in' })
    if (names(target).includes('loop')) this.#fail("a loop cannot assign to 'loop'")
    this.#expect('name', 'in')
    const iterable = this.#tuple({ conditions: false, end: 'recursive' })
    const condition = this.#skip('name', 'if') ? this.#expression() : undefined
    const recursive = this.#skip('name', 'recursive')
    this.#loops++
    const body = this.#body('endfor', 'else')
    this.#loops--
    const otherwise = this.#next().value === 'else' ? this.#bodyToEnd('endfor') : []
    return { type: 'for', target, iterable, condition, recursive, body, otherwise }
  }

  #set(): Statement {
    const target = this.#target({ members: true })
    if (this.#skip('operator', '=')) return { type: 'set', target, value: this.#tuple() }
    const filter = this.#isOperator('|') ? this.#filters(undefined) : undefined
    return { type: 'set block', target, filter, body: this.#bodyToEnd('endset') }
  }

  #with(): Statement {
    const targets: { target: Target; value: Expression }[] = []
    while (!this.#is('block end')) {
      if (targets.length > 0) this.#expect('operator', ',')
      const target = this.#target({})
      this.#expect('operator', '=')
      targets.push({ target, value: this.#expression() })
    }
    return { type: 'with', targets, body: this.#bodyToEnd('endwith') }
  }

  #print(): Statement[] {
    const result: Statement[] = []
    while (!this.#is('block end')) {
      if (result.length > 0) this.#expect('operator', ',')
      result.push({ type: 'output', expression: this.#expression() })
    }
    return result
  }

  #macro(): Statement {
    const name = this.#name()
    return { type: 'macro', name, macro: this.#macroBody(this.#parameters(), 'endmacro') }
  }

  #callBlock(): Statement {
    const parameters = this.#isOperator('(') ? this.#parameters() : []
    const call = this.#expression()
    if (call.type !== 'call') this.#fail('a call block needs a call')
    return { type: 'call block', call, macro: this.#macroBody(parameters, 'endcall') }
  }

  // Marks the text that a model is trained on. It is a scope of its own, which no loop control leaves.
  #generation(): Statement {
    const { body } = this.#macroBody([], 'endgeneration')
    return { type: 'scope', body }
  }

  #macroBody(parameters: Parameter[], end: string): MacroBody {
    const loops = this.#loops
    const read = new Set<string>()
    this.#special.push(read)
    this.#loops = 0
    const body = this.#bodyToEnd(end)
    this.#loops = loops
    this.#special.pop()
    // A macro within a macro reads for both, unless it has a parameter of that name.
    for (const name of read) this.#special.at(-1)?.add(name)
    const uses = (name: string) => read.has(name) && !parameters.some((one) => one.name === name)
    return {
      parameters,
      body,
      usesCaller: uses('caller'),
      usesKwargs: uses('kwargs'),
      usesVarargs: uses('varargs'),
    }
  }

  #parameters(): Parameter[] {
    const result: Parameter[] = []
    this.#expect('operator', '(')
    while (!this.#isOperator(')')) {
      if (result.length > 0) this.#expect('operator', ',')
      const name = this.#name()
      const value = this.#skip('operator', '=') ? this.#expression() : undefined
      if (value === undefined && result.at(-1)?.default !== undefined) {
        this.#fail(`the parameter '${name}' needs a default, as the one before it has`)
      }
      if (result.some((one) => one.name === name)) this.#fail(`two parameters '${name}'`)
      result.push({ name, default: value })
    }
    this.#expect('operator', ')')
    return result
  }

  #name(): string {
    const { value } = this.#expect('name')
    if (CONSTANTS.has(value)) this.#fail(`cannot assign to '${value}'`)
    return value
  }

  #target({ members = false, end }: { members?: boolean; end?: string }): Target {
    const items = [this.#targetItem(members)]
    let isTuple = false
    while (this.#skip('operator', ',')) {
      isTuple = true
      if (this.#isOperator('=') || this.#is('block end') || (end && this.#isName(end))) break
      items.push(this.#targetItem(members))
    }
    return isTuple ? { type: 'tuple', items } : (items[0] as Target)
  }

  #targetItem(members: boolean): Target {
    if (this.#skip('operator', '(')) {
      const target = this.#nested(() => this.#target({}))
      this.#expect('operator', ')')
      return target
    }
    const name = this.#name()
    if (members && this.#skip('operator', '.')) {
      return { type: 'member', namespace: this.#read(name), attribute: this.#expect('name').value }
    }
    return { type: 'name', name }
  }

  // Expressions, from the loosest binding to the tightest

  // One expression, or several with commas between them.
  #tuple({
    conditions = true,
    end,
    parentheses = false,
  }: {
    conditions?: boolean
    end?: string
    parentheses?: boolean
  } = {}): Expression {
    const items: Expression[] = []
    let isTuple = false
    for (;;) {
      if (items.length > 0) {
        if (!this.#skip('operator', ',')) break
        isTuple = true
      }
      if (this.#endsTuple(end)) break
      items.push(conditions ? this.#expression() : this.#nested(() => this.#or()))
    }
    if (!isTuple && items.length === 1) return items[0] as Expression
    if (items.length === 0 && !parentheses) this.#unexpected('an expression')
    return { type: 'tuple', items }
  }

  #endsTuple(end: string | undefined): boolean {
    return (
      this.#is('output end') ||
      this.#is('block end') ||
      this.#isOperator(')') ||
      (end !== undefined && this.#isName(end))
    )
  }

  #expression(): Expression {
    return this.#nested(() => {
      let result = this.#or()
      while (this.#skip('name', 'if')) {
        const test = this.#or()
        const no = this.#skip('name', 'else') ? this.#expression() : undefined
        result = { type: 'condition', test, yes: result, no }
      }
      return result
    })
  }

  #or(): Expression {
    let left = this.#and()
    while (this.#skip('name', 'or')) left = { type: 'or', left, right: this.#and() }
    return left
  }

  #and(): Expression {
    let left = this.#not()
    while (this.#skip('name', 'and')) left = { type: 'and', left, right: this.#not() }
    return left
  }

  #not(): Expression {
    if (!this.#skip('name', 'not')) return this.#compare()
    return { type: 'unary', operator: 'not', operand: this.#nested(() => this.#not()) }
  }

  #compare(): Expression {
    const first = this.#sum()
    const rest: { operator: Comparison; operand: Expression }[] = []
    for (;;) {
      const operator = this.#comparison()
      if (operator === undefined) break
      rest.push({ operator, operand: this.#sum() })
    }
    return rest.length === 0 ? first : { type: 'compare', first, rest }
  }

  #comparison(): Comparison | undefined {
    if (this.#is('operator') && COMPARISONS.has(this.#token.value))
      return this.#next().value as Comparison
    if (this.#skip('name', 'in')) return 'in'
    const after = this.#tokens[this.#at + 1]
    if (this.#isName('not') && after?.type === 'name' && after.value === 'in') {
      this.#at += 2
      return 'not in'
    }
    return undefined
  }

  #sum(): Expression {
    return this.#binary(['+', '-'], () => this.#concat())
  }

  #concat(): Expression {
    const items = [this.#product()]
    while (this.#skip('operator', '~')) items.push(this.#product())
    return items.length === 1 ? (items[0] as Expression) : { type: 'concat', items }
  }

  #product(): Expression {
    return this.#binary(['*', '/', '//', '%'], () => this.#power())
  }

  #power(): Expression {
    return this.#binary(['**'], () => this.#unary(true))
  }

  #binary(operators: readonly Operator[], operand: () => Expression): Expression {
    let left = operand()
    while (this.#is('operator') && (operators as readonly string[]).includes(this.#token.value)) {
      const operator = this.#next().value as Operator
      left = { type: 'binary', operator, left, right: operand() }
    }
    return left
  }

  // A sign binds tighter than a filter: -1|abs is 1.
  #unary(withFilters: boolean): Expression {
    let result: Expression
    if (this.#isOperator('-') || this.#isOperator('+')) {
      const operator = this.#next().value as '-' | '+'
      result = { type: 'unary', operator, operand: this.#nested(() => this.#unary(false)) }
    } else {
      result = this.#primary()
    }
    result = this.#postfix(result)
    return withFilters ? this.#filtersAndTests(result) : result
  }

  #primary(): Expression {
    const token = this.#next()
    const { type, value } = token
    switch (type) {
      case 'name':
        return CONSTANTS.has(value)
          ? { type: 'constant', value: CONSTANTS.get(value) as null | boolean }
          : { type: 'name', name: this.#read(value) }
      case 'string': {
        let text = value
        while (this.#is('string')) text += this.#next().value
        return { type: 'constant', value: text }
      }
      case 'integer':
        return { type: 'constant', value: BigInt(value.replaceAll('_', '')) }
      case 'float':
        return { type: 'constant', value: Number(value.replaceAll('_', '')) }
      default:
    }
    if (type === 'operator' && value === '(') {
      const result = this.#tuple({ parentheses: true })
      this.#expect('operator', ')')
      return result
    }
    if (type === 'operator' && value === '[') return { type: 'list', items: this.#items(']') }
    if (type === 'operator' && value === '{') return this.#dict()
    this.#at--
    return this.#unexpected('an expression')
  }

  #read(name: string): string {
    if (name === 'caller' || name === 'kwargs' || name === 'varargs')
      this.#special.at(-1)?.add(name)
    return name
  }

  #items(end: string): Expression[] {
    const items: Expression[] = []
    while (!this.#isOperator(end)) {
      if (items.length > 0) this.#expect('operator', ',')
      if (this.#isOperator(end)) break
      items.push(this.#expression())
    }
    this.#expect('operator', end)
    return items
  }

  #dict(): Expression {
    const entries: { key: Expression; value: Expression }[] = []
    while (!this.#isOperator('}')) {
      if (entries.length > 0) this.#expect('operator', ',')
      if (this.#isOperator('}')) break
      const key = this.#expression()
      this.#expect('operator', ':')
      entries.push({ key, value: this.#expression() })
    }
    this.#expect('operator', '}')
    return { type: 'dict', entries }
  }

  #postfix(operand: Expression): Expression {
    let result = operand
    for (;;) {
      if (this.#skip('operator', '.')) result = this.#attribute(result)
      else if (this.#skip('operator', '[')) result = this.#subscript(result)
      else if (this.#isOperator('('))
        result = { type: 'call', callee: result, args: this.#arguments() }
      else return result
    }
  }

  #attribute(object: Expression): Expression {
    if (this.#is('name')) return { type: 'attribute', object, name: this.#next().value }
    const { value } = this.#expect('integer')
    return {
      type: 'item',
      object,
      key: { type: 'constant', value: BigInt(value.replaceAll('_', '')) },
    }
  }

  #subscript(object: Expression): Expression {
    const parts: (Expression | undefined)[] = []
    while (!this.#isOperator(':') && !this.#isOperator(']')) {
      if (parts.length > 0) this.#expect('operator', ',')
      parts.push(this.#expression())
    }
    if (this.#skip('operator', ']')) {
      if (parts.length === 0) this.#fail('a subscript without an expression')
      const key =
        parts.length === 1 ? parts[0] : { type: 'tuple' as const, items: parts as Expression[] }
      return { type: 'item', object, key: key as Expression }
    }
    if (parts.length > 1) this.#unexpected()
    const [start] = parts
    const [stop, step] = this.#sliceEnd()
    return {
      type: 'slice',
      object,
      ...(start && { start }),
      ...(stop && { stop }),
      ...(step && { step }),
    }
  }

  // The rest of [start:stop:step], from the first colon on.
  #sliceEnd(): [Expression | undefined, Expression | undefined] {
    const part = () =>
      this.#isOperator(':') || this.#isOperator(']') ? undefined : this.#expression()
    this.#expect('operator', ':')
    const stop = part()
    const step = this.#skip('operator', ':') ? part() : undefined
    this.#expect('operator', ']')
    return [stop, step]
  }

  #arguments(): Arguments {
    const result: Arguments = { positional: [], named: [] }
    let isFirst = true
    this.#expect('operator', '(')
    while (!this.#isOperator(')')) {
      if (!isFirst) this.#expect('operator', ',')
      if (this.#isOperator(')')) break
      isFirst = false
      this.#argument(result)
    }
    this.#expect('operator', ')')
    return result
  }

  #argument(args: Arguments): void {
    if (this.#isOperator('*')) {
      if (args.list !== undefined || args.dict !== undefined) this.#unexpected()
      this.#next()
      args.list = this.#expression()
      return
    }
    if (args.dict !== undefined) this.#unexpected()
    if (this.#skip('operator', '**')) {
      args.dict = this.#expression()
      return
    }
    const after = this.#tokens[this.#at + 1]
    if (this.#is('name') && after?.type === 'operator' && after.value === '=') {
      const name = this.#next().value
      this.#next()
      if (args.named.some((one) => one.name === name)) this.#fail(`two arguments '${name}'`)
      args.named.push({ name, value: this.#expression() })
      return
    }
    if (args.named.length > 0 || args.list !== undefined) this.#unexpected()
    args.positional.push(this.#expression())
  }

  // `operand` is undefined for the filters of a block.
  #filters(operand: Expression | undefined, isBlock = false): Expression {
    let result = operand
    let isInline = isBlock
    while (isInline || this.#skip('operator', '|')) {
      isInline = false
      result = this.#filter(result)
    }
    return result as Expression
  }

  #filter(operand: Expression | undefined): Expression {
    const { line } = this.#token
    const name = this.#dottedName()
    const args = this.#isOperator('(') ? this.#arguments() : NO_ARGUMENTS
    return { type: 'filter', name, operand, args, line }
  }

  #dottedName(): string {
    let name = this.#expect('name').value
    while (this.#skip('operator', '.')) name += `.${this.#expect('name').value}`
    return name
  }

  #filtersAndTests(operand: Expression): Expression {
    let result = operand
    for (;;) {
      if (this.#skip('operator', '|')) result = this.#filter(result)
      else if (this.#skip('name', 'is')) result = this.#test(result)
      else if (this.#isOperator('('))
        result = { type: 'call', callee: result, args: this.#arguments() }
      else return result
    }
  }

  #test(operand: Expression): Expression {
    const { line } = this.#token
    const isNegated = this.#skip('name', 'not')
    const name = this.#dottedName()
    const test: Expression = { type: 'test', name, operand, args: this.#testArguments(), line }
    return isNegated ? { type: 'unary', operator: 'not', operand: test } : test
  }

  // A test takes one argument without parentheses: x is divisibleby 3.
  #testArguments(): Arguments {
    if (this.#isOperator('(')) return this.#arguments()
    const { type, value } = this.#token
    const begins =
      type === 'string' ||
      type === 'integer' ||
      type === 'float' ||
      (type === 'operator' && (value === '[' || value === '{')) ||
      (type === 'name' && !['else', 'or', 'and'].includes(value))
    if (!begins) return NO_ARGUMENTS
    if (type === 'name' && value === 'is') this.#fail('tests cannot be chained')
    return { positional: [this.#postfix(this.#primary())], named: [] }
  }
}

function names(target: Target): string[] {
  if (target.type === 'name') return [target.name]
  return target.type === 'tuple' ? target.items.flatMap(names) : []
}

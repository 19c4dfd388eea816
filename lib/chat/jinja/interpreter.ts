// Runs a template's syntax tree.

import type { Arguments, Comparison, Expression, MacroBody, Statement, Target } from './ast'
import { attribute, item, slice } from './attributes'
import { applyFilter, testByName } from './filters'
import { binary, negate } from './operators'
import type { Template } from './parser'
import { EMPTY, TemplateError, Text } from './text'
import {
  Callable,
  compare,
  contains,
  Dict,
  equals,
  isTrue,
  items,
  lengthOf,
  type NamedValues,
  Namespace,
  Opaque,
  Tuple,
  toText,
  typeName,
  Undefined,
  type Value,
} from './values'

/** Renders with these variables, among them the functions that a template may call. */
export function render(template: Template, variables: ReadonlyMap<string, Value>): Text {
  const output: Text[] = []
  run(template.body, new Scope(new Scope(undefined, variables)), output)
  return Text.join(output)
}

// Names are looked up where a template is written, not where it is called. An `if` is no scope of its own.
class Scope {
  readonly #parent: Scope | undefined
  readonly #values: Map<string, Value>

  constructor(parent: Scope | undefined, values: ReadonlyMap<string, Value> = new Map()) {
    this.#parent = parent
    this.#values = new Map(values)
  }

  get(name: string): Value | undefined {
    return this.#values.get(name) ?? (this.#values.has(name) ? null : this.#parent?.get(name))
  }

  set(name: string, value: Value): void {
    this.#values.set(name, value)
  }
}

type Jump = 'break' | 'continue' | undefined

// Statements. Each appends what it writes to `output`.

function run(statements: readonly Statement[], scope: Scope, output: Text[]): Jump {
  for (const statement of statements) {
    const jump = runOne(statement, scope, output)
    if (jump !== undefined) return jump
  }
  return undefined
}

function runOne(statement: Statement, scope: Scope, output: Text[]): Jump {
  switch (statement.type) {
    case 'data':
      output.push(new Text(statement.text))
      return undefined
    case 'output':
      output.push(toText(evaluate(statement.expression, scope)))
      return undefined
    case 'if': {
      const taken = statement.branches.find(({ test }) => isTrue(evaluate(test, scope)))
      return run(taken?.body ?? statement.otherwise, scope, output)
    }
    case 'for':
      return runFor(statement, scope, output)
    case 'set':
      assign(statement.target, evaluate(statement.value, scope), scope)
      return undefined
    case 'set block':
      return runSetBlock(statement, scope)
    case 'macro':
      scope.set(statement.name, macroOf(statement.macro, statement.name, scope))
      return undefined
    case 'call block':
      runCallBlock(statement, scope, output)
      return undefined
    case 'filter block': {
      const inner: Text[] = []
      const jump = run(statement.body, new Scope(scope), inner)
      if (jump === undefined)
        output.push(toText(evaluate(statement.filter, scope, Text.join(inner))))
      return jump
    }
    case 'with': {
      const inner = new Scope(scope)
      const values = statement.targets.map(({ value }) => evaluate(value, scope))
      statement.targets.forEach(({ target }, i) => {
        assign(target, values[i] as Value, inner)
      })
      return run(statement.body, inner, output)
    }
    case 'scope':
      return run(statement.body, new Scope(scope), output)
    case 'break':
    case 'continue':
      return statement.type
  }
}

function runSetBlock(statement: Statement & { type: 'set block' }, scope: Scope): Jump {
  const inner: Text[] = []
  const jump = run(statement.body, new Scope(scope), inner)
  if (jump !== undefined) return jump
  const text = Text.join(inner)
  const { filter } = statement
  assign(statement.target, filter === undefined ? text : evaluate(filter, scope, text), scope)
  return undefined
}

function runFor(statement: Statement & { type: 'for' }, scope: Scope, output: Text[]): Jump {
  const loop = (iterable: Value, depth: number): Text => {
    const inner: Text[] = []
    iterateFor(statement, iterable, depth, scope, inner, loop)
    return Text.join(inner)
  }
  const iterable = evaluate(statement.iterable, scope)
  return iterateFor(statement, iterable, 0, scope, output, statement.recursive ? loop : undefined)
}

function iterateFor(
  statement: Statement & { type: 'for' },
  iterable: Value,
  depth: number,
  scope: Scope,
  output: Text[],
  recurse: ((iterable: Value, depth: number) => Text) | undefined,
): Jump {
  const { target, condition, body, otherwise } = statement
  const loop = new Loop(
    condition === undefined ? items(iterable) : filtered(items(iterable), target, condition, scope),
    condition === undefined ? lengthOf(iterable) : undefined,
    depth,
    recurse,
  )
  // As Jinja2, which asks after each item: an item that a loop control leaves does not count.
  let isEmpty = true
  for (;;) {
    const next = loop.advance()
    if (next === undefined) break
    const inner = new Scope(scope)
    inner.set('loop', loop)
    assign(target, next, inner)
    const jump = run(body, inner, output)
    if (jump === 'break') break
    if (jump === undefined) isEmpty = false
  }
  return isEmpty ? run(otherwise, new Scope(scope), output) : undefined
}

function* filtered(
  values: Iterable<Value>,
  target: Target,
  condition: Expression,
  scope: Scope,
): Generator<Value> {
  for (const value of values) {
    const inner = new Scope(scope)
    assign(target, value, inner)
    if (isTrue(evaluate(condition, inner))) yield value
  }
}

function assign(target: Target, value: Value, scope: Scope): void {
  switch (target.type) {
    case 'name':
      scope.set(target.name, value)
      return
    case 'tuple': {
      const values = [...items(value)]
      if (values.length !== target.items.length) {
        throw new TemplateError(`${target.items.length} names for ${values.length} values`)
      }
      target.items.forEach((one, i) => {
        assign(one, values[i] as Value, scope)
      })
      return
    }
    case 'member': {
      const namespace = scope.get(target.namespace)
      if (!(namespace instanceof Namespace)) {
        throw new TemplateError(
          `'${target.namespace}' is no namespace, so its attributes cannot be set`,
        )
      }
      namespace.attributes.set(target.attribute, value)
      return
    }
  }
}

function macroOf(macro: MacroBody, name: string | undefined, scope: Scope): Callable {
  const call = (positional: readonly Value[], named: NamedValues): Value => {
    const inner = bindMacro(macro, name ?? 'caller', positional, named, scope)
    const output: Text[] = []
    run(macro.body, inner, output)
    return Text.join(output)
  }
  return new Callable(call, name === undefined ? new Map() : new Map([['name', new Text(name)]]))
}

function bindMacro(
  macro: MacroBody,
  name: string,
  positional: readonly Value[],
  named: NamedValues,
  outer: Scope,
): Scope {
  const scope = new Scope(outer)
  const rest = new Map(named)
  macro.parameters.forEach((parameter, i) => {
    let value = positional[i]
    if (value === undefined) {
      value = rest.get(parameter.name)
      rest.delete(parameter.name)
    }
    if (value === undefined && parameter.default !== undefined)
      value = evaluate(parameter.default, scope)
    scope.set(
      parameter.name,
      value ?? (value === null ? null : new Undefined(`'${parameter.name}'`)),
    )
  })
  if (macro.usesCaller) {
    scope.set('caller', rest.get('caller') ?? new Undefined("'caller'"))
    rest.delete('caller')
  }
  if (macro.usesKwargs) {
    scope.set('kwargs', Dict.from([...rest].map(([key, value]) => [new Text(key), value])))
  } else if (rest.size > 0) {
    throw new TemplateError(`the macro '${name}' takes no argument '${[...rest.keys()][0]}'`)
  }
  const surplus = positional.slice(macro.parameters.length)
  if (macro.usesVarargs) scope.set('varargs', new Tuple(surplus))
  else if (surplus.length > 0) {
    throw new TemplateError(
      `the macro '${name}' takes at most ${macro.parameters.length} arguments`,
    )
  }
  return scope
}

function runCallBlock(
  statement: Statement & { type: 'call block' },
  scope: Scope,
  output: Text[],
): void {
  const { callee, args } = statement.call
  const [positional, named] = evaluateArguments(args, scope)
  const caller = macroOf(statement.macro, undefined, scope)
  if (named.has('caller')) throw new TemplateError("a call block passes 'caller' itself")
  const result = call(evaluate(callee, scope), positional, new Map([...named, ['caller', caller]]))
  output.push(toText(result))
}

// Expressions

/** `filtered` is what a filter without an operand works on: the text of its block. */
function evaluate(expression: Expression, scope: Scope, block: Text = EMPTY): Value {
  switch (expression.type) {
    case 'constant':
      return typeof expression.value === 'string' ? new Text(expression.value) : expression.value
    case 'name': {
      const value = scope.get(expression.name)
      return value === undefined ? new Undefined(`'${expression.name}'`) : value
    }
    case 'list':
      return expression.items.map((one) => evaluate(one, scope))
    case 'tuple':
      return new Tuple(expression.items.map((one) => evaluate(one, scope)))
    case 'dict':
      return Dict.from(
        expression.entries.map(({ key, value }) => [evaluate(key, scope), evaluate(value, scope)]),
      )
    case 'attribute':
      return attribute(evaluate(expression.object, scope), expression.name)
    case 'item':
      return item(evaluate(expression.object, scope), evaluate(expression.key, scope))
    case 'slice': {
      const part = (one: Expression | undefined) =>
        one === undefined ? null : evaluate(one, scope)
      const { object, start, stop, step } = expression
      return slice(evaluate(object, scope), part(start), part(stop), part(step))
    }
    case 'call':
      return call(evaluate(expression.callee, scope), ...evaluateArguments(expression.args, scope))
    case 'filter': {
      const { name, operand, args } = expression
      const value = operand === undefined ? block : evaluate(operand, scope, block)
      return applyFilter(name, value, ...evaluateArguments(args, scope))
    }
    case 'test': {
      const { name, operand, args } = expression
      return testByName(name, evaluate(operand, scope), ...evaluateArguments(args, scope))
    }
    case 'unary': {
      const value = evaluate(expression.operand, scope)
      return expression.operator === 'not' ? !isTrue(value) : negate(expression.operator, value)
    }
    case 'binary':
      return binary(
        expression.operator,
        evaluate(expression.left, scope),
        evaluate(expression.right, scope),
      )
    case 'and': {
      const left = evaluate(expression.left, scope)
      return isTrue(left) ? evaluate(expression.right, scope) : left
    }
    case 'or': {
      const left = evaluate(expression.left, scope)
      return isTrue(left) ? left : evaluate(expression.right, scope)
    }
    case 'concat':
      return Text.join(expression.items.map((one) => toText(evaluate(one, scope))))
    case 'compare':
      return evaluateComparison(expression, scope)
    case 'condition':
      if (isTrue(evaluate(expression.test, scope))) return evaluate(expression.yes, scope)
      return expression.no === undefined
        ? new Undefined('the value of a condition without else')
        : evaluate(expression.no, scope)
  }
}

// a < b < c: each operand is evaluated once, and none after the first comparison that fails.
function evaluateComparison(expression: Expression & { type: 'compare' }, scope: Scope): boolean {
  let left = evaluate(expression.first, scope)
  for (const { operator, operand } of expression.rest) {
    const right = evaluate(operand, scope)
    if (!holds(operator, left, right)) return false
    left = right
  }
  return true
}

function holds(operator: Comparison, left: Value, right: Value): boolean {
  switch (operator) {
    case '==':
      return equals(left, right)
    case '!=':
      return !equals(left, right)
    case '<':
      return compare(left, right) < 0
    case '<=':
      return compare(left, right) <= 0
    case '>':
      return compare(left, right) > 0
    case '>=':
      return compare(left, right) >= 0
    case 'in':
      return contains(right, left)
    case 'not in':
      return !contains(right, left)
  }
}

function evaluateArguments(args: Arguments, scope: Scope): [Value[], Map<string, Value>] {
  const positional = args.positional.map((one) => evaluate(one, scope))
  if (args.list !== undefined) positional.push(...items(evaluate(args.list, scope)))
  const named = new Map(args.named.map(({ name, value }) => [name, evaluate(value, scope)]))
  if (args.dict !== undefined) {
    const dict = evaluate(args.dict, scope)
    if (!(dict instanceof Dict))
      throw new TemplateError(`** needs a mapping, not '${typeName(dict)}'`)
    for (const [key, value] of dict.entries()) {
      if (!(key instanceof Text)) throw new TemplateError('names of arguments must be strings')
      if (named.has(key.text)) throw new TemplateError(`two arguments '${key.text}'`)
      named.set(key.text, value)
    }
  }
  return [positional, named]
}

function call(callee: Value, positional: readonly Value[], named: NamedValues): Value {
  if (callee instanceof Undefined) return callee.fail()
  if (callee instanceof Callable || callee instanceof Opaque) return callee.call(positional, named)
  throw new TemplateError(`'${typeName(callee)}' object is not callable`)
}

/** The variable `loop`: where a loop is. */
class Loop extends Opaque {
  #iterator: Iterator<Value>
  #length: number | undefined
  readonly #depth: number
  readonly #recurse: ((iterable: Value, depth: number) => Text) | undefined
  #index = -1
  #previous: Value | undefined
  #current: Value | undefined
  // The item after the present one where it has been looked at; null for none.
  #next: { value: Value } | null | undefined
  #changed: readonly Value[] | undefined

  constructor(
    values: Iterable<Value>,
    length: number | undefined,
    depth: number,
    recurse: ((iterable: Value, depth: number) => Text) | undefined,
  ) {
    super()
    this.#iterator = values[Symbol.iterator]()
    this.#length = length
    this.#depth = depth
    this.#recurse = recurse
  }

  /** The next item, or undefined at the end. */
  advance(): Value | undefined {
    const next = this.#peek()
    this.#next = undefined
    if (next === null) return undefined
    this.#index++
    this.#previous = this.#current
    this.#current = next.value
    return next.value
  }

  #peek(): { value: Value } | null {
    if (this.#next === undefined) {
      const { done, value } = this.#iterator.next()
      this.#next = done ? null : { value }
    }
    return this.#next
  }

  // Of a generator by reading it to its end.
  get #total(): number {
    if (this.#length === undefined) {
      const rest: Value[] = []
      for (let next = this.#iterator.next(); !next.done; next = this.#iterator.next())
        rest.push(next.value)
      this.#iterator = rest[Symbol.iterator]()
      this.#length = this.#index + 1 + (this.#next ? 1 : 0) + rest.length
    }
    return this.#length
  }

  attribute(name: string): Value | undefined {
    switch (name) {
      case 'index':
        return BigInt(this.#index + 1)
      case 'index0':
        return BigInt(this.#index)
      case 'revindex':
        return BigInt(this.#total - this.#index)
      case 'revindex0':
        return BigInt(this.#total - this.#index - 1)
      case 'length':
        return BigInt(this.#total)
      case 'first':
        return this.#index === 0
      case 'last':
        return this.#peek() === null
      case 'previtem':
        return (
          this.#previous ?? (this.#index > 0 ? null : new Undefined('the item before the first'))
        )
      case 'nextitem':
        return this.#peek() === null ? new Undefined('the item after the last') : this.#next?.value
      case 'depth':
        return BigInt(this.#depth + 1)
      case 'depth0':
        return BigInt(this.#depth)
      case 'cycle':
        return new Callable((values) => this.#cycle(values))
      case 'changed':
        return new Callable((values) => this.#hasChanged(values))
      default:
        return undefined
    }
  }

  #cycle(values: readonly Value[]): Value {
    const value = values[this.#index % values.length]
    if (value === undefined) throw new TemplateError('loop.cycle() needs values')
    return value
  }

  #hasChanged(values: readonly Value[]): boolean {
    const last = this.#changed
    if (last !== undefined && equals(new Tuple(last), new Tuple(values))) return false
    this.#changed = values
    return true
  }

  print(): string {
    return `<LoopContext ${this.#index + 1}/${this.#total}>`
  }

  override call(positional: readonly Value[]): Value {
    const [iterable] = positional
    if (this.#recurse === undefined || iterable === undefined || positional.length > 1) {
      throw new TemplateError("only a 'recursive' loop can be called, with one sequence")
    }
    return this.#recurse(iterable, this.#depth + 1)
  }
}

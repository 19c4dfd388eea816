// The syntax tree of a template.

export type Constant = null | boolean | bigint | number | string

export type Operator = '+' | '-' | '*' | '/' | '//' | '%' | '**'

export type Comparison = '==' | '!=' | '<' | '<=' | '>' | '>=' | 'in' | 'not in'

export interface Arguments {
  positional: Expression[]
  named: { name: string; value: Expression }[]
  /** *list and **dict of a call. */
  list?: Expression | undefined
  dict?: Expression | undefined
}

export type Expression =
  | { type: 'constant'; value: Constant }
  | { type: 'name'; name: string }
  | { type: 'list' | 'tuple'; items: Expression[] }
  | { type: 'dict'; entries: { key: Expression; value: Expression }[] }
  | { type: 'attribute'; object: Expression; name: string }
  | { type: 'item'; object: Expression; key: Expression }
  | { type: 'slice'; object: Expression; start?: Expression; stop?: Expression; step?: Expression }
  | { type: 'call'; callee: Expression; args: Arguments }
  | { type: 'filter'; name: string; operand: Expression | undefined; args: Arguments; line: number }
  | { type: 'test'; name: string; operand: Expression; args: Arguments; line: number }
  | { type: 'unary'; operator: '+' | '-' | 'not'; operand: Expression }
  | { type: 'binary'; operator: Operator; left: Expression; right: Expression }
  | { type: 'and' | 'or'; left: Expression; right: Expression }
  | { type: 'concat'; items: Expression[] }
  | { type: 'compare'; first: Expression; rest: { operator: Comparison; operand: Expression }[] }
  | { type: 'condition'; test: Expression; yes: Expression; no: Expression | undefined }

/** What is assigned to. */
export type Target =
  | { type: 'name'; name: string }
  | { type: 'tuple'; items: Target[] }
  | { type: 'member'; namespace: string; attribute: string }

export interface Parameter {
  name: string
  default: Expression | undefined
}

/** The body of a macro or of a call block. */
export interface MacroBody {
  parameters: Parameter[]
  body: Statement[]
  /** Whether the body reads these names, which a call then fills. */
  usesCaller: boolean
  usesKwargs: boolean
  usesVarargs: boolean
}

export type Statement =
  | { type: 'data'; text: string }
  | { type: 'output'; expression: Expression }
  | { type: 'if'; branches: { test: Expression; body: Statement[] }[]; otherwise: Statement[] }
  | {
      type: 'for'
      target: Target
      iterable: Expression
      condition: Expression | undefined
      recursive: boolean
      body: Statement[]
      otherwise: Statement[]
    }
  | { type: 'set'; target: Target; value: Expression }
  | { type: 'set block'; target: Target; filter: Expression | undefined; body: Statement[] }
  | { type: 'macro'; name: string; macro: MacroBody }
  | { type: 'call block'; call: Expression & { type: 'call' }; macro: MacroBody }
  | { type: 'filter block'; filter: Expression; body: Statement[] }
  | { type: 'with'; targets: { target: Target; value: Expression }[]; body: Statement[] }
  | { type: 'scope'; body: Statement[] }
  | { type: 'break' | 'continue' }

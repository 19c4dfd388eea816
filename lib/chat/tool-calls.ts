// Calls of tools in what a model writes, in the forms that published templates teach.

/** A call of a tool, as a text makes it. */
export interface ToolCall {
  /** Of the function. */
  name: string
  /** By name, as JSON has them: not compared with the schema of the tool. */
  arguments: Record<string, unknown>
}

/** Hermes 2, Qwen 2.5 and 3, SmolLM 3: a JSON object between marks, for each call. */
const MARKED = /<tool_call>\s*(.*?)\s*<\/tool_call>/gs

/** Mistral: a mark (a special token, which may not be in the text) before an array. */
const MARK = /^\s*\[TOOL_CALLS\]\s*/

/**
 * The calls in a text, in its order: each marked one, else the objects of a text that is nothing but JSON, an array
 * (Mistral) or an object (Llama 3.1, whose arguments are "parameters"). What is no call in one of these forms is text.
 */
export function findToolCalls(text: string): ToolCall[] {
  const marked = [...text.matchAll(MARKED)].map(([, json]) => parse(json as string))
  const values = marked.length > 0 ? marked : [parse(text.replace(MARK, ''))]
  return values.flat().flatMap((value) => toCall(value) ?? [])
}

function parse(json: string): unknown {
  try {
    return JSON.parse(json)
  } catch {
    return undefined
  }
}

function toCall(value: unknown): ToolCall | undefined {
  if (typeof value !== 'object' || value === null) return undefined
  const { name, arguments: given, parameters = given } = value as Record<string, unknown>
  if (typeof name !== 'string') return undefined
  // Some models write the arguments as a text of JSON.
  const found = typeof parameters === 'string' ? parse(parameters) : (parameters ?? {})
  if (typeof found !== 'object' || found === null || Array.isArray(found)) return undefined
  return { name, arguments: found as Record<string, unknown> }
}

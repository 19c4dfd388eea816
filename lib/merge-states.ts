// Joins partial results of attention.

import { checkFloats, checkOptions, invalid, isFloat32Array, optionKeys } from './validate'

/** A result of attention and the scale that it lost in the division by the sum of its weights. */
export interface AttentionState {
  /** [T, Hq, D] */
  out: Float32Array
  /** `[T, Hq]`: natural logarithm of the sum of exp(score) over what was seen; -Infinity: nothing was. */
  lse: Float32Array
}

const STATE_KEYS = optionKeys<AttentionState>()({ out: true, lse: true })

/**
 * Joins what the same queries have found among two disjoint sets of keys, into what they find among both:
 *
 *     lse = log(exp(a.lse) + exp(b.lse))
 *     out = exp(a.lse - lse) · a.out + exp(b.lse - lse) · b.out
 *
 * (Rabe and Staats 2021, arXiv 2112.05682; as an operator on states: FlashInfer, arXiv 2501.01005.) It is associative
 * and commutative, so that any number of parts is joined two by two. out: [T, Hq, D], lse: [T, Hq], both f32 and of
 * the same size in `a` and `b`, as `Pass.attend` gives them; computed in f64 and rounded once. Of a part with lse
 * -Infinity nothing is used; where both are, out is 0 and lse -Infinity. A sink belongs to one of the parts alone.
 * `into` takes the result (default: new arrays) and may be `a` or `b`.
 *
 * Throws HOGWILD_INVALID_ARGUMENT, before anything is written: other types or sizes, an lse that is NaN or +Infinity.
 */
export function mergeStates(
  a: AttentionState,
  b: AttentionState,
  into?: AttentionState,
): AttentionState {
  const first = checkState(a, 'a')
  const rows = first.lse.length
  const width = first.out.length / rows
  const second = checkState(b, 'b', first)
  const { out, lse } =
    into === undefined
      ? { out: new Float32Array(rows * width), lse: new Float32Array(rows) }
      : checkState(into, 'into', first)
  for (const [name, state] of [
    ['a', first],
    ['b', second],
  ] as const) {
    const bad = state.lse.findIndex((value) => !(value < Number.POSITIVE_INFINITY))
    if (bad >= 0) throw invalid(`${name}.lse[${bad}]`, 'finite or -Infinity', state.lse[bad])
  }

  for (let row = 0; row < rows; row++) {
    const [lseA, lseB] = [first.lse[row] as number, second.lse[row] as number]
    const max = Math.max(lseA, lseB)
    const sum = max === -Infinity ? 1 : Math.exp(lseA - max) + Math.exp(lseB - max)
    const weightA = lseA === -Infinity ? 0 : Math.exp(lseA - max) / sum
    const weightB = lseB === -Infinity ? 0 : Math.exp(lseB - max) / sum
    for (let i = row * width; i < (row + 1) * width; i++) {
      // Not 0 · out, which may be NaN.
      const fromA = weightA === 0 ? 0 : weightA * (first.out[i] as number)
      const fromB = weightB === 0 ? 0 : weightB * (second.out[i] as number)
      out[i] = fromA + fromB
    }
    lse[row] = max + Math.log(sum)
  }
  return { out, lse }
}

function checkState(state: AttentionState, name: string, like?: AttentionState): AttentionState {
  const { out, lse } = checkOptions(state, name, STATE_KEYS)
  if (like !== undefined) {
    return {
      out: checkFloats(out, `${name}.out`, like.out.length, '[T, Hq, D], as a.out'),
      lse: checkFloats(lse, `${name}.lse`, like.lse.length, '[T, Hq], as a.lse'),
    }
  }
  if (!isFloat32Array(lse) || lse.length === 0) {
    throw invalid(`${name}.lse`, 'a Float32Array of [T, Hq]', lse)
  }
  if (!isFloat32Array(out) || out.length === 0 || out.length % lse.length !== 0) {
    throw invalid(
      `${name}.out`,
      `a Float32Array of [T, Hq, D], a multiple of ${lse.length} elements`,
      out,
    )
  }
  return { out, lse }
}

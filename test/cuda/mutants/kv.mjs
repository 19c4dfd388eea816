// Bugs in kv.cu, and in the headers that it shares with attention, which kv_test must see (mutants.mjs says how
// this is read).
import { doesNotWait } from './overlap.mjs'

const kernels = 'kv.cu'
const rope = 'rope.cuh'
const loads = 'vector_load.cuh'

export default {
  sources: [kernels],
  test: 'kv_test.cc',
  mutants: [
    // rotation of whole pairs of chunks
    ['wrong partner', rope, 'row.convert(raw_y, y)', 'row.convert(raw_x, y)'],
    ['first half turned the other way', rope, 'x[i] * c[i] - y[i]', 'x[i] * c[i] + y[i]'],
    ['second half turned the other way', rope, 'y[i] * c[i] + x[i]', 'y[i] * c[i] - x[i]'],
    ['cosines of the first chunk for all', rope, 'load8(cos + unit * kUnitElements', 'load8(cos'],
    ['pairs as if R were D', rope, 'unit + paired_units;', 'unit + head_dim / 16;'],
    ['whole chunks where R / 2 is none', rope, 'half % kUnitElements == 0 ?', 'true ?'],
    [
      'rounded twice',
      rope,
      'x[i] * c[i] - y[i] * s[i]',
      'simt::unpack2<simt::bf16>(simt::pack2<simt::bf16>(x[i] * c[i] - y[i] * s[i], 0)).x',
    ],
    // rotation element by element
    ['wrong partner of an element', rope, 'd + half : u)', 'd + half - 1 : u)'],
    ['elements are their own partners', rope, 'd + half : u)', 'd + half : d)'],
    ['elements turned the other way', rope, '(is_first ? -s : s)', '(is_first ? s : -s)'],
    ['elements behind R are turned', rope, 'if (d >= 2 * half) break;', ''],
    // rows of the table, padding
    [
      'cosines of another row',
      rope,
      'rope.cos + static_cast<std::size_t>(rope_row)',
      'rope.cos + (rope_row ^ 1)',
    ],
    [
      'sines of another row',
      rope,
      'rope.sin + static_cast<std::size_t>(rope_row)',
      'rope.sin + (rope_row ^ 1)',
    ],
    ['padding is not zero', rope, 'x[i] = 0;', 'x[i] = 1;'],
    ['padding is read', rope, 'if (begin >= head_dim) {', 'if (false) {'],
    // pages
    ['no swizzle', kernels, 'is_permuted(kFormatOf<T>) ? swizzled_chunk', 'false ? swizzled_chunk'],
    [
      'rows of another width swizzled',
      'page.cuh',
      'min(chunks & -chunks, 8)',
      'min(chunks & -chunks, 4)',
    ],
    [
      'another kv head of the page',
      'page.cuh',
      'page * kv_heads + kv_head',
      'page * kv_heads + kv_heads - 1 - kv_head',
      true,
    ],
    ['pages without padding', kernels, 'shape.head_dim + shape.padding', 'shape.head_dim'],
    // append
    [
      'keys and values swapped',
      kernels,
      '{{params.k, params.layer.keys, step.rope}, {params.v,',
      '{{params.v, params.layer.keys, step.rope}, {params.k,',
    ],
    ['values are rotated', kernels, 'unturned.rotary_dim = 0;', ''],
    [
      'appended one slot on',
      kernels,
      'head.chunk(slot.slot, unit.chunk[0]) = from',
      'head.chunk(slot.slot ^ 1, unit.chunk[0]) = from',
    ],
    [
      'appended to another kv head',
      kernels,
      'page_head<T>(from.pool, p.shape, slot.page, row - token * kv_heads)',
      'page_head<T>(from.pool, p.shape, slot.page, 0)',
    ],
    ['slot of the first token for all', kernels, 'p.slots[token];\n  if', 'p.slots[0];\n  if'],
    [
      'rows without a page are written',
      kernels,
      'const AppendSlot slot = p.slots[token];\n  if (slot.page < 0) return;',
      'AppendSlot slot = p.slots[token];\n  slot.page = max<std::int64_t>(slot.page, 0);',
    ],
    ['slots from the first row of the step', kernels, 'step.slots + params.first', 'step.slots'],
    [
      'last row left out',
      kernels,
      'if (token >= p.rows) return;',
      'if (row >= p.rows * kv_heads - 1) return;',
    ],
    [
      'second chunk not written',
      kernels,
      'head.chunk(slot.slot, unit.chunk[1]) = from_floats<T>(unit.second);',
      '',
    ],
    // rebase
    [
      'keys to be kept are turned',
      kernels,
      'is_key && move.rope_row >= 0',
      'is_key && p.rope.rotary_dim > 0',
    ],
    ['keys at rope row 0 are kept', kernels, 'move.rope_row >= 0', 'move.rope_row > 0'],
    [
      'values are turned',
      kernels,
      'p.from[blockIdx.z].is_key && move.rope_row >= 0',
      'move.rope_row >= 0',
    ],
    ['turned from another slot', kernels, 'move.from_slot + i / units', 'move.to_slot + i / units'],
    [
      'turned to another slot',
      kernels,
      'move.to_slot + i / units',
      'move.from_slot + i / units',
      true,
    ],
    [
      'copied from another slot',
      kernels,
      'move.from_slot + i / chunks',
      'move.to_slot + i / chunks',
    ],
    ['copied to another slot', kernels, 'move.to_slot + i / chunks', 'move.from_slot + i / chunks'],
    ['moved from another page', kernels, 'move.from_page', 'move.to_page'],
    ['last turned key left out', kernels, 'move.length * units', '(move.length - 1) * units'],
    ['last copied token left out', kernels, 'move.length * chunks', '(move.length - 1) * chunks'],
    [
      'moves of the first kv head',
      kernels,
      'p.shape, move.from_page, blockIdx.y',
      'p.shape, move.from_page, 0',
    ],
    [
      'stored elements in another order',
      kernels,
      'return x[d % kUnitElements];',
      'return x[d % kUnitElements ^ 1];',
    ],
    // read
    [
      'keys read as values',
      kernels,
      '{{params.layer.keys, params.k}, {params.layer.values, params.v}}',
      '{{params.layer.keys, params.v}, {params.layer.values, params.k}}',
    ],
    [
      'read from another slot',
      kernels,
      'head.chunk(slot.slot, i % chunks)',
      'head.chunk(slot.slot ^ 1, i % chunks)',
    ],
    [
      'last row not read',
      kernels,
      'if (row >= p.n * kv_heads) return;',
      'if (row >= p.n * kv_heads - 1) return;',
    ],
    ['halves of a chunk swapped', kernels, 'to[1] = make_float4', 'to[0] = make_float4'],
    // elements
    [
      'f16 taken as bf16',
      loads,
      'unpack8<simt::f16>(raw.first, to)',
      'unpack8<simt::bf16>(raw.first, to)',
    ],
    [
      'single f16 taken as bf16',
      loads,
      'simt::unpack2<simt::f16>(bits).x',
      'simt::unpack2<simt::bf16>(bits).x',
    ],
    [
      'elements of f32 in another order',
      loads,
      'memcpy(to + 4, &raw.second',
      'memcpy(to + 4, &raw.first',
    ],
    ['angles in another order', loads, 'to[4] = high.x', 'to[4] = low.x'],
    ['pairs in another order', loads, 'to[2 * i + 1] = pair.y', 'to[2 * i + 1] = pair.x'],
    // codes, and formats that differ
    ['codes cut off', kernels, 'rintf(x[i] / scale)', 'x[i] / scale'],
    ['scales of half the codes', kernels, 'magnitude / kGreatestCode', 'magnitude / 64'],
    [
      'the maximum of one chunk',
      kernels,
      'max(magnitude_bits(unit.first[i]), magnitude_bits(unit.second[i]))',
      'magnitude_bits(unit.first[i])',
    ],
    [
      'the maximum of half a row',
      kernels,
      'int distance = kRowLanes / 2; distance',
      'int distance = kRowLanes / 4; distance',
    ],
    [
      'the maximum of two rows',
      kernels,
      'int distance = kRowLanes / 2; distance',
      'int distance = kRowLanes; distance',
    ],
    ['signs count in the maximum', kernels, 'bits & 0x7fffffffu;', 'bits;'],
    [
      'infinite rows have a scale',
      kernels,
      'const float scale = !is_finite ? NAN : ',
      'const float scale = ',
    ],
    ['tiny rows have a scale', kernels, 'is_zero ? 0.f : magnitude', 'false ? 0.f : magnitude'],
    ['rows of codes without a page are written', kernels, 'slot.page >= 0 && lane', 'lane'],
    [
      'scales of another slot',
      kernels,
      'head.scale(slot.slot) = scale;',
      'head.scale(slot.slot ^ 1) = scale;',
    ],
    [
      'scales behind narrower rows',
      kernels,
      'first + kPageSize * width)',
      'first + kPageSize * (width - 8))',
    ],
    ['scales stay behind', kernels, 'i < move.length; i +=', 'i < move.length - 1; i +='],
    ['codes are read without their scale', kernels, 'x[j] *= scale;', 'x[j] *= 1;'],
    [
      'values in the format of keys',
      kernels,
      'return with_format(shape.value_format, 1);',
      'return with_format(shape.key_format, 1);',
    ],
    ['keys in the place of values', kernels, '  from[0] = from[1];\n', ''],
    ['pages of codes without scales', 'page.cuh', '? width + 4 :', '? width :'],
    ['gathered without scales', kernels, 'if (scale_bytes == 0) return;', 'return;'],
    ['gathered as wide as pages', kernels, 'at += used_bytes;', 'at += row_bytes;'],
    // kernels that overlap
    doesNotWait('append', kernels, 'append_kv(const __grid_constant__ AppendArguments p) {'),
    doesNotWait(
      'append of codes',
      kernels,
      'append_codes(const __grid_constant__ AppendArguments p) {',
    ),
    doesNotWait('move', kernels, 'MoveArguments p, const KvMoveParams::Move* moves) {'),
    doesNotWait('read', kernels, 'ReadArguments p) {'),
  ],
}

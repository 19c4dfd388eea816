// Bugs in kv.cu, and in the headers that it shares with attention, which kv_test must see (mutants.mjs says how
// this is read).
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
    ['cosines of the first chunk for all', rope, 'load8(cos + unit * kChunkElements', 'load8(cos'],
    ['pairs as if R were D', rope, 'unit + paired_units;', 'unit + head_dim / 16;'],
    ['whole chunks where R / 2 is none', rope, 'half % kChunkElements == 0 ?', 'true ?'],
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
    [
      'no swizzle',
      kernels,
      'first[swizzled_chunk(chunks, slot, chunk)]',
      'first[slot * chunks + chunk]',
    ],
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
    ],
    ['pages without padding', kernels, 'shape.head_dim + shape.padding', 'shape.head_dim'],
    // append
    [
      'keys and values swapped',
      kernels,
      'is_key ? p.k : p.v, p.buffers.dtype',
      'is_key ? p.v : p.k, p.buffers.dtype',
    ],
    ['values are rotated', kernels, 'if (!is_key) rope.rotary_dim = 0;', ''],
    [
      'appended one slot on',
      kernels,
      'kv_heads), slot.slot, unit);',
      'kv_heads), slot.slot ^ 1, unit);',
    ],
    [
      'appended to another kv head',
      kernels,
      'row % kv_heads), slot.slot, unit);',
      '0), slot.slot, unit);',
    ],
    ['slot of the first token for all', kernels, 'row / kv_heads];\n  if', '0];\n  if'],
    [
      'rows without a page are written',
      kernels,
      'const AppendSlot slot = slots[row / kv_heads];\n  if (slot.page < 0) return;',
      'AppendSlot slot = slots[row / kv_heads];\n  slot.page = max<std::int64_t>(slot.page, 0);',
    ],
    ['slots from the first row of the step', kernels, 'step.slots + params.first', 'step.slots'],
    [
      'last row left out',
      kernels,
      'if (row >= p.rows * kv_heads) return;',
      'if (row >= p.rows * kv_heads - 1) return;',
    ],
    [
      'second chunk not written',
      kernels,
      'head.chunk(slot, unit.chunk[1]) = pack8<T>(unit.second);',
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
    ['values are turned', kernels, 'is_key && move.rope_row >= 0', 'move.rope_row >= 0'],
    ['turned from another slot', kernels, 'move.from_slot + i / units', 'move.to_slot + i / units'],
    ['turned to another slot', kernels, 'move.to_slot + i / units', 'move.from_slot + i / units'],
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
      'chunk[d % kChunkElements]',
      'chunk[d % kChunkElements ^ 1]',
    ],
    // read
    ['keys read as values', kernels, 'is_key ? p.k : p.v)', 'is_key ? p.v : p.k)'],
    ['read from another slot', kernels, 'slot.slot};', 'slot.slot ^ 1};'],
    [
      'last row not read',
      kernels,
      'if (row >= n * kv_heads) return;',
      'if (row >= n * kv_heads - 1) return;',
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
  ],
}

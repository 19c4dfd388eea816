// Bugs in products with quantised weights, and in rows of quantised tables.
import { doesNotWait } from './overlap.mjs'

const products = 'quant_matmul.cu'
const rows = 'quant_rows.cu'
const fragments = 'fragments.cuh'
const operand = 'quant_matmul.cu'

export default {
  sources: ['quant_matmul.cu', 'quant_rows.cu'],
  test: 'quantised_test.cc',
  host: ['core/fragments.cc', 'core/quant.cc'],
  environment: { HOGWILD_TEST_CASES: '2' },
  threads: { environment: { HOGWILD_TEST_CASES: '1' }, test: 'few_rows' },
  mutants: [
    ['bytes without a sign', products, '(two & 0x00800080u) | 0xc300c300u', '0xc300c300u'],
    ['the sign counts as a number', products, '(two & 0x007f007fu)', '(two & 0x00ff00ffu)'],
    ['both bytes are the first', products, 'bytes >> 8 * i', 'bytes'],
    [
      'the upper half of a table is the lower',
      products,
      '0x3210u | (codes >> 1 & 0x4444u)',
      '0x3210u',
    ],
    [
      'the zero is forgotten',
      products,
      '| 0x43004300u, p.zero_pair)',
      '| 0x43004300u, 0xc300c300u)',
    ],
    [
      'registers of 4 bits change places',
      products,
      '(word >> 4 * i & 0x000f000fu)',
      '(word >> 4 * (i ^ 1) & 0x000f000fu)',
    ],
    ['second halves of a table for first', products, 'i == 0 ? 0x5410u : 0x7632u', '0x5410u'],
    ['the same operand twice', products, 'bytes[operand][i / 2]', 'bytes[0][i / 2]'],
    ['both halves are the first, 8 bits', products, 'codes + 512 * half + 16', 'codes + 16'],
    [
      "another lane's codes",
      products,
      '(codes + 512 * half + 16 * (threadIdx.x % 32))',
      '(codes + 512 * half + 16 * (threadIdx.x % 32 ^ 4))',
    ],
    [
      'the scale of the first group',
      products,
      ': p.codes.group == 32 ? half : 0, lane',
      ': 0, lane',
    ],
    ['groups of 16 are of 32', products, 'by_16 = p.codes.group == 16;', 'by_16 = false;'],
    [
      'the second 16 columns take the scale of the first',
      products,
      'by_16 ? 2 * half + 1',
      'by_16 ? 2 * half',
    ],
    [
      'parts of 16 columns are added twice',
      products,
      '            part[0] = part[1] = part[2] = part[3] = 0;\n',
      '',
    ],
    ['minima are forgotten', products, 'if (has_min) add', 'if (false) add'],
    [
      'outputs change their scales',
      products,
      'scale[i / 2] * part[i]',
      'scale[1 - i / 2] * part[i]',
    ],
    ['scales of another output', products, 'lane / 4);\n      second', 'lane % 8);\n      second'],
    ['x of the first half', products, '4 * half + lane / 8', 'lane / 8'],
    [
      'x of the first eight rows for all',
      products,
      'chunk_at(8 * r + lane % 8',
      'chunk_at(lane % 8',
    ],
    ['operands of x change places', products, 'rows[0], rows[1]', 'rows[1], rows[0]'],
    [
      'the records of the first warp for all',
      operand,
      'at.first_output / kFragmentOutputs + threadIdx.x / 32',
      'at.first_output / kFragmentOutputs',
    ],
    [
      'records behind a matrix are read',
      operand,
      'inside = block * kFragmentOutputs < ',
      'inside = true || block * kFragmentOutputs < ',
    ],
    [
      'the record stays where it is',
      operand,
      '      if (inside) from += p.codes.record_bytes;\n',
      '',
    ],
    [
      'a tile begins with its first record',
      operand,
      '(block * p.chunks + chunk) *',
      '(block * p.chunks) *',
    ],
    [
      'scales are not copied',
      operand,
      'if (16 * i >= p.codes.record_bytes) break;',
      'if (16 * i >= kCodeBytes<Codes>) break;',
    ],
    [
      'records lie one on the other',
      operand,
      'to += threadIdx.x / 32 * (kMaxRecordBytes / 16);',
      'to += threadIdx.x / 32 * (kMaxRecordBytes / 32);',
    ],
    ['d is m', fragments, 'return {{d.x, d.y}, {m.x, m.y}};', 'return {{m.x, m.y}, {d.x, d.y}};'],
    ['zeros are added', fragments, '{-(d.x * low_unsigned(zeros))', '{(d.x * low_unsigned(zeros))'],
    [
      's without a sign',
      fragments,
      '{{d.x * low_signed(s), d.y * low_signed(s >> 8)}',
      '{{d.x * low_unsigned(s), d.y * low_unsigned(s >> 8)}',
    ],
    ['t of the first group', fragments, '16 * (p.groups() + group)', '16 * p.groups()'],
    [
      'the second m is the first',
      fragments,
      '-(m.y * low_unsigned(t >> 8))',
      '-(m.x * low_unsigned(t >> 8))',
    ],
    ['small powers of two', fragments, 'e < 2 ? (e + 1) << 21 : ', ''],
    [
      'halves of another output',
      fragments,
      'load_as<std::uint32_t>(pairs + 4 * o)',
      'load_as<std::uint32_t>(pairs + 4 * (o ^ 1))',
    ],
    ['rows of the first 16', rows, 'row / kFragmentOutputs * ((cols', '0 * ((cols'],
    ["the row's register", rows, 'output / 8 + 2 * (within / 8);', 'output / 8;'],
    ['pairs of columns are one', rows, '(4 * i + 16 * (within % 2))', '(4 * i)'],
    ['the scale of the lower eight', rows, 'const int o = output / 8;', 'const int o = 0;'],
    ['rows of a table are not scaled', rows, 'p.scale * (scale.d[o]', '(scale.d[o]'],
    ['the group of the record', rows, 'column / codes.group;', '0 * column;'],
    ['columns of a table stay', rows, 'p.table.columns == nullptr ? i', 'true ? i'],
    ['both elements are the first', rows, 'row[from.y]', 'row[from.x]'],
    // kernels that overlap
    doesNotWait('the embedding', rows, '                     const std::int32_t* tokens) {'),
    doesNotWait('ordering columns', rows, 'std::int64_t k, std::uint16_t* out) {'),
    [
      'a product does not wait',
      'product.cuh',
      '    ahead.advance(p);\n  }\n  simt::wait_for_preceding();\n',
      '    ahead.advance(p);\n  }\n',
    ],
    ['records are not gone on to', operand, 'if (inside) from += p.codes.record_bytes;', ''],
  ],
}

// Bugs in what is done row by row.
const pointwise = 'pointwise.cu'

export default {
  sources: ['pointwise.cu'],
  test: 'pointwise_test.cc',
  environment: {},
  threads: { environment: {}, test: 'rms_norm' },
  mutants: [
    ['the embedding is not scaled', pointwise, 'out[i] = p.scale * load1', 'out[i] = load1'],
    ['every row has the first token', pointwise, 'tokens + row)', 'tokens)'],
    [
      'the last elements of a row are not written',
      pointwise,
      'i < cols; i += kThreads',
      'i < cols - 1; i += kThreads',
    ],
    ['eps is forgotten', pointwise, ' + p.eps', ' + 0 * p.eps'],
    [
      'the mean is over the threads',
      pointwise,
      'static_cast<float>(p.cols)',
      'static_cast<float>(kRowThreads)',
    ],
    [
      'only the first warp is added up',
      pointwise,
      'squares = block_sum<kRowThreads>(squares, reinterpret_cast<float*>(shared));',
      'squares = warp_sum(squares);',
    ],
    [
      'the weight of the row, not of the column',
      pointwise,
      'simt::load_constant(p.weight + i);',
      'simt::load_constant(p.weight);',
    ],
    [
      'no barrier in the sum',
      'reduce.cuh',
      'scratch[threadIdx.x / 32] = value;\n  __syncthreads();',
      'scratch[threadIdx.x / 32] = value;',
    ],
    [
      'the last elements are not rounded',
      pointwise,
      'if (i < n) store_operands',
      'if (i + 4 < n) store_operands',
    ],
    ['operands overflow in f16', 'vector_load.cuh', 'v > kMax ? kMax : v < -kMax ? -kMax : v', 'v'],
    [
      'the halves of an operand change places',
      'vector_load.cuh',
      'round2<T>(v.z, v.w)',
      'round2<T>(v.w, v.z)',
    ],
    [
      'rows of rounded norms are one row',
      pointwise,
      'store_operands(out + row * p.cols + i, y)',
      'store_operands(out + i, y)',
    ],
    ['the wrong half of tanh', pointwise, 'expf(-2.f * u)', 'expf(2.f * u)'],
    ['SiLU of the other sign', pointwise, '(1.f + expf(-x))', '(1.f + expf(x))'],
    ['the cube is a square', pointwise, '0.044715f * x * x * x', '0.044715f * x * x'],
    [
      'up is not read',
      pointwise,
      'activate<kActivation>(p.gate[i]) * simt::load_constant(p.up + i)',
      'activate<kActivation>(p.gate[i])',
    ],
  ],
}

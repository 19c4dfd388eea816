// Bugs in what is done row by row.
import { doesNotWait, letsNoneStart } from './overlap.mjs'

const pointwise = 'pointwise.cu'
const activations = 'gated.cuh'

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
    ['the wrong half of tanh', activations, 'expf(-2.f * u)', 'expf(2.f * u)'],
    ['SiLU of the other sign', activations, '(1.f + expf(-gate))', '(1.f + expf(gate))'],
    [
      'the cube is a square',
      activations,
      '0.044715f * gate * gate * gate',
      '0.044715f * gate * gate',
    ],
    [
      'up is not read',
      pointwise,
      'gated<kActivation>(p.gate[i], p.up[i])',
      'gated<kActivation>(p.gate[i], 1.f)',
    ],
    ['the gate is not held', activations, 'gate = gate > kSwigluLimit ? kSwigluLimit : gate;', ''],
    ['up is held above only', activations, ': up < -kSwigluLimit ? -kSwigluLimit : up', ': up'],
    [
      'what is no number is held',
      activations,
      'gate = gate > kSwigluLimit ? kSwigluLimit : gate',
      'gate = gate <= kSwigluLimit ? gate : kSwigluLimit',
    ],
    ['up without its 1', activations, '(up + 1.f)', '(up + 0.f)'],
    ['SwiGLU without its factor', activations, 'expf(-kSwigluAlpha * gate)', 'expf(-gate)'],
    ['a sum is not scaled', pointwise, 'p.x[i] += p.scale * ', 'p.x[i] += '],
    ['the third of four is not added', pointwise, 'x.z + p.scale * y.z', 'x.z'],
    ['a cap does not give back its factor', pointwise, 'tanhf(x * by) * softcap', 'tanhf(x * by)'],
    [
      'the scale is not applied before a cap',
      pointwise,
      'params.scale / params.softcap',
      '1 / params.softcap',
    ],
    // kernels that overlap
    doesNotWait(
      'the embedding',
      pointwise,
      'EmbeddingParams p, const std::int32_t* tokens, Dtype dtype) {',
    ),
    doesNotWait('the norm', pointwise, 'RmsNormParams p) {'),
    letsNoneStart('the norm', pointwise, 'RmsNormParams p) {'),
    doesNotWait('the activation', pointwise, 'GatedActivationParams p) {'),
    doesNotWait('a scaled sum', pointwise, 'AddParams p) {'),
    doesNotWait('the soft cap', pointwise, 'float by, float softcap) {'),
    doesNotWait('rounding', pointwise, 'round_elements(const float* x, std::int64_t n, T* out) {'),
    doesNotWait(
      'rounding with padding',
      pointwise,
      'round_and_pad(const float* x, std::int64_t cols, T* out) {',
    ),
    [
      'what is rounded is read before the wait',
      pointwise,
      `  simt::follow_preceding();
  const std::int64_t i = 4 * (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x);
  if (i < n) store_operands(out + i, *reinterpret_cast<const float4*>(x + i));
`,
      `  simt::launch_dependents();
  const std::int64_t i = 4 * (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x);
  float4 values = {};
  if (i < n) values = *reinterpret_cast<const float4*>(x + i);
  simt::wait_for_preceding();
  if (i < n) store_operands(out + i, values);
`,
    ],
  ],
}

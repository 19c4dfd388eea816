// Bugs in sampling.
const sample = 'sample.cu'

export default {
  sources: ['sample.cu'],
  test: 'sample_test.cc',
  environment: {},
  threads: { environment: {}, test: 'ties_go' },
  mutants: [
    [
      'ties go to the highest id',
      sample,
      '0xffffffffu - static_cast<unsigned>',
      'static_cast<unsigned>',
      true,
    ],
    ['NaN is not noticed', sample, 'bad |= !(value < INFINITY);', 'bad |= value == INFINITY;'],
    [
      'negative logits are ordered upside down',
      sample,
      'bits & 0x80000000u ? ~bits : bits | 0x80000000u',
      'bits | 0x80000000u',
    ],
    ['-0 is less than 0', sample, 'value + 0.f', 'value'],
    [
      'top-k keeps one too many',
      sample,
      'static_cast<Mass>(row.top_k), shared',
      'static_cast<Mass>(row.top_k) + 1, shared',
    ],
    [
      'top-p ignores top-k',
      sample,
      'const Mass total = total_mass(p.vocab, shared, kept_mass_of);',
      'const Mass total = total_mass(p.vocab, shared, mass_of);',
    ],
    [
      'min-p is not applied',
      sample,
      'weight_of(id) >= row.min_p ? kept_mass_of(id) : Mass{0}',
      'kept_mass_of(id)',
    ],
    ['the cut does not look at ids', sample, '(other == key && other_id <= id)', 'other == key'],
    [
      'one radix round is skipped',
      sample,
      'shift >= 0; shift -= kRadixBits',
      'shift > 0; shift -= kRadixBits',
    ],
    ['bins keep what they had', sample, 'shared.bins[bin] = 0;', 'shared.bins[bin] += 0;'],
    [
      'no barrier after the bins are cleared',
      sample,
      'shared.bins[bin] = 0;\n    __syncthreads();',
      'shared.bins[bin] = 0;',
    ],
    [
      'no barrier in the scan',
      sample,
      '    __syncthreads();\n    shared.masses[threadIdx.x] += lower;',
      '    shared.masses[threadIdx.x] += lower;',
    ],
    ['the draw is one token late', sample, 'shared.id = id;', 'shared.id = id + 1;'],
    ['a cut is one token early', sample, '<= target) ++id;', '< target) ++id;'],
    [
      'seen ids are penalised from the penalised logit',
      sample,
      'raw[id] > 0.f ? raw[id] / row',
      'logits[id] > 0.f ? logits[id] / row',
    ],
    [
      'negative logits are divided by the penalty',
      sample,
      ': raw[id] * row.repetition_penalty',
      ': raw[id] / row.repetition_penalty',
    ],
    [
      'forbidden ids stay',
      sample,
      'atomicExch(&logits[p.ids[row.first_forbidden + i]], -INFINITY);',
      '',
    ],
    [
      'no barrier between penalties and bans',
      sample,
      '  __syncthreads();\n  for (int i = static_cast<int>(threadIdx.x); i < row.n_forbidden',
      '  for (int i = static_cast<int>(threadIdx.x); i < row.n_forbidden',
    ],
    ['the temperature is ignored', sample, 'fminf(1.f / row.temperature, 3.4028235e38f)', '1.f'],
    [
      'log-probabilities are those after the penalties',
      sample,
      'expf(raw[id] - raw_best.value) * kOneMass',
      'expf(logits[id] - best.value) * kOneMass',
    ],
  ],
}

// What needs a CUDA device: a GPU, or the emulated one (npm run test:emulated).
/** @type {import('jest').Config} */
module.exports = {
  ...require('./jest.config.cjs'),
  testMatch: ['<rootDir>/test/cuda/**/*.spec.ts'],
  testTimeout: 300_000,
}

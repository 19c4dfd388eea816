/** @type {import('jest').Config} */
module.exports = {
  preset: 'ts-jest',
  testEnvironment: 'node',
  // Copies of packages that benchmarks make.
  modulePathIgnorePatterns: ['<rootDir>/build/node-llama-cpp'],
  testMatch: ['<rootDir>/test/**/*.test.ts'],
  // Many of the tests wait for processes of their own, or compute on one thread.
  maxWorkers: '100%',
  testTimeout: 60_000,
}

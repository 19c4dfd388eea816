/** @type {import('jest').Config} */
module.exports = {
  preset: 'ts-jest',
  testEnvironment: 'node',
  testMatch: ['<rootDir>/test/**/*.test.ts'],
  // Many of the tests wait for processes of their own, or compute on one thread.
  maxWorkers: '100%',
  testTimeout: 60_000,
}

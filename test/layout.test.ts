import { commitsTurns, type LayoutName, viewOf } from '../lib/workers/layout'
import { codeOf } from './fixtures'

const headers = ['a>', 'b>', 'c>']
const blocks = (n: number, withHeaders = true) => ({
  common: 'common',
  shared: withHeaders ? 'shared' : undefined,
  workers: ['a', 'b', 'c', 'd', 'e', 'f']
    .slice(0, n)
    .map((own, i) => ({ own, header: withHeaders ? headers[i] : undefined })),
})

describe('viewOf', () => {
  test.each<[LayoutName, number, string[]]>([
    ['contiguous', 0, ['common', 'b', 'c', 'a>', 'a']],
    ['contiguous', 1, ['common', 'a', 'c', 'b>', 'b']],
    ['contiguous', 2, ['common', 'a', 'b', 'c>', 'c']],
    ['interleaved', 0, ['common', 'a>', 'a']],
    ['interleaved', 2, ['common', 'c>', 'c']],
    ['combined', 0, ['common', 'shared', 'b', 'c', 'a>', 'a']],
    ['combined', 1, ['common', 'shared', 'a', 'c', 'b>', 'b']],
  ])('%s of three workers, worker %i', (layout, worker, view) => {
    expect(viewOf(layout, blocks(3), worker)).toEqual(view)
  })

  test.each<[LayoutName, string[]]>([
    ['contiguous', ['common', 'b>', 'b']],
    ['interleaved', ['common', 'b>', 'b']],
    ['combined', ['common', 'shared', 'b>', 'b']],
  ])('%s without sharing leaves the others out', (layout, view) => {
    expect(viewOf(layout, blocks(3), 1, { share: false })).toEqual(view)
  })

  test('headers that are not there are left out', () => {
    expect(viewOf('combined', blocks(3, false), 1)).toEqual(['common', 'a', 'c', 'b'])
    expect(viewOf('contiguous', blocks(1, false), 0)).toEqual(['common', 'a'])
  })

  test.each([1, 2, 6])('any number of workers: every view of %i ends with the own block', (n) => {
    for (const layout of ['contiguous', 'combined'] as const) {
      for (let worker = 0; worker < n; worker++) {
        const all = blocks(n)
        const view = viewOf(layout, all, worker)
        expect(view.at(-1)).toBe(all.workers[worker]!.own)
        expect(view.filter((block) => all.workers.some(({ own }) => own === block))).toHaveLength(n)
        expect(new Set(view).size).toBe(view.length)
      }
    }
  })

  test('workers that stand for the same thing are still different workers', () => {
    const own = { own: 'x' }
    expect(viewOf('contiguous', { common: 'common', workers: [own, own] }, 0)).toEqual([
      'common',
      'x',
      'x',
    ])
  })

  test.each([-1, 3, 0.5, Number.NaN])('worker %p of three is refused', async (worker) => {
    expect(await codeOf(() => viewOf('combined', blocks(3), worker))).toBe(
      'HOGWILD_INVALID_ARGUMENT',
    )
  })
})

test('turns are committed where the others see them only then, or then for good', () => {
  expect(
    ['contiguous', 'interleaved', 'combined'].map((l) => commitsTurns(l as LayoutName)),
  ).toEqual([false, true, true])
})

import { columnsOf, padColumns } from './columns'

/** Lines of a table: the first column is aligned to the left, the others to the right. */
export function formatTable(
  header: readonly string[],
  rows: readonly (readonly string[])[],
): string[] {
  const widths = header.map((title, column) =>
    Math.max(...[title, ...rows.map((row) => row[column] ?? '')].map(columnsOf)),
  )
  return [header, widths.map((width) => '─'.repeat(width)), ...rows].map((row) =>
    row
      .map((cell, column) =>
        column === 0
          ? padColumns(cell, widths[0] ?? 0)
          : ' '.repeat((widths[column] ?? 0) - columnsOf(cell)) + cell,
      )
      .join('  ')
      .trimEnd(),
  )
}

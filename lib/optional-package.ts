// Packages that are optional peers: used where the program has them.

import { HogwildError } from './errors'

/**
 * The main file of a package, as this package or the program sees it. `needs` begins the message: what needs the package.
 *
 * Throws HOGWILD_UNSUPPORTED where it is not installed, with the command that installs it; `install`: its packages.
 */
export function findPackage(name: string, needs: string, install = name): string {
  try {
    return require.resolve(name, { paths: [__dirname, process.cwd()] })
  } catch (cause) {
    throw new HogwildError(
      `${needs} the package ${name}, which is not installed: npm install ${install}`,
      'HOGWILD_UNSUPPORTED',
      { cause },
    )
  }
}

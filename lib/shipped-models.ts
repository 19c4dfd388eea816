import { join } from 'node:path'

const folderOf = (name: string) => join(__dirname, '..', 'models', name)

/**
 * The folder of the demo's model, which is in the package: a Llama of 0.6 M parameters (1.2 MB), trained to share the
 * words of a list among concurrent workers; its README.md has the format. For `loadModel` and `loadTokenizer`.
 */
export const demoModelPath: string = folderOf('demo')

/**
 * The folder of a second model in the package, of the same size: trained to evaluate small expressions that refer to each
 * other's results, where workers wait for one another or take other work; its README.md has the format.
 */
export const graphModelPath: string = folderOf('graph')

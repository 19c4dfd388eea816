import { join } from 'node:path'

/**
 * The folder of the demo's model, which is in the package: a Llama of 0.6 M parameters (1.2 MB), trained to share the
 * words of a list among concurrent workers; its README.md has the format. For `loadModel` and `loadTokenizer`.
 */
export const demoModelPath: string = join(__dirname, '..', 'models', 'demo')

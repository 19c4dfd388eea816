#!/usr/bin/env node
// The command line: every command with its options. What a command does is in a file of its own, loaded
// when it is called. Exit codes: 0, 1 for a HogwildError, 2 for wrong usage.

import { Command, CommanderError, Option } from 'commander'
import { HogwildError } from '../errors'
import { deviceName, integer, integers, number } from './options'
import { packageVersion } from './package'

const device = () =>
  new Option(
    '--device <device>',
    'where to compute: auto, cpu, cuda, or cuda:N for one card of several',
  )
    .argParser(deviceName)
    .default('auto')
const dtype = () =>
  new Option('--dtype <dtype>', 'convert the weights; auto: as they are stored')
    .choices(['auto', 'f32', 'bf16', 'f16'])
    .default('auto')
const threads = () =>
  new Option('--threads <n>', 'CPU threads; default: all processors').argParser(integer(1, 1024))
const capacity = (byDefault: string) =>
  new Option('--capacity <tokens>', `room of the cache; default: ${byDefault}`).argParser(
    integer(1),
  )
const json = () => new Option('--json', 'print figures as JSON')

const SENTENCE = 'many hands make light work when they see at once what is done already'

const program = new Command('hogwild')
  .description('Several workers of one language model write into one shared KV cache.')
  .version(packageVersion)
  .showHelpAfterError('(hogwild --help, or --help behind a command, lists what there is)')
  .exitOverride()

program
  .command('demo')
  .description('workers share the words of a sentence among themselves; then a race')
  .argument('[sentence]', 'up to 16 words of up to 9 letters a-z', SENTENCE)
  .addOption(new Option('--workers <n>', 'how many begin').argParser(integer(1, 4)).default(4))
  .option('--no-share', 'each worker sees only the prompt and itself')
  .addOption(
    new Option(
      '--pace <steps>',
      'steps per second, 0: as fast as possible; default: 12 in a terminal, else 0',
    ).argParser(number(0)),
  )
  .addOption(device().default('cpu'))
  .addOption(new Option('--json', 'only the race, its figures as JSON'))
  .addHelpText('after', '\nKeys while the workers write: 1-4 stop a worker or call one, q quits.')
  .action(async (sentence, options) => {
    const { demo } = await import('./demo.js')
    process.exitCode = await demo(sentence, options)
  })

program
  .command('run')
  .description('workers solve a problem together, on a model of your own')
  .argument('<prompt>', 'the problem')
  .requiredOption(
    '--model <folder>',
    'Hugging Face folder: config.json, safetensors, tokenizer.json',
  )
  .addOption(new Option('--workers <n>', 'how many').argParser(integer(1, 16)).default(2))
  .addOption(
    new Option('--layout <layout>', 'how each worker sees the cache')
      .choices(['contiguous', 'interleaved', 'combined'])
      .default('combined'),
  )
  .option('--no-share', 'each worker sees only the prompt and itself')
  .addOption(new Option('--max-tokens <n>', 'per worker').argParser(integer(1)).default(512))
  .addOption(new Option('--temperature <t>', '0: greedy').argParser(number(0)).default(0))
  .addOption(new Option('--top-k <k>', 'sample among the k likeliest').argParser(integer(1)))
  .addOption(
    new Option('--top-p <p>', 'sample among the likeliest of this total').argParser(number(0, 1)),
  )
  .addOption(
    new Option('--min-p <p>', 'at least this share of the likeliest').argParser(number(0, 1)),
  )
  .addOption(
    new Option('--seed <n>', "of the first worker; the next worker's is one more")
      .argParser(integer(0))
      .default(0),
  )
  .addOption(device())
  .addOption(dtype())
  .addOption(threads())
  .addOption(capacity('8192'))
  .addOption(new Option('--json', 'print every event as a line of JSON'))
  .action(async (prompt, options) => {
    const { run } = await import('./run.js')
    await run(prompt, options)
  })

program
  .command('replay')
  .description('run a scripted experiment (docs/replay.md); a line of JSON per prefill and step')
  .argument('<script>', 'JSON file with the ops')
  .requiredOption('--model <folder>', 'Hugging Face folder: config.json, safetensors')
  .option('--out <file>', 'write the logits as safetensors')
  .addOption(device())
  .addOption(dtype())
  .addOption(threads())
  .addOption(capacity('what the script can need'))
  .action(async (script, options) => {
    const { replayScript } = await import('./replay.js')
    await replayScript(script, options)
  })

program
  .command('bench')
  .description(
    'measure prefill and decoding; without --model on a random Llama of 135 M parameters',
  )
  .option('--model <folder>', 'Hugging Face folder: config.json, safetensors')
  .addOption(
    new Option('--workers <list>', 'numbers of workers')
      .argParser(integers(1))
      .default([1, 2, 4], '1,2,4'),
  )
  .addOption(
    new Option('--prompt <tokens>', 'length of the shared prompt')
      .argParser(integer(1))
      .default(256),
  )
  .addOption(new Option('--generate <tokens>', 'per worker').argParser(integer(1)).default(64))
  .addOption(
    new Option('--repeat <n>', 'how often; medians are reported').argParser(integer(1)).default(3),
  )
  .addOption(device())
  .addOption(dtype())
  .addOption(threads())
  .option('--profile', 'also what each op takes of a step and of the bandwidth')
  .addOption(json())
  .action(async (options) => {
    const { bench } = await import('./bench.js')
    await bench(options)
  })

program
  .command('doctor')
  .description('what was found on this machine: device, SIMD level, why not CUDA')
  .addOption(json())
  .action(async (options) => {
    const { doctor } = await import('./doctor.js')
    doctor(options)
  })

program
  .command('demo-eval', { hidden: true })
  .description("measure the demo's model on lists of real words (for developers)")
  .addOption(new Option('--prompts <n>', 'per row').argParser(integer(1)).default(100))
  .option('--write', 'put the table into models/demo/README.md')
  .addOption(json())
  .action(async (options) => {
    const { demoEval } = await import('./demo-eval.js')
    await demoEval(options)
  })

async function main(): Promise<void> {
  // A reader that leaves early (`| head`) is no error.
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code === 'EPIPE') process.exit(0)
    throw error
  })
  try {
    await program.parseAsync()
  } catch (error) {
    if (error instanceof CommanderError) {
      process.exitCode = error.exitCode === 0 ? 0 : 2
    } else if (error instanceof HogwildError) {
      process.stderr.write(`hogwild: ${error.message} [${error.code}]\n`)
      process.exitCode = 1
    } else {
      throw error
    }
  }
}

main()

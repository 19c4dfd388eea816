#!/usr/bin/env node
// The command line: every command with its options. What a command does is in a file of its own, loaded
// when it is called: help, usage errors, `doctor` and `build` need no addon. Exit codes: 0, 1 for a failure, 2 for wrong
// usage, 130 for Ctrl-C in the demo.

import { Command, CommanderError, Option } from 'commander'
import { BUILD_NEEDS } from '../addon-file'
import { WORKER_NAMES as RUN_WORKERS } from '../collaboration/names'
import { DIMENSIONS } from '../experiment/plots/series'
import { DTYPES, KV_DTYPES } from '../formats'
import { DEFAULT_CAPACITY, MAX_CAPACITY, MAX_LAYERS, MAX_THREADS } from '../limits'
import { escapeUnsafe, printable } from '../printable'
import { LAYOUT_NAMES } from '../workers/layout'
import { WORKER_NAMES as DEMO_WORKERS, MAX_LETTERS, MAX_WORDS } from './demo/task'
import {
  budgets,
  cacheDtypes,
  deviceName,
  integer,
  integers,
  names,
  number,
  probability,
  shard,
  text,
  texts,
} from './options'
import { packageVersion } from './package'
import { FAMILY_NAMES, HIDDEN_STEP } from './random-model/config'
import { LEAST_VOCABULARY, MOST_VOCABULARY } from './random-model/tokenizer'

const device = () =>
  new Option(
    '--device <device>',
    'where to compute: auto, cpu, cuda, or cuda:N for one card of several',
  )
    .argParser(deviceName)
    .default('auto')
const dtype = () =>
  new Option('--dtype <dtype>', 'convert the weights; auto: as they are stored')
    .choices(['auto', ...DTYPES])
    .default('auto')
const threads = () =>
  new Option('--threads <n>', 'CPU threads; default: all processors').argParser(
    integer(1, MAX_THREADS),
  )
const capacity = (byDefault: string) =>
  new Option('--capacity <tokens>', `room of the cache; default: ${byDefault}`).argParser(
    integer(1, MAX_CAPACITY),
  )
const cacheDtype = () =>
  new Option(
    '--cache-dtype <dtype>',
    `store keys and values as ${KV_DTYPES.join(', ')}, or as two of them: keys,values; default: the weights' own, f16 beside quantised ones`,
  ).argParser(cacheDtypes)
const json = () => new Option('--json', 'print figures as JSON')

/** Of `plot`, whose place beside the results is `beside`. */
const addPlotting = (command: Command, beside: string) =>
  command
    .addOption(
      new Option('--out <folder>', `of the plots; default: plots ${beside}`).argParser(text),
    )
    .option('--png', 'PNG too, in light and in dark; needs @resvg/resvg-js')
    .option('--json', 'print the names of the drawings as JSON')
    .addHelpText(
      'after',
      `
Drawings (.svg) need the packages vega and vega-lite: npm install vega vega-lite. Beside each is what it shows, as .csv and
as a specification of Vega-Lite (.vl.json), which need none.`,
    )

const quiet = () => new Option('-q, --quiet', 'no progress on stderr')
const model = () =>
  new Option(
    '--model <model>',
    'a Hugging Face folder, a GGUF file, or a model of the hub: org/name[@revision][:QUANTISATION]',
  ).argParser(text)
const ignoreField = () =>
  new Option(
    '--ignore-field <name>',
    'load the model as if this field of its config.json were not there; may be repeated',
  ).argParser(texts)

/** Of commands that generate text: how tokens are chosen, how many, and when that ends. */
function addSampling(command: Command, of: string): Command {
  return command
    .addOption(
      new Option('--max-tokens <n>', `at most so many${of}`).argParser(integer(1)).default(512),
    )
    .addOption(new Option('--temperature <t>', '0: greedy').argParser(number(0)).default(0))
    .addOption(
      new Option('--top-k <k>', 'sample among the k likeliest').argParser(integer(1, 2 ** 31 - 1)),
    )
    .addOption(
      new Option('--top-p <p>', 'sample among the likeliest of this total').argParser(probability),
    )
    .addOption(
      new Option('--min-p <p>', 'at least this share of the likeliest').argParser(number(0, 1)),
    )
    .addOption(
      new Option('--seed <n>', "of the first worker; the next worker's is one more")
        .argParser(integer(0, Number.MAX_SAFE_INTEGER - RUN_WORKERS.length))
        .default(0),
    )
    .addOption(
      new Option('--stop <text>', 'stop before this text; may be repeated').argParser(texts),
    )
}

const SENTENCE = 'many hands make light work when they see at once what is done already'

const program = new Command('hogwild')
  .description('Several workers of one language model write into one shared KV cache.')
  .version(packageVersion)
  .showHelpAfterError('(hogwild --help, or --help behind a command, lists what there is)')
  .exitOverride()
  // `experiment` and its `merge` have options of the same names.
  .enablePositionalOptions()
  // Messages repeat what was typed; scripts may have it from elsewhere.
  .configureOutput({ writeErr: (message) => process.stderr.write(printable(message)) })

program
  .command('demo')
  .description('workers share the words of a sentence among themselves; then a race')
  .argument(
    '[sentence...]',
    `up to ${MAX_WORDS} words of up to ${MAX_LETTERS} letters a-z`,
    SENTENCE.split(' '),
  )
  .addOption(
    new Option('--workers <n>', 'how many begin')
      .argParser(integer(1, DEMO_WORKERS.length))
      .default(DEMO_WORKERS.length),
  )
  .option('--no-share', 'each worker sees only the prompt and itself')
  .addOption(
    new Option(
      '--pace <steps>',
      'steps per second, 0: as fast as possible; default: 4 in a terminal, else 0',
    ).argParser(number(0)),
  )
  .addOption(device().default('cpu'))
  .addOption(new Option('--json', 'only the race, its figures as JSON'))
  .addHelpText(
    'after',
    `
Keys while the workers write:
  1-${DEMO_WORKERS.length}    stop a worker or call one, also one that was stopped
  + -    faster, slower
  space  wait, go on
  q      quit`,
  )
  .action(async (sentence, options) => {
    const { demo } = await import('./demo.js')
    process.exitCode = await demo(sentence, options)
  })

addSampling(
  program
    .command('run')
    .description('workers solve a problem together, on a model of your own')
    .argument('<prompt...>', 'the problem; -: from stdin', texts)
    .addOption(model().makeOptionMandatory())
    .addOption(ignoreField())
    .addOption(
      new Option('--workers <n>', 'how many').argParser(integer(1, RUN_WORKERS.length)).default(2),
    )
    .addOption(
      new Option('--names <list>', 'of the workers, between commas; default: Alice, Bob, …')
        .argParser(names(RUN_WORKERS.length))
        .conflicts('workers'),
    )
    .addOption(
      new Option('--layout <layout>', 'how each worker sees the cache')
        .choices(LAYOUT_NAMES)
        .default('combined'),
    )
    .option('--no-share', 'each worker sees only the prompt and itself')
    .addOption(
      new Option(
        '--check-every <tokens>',
        'ask a worker so often whether its work is redundant, at its next paragraph; 0: never; default: 256, without turns (contiguous) 0',
      ).argParser(integer(0)),
    )
    .addOption(
      new Option(
        '--budget <list>',
        'extract an early answer once a worker has written so many tokens; it goes on afterwards',
      ).argParser(budgets),
    )
    .addOption(
      new Option(
        '--finish <tokens>',
        'at most so many of an early answer, after each budget and at the end, where no worker has given one; 0: none; default: 32, without a chat template 0',
      ).argParser(integer(0)),
    )
    .addOption(
      new Option(
        '--speculate <how>',
        'guess the next tokens, so that one step may bring several: what followed before (lookup), or Jacobi iteration',
      ).choices(['lookup', 'jacobi']),
    )
    .addOption(device())
    .addOption(dtype())
    .addOption(threads())
    .addOption(capacity(String(DEFAULT_CAPACITY)))
    .addOption(
      new Option(
        '--context <tokens>',
        'of the longest view, for models that rotate keys otherwise beyond it (longrope)',
      ).argParser(integer(1, MAX_CAPACITY)),
    )
    .addOption(cacheDtype())
    .addOption(
      new Option('--trace <file>', 'write a trace, for view and replay (docs/replay.md)').argParser(
        text,
      ),
    )
    .option('--attention', 'tell where workers look, in the trace and with --json')
    .addOption(quiet())
    .addOption(new Option('--json', 'print every event as a line of JSON')),
  ' per worker',
).action(async (prompt, options) => {
  const { run } = await import('./run.js')
  await run(prompt, options)
})

addSampling(
  program
    .command('generate')
    .description('one worker answers a prompt')
    .argument('<prompt...>', 'the text; -: from stdin', texts)
    .addOption(model().makeOptionMandatory())
    .addOption(ignoreField())
    .addOption(new Option('--system <text>', 'a message before the prompt').argParser(text))
    .option('--raw', "the prompt as it is, without the model's chat template")
    .addOption(device())
    .addOption(dtype())
    .addOption(threads())
    .addOption(cacheDtype())
    .addOption(quiet())
    .addOption(new Option('--json', 'print every token and the result as lines of JSON')),
  '',
).action(async (prompt, options) => {
  const { generate } = await import('./generate.js')
  await generate(prompt, options)
})

program
  .command('replay')
  .description('run a scripted experiment (docs/replay.md); a line of JSON per prefill and step')
  .argument('<script>', 'JSON file with the ops', text)
  .addOption(model().makeOptionMandatory())
  .addOption(ignoreField())
  .addOption(new Option('--out <file>', 'write the logits as safetensors').argParser(text))
  .addOption(device())
  .addOption(dtype())
  .addOption(threads())
  .addOption(capacity('what the script can need'))
  .addOption(cacheDtype())
  .addOption(quiet())
  .action(async (script, options) => {
    const { replayScript } = await import('./replay.js')
    await replayScript(script, options)
  })

program
  .command('view')
  .description('a page that shows a run: who wrote, saw and attended to what (docs/trace-view.md)')
  .argument('<trace>', 'a trace (runWorkers, experiment --traces), or a script of replay', text)
  .addOption(
    new Option('--out <file>', 'the HTML file; -: to stdout; default: TRACE.html').argParser(text),
  )
  .addOption(new Option('--open', 'open it in the browser'))
  .action(async (trace, options) => {
    const { viewTrace } = await import('./view.js')
    await viewTrace(trace, options)
  })

const experiment = program
  .command('experiment')
  .enablePositionalOptions()
  .description('run an experiment: data, models, settings, graders (docs/experiments.md)')
  .argument('<file>', 'its definition: JSON, or a JavaScript module', text)
  .addOption(
    new Option(
      '--out <folder>',
      'of the results; default: FILE without its end, .results',
    ).argParser(text),
  )
  .addOption(new Option('--shard <i/n>', 'only every n-th cell, from the i-th on').argParser(shard))
  .option('--traces', "also a trace of each cell (docs/replay.md), in the results' folder")
  .addOption(device())
  .addOption(threads())
  .addOption(quiet())
  .addOption(json())
  .addHelpText('after', '\nCells that are in the results already are not computed again.')
  .action(async (file, options) => {
    const { runExperimentFile } = await import('./experiment.js')
    await runExperimentFile(file, options)
  })

experiment
  .command('merge')
  .description('join the results of shards')
  .argument('<files...>', 'results of all shards')
  .addOption(
    new Option('--out <folder>', 'of the results of all').argParser(text).makeOptionMandatory(),
  )
  .addOption(json())
  .action(async (files, options) => {
    const { mergeExperiment } = await import('./experiment.js')
    await mergeExperiment(files, options)
  })

addPlotting(
  experiment
    .command('plot')
    .description('draw results: accuracy and tokens against steps, speed-up against workers')
    .argument('<results>', "the results' folder, or a .jsonl file in it", text)
    .addOption(
      new Option(
        '--by <setting>',
        'that colours tell apart; what else differs gets plots of its own; default: the first of these that differs',
      ).choices(DIMENSIONS),
    ),
  'beside them',
).action(async (results, options) => {
  const { plotExperiment } = await import('./plot.js')
  await plotExperiment(results, options)
})

const benchCommand = program
  .command('bench')
  .enablePositionalOptions()
  .description(
    'measure prefill and decoding; without --model on a random Llama of 135 M parameters',
  )
  .addOption(model())
  .addOption(ignoreField())
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
  .addOption(cacheDtype())
  .addOption(threads())
  .option('--profile', 'also what each op takes of a step and of the bandwidth')
  .addOption(quiet())
  .addOption(json())
  .action(async (options) => {
    const { bench } = await import('./bench.js')
    await bench(options)
  })

addPlotting(
  benchCommand
    .command('plot')
    .description('draw figures of bench --json: tokens/s, and the share of the bandwidth')
    .argument('<files...>', 'with the figures'),
  'beside the first',
).action(async (files, options) => {
  const { plotBenchmarks } = await import('./plot.js')
  await plotBenchmarks(files, options)
})

program
  .command('download')
  .description(
    "bring a model from the hub into the cache that Python's tools share; prints its path",
  )
  .argument('<name>', 'org/name[@revision][:QUANTISATION], e.g. Qwen/Qwen3-0.6B-GGUF:Q8_0', text)
  .addOption(quiet())
  .addOption(json())
  .addHelpText(
    'after',
    `
From the environment, as Python's huggingface_hub has it:
  HF_TOKEN         for models that need one; else that of \`hf auth login\`
  HF_ENDPOINT      address of a mirror
  HF_HOME, HF_HUB_CACHE, XDG_CACHE_HOME
                   where the cache is; default: ~/.cache/huggingface/hub
  HF_HUB_OFFLINE   1: only what is in the cache`,
  )
  .action(async (name, options) => {
    const { downloadModel } = await import('./download.js')
    await downloadModel(name, options)
  })

program
  .command('random-model')
  .description(
    'write a tiny model of random weights, with a tokenizer: to play with, and for tests',
  )
  .argument('<folder>', 'where; not there yet, or empty', text)
  .addOption(
    new Option('--family <family>', 'model_type of its config.json')
      .choices(FAMILY_NAMES)
      .default('llama'),
  )
  .addOption(new Option('--layers <n>', 'how many').argParser(integer(1, MAX_LAYERS)).default(4))
  .addOption(
    new Option('--hidden <n>', `width of the model, a multiple of ${HIDDEN_STEP}`)
      .argParser(integer(HIDDEN_STEP, 2 ** 14, HIDDEN_STEP))
      .default(64),
  )
  .addOption(
    new Option('--vocabulary <n>', 'tokens: bytes, and words of syllables')
      .argParser(integer(LEAST_VOCABULARY, MOST_VOCABULARY))
      .default(1024),
  )
  .addOption(
    new Option('--seed <n>', 'the same one gives the same weights')
      .argParser(integer(0, 2 ** 32 - 1))
      .default(0),
  )
  .action(async (folder, options) => {
    const { randomModel } = await import('./random-model.js')
    await randomModel(folder, options)
  })

program
  .command('inspect')
  .description(
    'what a model is, what it takes, and what would be refused; its weights are not read',
  )
  .argument('<model>', 'a folder, a GGUF file, or a name of the hub', text)
  .addOption(ignoreField())
  .addOption(
    new Option(
      '--context <tokens>',
      `tokens in the cache, of all workers together; default: the model's context, at most ${DEFAULT_CAPACITY}`,
    ).argParser(integer(1, MAX_CAPACITY)),
  )
  .addOption(
    new Option('--workers <n>', 'that write at once').argParser(integer(1, 2 ** 20)).default(4),
  )
  .addOption(dtype())
  .addOption(quiet())
  .addOption(json())
  .addHelpText('after', '\nExit code 1 where something would be refused.')
  .action(async (name, options) => {
    const { inspect } = await import('./inspect.js')
    await inspect(name, options)
  })

program
  .command('doctor')
  .description(
    'what was found on this machine, why not CUDA, and whether each device computes what it should',
  )
  .option('--reuse', 'how logits differ where blocks of --model are reused, forked and moved')
  .addOption(model())
  .addOption(device())
  .addOption(json())
  .addHelpText(
    'after',
    `
With --reuse: of blocks that are used again, and of the same view computed afresh or with its keys turned, in each cache
dtype: the largest difference of a logit, the same in standard deviations, the Kullback-Leibler divergence, and how often
the likeliest token is the same. Exit code 1 where they differ by more than docs/semantics.md says.`,
  )
  .action(async ({ reuse, model, device, json }, command: Command) => {
    const { doctor, doctorReuse } = await import('./doctor.js')
    if (reuse && model !== undefined) await doctorReuse({ model, device, json })
    else if (reuse || model !== undefined || command.getOptionValueSource('device') === 'cli') {
      command.error("error: '--reuse' needs '--model <model>'; '--model' and '--device' are for it")
    } else await doctor({ json })
  })

program
  .command('build')
  .description(`compile the addon for this machine (needs ${BUILD_NEEDS})`)
  .addOption(
    new Option('--cuda <when>', 'the CUDA device too; default auto: where nvcc is found').choices([
      'auto',
      'on',
      'off',
    ]),
  )
  .addOption(
    new Option(
      '--cuda-architectures <list>',
      "all, or CMake's list, e.g. 90a-real; default: the GPUs that are there",
    ).argParser(text),
  )
  .action(async (options) => {
    const { buildAddon } = await import('./build.js')
    buildAddon(options)
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
  process.stdout.on('error', endOfOutput)
  // Without a reader for remarks and errors the command goes on.
  process.stderr.on('error', () => {})
  try {
    await program.parseAsync()
  } catch (error) {
    if (error instanceof CommanderError) process.exitCode = error.exitCode === 0 ? 0 : 2
    else fail(error)
  }
}

/** A reader that leaves early (`| head`) is no error; a full disk is one. */
function endOfOutput(error: NodeJS.ErrnoException): void {
  if (error.code !== 'EPIPE') fail(error)
  process.exit()
}

/**
 * One line for what is to be expected: a HogwildError, also of another realm, or an error of the system. Anything
 * else is a bug, for whose report the stack is needed.
 */
function fail(error: unknown): void {
  process.exitCode = 1
  const { name, message, code, syscall, stack } = error as NodeJS.ErrnoException
  if (name === 'HogwildError') report(`${message} [${code}]`)
  else if (syscall !== undefined) report(message)
  else process.stderr.write(printable(`hogwild: a bug: ${stack ?? String(error)}\n`))
}

function report(line: string): void {
  process.stderr.write(`hogwild: ${escapeUnsafe(line)}\n`)
}

void main()

import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { Chat, type ChatRequest, type ChatSegment } from '../lib/chat/chat'
import { readChatSources } from '../lib/chat/sources'
import type { HogwildError } from '../lib/errors'
import { temporaryFolder } from './fixtures'

const fixtures = join(__dirname, 'fixtures/chat')
/** As render.py has them. */
const specialTokens = {
  bos_token: '<s>',
  eos_token: '</s>',
  pad_token: '<pad>',
  custom_token: '<custom>',
}
const now = new Date(2026, 2, 9, 14, 5, 7)
const user = [{ role: 'user', content: 'x' }]

function chatOf(template: string): Chat {
  return new Chat({ templates: new Map([['default', template]]), specialTokens, origin: 'a test' })
}

function codeThrownBy(run: () => unknown): unknown {
  try {
    run()
  } catch (error) {
    return (error as HogwildError).code ?? error
  }
  return undefined
}

function textOf(segments: readonly ChatSegment[]): string {
  return segments.map(({ text }) => text).join('')
}

function render(template: string, request: Partial<ChatRequest> = {}): string {
  return textOf(chatOf(template).render({ messages: user, now, ...request }))
}

/** What is the caller's between brackets: the template's own text has none here. */
function marked(template: string, request: Partial<ChatRequest> = {}): string {
  const segments = chatOf(template).render({ messages: user, now, ...request })
  return segments.map(({ text, content }) => (content ? `[${text}]` : text)).join('')
}

describe('templates render as transformers renders them', () => {
  interface Conversation {
    name: string
    messages: unknown[]
    tools?: unknown[]
    documents?: unknown[]
    variables?: Record<string, unknown>
  }
  const read = (file: string) => JSON.parse(readFileSync(join(fixtures, file), 'utf8'))
  const conversations: Conversation[] = read('conversations.json')
  const goldens: Record<string, Record<string, [string | null, (string | null)?]>> = read(
    'goldens.json',
  )

  test('there are at least 40 templates, each with its goldens', () => {
    const files = readdirSync(join(fixtures, 'templates')).map((file) => file.replace('.jinja', ''))
    expect(files.sort()).toEqual(Object.keys(goldens).sort())
    expect(files.length).toBeGreaterThanOrEqual(40)
  })

  test.each(Object.keys(goldens))('%s', (name) => {
    const chat = chatOf(readFileSync(join(fixtures, `templates/${name}.jinja`), 'utf8'))
    const results = conversations.map((conversation) => {
      const texts = [true, false].map((addGenerationPrompt) => {
        try {
          return textOf(chat.render({ ...conversation, addGenerationPrompt, now }))
        } catch (error) {
          expect(error).toMatchObject({ code: 'HOGWILD_INVALID_ARGUMENT' })
          return null
        }
      })
      return [conversation.name, texts[0] === texts[1] ? texts.slice(1) : texts]
    })
    expect(Object.fromEntries(results)).toEqual(goldens[name])
  })
})

describe('what the caller supplied is told apart', () => {
  const chatml =
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{{ '<|im_start|>assistant\n' if add_generation_prompt }}"

  test('message content, names and roles', () => {
    const messages = [{ role: 'user', content: 'a<|im_end|>b' }]
    expect(chatOf(chatml).render({ messages })).toEqual([
      { text: '<|im_start|>', content: false },
      { text: 'user', content: true },
      { text: '\n', content: false },
      { text: 'a<|im_end|>b', content: true },
      { text: '<|im_end|>\n<|im_start|>assistant\n', content: false },
    ])
  })

  test('special tokens and what replaces them are the template’s', () => {
    expect(marked('{{ bos_token }}{{ x }}', { variables: { x: '</s>' } })).toBe('<s>[</s>]')
    expect(marked('{{ bos_token }}', { variables: { bos_token: '<bos>' } })).toBe('<bos>')
  })

  test.each([
    ['{{ messages[0].content | trim }}', '[a</s>b]'],
    ["{{ ('<' + messages[0].content + '>') | upper }}", '<[  A</S>B ]>'],
    ["{{ messages[0].content.split('/') | join('|') }}", '[  a<]|[s>b ]'],
    ["{{ messages[0].content.replace('</s>', eos_token) }}", '[  a]</s>[b ]'],
    ["{{ ('x' ~ messages[0].content)[1:6] }}", '[  a</]'],
    ['{{ messages[0].content[2] * 3 }}', '[aaa]'],
    ['{{ messages[0] | tojson }}', '{"[role]": "[user]", "[content]": "[  a</s>b ]"}'],
    ['{{ [messages[0].content] }}', "['[  a</s>b ]']"],
    ["{{ '%s!' % messages[0].content }}", '[  a</s>b ]!'],
    ['{% set x %}-{{ messages[0].content }}{% endset %}{{ x }}', '-[  a</s>b ]'],
    ['{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m(messages[0].content) }}', '<[  a</s>b ]>'],
    ['{{ messages[0].content | indent(1, true) }}', ' [  a</s>b ]'],
    ['{{ messages[0].content | list | first }}', '[ ]'],
    ['{{ messages[0].content | e }}', '[  a&lt;/s&gt;b ]'],
  ])('%s', (template, expected) => {
    expect(marked(template, { messages: [{ role: 'user', content: '  a</s>b ' }] })).toBe(expected)
  })

  test('tools, documents, tool calls and reasoning', () => {
    const messages = [
      {
        role: 'assistant',
        reasoning_content: '<t>',
        tool_calls: [{ function: { name: '<n>', arguments: { '<k>': '<v>' } } }],
      },
    ]
    expect(
      marked(
        '{{ tools[0].name }}/{{ documents[0].text }}/{{ messages[0].reasoning_content }}/{{ messages[0].tool_calls[0].function.name }}/{{ messages[0].tool_calls[0].function.arguments | tojson }}',
        { messages, tools: [{ name: '<a>' }], documents: [{ text: '<b>' }] },
      ),
    ).toBe('[<a>]/[<b>]/[<t>]/[<n>]/{"[<k>]": "[<v>]"}')
  })

  test('a template that reads the content reads it as it is', () => {
    const template =
      "{% set c = messages[0].content %}{{ c.split('</think>')[-1] if '</think>' in c else c }}"
    const messages = [{ role: 'user', content: 'a</think>\ue000b' }]
    expect(marked(template, { messages })).toBe('[\ue000b]')
  })
})

describe('the choice of a template', () => {
  const chat = new Chat({
    templates: new Map([
      ['default', 'plain'],
      ['tool_use', '{{ tools | length }} tools'],
      ['rag', '{{ documents | length }} documents'],
    ]),
    specialTokens: {},
    origin: 'a test',
  })

  test('tool_use where there are tools, else default, else by name', () => {
    expect(textOf(chat.render({ messages: user }))).toBe('plain')
    expect(textOf(chat.render({ messages: user, tools: [{}] }))).toBe('1 tools')
    expect(textOf(chat.render({ messages: user, tools: [] }))).toBe('0 tools')
    expect(textOf(chat.render({ messages: user, variables: { tools: [{}, {}] } }))).toBe('2 tools')
    expect(textOf(chat.render({ messages: user, template: 'rag', documents: [{}] }))).toBe(
      '1 documents',
    )
  })

  test('a name that is not there is refused, with those that are', () => {
    const call = () => chat.render({ messages: user, template: 'rga' })
    expect(call).toThrow(/one of 'default', 'tool_use', 'rag'/)
  })

  test('without any template chats are not supported', () => {
    const none = new Chat({ templates: new Map(), specialTokens: {}, origin: 'a test' })
    expect(codeThrownBy(() => none.render({ messages: user }))).toBe('HOGWILD_UNSUPPORTED')
  })
})

describe('what is refused by name', () => {
  test.each<[string, Partial<ChatRequest>, RegExp]>([
    ['no array', { messages: 'hi' }, /messages to be an array/],
    ['no messages', { messages: [] }, /at least one message/],
    ['a message that is none', { messages: [null] }, /messages\[0\] to be an object/],
    ['no role', { messages: [{ content: 'x' }] }, /messages\[0\]\.role/],
    [
      'a number',
      { messages: [{ role: 'user', content: 5 }] },
      /messages\[0\]\.content.*received 5/,
    ],
    ['null', { messages: [{ role: 'user', content: null }] }, /messages\[0\]\.content.*null/],
    ['nothing', { messages: [{ role: 'user' }] }, /messages\[0\]\.content.*undefined/],
    ['an object', { messages: [{ role: 'user', content: {} }] }, /messages\[0\]\.content/],
    ['parts', { messages: [{ role: 'user', content: ['x'] }] }, /messages\[0\]\.content\[0\]/],
    ['tools', { tools: [5] }, /tools\[0\] to be an object/],
    ['documents', { documents: {} }, /documents to be an array/],
    ['a switch', { addGenerationPrompt: 1 }, /addGenerationPrompt/],
    ['variables', { variables: [] }, /variables to be an object/],
    ['messages twice', { variables: { messages: [] } }, /variables.*'messages'/],
    ['tools twice', { tools: [], variables: { tools: [] } }, /variables\.tools/],
    ['a function', { variables: { f: () => 1 } }, /variables\.f is no JSON value but Function/],
    ['a date', { variables: { when: new Date(0) } }, /variables\.when is no JSON value but Date/],
    ['cycles', { variables: cyclic() }, /nested deeper than/],
  ])('%s', (_what, request, message) => {
    const call = () => chatOf('x').render({ messages: user, ...request })
    expect(call).toThrow(message)
    expect(codeThrownBy(call)).toBe('HOGWILD_INVALID_ARGUMENT')
  })

  function cyclic(): Record<string, unknown> {
    const loop: Record<string, unknown> = {}
    loop.self = loop
    return loop
  }

  test('content may be absent where a message carries something else', () => {
    const messages = [{ role: 'assistant', content: null, tool_calls: [{}] }]
    expect(render('{{ messages[0].content }}', { messages })).toBe('None')
  })

  test('a template’s own refusal tells its message', () => {
    expect(() => render("{{ raise_exception('roles must alternate') }}")).toThrow(
      'the chat template refuses: roles must alternate',
    )
  })

  test.each([
    ['{% if x %}', /line 1.*endif/],
    ['\n{{ x', /line 2/],
    ['{% endfor %}', /line 1/],
    ['{{ x | nosuchfilter }}', /line 1: no filter is named 'nosuchfilter'/],
    ['{{ x is nosuchtest }}', /no test is named 'nosuchtest'/],
    ["{% include 'other' %}", /the statement 'include' is not known/],
    ['{% break %}', /outside of a loop/],
    [
      '{% for m in messages %}{% generation %}{% continue %}{% endgeneration %}{% endfor %}',
      /outside/,
    ],
    [`{{ ${'('.repeat(5000)}1${')'.repeat(5000)} }}`, /nested deeper/],
    [`${'{% if 1 %}'.repeat(5000)}${'{% endif %}'.repeat(5000)}`, /nested deeper/],
  ])('a damaged template: %p', (template, message) => {
    expect(() => chatOf(template)).toThrow(message)
    expect(codeThrownBy(() => chatOf(template))).toBe('HOGWILD_INVALID_MODEL')
  })

  test.each([
    "{{ 'x' * 1000000000 }}",
    '{{ [0] * 1000000000 }}',
    '{{ range(1000000) }}',
    '{{ 9 ** 9 ** 9 ** 9 ** 9 ** 9 }}',
    '{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}',
    "{% set ns = namespace(x='x') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{{ '%99999999d' % 1 }}",
    "{{ 'x'.ljust(1000000000) }}",
    '{{ messages | tojson(indent=1000000000) }}',
    "{% for i in range(99999) %}{% for j in range(99999) %}{{ 'x' * 9999 }}{% endfor %}{% endfor %}",
    '{{ messages.append(1) }}',
    '{{ messages.__class__.__mro__ }}',
    '{{ [1, 2] | random }}',
  ])('a template that asks too much: %s', (template) => {
    expect(codeThrownBy(() => render(template))).toBe('HOGWILD_INVALID_ARGUMENT')
  })
})

describe('the clock', () => {
  test.each([
    ['%d %b %Y', '09 Mar 2026'],
    ['%Y-%m-%d %H:%M:%S', '2026-03-09 14:05:07'],
    ['%-d. %B, %A', '9. March, Monday'],
    ['%I:%M %p, day %j, week %V of %G', '02:05 PM, day 068, week 11 of 2026'],
    [
      '%e|%k|%y|%%|%F|%T|%R|%D|%u|%w|%U|%W|%^a',
      ' 9|14|26|%|2026-03-09|14:05:07|14:05|03/09/26|1|1|10|10|MON',
    ],
  ])('%s', (format, expected) => {
    expect(render('{{ strftime_now(f) }}', { variables: { f: format } })).toBe(expected)
  })

  test('is the present by default', () => {
    const year = String(new Date().getFullYear())
    expect(textOf(chatOf("{{ strftime_now('%Y') }}").render({ messages: user }))).toBe(year)
  })
})

describe('a folder’s templates and special tokens', () => {
  function folderOf(files: Record<string, string>): string {
    const folder = temporaryFolder()
    for (const [name, text] of Object.entries(files)) {
      mkdirSync(join(folder, name, '..'), { recursive: true })
      writeFileSync(join(folder, name), text)
    }
    return folder
  }

  async function templatesOf(files: Record<string, string>, config: object = {}) {
    const { chat } = await readChatSources(folderOf(files), config as Record<string, unknown>)
    return Object.fromEntries(chat.templates)
  }

  async function tokensOf(config: object, map?: object) {
    const files = map === undefined ? {} : { 'special_tokens_map.json': JSON.stringify(map) }
    const sources = await readChatSources(
      folderOf(files as Record<string, string>),
      config as Record<string, unknown>,
    )
    return sources
  }

  test('files of their own come before the configuration, chat_template.json comes last', async () => {
    const json = { 'chat_template.json': '{"chat_template": "json"}' }
    const config = { chat_template: 'config' }
    expect(await templatesOf({})).toEqual({})
    expect(await templatesOf({}, { chat_template: null })).toEqual({})
    expect(await templatesOf(json)).toEqual({ default: 'json' })
    expect(await templatesOf(json, config)).toEqual({ default: 'config' })
    expect(await templatesOf({ ...json, 'chat_template.jinja': 'file' }, config)).toEqual({
      default: 'file',
    })
  })

  test('additional templates', async () => {
    const rag = {
      'additional_chat_templates/rag.jinja': 'rag',
      'additional_chat_templates/x.txt': '',
    }
    expect(await templatesOf({ ...rag, 'chat_template.jinja': 'file' })).toEqual({
      default: 'file',
      rag: 'rag',
    })
    // As in transformers, they leave out what the configuration has.
    expect(await templatesOf(rag, { chat_template: 'config' })).toEqual({ rag: 'rag' })
  })

  test('named templates of the configuration', async () => {
    const list = [
      { name: 'default', template: 'd' },
      { name: 'tool_use', template: 't' },
    ]
    expect(await templatesOf({}, { chat_template: list })).toEqual({ default: 'd', tool_use: 't' })
  })

  test.each([
    [[null], /chat_template of .*\[0\] to be an object/],
    [[{ name: 'default' }], /template of chat_template/],
    [5, /chat_template of/],
    [{ default: 5 }, /default of chat_template/],
  ])('damaged: %j', async (chat_template, message) => {
    const reading = templatesOf({}, { chat_template })
    await expect(reading).rejects.toMatchObject({
      code: 'HOGWILD_INVALID_MODEL',
      message: expect.stringMatching(message),
    })
  })

  test('special tokens of the configuration: strings and objects, standard and of its own', async () => {
    const { chat, declaredTokens } = await tokensOf({
      bos_token: '<s>',
      eos_token: { __type: 'AddedToken', content: '</s>', lstrip: true },
      pad_token: null,
      add_bos_token: true,
      image_token: '<image>',
      extra_special_tokens: { audio_token: '<audio>' },
      added_tokens_decoder: { 7: { content: '<think>', special: false } },
    })
    expect(chat.specialTokens).toEqual({
      bos_token: '<s>',
      eos_token: '</s>',
      image_token: '<image>',
      audio_token: '<audio>',
    })
    const declared = declaredTokens.map(({ content, id, special, lstrip }) => [
      content,
      id,
      special,
      lstrip,
    ])
    expect(declared).toEqual([
      ['<think>', 7, false, false],
      ['<s>', undefined, true, false],
      ['</s>', undefined, true, true],
      ['<image>', undefined, true, false],
      ['<audio>', undefined, true, false],
    ])
  })

  test('special_tokens_map.json counts first, unless the configuration has added_tokens_decoder', async () => {
    const map = {
      bos_token: '<map>',
      eos_token: { content: '<end>' },
      additional_special_tokens: ['<extra>', { content: '<more>' }],
    }
    const first = await tokensOf({ bos_token: '<config>' }, map)
    expect(first.chat.specialTokens).toEqual({ bos_token: '<map>', eos_token: '<end>' })
    expect(first.declaredTokens.map(({ content }) => content)).toEqual([
      '<map>',
      '<end>',
      '<extra>',
      '<more>',
    ])
    const second = await tokensOf({ bos_token: '<config>', added_tokens_decoder: {} }, map)
    expect(second.chat.specialTokens).toEqual({ bos_token: '<config>' })
  })

  test.each([
    [{ bos_token: 5 }, /bos_token of/],
    [{ extra_special_tokens: 5 }, /extra_special_tokens of/],
    [{ extra_special_tokens: [5] }, /extra_special_tokens\[0\]/],
    [{ added_tokens_decoder: { x: { content: 'a' } } }, /token id/],
    [{ added_tokens_decoder: { 1: {} } }, /content of added_tokens_decoder\.1/],
  ])('damaged: %j', async (config, message) => {
    await expect(tokensOf(config)).rejects.toMatchObject({
      code: 'HOGWILD_INVALID_MODEL',
      message: expect.stringMatching(message),
    })
  })

  test('special_tokens_map.json that is no object', async () => {
    const folder = folderOf({ 'special_tokens_map.json': '[]' })
    await expect(readChatSources(folder, {})).rejects.toMatchObject({
      code: 'HOGWILD_INVALID_MODEL',
    })
  })
})

// What a model's files say about conversations: its chat templates and its named special tokens.

/** Plain data, so that it can be sent to a worker thread. */
export interface ChatSources {
  /** Jinja sources by name. A model with one template calls it 'default'. Empty: the model has none. */
  readonly templates: ReadonlyMap<string, string>
  /** The special tokens that a template can name: bos_token, eos_token and those of the model's own. */
  readonly specialTokens: Readonly<Record<string, string>>
  /** Where the templates come from, for messages: a folder or a file. */
  readonly origin: string
}

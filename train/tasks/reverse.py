"""The task of models/demo: vocabulary, prompt format, claim policy and the simulator of its traces.

A list of K words is given; the workers give back each word written backwards, together, each word once.

    prompt   <s>A:ynam\\nB:sdnah\\nC:ekam\\n              one item is: label ':' letters '\\n'
    block    Alice A=many Alice C=make Alice .          what one worker writes (no spaces in the tokens)

* A line is: own name (one token), claimed label, '=', answer. The next name token ends the line.
* Claim policy: worker number i (Alice 0 ... Dave 3) takes the (i+1)-th free item of the list, or the last one if fewer
  are free. An item is free while no claim on it is visible in anybody's block. Nothing free: '.' and the worker halts.
* Claims are optimistic. At its own label token a worker sees what the others wrote in the same step. If the item was
  already held, or was claimed in the same step by an earlier name, it yields: '~' instead of '=', then a new line.
* '#' is never generated. The operator appends it to the block of a worker that is taken away; the claim that the worker
  had not finished is free again.
"""

from __future__ import annotations

import random
import string
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from traces import NO_TARGET, Trace, Writer, trace_of

LAYOUTS = ("contiguous",)

MAX_ITEMS = 16
LONGEST_WORD = 9
NAMES = ("Alice", "Bob", "Carol", "Dave")
LABELS = string.ascii_uppercase[:MAX_ITEMS]
# '+', '-', '<', '>' and the digits are not used. The shipped weights have rows for them.
_SIGNS = ("<pad>", "<s>", "\n", ":", "=", "~", ".", "#", "+", "-", "<", ">")
VOCABULARY = [*_SIGNS, *NAMES, *LABELS, *string.ascii_lowercase, *string.digits]
TOKEN_ID = {token: index for index, token in enumerate(VOCABULARY)}
PAD, BOS, NEWLINE, COLON, EQUALS, YIELD, STOP, REMOVED = (
    TOKEN_ID[token] for token in ("<pad>", "<s>", "\n", ":", "=", "~", ".", "#")
)
FIRST_NAME = TOKEN_ID["Alice"]
FIRST_LABEL = TOKEN_ID["A"]
FIRST_LETTER = TOKEN_ID["a"]
# Texts that the exported tokenizer has to read and write.
TEXTS = ("<s>A:ynam\nB:sdnah\n", "AliceA=manyAliceE~Alice.", "BobD=pu#", "CarolDave")


def name_token(worker: int) -> int:
    return FIRST_NAME + worker


def is_label(token: int) -> bool:
    return FIRST_LABEL <= token < FIRST_LABEL + MAX_ITEMS


def is_letter(token: int) -> bool:
    return FIRST_LETTER <= token < FIRST_LETTER + 26


def encode_word(word: str) -> list[int]:
    return [TOKEN_ID[letter] for letter in word]


def to_text(tokens: list[int]) -> str:
    """Tokens for people to read: names are set apart by spaces, which the vocabulary does not have."""
    return "".join(f" {VOCABULARY[t]} " if VOCABULARY[t] in NAMES else VOCABULARY[t] for t in tokens).strip(" ")


@dataclass
class Problem:
    """A prompt and its answers. Labels are numbers (A = 0), in the order of the list."""

    labels: list[int]
    prompt: list[int]
    answers: dict[int, list[int]]

    @staticmethod
    def from_words(words: list[str], labels: list[int] | None = None) -> Problem:
        """The words as they stand in the prompt; the answers are their reversals."""
        labels = list(range(len(words))) if labels is None else labels
        prompt = [BOS]
        answers = {}
        for label, word in zip(labels, words, strict=True):
            letters = encode_word(word)
            prompt += [FIRST_LABEL + label, COLON, *letters, NEWLINE]
            answers[label] = letters[::-1]
        return Problem(labels, prompt, answers)


# Weights of the lengths 1..9, roughly those of English text.
_LENGTH_WEIGHTS = (1, 3, 7, 8, 7, 5, 4, 3, 3)
_LENGTHS = range(1, LONGEST_WORD + 1)


def random_words(rng: random.Random, count: int) -> list[str]:
    """Random strings. Real words never occur on purpose, so every one of them is held out for the evaluation."""
    weights = _LENGTH_WEIGHTS
    if rng.random() < 0.25:
        # Lists of only short or only long words: otherwise a list of twelve long words would never be seen.
        shortest = rng.randint(1, LONGEST_WORD)
        longest = rng.randint(shortest, LONGEST_WORD)
        weights = tuple(int(shortest <= length <= longest) for length in _LENGTHS)
    repeats = rng.random() < 0.2  # sentences repeat words ("the", "of")
    # Words of one list that are put together from the same few syllables. Real words share beginnings and endings, and
    # who copies by the last few letters alone takes a wrong turn there: "reaction" and "peaceful" make "reaceful".
    syllables: list[str] = []
    if rng.random() < 0.4:
        for _ in range(rng.randint(3, 12)):
            syllables.append("".join(rng.choices(string.ascii_lowercase, k=rng.randint(1, 3))))
    words: list[str] = []
    for length in rng.choices(_LENGTHS, weights, k=count):
        if repeats and words and rng.random() < 0.15:
            words.append(rng.choice(words))
            continue
        if syllables and rng.random() < 0.8:
            word = "".join(rng.choices(syllables, k=length))
            words.append(word[:length] if rng.random() < 0.5 else word[-length:])
            continue
        # Three letters only, now and then: repeated letters and shared prefixes are what makes copying hard.
        alphabet = rng.choices(string.ascii_lowercase, k=3) if rng.random() < 0.3 else string.ascii_lowercase
        words.append("".join(rng.choices(alphabet, k=length)))
    return words


def random_problem(rng: random.Random, count: int) -> Problem:
    labels = list(range(count))
    if rng.random() < 0.3:
        labels = sorted(rng.sample(range(MAX_ITEMS), count))
    if rng.random() < 0.15:
        rng.shuffle(labels)
    return Problem.from_words(random_words(rng, count), labels)


@dataclass
class Disturbances:
    """What happens to the workers of a trace besides the policy; all of it can happen in use, or provokes yields."""

    start: dict[int, int] = field(default_factory=dict)  # worker -> step of its first token
    pause: dict[int, float] = field(default_factory=dict)  # worker -> chance of a rest, per step inside an answer
    stop: dict[int, int] = field(default_factory=dict)  # worker -> step at which the operator writes '#'
    taken_claim: float = 0.0  # share of the claims replaced by an item that is held already: must be yielded
    other_claim: float = 0.0  # share of the claims replaced by any free item: other states, more ties


def policy_claim(worker: int, free: list[int]) -> int:
    return free[min(worker, len(free) - 1)]


class _Worker(Writer):
    def __init__(self, worker: int) -> None:
        super().__init__(name_token(worker))
        self.written: int | None = None  # letters of the answer decided so far; None outside of an answer


def simulate(rng: random.Random, problem: Problem, workers: list[int], disturb: Disturbances) -> Trace:
    """Runs the policy in lock step: first everybody's token of the step is appended, then everybody decides."""
    writers = {worker: _Worker(worker) for worker in sorted(workers)}
    running = dict(writers)
    # Claims by label, as (step, worker). Finished ones stay, yielded and abandoned ones go. The smallest holds.
    claims: dict[int, list[tuple[int, int]]] = {label: [] for label in problem.labels}
    step = 0
    while running:
        moved: list[int] = []
        for worker, writer in list(running.items()):
            if step < disturb.start.get(worker, 0):
                continue
            if step >= disturb.stop.get(worker, step + 1) and writer.tokens:
                writer.append(REMOVED, step)
                writer.targets[-2] = NO_TARGET  # whatever was decided there was never written
                if writer.label is not None:
                    claims[writer.label].remove((writer.claimed_at, worker))
                del running[worker]
                continue
            # Rests are inside an answer only. A claim or a '=' that is appended later than the step in which it was
            # decided would be stale, and no rule on visible tokens would be safe then.
            if writer.written is not None and rng.random() < disturb.pause.get(worker, 0.0):
                continue
            token = writer.next_token
            writer.append(token, step)
            moved.append(worker)
            if is_label(token):
                writer.label, writer.claimed_at = token - FIRST_LABEL, step
                claims[writer.label].append((step, worker))
            elif token == YIELD:
                claims[writer.label].remove((writer.claimed_at, worker))
                writer.label = None
            elif token == writer.name:
                writer.label = writer.written = None
            elif token == STOP:
                del running[worker]
        for worker in moved:
            _decide(rng, problem, worker, writers[worker], claims, disturb)
        step += 1
    return trace_of(problem.prompt, dict(writers))


def _decide(
    rng: random.Random,
    problem: Problem,
    worker: int,
    writer: _Worker,
    claims: dict[int, list[tuple[int, int]]],
    disturb: Disturbances,
) -> None:
    """Sets the worker's next token and, unless it was replaced by a disturbance, the target of its last one."""
    token = writer.tokens[-1]
    if token == STOP:
        return
    replaced = False
    if token == writer.name:
        free = [label for label in problem.labels if not claims[label]]
        following = FIRST_LABEL + policy_claim(worker, free) if free else STOP
        chance = rng.random()
        if chance < disturb.taken_claim:
            taken = [label for label in problem.labels if claims[label]]
            if taken:
                following, replaced = FIRST_LABEL + rng.choice(taken), True
        elif chance < disturb.taken_claim + disturb.other_claim and free:
            following, replaced = FIRST_LABEL + rng.choice(free), True
    elif is_label(token):
        holds = min(claims[writer.label]) == (writer.claimed_at, worker)
        following = EQUALS if holds else YIELD
    elif token == YIELD:
        following = writer.name
    else:
        writer.written = 0 if writer.written is None else writer.written + 1
        answer = problem.answers[writer.label]
        following = answer[writer.written] if writer.written < len(answer) else writer.name
    writer.next_token = following
    if not replaced:
        writer.targets[-1] = following


def random_trace(rng: random.Random, items: int, workers: list[int], *, stops: bool = True) -> Trace:
    problem = random_problem(rng, items)
    alone = len(workers) == 1
    duration = 8 * items / len(workers)  # about; for the times of the disturbances
    disturb = Disturbances(taken_claim=0.04, other_claim=0.1 if rng.random() < 0.6 else 0.0)
    if not alone and rng.random() < 0.45:
        start = {worker: int(rng.random() * duration * 1.2) for worker in workers}
        if rng.random() < 0.5:
            start[rng.choice(workers)] = 0
        first = min(start.values())
        disturb.start = {worker: step - first for worker, step in start.items()}
    if not alone and rng.random() < 0.35:
        disturb.pause = {worker: rng.choice((0.0, 0.0, 0.2, 0.5)) for worker in workers}
    if not alone and stops and rng.random() < 0.25:
        removed = rng.sample(workers, rng.randint(1, len(workers) - 1))
        disturb.stop = {worker: int(2 + rng.random() * duration * 1.2) for worker in removed}
    return simulate(rng, problem, workers, disturb)


# The numbers of workers, and the fewest and most items, of each stage of the curriculum.
_STAGES = (
    ((1, 2), 1, 4),
    ((1, 2, 2, 3, 4), 2, 8),
    ((1, 2, 2, 3, 3, 4, 4), 3, MAX_ITEMS),
)


def random_traces(rng: random.Random, stage: int, tokens: int) -> list[Trace]:
    """Traces of about four batches of `tokens` worker tokens, all with the same number of workers."""
    counts, fewest, most = _STAGES[stage]
    count = rng.choice(counts)
    size = rng.randint(fewest, most)
    traces = []
    for _ in range(4 * max(8, tokens // (size * 8 + count * 2))):
        items = min(MAX_ITEMS, max(1, size + rng.choice((-1, 0, 0, 1))))
        if count >= 3 and rng.random() < 0.17:  # 10 % of all traces: fewer items than workers
            items = rng.randint(1, 2)
        workers = list(range(count))
        if rng.random() < 0.3:
            workers = sorted(rng.sample(range(len(NAMES)), count))
        traces.append(random_trace(rng, items, workers, stops=stage > 0))
    return traces


def longest_run(problem: Problem) -> int:
    """Steps that one worker needs for the whole list, and a half more: who needs longer than that has failed."""
    return int(1.5 * (len(problem.prompt) + sum(map(len, problem.answers.values())))) + 60


def read_answers(tokens: list[int], name: int) -> Iterator[tuple[int, int, list[int]]]:
    """(index of the last letter, label, letters) of every line that was finished, which is: closed by the own name."""
    for begin in range(len(tokens) - 1):
        if not (is_label(tokens[begin]) and tokens[begin + 1] == EQUALS):
            continue
        end = begin + 2
        while end < len(tokens) and is_letter(tokens[end]):
            end += 1
        if end < len(tokens) and tokens[end] == name:
            yield end - 1, tokens[begin] - FIRST_LABEL, tokens[begin + 2 : end]


def checked_trace(rng: random.Random, workers: list[int], layout: str = "contiguous") -> Trace:
    """With all that can happen, for comparisons of decoders."""
    disturb = Disturbances()
    if len(workers) > 1:
        disturb = Disturbances(start={1: 3, 2: 9}, pause={1: 0.4, 3: 0.2}, stop={3: 17}, taken_claim=0.1)
    return simulate(rng, random_problem(rng, 9), workers, disturb)


def decision_kinds(previous: Any, target: Any) -> dict[str, Any]:
    """Masks of the kinds of decisions, for the log. `claim` counts exact agreement with the policy, which is far
    stricter than success: another free item does no harm."""
    label = (previous >= FIRST_LABEL) & (previous < FIRST_LABEL + MAX_ITEMS)
    return {
        "claim": (previous >= FIRST_NAME) & (previous < FIRST_NAME + len(NAMES)),
        "keep": label & (target == EQUALS),
        "yield": label & (target == YIELD),
        "answer": (previous == EQUALS) | (previous >= FIRST_LETTER),
    }

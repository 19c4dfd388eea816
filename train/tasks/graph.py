"""The task of models/graph: dependent work. Vocabulary, prompt format, claim policy and the simulator of its traces.

A list of K small expressions is given, which refer to results of earlier ones; the workers evaluate them together,
modulo 10, each once.

    prompt   <s>A:3+4\\nB:a*2\\nC:b-a\\n                      one item is: label ':' operand operator operand '\\n'
    block    Alice A:3+4=7 Alice C:b____4-a7=7 Alice .      what one worker writes (no spaces in the tokens)
             Bob B:a____7*2=4 Bob .

* A line is: own name (one token), claimed label, ':', then the expression with the value behind each reference, '=',
  result. The next name token ends the line.
* A reference whose value is not visible yet: '_', and again in each step until it is.
* Claim policy: an item is free while no claim on it is visible, and open if it is free and all that it refers to is
  claimed. Worker number i (Alice 0 ... Dave 3) takes the (i+1)-th open item of the list, or the last one if fewer are
  open. Nothing free: '.' and the worker halts. Items refer to earlier ones only, so while something is free something
  is open, and whoever waits waits for an item that somebody is at.
* Claims are optimistic, as in the reverse task: '~' instead of ':' gives an item back that was held already, or was
  claimed in the same step by an earlier name.
"""

from __future__ import annotations

import random
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from traces import LAYOUTS, Trace, Writer, trace_of

MAX_ITEMS = 12
NAMES = ("Alice", "Bob", "Carol", "Dave")
LABELS = string.ascii_uppercase[:16]  # a list may leave some out
REFERENCES = string.ascii_lowercase[: len(LABELS)]
OPERATORS = "+-*"
_SIGNS = ("<pad>", "<s>", "\n", ":", "=", "~", ".", "_")
VOCABULARY = [*_SIGNS, *NAMES, *LABELS, *REFERENCES, *string.digits, *OPERATORS]
TOKEN_ID = {token: index for index, token in enumerate(VOCABULARY)}
PAD, BOS, NEWLINE, COLON, EQUALS, YIELD, STOP, WAIT = (TOKEN_ID[token] for token in _SIGNS)
REMOVED = None  # workers of this task are not taken away
FIRST_NAME = TOKEN_ID["Alice"]
FIRST_LABEL = TOKEN_ID["A"]
FIRST_REFERENCE = TOKEN_ID["a"]
FIRST_DIGIT = TOKEN_ID["0"]
FIRST_OPERATOR = TOKEN_ID["+"]
# Texts that the exported tokenizer has to read and write.
TEXTS = ("<s>A:3+4\nB:a*2\n", "AliceA:3+4=7AliceC~Alice.", "BobB:a__7*2=4", "CarolDave")


def name_token(worker: int) -> int:
    return FIRST_NAME + worker


def is_label(token: int) -> bool:
    return FIRST_LABEL <= token < FIRST_LABEL + len(LABELS)


def is_reference(token: int) -> bool:
    return FIRST_REFERENCE <= token < FIRST_REFERENCE + len(LABELS)


def evaluate(left: int, operator: str, right: int) -> int:
    return {"+": left + right, "-": left - right, "*": left * right}[operator] % 10


@dataclass
class Item:
    """Operands are tokens: a digit, or a reference to an earlier item."""

    left: int
    operator: int
    right: int

    @property
    def expression(self) -> list[int]:
        return [self.left, self.operator, self.right]

    @property
    def references(self) -> list[int]:
        return [token - FIRST_REFERENCE for token in (self.left, self.right) if is_reference(token)]


@dataclass
class Problem:
    """A prompt and its answers, by label. Labels are numbers (A = 0), in the order of the list."""

    items: dict[int, Item]
    prompt: list[int]
    values: dict[int, int]

    @staticmethod
    def of(items: dict[int, Item]) -> Problem:
        prompt = [BOS]
        values: dict[int, int] = {}
        for label, item in items.items():
            prompt += [FIRST_LABEL + label, COLON, *item.expression, NEWLINE]
            left, right = (
                values[token - FIRST_REFERENCE] if is_reference(token) else token - FIRST_DIGIT
                for token in (item.left, item.right)
            )
            values[label] = evaluate(left, VOCABULARY[item.operator], right)
        return Problem(items, prompt, values)

    @property
    def labels(self) -> list[int]:
        return list(self.items)

    @property
    def answers(self) -> dict[int, list[int]]:
        return {label: [FIRST_DIGIT + value] for label, value in self.values.items()}

    @property
    def work(self) -> int:
        """Tokens of all lines, without waits."""
        return sum(4 + len(item.expression) + len(item.references) + 1 for item in self.items.values())

    @property
    def critical_path(self) -> int:
        """Steps that any number of workers need: a value is written one step after the result that it copies, at the
        earliest, and whatever stands before it in a line may have been written before."""
        finished: dict[int, int] = {}
        for label, item in self.items.items():
            step = 2  # of the ':', if the claim is the worker's first
            for token in item.expression:
                step += 1
                if is_reference(token):
                    step = max(step, finished[token - FIRST_REFERENCE]) + 1
            finished[label] = step + 2
        return 1 + max(finished.values())

    def ideal(self, workers: int) -> float:
        """Steps that so many workers need at least."""
        return max(self.work / workers, self.critical_path)


def random_problem(
    rng: random.Random, count: int, references: float, labels: Sequence[int] = range(len(LABELS))
) -> Problem:
    """`references`: chance of an operand, but for those of the first item, to be a reference. `labels`: of which the
    first ones are taken."""
    items: dict[int, Item] = {}
    for number in range(count):
        left, right = (
            FIRST_REFERENCE + labels[rng.randrange(number)]
            if number > 0 and rng.random() < references
            else FIRST_DIGIT + rng.randrange(10)
            for _ in range(2)
        )
        items[labels[number]] = Item(left, FIRST_OPERATOR + rng.randrange(len(OPERATORS)), right)
    return Problem.of(items)


@dataclass
class Disturbances:
    """What happens to the workers of a trace besides the policy; all of it can happen in use, or provokes yields."""

    start: dict[int, int] = field(default_factory=dict)  # worker -> step of its first token
    taken_claim: float = 0.0  # share of the claims replaced by an item that is held already: must be yielded
    other_claim: float = 0.0  # share of the claims replaced by any open item: other states, more ties


class _Board:
    """What can be seen of claims and results. In the interleaved layout a worker sees the others' finished lines only."""

    def __init__(self) -> None:
        self.claims: list[list[tuple[int, int]]] = [[] for _ in range(len(LABELS))]  # (step, worker); the smallest holds
        self.results: set[int] = set()


class _Worker(Writer):
    def __init__(self, worker: int) -> None:
        super().__init__(name_token(worker))
        self.own = _Board()  # interleaved: of its own lines
        self.expression: list[int] = []  # what is left of the claimed item's, the next token first


def simulate(
    rng: random.Random, problem: Problem, workers: list[int], disturb: Disturbances, layout: str = "contiguous"
) -> Trace:
    """Runs the policy in lock step: first everybody's token of the step is appended, then everybody decides."""
    writers = {worker: _Worker(worker) for worker in sorted(workers)}
    running = dict(writers)
    board = _Board()
    # Finished lines of the interleaved layout, which the others see from the next step on: (label, claim, has a result).
    finished: list[tuple[int, tuple[int, int], bool]] = []
    step = 0
    while running:
        for label, claim, has_result in finished:
            board.claims[label].append(claim)
            if has_result:
                board.results.add(label)
        finished = []
        moved: list[int] = []
        for worker, writer in list(running.items()):
            if step < disturb.start.get(worker, 0):
                continue
            token = writer.next_token
            previous = writer.tokens[-1] if writer.tokens else None
            writer.append(token, step)
            moved.append(worker)
            seen = writer.own if layout == "interleaved" else board
            if is_label(token):
                writer.label, writer.claimed_at = token - FIRST_LABEL, step
                seen.claims[writer.label].append((step, worker))
            elif token == YIELD:
                seen.claims[writer.label].remove((writer.claimed_at, worker))
            elif previous == EQUALS:
                seen.results.add(writer.label)
                if layout == "interleaved":
                    finished.append((writer.label, (writer.claimed_at, worker), True))
            elif token == STOP:
                del running[worker]
        for worker in moved:
            _decide(rng, problem, worker, writers[worker], board, disturb)
        step += 1
    return trace_of(problem.prompt, dict(writers), layout)


def _decide(
    rng: random.Random, problem: Problem, worker: int, writer: _Worker, board: _Board, disturb: Disturbances
) -> None:
    """Sets the worker's next token and, unless it was replaced by a disturbance, the target of its last one."""
    token = writer.tokens[-1]
    own = writer.own
    replaced = False

    def value_of(label: int) -> int:
        seen = label in board.results or label in own.results
        return FIRST_DIGIT + problem.values[label] if seen else WAIT

    if token == STOP:
        return
    if token == writer.name:
        claimed = {label for label in problem.labels if board.claims[label] or own.claims[label]}
        free = [label for label in problem.labels if label not in claimed]
        open_items = [label for label in free if claimed.issuperset(problem.items[label].references)]
        following = FIRST_LABEL + open_items[min(worker, len(open_items) - 1)] if free else STOP
        chance = rng.random()
        if chance < disturb.taken_claim:
            if claimed:
                following, replaced = FIRST_LABEL + rng.choice(sorted(claimed)), True
        elif chance < disturb.taken_claim + disturb.other_claim and free:
            following, replaced = FIRST_LABEL + rng.choice(open_items), True
    elif is_label(token):
        holds = min(board.claims[writer.label] + own.claims[writer.label]) == (writer.claimed_at, worker)
        following = COLON if holds else YIELD
        writer.expression = problem.items[writer.label].expression
    elif token == YIELD or writer.tokens[-2] == EQUALS:
        following = writer.name
    elif token == EQUALS:
        following = FIRST_DIGIT + problem.values[writer.label]
    elif is_reference(token):
        following = value_of(token - FIRST_REFERENCE)
    elif token == WAIT:
        waited_for = next(token for token in reversed(writer.tokens) if token != WAIT)
        following = value_of(waited_for - FIRST_REFERENCE)
    elif writer.expression:
        following, *writer.expression = writer.expression
    else:
        following = EQUALS
    writer.next_token = following
    if not replaced:
        writer.targets[-1] = following


# The numbers of workers, and the fewest and most items, of each stage of the curriculum.
_STAGES = (
    ((1, 2), 1, 4),
    ((1, 2, 2, 3, 4), 2, 8),
    ((1, 1, 2, 3, 4, 4, 4), 4, MAX_ITEMS),
)


def random_traces(rng: random.Random, stage: int, tokens: int) -> list[Trace]:
    """Traces of about four batches of `tokens` worker tokens, all with the same number of workers and one layout."""
    counts, fewest, most = _STAGES[stage]
    count = rng.choice(counts)
    size = max(rng.randint(fewest, most) for _ in range(2))  # long lists are learnt last
    layout = rng.choices(LAYOUTS, (4, 3, 3))[0]
    traces = []
    for _ in range(4 * max(6, tokens // (size * 9 + count * 2))):
        items = min(MAX_ITEMS, max(1, size + rng.choice((-1, 0, 0, 1))))
        labels: Sequence[int] = range(len(LABELS))
        # Short lists have all labels too: those that come up with the long ones would have to be learnt anew.
        if rng.random() < (0.5 if stage == 0 else 0.1):
            labels = sorted(rng.sample(range(len(LABELS)), items))
        problem = random_problem(rng, items, rng.choice((0.2, 0.35, 0.35, 0.5, 0.7)), labels)
        workers = list(range(count))
        # Workers without Alice, and claims off the policy, leave items behind that somebody has to come back for.
        if rng.random() < 0.4:
            workers = sorted(rng.sample(range(len(NAMES)), count))
        disturb = Disturbances(taken_claim=0.04, other_claim=rng.choice((0.0, 0.0, 0.1, 0.3)))
        if count > 1 and rng.random() < 0.25:
            latest = 1 + 9 * items // count
            disturb.start = {worker: rng.randrange(latest) for worker in workers}
            disturb.start[rng.choice(workers)] = 0
        traces.append(simulate(rng, problem, workers, disturb, layout))
    return traces


def longest_run(problem: Problem) -> int:
    """Steps that one worker needs for the whole list, and a half more: who needs longer than that has failed."""
    return int(1.5 * problem.work) + 30


def read_answers(tokens: list[int], name: int) -> Iterator[tuple[int, int, list[int]]]:
    """(index of the result, label, result) of every line that was finished, which is: closed by the own name."""
    label = None
    for index, token in enumerate(tokens):
        if is_label(token):
            label = token - FIRST_LABEL
        if label is not None and index >= 2 and tokens[index - 2] == EQUALS and token == name:
            yield index - 1, label, [tokens[index - 1]]


def checked_trace(rng: random.Random, workers: list[int], layout: str = "contiguous") -> Trace:
    """With all that can happen, for comparisons of decoders."""
    disturb = Disturbances()
    if len(workers) > 1:
        disturb = Disturbances(start={1: 3, 2: 9}, taken_claim=0.1)
    return simulate(rng, random_problem(rng, 9, 0.5), workers, disturb, layout)


def decision_kinds(previous: Any, target: Any) -> dict[str, Any]:
    """Masks of the kinds of decisions, for the log. `claim` counts exact agreement with the policy, which is far
    stricter than success: another open item does no harm."""
    label = (previous >= FIRST_LABEL) & (previous < FIRST_LABEL + len(LABELS))
    reference = (previous >= FIRST_REFERENCE) & (previous < FIRST_REFERENCE + len(LABELS))
    waited = (previous == WAIT) | reference
    return {
        "claim": (previous >= FIRST_NAME) & (previous < FIRST_NAME + len(NAMES)),
        "yield": label & (target == YIELD),
        "copy": (previous == COLON) | (previous >= FIRST_OPERATOR),
        "wait": waited & (target == WAIT),
        "value": waited & (target != WAIT),
        "result": previous == EQUALS,
    }

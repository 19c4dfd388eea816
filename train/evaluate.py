"""Measures a model with real decoding (greedy, lock step, contiguous layout), and prints tables as Markdown: of the reverse
task on lists of real words, of the graph task on random lists.

    python evaluate.py ../models/demo                           100 prompts per row
    python evaluate.py --task graph checkpoint.pt --quick       a few rows, for a look at a run in progress

Columns: "steps" until every item has its answer, mean over the prompts in which every item got one; "speed-up" against
one worker on the same prompts; "all halted" when the last worker halted; "tokens" and "yields" ('~') of all workers;
"twice" the share of the items that were answered more than once; "undone" those that nobody answered; "right" the share
of the answered items whose first answer is right; "of ideal" max(work / workers, critical path) by the steps taken.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from decode import Run, decode
from export import load_exported
from model import SharedCacheLlama, load_checkpoint
from tasks import TASKS, graph, reverse

WORDS_FILE = Path(__file__).parent / "../models/demo/eval-words.json"
ALL_NAMES = [0, 1, 2, 3]


@dataclass
class Score:
    """Sums over the prompts of one row."""

    prompts: int = 0
    items: int = 0
    complete: int = 0
    steps: int = 0  # over the complete prompts
    end: int = 0  # step in which the last worker halted
    tokens: int = 0
    yields: int = 0
    twice: int = 0
    undone: int = 0
    right: int = 0
    halted: int = 0
    of_ideal: float = 0  # over the complete prompts

    def add(self, task: ModuleType, problem: Any, run: Run, names: list[int]) -> None:
        answers = sorted(
            (steps[at], label, answer)
            for name, tokens, steps in zip(names, run.tokens, run.steps, strict=True)
            for at, label, answer in task.read_answers(tokens, task.name_token(name))
        )
        first: dict[int, tuple[int, list[int]]] = {}
        for step, label, letters in answers:
            first.setdefault(label, (step, letters))
        # An answer to a label that is not in the list counts for nothing.
        done = [label for label in problem.labels if label in first]
        self.prompts += 1
        self.items += len(problem.labels)
        if len(done) == len(problem.labels):
            self.complete += 1
            steps = 1 + max(first[label][0] for label in done)
            self.steps += steps
            if task is graph:
                self.of_ideal += problem.ideal(len(names)) / steps
        self.end += 1 + max(steps[-1] for steps in run.steps if steps)
        self.tokens += sum(map(len, run.tokens))
        self.yields += sum(tokens.count(task.YIELD) for tokens in run.tokens)
        labels = [label for _, label, _ in answers]
        self.twice += sum(labels.count(label) > 1 for label in problem.labels)
        self.undone += len(problem.labels) - len(done)
        self.right += sum(first[label][1] == problem.answers[label] for label in done)
        self.halted += run.halted

    @property
    def mean_steps(self) -> float:
        return self.steps / max(1, self.complete)


def word_problem(rng: random.Random, words: list[str], *, shuffled: bool = False) -> reverse.Problem:
    """The prompt has the words backwards, so that the answers are the words."""
    labels = rng.sample(range(reverse.MAX_ITEMS), len(words)) if shuffled else None
    return reverse.Problem.from_words([word[::-1] for word in words], labels)


class Evaluation:
    def __init__(self, task: ModuleType, model: SharedCacheLlama, prompts: int) -> None:
        self.task = task
        self.model = model
        self.prompts = prompts
        self.words: list[str] = json.loads(WORDS_FILE.read_text())

    def word_lists(
        self, seed: int, items: int, *, words: list[str] | None = None, shuffled: bool = False
    ) -> list[reverse.Problem]:
        rng = random.Random(f"{seed} {items}")
        words = self.words if words is None else words
        return [word_problem(rng, rng.sample(words, items), shuffled=shuffled) for _ in range(self.prompts)]

    def graphs(self, seed: int, items: int, references: float) -> list[graph.Problem]:
        rng = random.Random(f"{seed} {items} {references}")
        return [graph.random_problem(rng, items, references) for _ in range(self.prompts)]

    def measure(self, problems: Sequence[Any], names: list[int] | int, **options: Any) -> Score:
        names = ALL_NAMES[:names] if isinstance(names, int) else names
        score = Score()
        for problem, run in zip(problems, decode(self.task, self.model, problems, names, **options), strict=True):
            score.add(self.task, problem, run, names)
        return score

    def row(
        self, title: str, problems: Sequence[Any], names: list[int] | int, alone: Score | None, **options: Any
    ) -> Score:
        score = self.measure(problems, names, **options)
        speed_up = f"{alone.mean_steps / score.mean_steps:.2f}x" if alone and score.complete else ""
        steps = f"{score.mean_steps:.1f}" if score.complete else "-"
        print(
            f"| {title} | {steps} | {speed_up} | {score.end / score.prompts:.1f} | {score.tokens / score.prompts:.0f} "
            f"| {score.yields / score.prompts:.2f} | {percent(score.twice, score.items)} "
            f"| {percent(score.undone, score.items)} | {percent(score.right, score.items - score.undone)} "
            + (f"| {score.of_ideal / max(1, score.complete):.3f} |" if self.task is graph else "|"),
            flush=True,
        )
        return score

    def starts(self, seed: int, problems: list[reverse.Problem], workers: int, latest: int) -> list[dict[int, int]]:
        """Alice at once, everybody else 1 to `latest` steps late."""
        rng = random.Random(seed)
        return [{worker: rng.randint(1, latest) for worker in range(1, workers)} for _ in problems]

    def stops(self, seed: int, problems: list[reverse.Problem], workers: int) -> list[dict[int, int]]:
        """One worker is taken away at step 3 to 20."""
        rng = random.Random(seed)
        return [{rng.randrange(workers): rng.randint(3, 20)} for _ in problems]


def percent(part: int, whole: int) -> str:
    return f"{100 * part / max(1, whole):.1f} %"


def print_header(title: str, *more: str) -> None:
    columns = ("steps", "speed-up", "all halted", "tokens", "yields", "twice", "undone", "right", *more)
    print(f"\n### {title}\n")
    print(f"| | {' | '.join(columns)} |")
    print(f"| --- |{' ---: |' * len(columns)}", flush=True)


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def scaling(evaluation: Evaluation, sizes: tuple[int, ...], counts: tuple[int, ...]) -> None:
    print_header("One shared cache")
    for items in sizes:
        problems = evaluation.word_lists(1, items)
        alone = None
        for workers in counts:
            score = evaluation.row(f"{items} words, {plural(workers, 'worker')}", problems, workers, alone)
            alone = alone or score


def cache_off(evaluation: Evaluation, problems: list[reverse.Problem], alone: Score) -> None:
    print_header("12 words, every worker sees only the prompt and itself (cache off)")
    for workers in (2, 3, 4):
        evaluation.row(plural(workers, "worker"), problems, workers, alone, shared=False)


def disturbances(evaluation: Evaluation, problems: list[reverse.Problem], alone: Score) -> None:
    print_header("12 words, workers that come and go")
    for workers in (2, 4):
        start = evaluation.starts(2, problems, workers, 30)
        title = f"{workers} workers, all but Alice 1 to 30 steps late"
        evaluation.row(title, problems, workers, alone, start=start)
    for workers in (2, 4):
        stop = evaluation.stops(3, problems, workers)
        evaluation.row(f"{workers} workers, one stopped with `#`", problems, workers, alone, stop=stop)
        evaluation.row(f"{workers} workers, one stopped without `#`", problems, workers, alone, stop=stop, mark=False)
    for title, names in (("Dave alone", [3]), ("Bob and Dave", [1, 3]), ("Alice, Carol and Dave", [0, 2, 3])):
        evaluation.row(title, problems, names, alone)


def other_lists(evaluation: Evaluation) -> None:
    print_header("Other lists")
    for items in (1, 2, 3, 5):
        problems = evaluation.word_lists(4, items)
        alone = evaluation.measure(problems, 1)
        evaluation.row(f"{plural(items, 'word')}, 4 workers", problems, 4, alone)
    long_words = [word for word in evaluation.words if len(word) >= 8]
    few_words = [word for word in evaluation.words if len(word) <= 4][:40]
    for items in (8, 12):
        rng = random.Random(items)
        repeated = [word_problem(rng, rng.choices(rng.sample(few_words, 5), k=items)) for _ in range(evaluation.prompts)]
        for title, problems in (
            (f"{items} words of 8 or 9 letters", evaluation.word_lists(5, items, words=long_words)),
            (f"{items} words, labels in random order", evaluation.word_lists(6, items, shuffled=True)),
            (f"{items} words, the same five again and again", repeated),
        ):
            alone = evaluation.row(f"{title}, 1 worker", problems, 1, None)
            evaluation.row(f"{title}, 4 workers", problems, 4, alone)


def reverse_tables(evaluation: Evaluation, quick: bool) -> None:
    scaling(evaluation, *(((8, 12), (1, 4)) if quick else ((4, 8, 12, 16), (1, 2, 3, 4))))
    if not quick:
        problems = evaluation.word_lists(1, 12)
        alone = evaluation.measure(problems, 1)
        cache_off(evaluation, problems, alone)
        disturbances(evaluation, problems, alone)
    other_lists(evaluation)


def graph_tables(evaluation: Evaluation, quick: bool) -> None:
    for references in (0.35,) if quick else (0.2, 0.35, 0.5):
        print_header(f"{100 * references:.0f} % of the operands are references", "of ideal")
        for items in (8, 12) if quick else (4, 8, 12):
            problems = evaluation.graphs(1, items, references)
            alone = None
            for workers in (1, 4) if quick else (1, 2, 3, 4):
                score = evaluation.row(f"{items} items, {plural(workers, 'worker')}", problems, workers, alone)
                alone = alone or score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, default="reverse")
    parser.add_argument("model", type=Path, help="an exported folder, or a checkpoint")
    parser.add_argument("--prompts", type=int, default=100, help="per row")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.model.is_dir():
        model = load_exported(arguments.model)
    else:
        model, _ = load_checkpoint(arguments.model)
        # Rounded as they will be stored: the numbers are those of the exported model.
        for parameter in model.parameters():
            parameter.data.copy_(parameter.data.to(torch.bfloat16))
    begin = time.monotonic()
    evaluation = Evaluation(TASKS[arguments.task], model, arguments.prompts)
    tables = {"reverse": reverse_tables, "graph": graph_tables}
    tables[arguments.task](evaluation, arguments.quick)
    print(f"\n{arguments.prompts} prompts per row, {time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main()

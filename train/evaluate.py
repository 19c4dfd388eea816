"""Measures a model on lists of real words, with real decoding (greedy, lock step), and prints the tables as Markdown.

    python evaluate.py ../models/demo               all tables of the model card, 100 prompts per row
    python evaluate.py checkpoint.pt --quick        a few rows, for a look at a run in progress

Columns: "steps" until every item has its answer, mean over the prompts in which every item got one; "speed-up" against
one worker on the same prompts; "all halted" when the last worker halted; "tokens" and "yields" ('~') of all workers;
"twice" the share of the items that were answered more than once; "undone" those that nobody answered; "right" the share
of the answered items whose first answer is right.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from decode import Run, decode
from export import load_exported
from model import SharedCacheLlama, load_checkpoint
from task import EQUALS, FIRST_LABEL, MAX_ITEMS, YIELD, Task, is_label, is_letter, name_token

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

    def add(self, task: Task, run: Run, names: list[int]) -> None:
        answers = sorted(read_answers(run, names))
        first: dict[int, tuple[int, list[int]]] = {}
        for step, label, letters in answers:
            first.setdefault(label, (step, letters))
        # An answer to a label that is not in the list counts for nothing.
        done = [label for label in task.labels if label in first]
        self.prompts += 1
        self.items += len(task.labels)
        if len(done) == len(task.labels):
            self.complete += 1
            self.steps += 1 + max(first[label][0] for label in done)
        self.end += 1 + max(steps[-1] for steps in run.steps if steps)
        self.tokens += sum(map(len, run.tokens))
        self.yields += sum(tokens.count(YIELD) for tokens in run.tokens)
        labels = [label for _, label, _ in answers]
        self.twice += sum(labels.count(label) > 1 for label in task.labels)
        self.undone += len(task.labels) - len(done)
        self.right += sum(first[label][1] == task.answers[label] for label in done)
        self.halted += run.halted

    @property
    def mean_steps(self) -> float:
        return self.steps / max(1, self.complete)


def read_answers(run: Run, names: list[int]) -> Iterator[tuple[int, int, list[int]]]:
    """(step of the last letter, label, letters) of every line that was finished, which is: closed by the own name."""
    for worker, (tokens, steps) in enumerate(zip(run.tokens, run.steps, strict=True)):
        for begin in range(len(tokens) - 1):
            if not (is_label(tokens[begin]) and tokens[begin + 1] == EQUALS):
                continue
            end = begin + 2
            while end < len(tokens) and is_letter(tokens[end]):
                end += 1
            if end < len(tokens) and tokens[end] == name_token(names[worker]):
                yield steps[end - 1], tokens[begin] - FIRST_LABEL, tokens[begin + 2 : end]


def word_task(rng: random.Random, words: list[str], *, shuffled: bool = False) -> Task:
    """The prompt has the words backwards, so that the answers are the words."""
    labels = rng.sample(range(MAX_ITEMS), len(words)) if shuffled else None
    return Task.from_words([word[::-1] for word in words], labels)


class Evaluation:
    def __init__(self, model: SharedCacheLlama, prompts: int) -> None:
        self.model = model
        self.prompts = prompts
        self.words: list[str] = json.loads(WORDS_FILE.read_text())

    def tasks(self, seed: int, items: int, *, words: list[str] | None = None, shuffled: bool = False) -> list[Task]:
        rng = random.Random(f"{seed} {items}")
        words = self.words if words is None else words
        return [word_task(rng, rng.sample(words, items), shuffled=shuffled) for _ in range(self.prompts)]

    def measure(self, tasks: list[Task], names: list[int] | int, **options: Any) -> Score:
        names = ALL_NAMES[:names] if isinstance(names, int) else names
        score = Score()
        for task, run in zip(tasks, decode(self.model, tasks, names, **options), strict=True):
            score.add(task, run, names)
        return score

    def row(self, title: str, tasks: list[Task], names: list[int] | int, alone: Score | None, **options: Any) -> Score:
        score = self.measure(tasks, names, **options)
        speed_up = f"{alone.mean_steps / score.mean_steps:.2f}x" if alone and score.complete else ""
        steps = f"{score.mean_steps:.1f}" if score.complete else "-"
        print(
            f"| {title} | {steps} | {speed_up} | {score.end / score.prompts:.1f} | {score.tokens / score.prompts:.0f} "
            f"| {score.yields / score.prompts:.2f} | {percent(score.twice, score.items)} "
            f"| {percent(score.undone, score.items)} | {percent(score.right, score.items - score.undone)} |",
            flush=True,
        )
        return score

    def starts(self, seed: int, tasks: list[Task], workers: int, latest: int) -> list[dict[int, int]]:
        """Alice at once, everybody else 1 to `latest` steps late."""
        rng = random.Random(seed)
        return [{worker: rng.randint(1, latest) for worker in range(1, workers)} for _ in tasks]

    def stops(self, seed: int, tasks: list[Task], workers: int) -> list[dict[int, int]]:
        """One worker is taken away at step 3 to 20."""
        rng = random.Random(seed)
        return [{rng.randrange(workers): rng.randint(3, 20)} for _ in tasks]


def percent(part: int, whole: int) -> str:
    return f"{100 * part / max(1, whole):.1f} %"


def print_header(title: str) -> None:
    print(f"\n### {title}\n")
    print("| | steps | speed-up | all halted | tokens | yields | twice | undone | right |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def scaling(evaluation: Evaluation, sizes: tuple[int, ...], counts: tuple[int, ...]) -> None:
    print_header("One shared cache")
    for items in sizes:
        tasks = evaluation.tasks(1, items)
        alone = None
        for workers in counts:
            score = evaluation.row(f"{items} words, {plural(workers, 'worker')}", tasks, workers, alone)
            alone = alone or score


def cache_off(evaluation: Evaluation, tasks: list[Task], alone: Score) -> None:
    print_header("12 words, every worker sees only the prompt and itself (cache off)")
    for workers in (2, 3, 4):
        evaluation.row(plural(workers, "worker"), tasks, workers, alone, shared=False)


def disturbances(evaluation: Evaluation, tasks: list[Task], alone: Score) -> None:
    print_header("12 words, workers that come and go")
    for workers in (2, 4):
        start = evaluation.starts(2, tasks, workers, 30)
        title = f"{workers} workers, all but Alice 1 to 30 steps late"
        evaluation.row(title, tasks, workers, alone, start=start)
    for workers in (2, 4):
        stop = evaluation.stops(3, tasks, workers)
        evaluation.row(f"{workers} workers, one stopped with `#`", tasks, workers, alone, stop=stop)
        evaluation.row(f"{workers} workers, one stopped without `#`", tasks, workers, alone, stop=stop, mark=False)
    for title, names in (("Dave alone", [3]), ("Bob and Dave", [1, 3]), ("Alice, Carol and Dave", [0, 2, 3])):
        evaluation.row(title, tasks, names, alone)


def other_lists(evaluation: Evaluation) -> None:
    print_header("Other lists")
    for items in (1, 2, 3, 5):
        tasks = evaluation.tasks(4, items)
        alone = evaluation.measure(tasks, 1)
        evaluation.row(f"{plural(items, 'word')}, 4 workers", tasks, 4, alone)
    long_words = [word for word in evaluation.words if len(word) >= 8]
    few_words = [word for word in evaluation.words if len(word) <= 4][:40]
    for items in (8, 12):
        rng = random.Random(items)
        repeated = [word_task(rng, rng.choices(rng.sample(few_words, 5), k=items)) for _ in range(evaluation.prompts)]
        for title, tasks in (
            (f"{items} words of 8 or 9 letters", evaluation.tasks(5, items, words=long_words)),
            (f"{items} words, labels in random order", evaluation.tasks(6, items, shuffled=True)),
            (f"{items} words, the same five again and again", repeated),
        ):
            alone = evaluation.row(f"{title}, 1 worker", tasks, 1, None)
            evaluation.row(f"{title}, 4 workers", tasks, 4, alone)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    evaluation = Evaluation(model, arguments.prompts)
    scaling(evaluation, *(((8, 12), (1, 4)) if arguments.quick else ((4, 8, 12, 16), (1, 2, 3, 4))))
    if not arguments.quick:
        tasks = evaluation.tasks(1, 12)
        alone = evaluation.measure(tasks, 1)
        cache_off(evaluation, tasks, alone)
        disturbances(evaluation, tasks, alone)
    other_lists(evaluation)
    print(f"\n{arguments.prompts} prompts per row, {time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main()

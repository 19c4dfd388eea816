"""What a simulator writes and a model learns from, whatever the task. README.md says what a task's module has."""

from __future__ import annotations

from dataclasses import dataclass

NO_TARGET = -1
FINAL_STAGE = 2  # of the curriculum
LAYOUTS = ("contiguous", "interleaved", "combined")


@dataclass
class Trace:
    """What each worker wrote, in which step each token was an input, and which token had to follow it.

    A worker's first token is its name, and each of its lines begins with that token. In the layouts other than
    contiguous a line is a turn: it moves to the end of the common block when it is finished."""

    prompt: list[int]
    tokens: dict[int, list[int]]
    steps: dict[int, list[int]]
    targets: dict[int, list[int]]
    layout: str = "contiguous"


class Writer:
    """One worker of a simulator."""

    def __init__(self, name: int) -> None:
        self.name = name
        self.next_token = name
        self.tokens: list[int] = []
        self.steps: list[int] = []
        self.targets: list[int] = []
        self.label: int | None = None  # the claim of the current line
        self.claimed_at = -1

    def append(self, token: int, step: int) -> None:
        self.tokens.append(token)
        self.steps.append(step)
        self.targets.append(NO_TARGET)


def trace_of(prompt: list[int], writers: dict[int, Writer], layout: str = "contiguous") -> Trace:
    return Trace(
        prompt,
        {worker: writer.tokens for worker, writer in writers.items()},
        {worker: writer.steps for worker, writer in writers.items()},
        {worker: writer.targets for worker, writer in writers.items()},
        layout,
    )

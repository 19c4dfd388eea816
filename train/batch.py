"""Training batches: traces of a task and the arrays that shared-cache attention needs for them. NumPy only."""

from __future__ import annotations

import multiprocessing as mp
import os
import queue
import random
from typing import Any, NamedTuple

import numpy as np

from tasks import TASKS
from traces import NO_TARGET, Trace

_NEVER = 10**6


class Batch(NamedTuple):
    """B traces with W workers each. All workers' tokens of a trace lie side by side (N), whoever wrote them: padding
    each block on its own to the longest one would make four times the work. In layouts with turns a token is a key in
    two places: in its worker's block, where it was written, and in the common block, where it moves; a query sees it in
    one of them. C is N there, and 0 in the contiguous layout. Arrays here, tensors in the model."""

    prompt: Any  # [B, P] token ids
    tokens: Any  # [B, N] token ids of all blocks of the trace
    block: Any  # [B, N] number of the block that the token is written in, 0..W-1
    index: Any  # [B, N] its index inside this block when it is written
    common: Any  # [B, C] its index inside the common block, behind the prompt, once it has moved there
    distance: Any  # [B, N, 1+W] from the start of the common block, of block 0, ... to this token, in its own worker's view
    visible: Any  # [B, N, P+C+N] which tokens it sees: of the prompt, moved ones, those in the workers' blocks
    target: Any  # [B, N] the token that has to follow, NO_TARGET for no loss


def random_batches(rng: random.Random, task: str, stage: int, tokens: int) -> list[Batch]:
    """A few batches of about `tokens` worker tokens each."""
    traces = TASKS[task].random_traces(rng, stage, tokens)
    # Similar lengths together: little padding.
    traces.sort(key=lambda trace: sum(map(len, trace.tokens.values())) + 0.5 * len(trace.prompt))
    # Cut into equal parts. A small last batch would be one of the longest traces only, at the full learning rate.
    length = [sum(map(len, trace.tokens.values())) for trace in traces]
    parts = max(1, round(sum(length) / tokens))
    part = (np.cumsum(length) - 1) * parts // sum(length)
    batches = []
    for number in range(parts):
        chosen = [trace for trace, belongs in zip(traces, part == number, strict=True) if belongs]
        batches.append(collate(rng, chosen))
    return batches


def view_orders(rng: random.Random, workers: int, order: str = "mixed") -> list[list[int]]:
    """For each worker the blocks in the order of its view: the others in some order, its own one last."""
    if order == "mixed":
        order = rng.choice(("ascending", "ascending", "cyclic", "random"))
    views = []
    for own in range(workers):
        others = [block for block in range(workers) if block != own]
        if order == "cyclic":
            others = [(own + 1 + i) % workers for i in range(workers - 1)]
        elif order == "random":
            rng.shuffle(others)
        views.append([*others, own])
    return views


def lines_of(trace: Trace, worker: int) -> list[tuple[int, int]]:
    """Where each of a worker's turns begins and ends; the contiguous layout has one, which does not end."""
    tokens = trace.tokens[worker]
    if trace.layout == "contiguous":
        return [(0, len(tokens))]
    begins = [index for index, token in enumerate(tokens) if token == tokens[0]]
    return list(zip(begins, [*begins[1:], len(tokens)], strict=True))


def collate(rng: random.Random, traces: list[Trace], order: str = "mixed") -> Batch:
    """The traces have equally many workers, and the contiguous layout all or none."""
    batch_size = len(traces)
    workers = len(traces[0].tokens)
    prompt_length = np.array([len(trace.prompt) for trace in traces])
    longest_prompt = int(prompt_length.max())
    longest = max(sum(map(len, trace.tokens.values())) for trace in traces)
    prompt = np.zeros((batch_size, longest_prompt), np.int64)
    tokens, block, index, common = (np.zeros((batch_size, longest), np.int64) for _ in range(4))
    step, moved = (np.full((batch_size, longest), _NEVER, np.int64) for _ in range(2))  # `moved`: before which step
    target = np.full((batch_size, longest), NO_TARGET, np.int64)
    rank = np.zeros((batch_size, workers, workers), np.int64)  # [b, w, u]: place of block u in the view of worker w
    hidden = np.zeros((batch_size, 1, 1), bool)  # whether the others' blocks are not seen
    for b, trace in enumerate(traces):
        prompt[b, : len(trace.prompt)] = trace.prompt
        hidden[b] = trace.layout == "interleaved"
        begin = 0
        turns: list[tuple[int, int, int, int]] = []  # (before which step it moves, worker, begin, end)
        for w, name in enumerate(sorted(trace.tokens)):
            for first, last in lines_of(trace, name):
                end = begin + last - first
                tokens[b, begin:end] = trace.tokens[name][first:last]
                step[b, begin:end] = trace.steps[name][first:last]
                target[b, begin:end] = trace.targets[name][first:last]
                block[b, begin:end] = w
                index[b, begin:end] = np.arange(last - first)
                if last < len(trace.tokens[name]):
                    turns.append((trace.steps[name][last - 1] + 1, w, begin, end))
                begin = end
        place = len(trace.prompt)
        for before, _, first, last in sorted(turns):
            moved[b, first:last] = before
            common[b, first:last] = np.arange(place, place + last - first)
            place += last - first
        for w, view in enumerate(view_orders(rng, workers, order)):
            rank[b, w, view] = np.arange(workers)

    # A token sees what was appended in its own step or earlier, by anybody whose text its view shows. Inside a block
    # that is the causal order.
    written = (step[:, None, :] <= step[:, :, None]) & (step != _NEVER)[:, None, :]  # [B, N, N]
    has_moved = moved[:, None, :] <= step[:, :, None]
    sees_moved = written & has_moved
    sees_blocks = written & ~has_moved & ~(hidden & (block[:, None, :] != block[:, :, None]))
    owner = block[:, :, None] == np.arange(workers)  # [B, N, W]
    lengths = (sees_blocks.astype(np.float32) @ owner.astype(np.float32)).astype(np.int64)  # of blocks, at that moment
    lengths *= ~owner  # of one's own block only what lies before the token counts, and that is `index`
    ranks = rank[np.arange(batch_size)[:, None], block]  # [B, N, W]
    distance = np.empty((batch_size, longest, 1 + workers), np.int64)
    distance[:, :, 0] = prompt_length[:, None] + sees_moved.sum(-1) + lengths.sum(-1) + index
    for u in range(workers):
        # Negative for no block: the own block is last in the view, so `index` is always part of the way.
        distance[:, :, 1 + u] = (lengths * (ranks >= ranks[:, :, u : u + 1])).sum(-1) + index
    sees_prompt = np.broadcast_to(
        np.arange(longest_prompt) < prompt_length[:, None, None], (batch_size, longest, longest_prompt)
    )
    if all(trace.layout == "contiguous" for trace in traces):
        common, sees_moved = common[:, :0], sees_moved[:, :, :0]
    visible = np.concatenate((sees_prompt, sees_moved, sees_blocks), 2)
    return Batch(prompt, tokens, block, index, common, distance, visible, target)


def produce(out: mp.Queue, task: str, stage: Any, tokens: int, seed: int) -> None:
    """Body of a producer process: fills `out` for as long as the process that started it lives."""
    os.nice(5)  # the trainer is the one that must not wait for the processor
    parent = os.getppid()
    rng = random.Random(seed)
    pool: list[Batch] = []
    while True:
        while len(pool) < 24:  # neighbours of one call are alike: mix several calls
            pool += random_batches(rng, task, stage.value, tokens)
        rng.shuffle(pool)
        while len(pool) > 12:
            try:
                out.put(pool[-1], timeout=5)
                pool.pop()
            except queue.Full:
                if os.getppid() != parent:
                    out.cancel_join_thread()  # nobody is left to read what is in the pipe
                    return

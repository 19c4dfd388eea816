"""Training batches: random traces of the task and the arrays that shared-cache attention needs for them. NumPy only."""

from __future__ import annotations

import multiprocessing as mp
import os
import queue
import random
from typing import Any, NamedTuple

import numpy as np

from task import MAX_ITEMS, NAMES, Disturbances, Trace, random_task, simulate

FINAL_STAGE = 2
_NEVER = 10**6


class Batch(NamedTuple):
    """B traces with W workers each. All workers' tokens of a trace lie side by side (N), whoever wrote them: padding
    each block on its own to the longest one would make four times the work. Arrays here, tensors in the model."""

    prompt: Any  # [B, P] token ids
    tokens: Any  # [B, N] token ids of all blocks of the trace
    block: Any  # [B, N] number of the block that the token is in, 0..W-1
    index: Any  # [B, N] its index inside this block
    distance: Any  # [B, N, 1+W] from the start of the prompt, of block 0, ... to this token, in its own worker's view
    visible: Any  # [B, N, P+N] which prompt tokens and which block tokens it sees
    target: Any  # [B, N] the token that has to follow, NO_TARGET for no loss


def random_trace(rng: random.Random, items: int, workers: list[int], *, stops: bool = True) -> Trace:
    task = random_task(rng, items)
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
    return simulate(rng, task, workers, disturb)


def random_batches(rng: random.Random, stage: int, tokens: int) -> list[Batch]:
    """A few batches of about `tokens` worker tokens each, all with the same number of workers."""
    worker_counts, fewest, most = (
        ((1, 2), 1, 4),
        ((1, 2, 2, 3, 4), 2, 8),
        ((1, 2, 2, 3, 3, 4, 4), 3, MAX_ITEMS),
    )[stage]
    count = rng.choice(worker_counts)
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


def collate(rng: random.Random, traces: list[Trace], order: str = "mixed") -> Batch:
    batch_size = len(traces)
    workers = len(traces[0].tokens)
    prompt_length = np.array([len(trace.prompt) for trace in traces])
    longest_prompt = int(prompt_length.max())
    longest = max(sum(map(len, trace.tokens.values())) for trace in traces)
    prompt = np.zeros((batch_size, longest_prompt), np.int64)
    tokens, block, index = (np.zeros((batch_size, longest), np.int64) for _ in range(3))
    step = np.full((batch_size, longest), _NEVER, np.int64)
    target = np.full((batch_size, longest), -1, np.int64)
    rank = np.zeros((batch_size, workers, workers), np.int64)  # [b, w, u]: place of block u in the view of worker w
    for b, trace in enumerate(traces):
        prompt[b, : len(trace.prompt)] = trace.prompt
        begin = 0
        for w, name in enumerate(sorted(trace.tokens)):
            end = begin + len(trace.tokens[name])
            tokens[b, begin:end] = trace.tokens[name]
            step[b, begin:end] = trace.steps[name]
            target[b, begin:end] = trace.targets[name]
            block[b, begin:end] = w
            index[b, begin:end] = np.arange(end - begin)
            begin = end
        for w, view in enumerate(view_orders(rng, workers, order)):
            rank[b, w, view] = np.arange(workers)

    # A token sees everything appended in its own step or earlier, by anybody. Inside a block that is the causal order.
    sees = (step[:, None, :] <= step[:, :, None]) & (step != _NEVER)[:, None, :]  # [B, N, N]
    owner = block[:, :, None] == np.arange(workers)  # [B, N, W]
    lengths = (sees.astype(np.float32) @ owner.astype(np.float32)).astype(np.int64)  # of each block, at that moment
    lengths *= ~owner  # of one's own block only what lies before the token counts, and that is `index`
    ranks = rank[np.arange(batch_size)[:, None], block]  # [B, N, W]
    distance = np.empty((batch_size, longest, 1 + workers), np.int64)
    distance[:, :, 0] = prompt_length[:, None] + lengths.sum(-1) + index
    for u in range(workers):
        # Negative for no block: the own block is last in the view, so `index` is always part of the way.
        distance[:, :, 1 + u] = (lengths * (ranks >= ranks[:, :, u : u + 1])).sum(-1) + index
    visible = np.empty((batch_size, longest, longest_prompt + longest), bool)
    visible[:, :, :longest_prompt] = np.arange(longest_prompt) < prompt_length[:, None, None]
    visible[:, :, longest_prompt:] = sees
    return Batch(prompt, tokens, block, index, distance, visible, target)


def produce(out: mp.Queue, stage: Any, tokens: int, seed: int) -> None:
    """Body of a producer process: fills `out` for as long as the process that started it lives."""
    os.nice(5)  # the trainer is the one that must not wait for the processor
    parent = os.getppid()
    rng = random.Random(seed)
    pool: list[Batch] = []
    while True:
        while len(pool) < 24:  # neighbours of one call are alike: mix several calls
            pool += random_batches(rng, stage.value, tokens)
        rng.shuffle(pool)
        while len(pool) > 12:
            try:
                out.put(pool[-1], timeout=5)
                pool.pop()
            except queue.Full:
                if os.getppid() != parent:
                    out.cancel_join_thread()  # nobody is left to read what is in the pipe
                    return

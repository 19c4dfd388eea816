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

FINAL_STAGE = 2
_NEVER = 10**6


class Batch(NamedTuple):
    """B traces with at most S segments each: texts that stay together in every view, which are a worker's block or, in
    layouts with turns, its lines. All workers' tokens of a trace lie side by side (N), whoever wrote them: padding each
    segment on its own to the longest one would make several times the work. Arrays here, tensors in the model."""

    prompt: Any  # [B, P] token ids
    tokens: Any  # [B, N] token ids of all segments of the trace
    segment: Any  # [B, N] number of the segment that the token is in, 0..S-1
    index: Any  # [B, N] its index inside this segment
    distance: Any  # [B, N, 1+S] from the start of the prompt, of segment 0, ... to this token, in its own worker's view
    visible: Any  # [B, N, P+N] which prompt tokens and which segments' tokens it sees
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


def segments_of(trace: Trace, worker: int) -> list[tuple[int, int]]:
    """Where each of a worker's segments begins and ends."""
    tokens = trace.tokens[worker]
    if trace.layout == "contiguous":
        return [(0, len(tokens))]
    begins = [index for index, token in enumerate(tokens) if token == tokens[0]]
    return list(zip(begins, [*begins[1:], len(tokens)], strict=True))


def collate(rng: random.Random, traces: list[Trace], order: str = "mixed") -> Batch:
    batch_size = len(traces)
    workers = len(traces[0].tokens)
    prompt_length = np.array([len(trace.prompt) for trace in traces])
    longest_prompt = int(prompt_length.max())
    longest = max(sum(map(len, trace.tokens.values())) for trace in traces)
    most = max(sum(len(segments_of(trace, worker)) for worker in trace.tokens) for trace in traces)
    prompt = np.zeros((batch_size, longest_prompt), np.int64)
    tokens, segment, index, writer = (np.zeros((batch_size, longest), np.int64) for _ in range(4))
    step = np.full((batch_size, longest), _NEVER, np.int64)
    target = np.full((batch_size, longest), NO_TARGET, np.int64)
    owner = np.full((batch_size, most), -1, np.int64)  # who writes a segment
    moved = np.full((batch_size, most), _NEVER, np.int64)  # the step before which it moves into the common block
    rank = np.zeros((batch_size, workers, workers), np.int64)  # [b, w, u]: place of block u in the view of worker w
    open_hidden = np.zeros((batch_size, 1, 1), bool)  # whether the others' unfinished segments are not seen
    for b, trace in enumerate(traces):
        prompt[b, : len(trace.prompt)] = trace.prompt
        open_hidden[b] = trace.layout == "interleaved"
        begin = number = 0
        for w, name in enumerate(sorted(trace.tokens)):
            for first, last in segments_of(trace, name):
                end = begin + last - first
                tokens[b, begin:end] = trace.tokens[name][first:last]
                step[b, begin:end] = trace.steps[name][first:last]
                target[b, begin:end] = trace.targets[name][first:last]
                segment[b, begin:end] = number
                writer[b, begin:end] = w
                index[b, begin:end] = np.arange(last - first)
                owner[b, number] = w
                if last < len(trace.tokens[name]):
                    moved[b, number] = trace.steps[name][last - 1] + 1
                begin = end
                number += 1
        for w, view in enumerate(view_orders(rng, workers, order)):
            rank[b, w, view] = np.arange(workers)

    batch = np.arange(batch_size)[:, None]
    is_common = moved[:, None, :] <= step[:, :, None]  # [B, N, S]: at that moment
    is_own = owner[:, None, :] == writer[:, :, None]
    shown = is_common | is_own | ~open_hidden
    # A token sees what was appended in its own step or earlier, by anybody whose text its view shows. Inside a segment
    # that is the causal order.
    sees = (step[:, None, :] <= step[:, :, None]) & (step != _NEVER)[:, None, :]  # [B, N, N]
    sees &= np.take_along_axis(shown, np.broadcast_to(segment[:, None, :], sees.shape), 2)
    within = segment[:, :, None] == np.arange(most)  # [B, N, S]
    lengths = (sees.astype(np.float32) @ within.astype(np.float32)).astype(np.int64)  # at that moment
    lengths *= ~within  # of one's own segment only what lies before the token counts, and that is `index`
    # Order of the view: common segments as they moved, of one step in the workers' order; then the others' open ones.
    moves = np.argsort(np.argsort(moved * workers + owner, axis=1, kind="stable"), axis=1, kind="stable")
    open_rank = np.take_along_axis(rank[batch, writer], np.broadcast_to(np.maximum(owner, 0)[:, None, :], within.shape), 2)
    place = np.where(is_common, moves[:, None, :], most + open_rank)  # the own open segment is last in `rank`
    distance = np.empty((batch_size, longest, 1 + most), np.int64)
    distance[:, :, 0] = prompt_length[:, None] + lengths.sum(-1) + index
    for s in range(most):
        distance[:, :, 1 + s] = (lengths * (place >= place[:, :, s : s + 1])).sum(-1) + index
    visible = np.empty((batch_size, longest, longest_prompt + longest), bool)
    visible[:, :, :longest_prompt] = np.arange(longest_prompt) < prompt_length[:, None, None]
    visible[:, :, longest_prompt:] = sees
    return Batch(prompt, tokens, segment, index, distance, visible, target)


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

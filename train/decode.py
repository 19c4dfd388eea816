"""A small decoder with explicit views, written apart from the training forward: the two check each other.

Keys are rotated once, at their index in their own segment, and never touched again. In a step the tokens of all active
workers are appended first; then each of them attends to its whole view, with its query rotated once per segment.

    python decode.py                        compares it with the training forward, in all layouts, with random weights
    python decode.py graph checkpoint.pt    the same with a checkpoint of the task
"""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from batch import collate, lines_of, view_orders
from model import LlamaConfig, SharedCacheLlama, load_checkpoint, rope_tables, rotate, to_tensors
from tasks import TASKS
from traces import Trace


class SegmentDecoder:
    """B prompts at once, each with its own prompt and `segments` segments of at most `capacity` tokens."""

    def __init__(
        self,
        config: LlamaConfig,
        weights: dict[str, Tensor],
        prompts: list[list[int]],
        segments: int,
        capacity: int = 400,
    ) -> None:
        self.config, self.weights, self.segments = config, weights, segments
        self.cos, self.sin = rope_tables(config)
        count = len(prompts)
        self.prompt_length = torch.tensor([len(prompt) for prompt in prompts])
        shape = (count, segments, config.kv_heads, capacity, config.head_dim)
        self.keys = [torch.zeros(shape) for _ in range(config.layers)]
        self.values = [torch.zeros(shape) for _ in range(config.layers)]
        self.length = torch.zeros(count, segments, dtype=torch.long)
        self.prompt_keys: list[Tensor] = []
        self.prompt_values: list[Tensor] = []
        self._prefill(prompts)

    @torch.inference_mode()
    def _prefill(self, prompts: list[list[int]]) -> None:
        config = self.config
        longest = int(self.prompt_length.max())
        tokens = torch.zeros(len(prompts), longest, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = torch.tensor(prompt)
        cos, sin = self.cos[:longest], self.sin[:longest]
        x = self._embed(tokens)
        for layer in range(config.layers):
            q, k, v = (heads.transpose(1, 2) for heads in self._project(layer, x))  # [B, heads, P, head_dim]
            k = rotate(k, cos, sin)
            self.prompt_keys.append(k)
            self.prompt_values.append(v)
            out = F.scaled_dot_product_attention(rotate(q, cos, sin), k, v, is_causal=True, enable_gqa=True)
            x = self._finish(layer, x, out.transpose(1, 2).flatten(2))

    @torch.inference_mode()
    def step(self, row: Tensor, token: Tensor, views: list[list[int]]) -> Tensor:
        """One step of n workers: in prompt row[i], token[i] comes behind the last segment of views[i], which lists the
        segments that its worker sees, in order. Returns their logits [n, V]."""
        config = self.config
        n = len(row)
        groups = config.heads // config.kv_heads
        written = torch.tensor([view[-1] for view in views])
        index = self.length[row, written]
        self.length[row, written] += 1
        length = torch.zeros(n, self.segments, dtype=torch.long)  # of what is seen, the tokens of this step included
        # Distance from the start of the prompt and of each segment of the view to the new token.
        distance = torch.zeros(1 + self.segments, n, dtype=torch.long)
        for i, view in enumerate(views):
            far = int(index[i])
            length[i, view[-1]] = far + 1
            distance[1 + view[-1], i] = far
            for segment in reversed(view[:-1]):
                length[i, segment] = self.length[row[i], segment]
                far += int(length[i, segment])
                distance[1 + segment, i] = far
            distance[0, i] = far + self.prompt_length[row[i]]
        longest = int(self.length.max())
        visible = [torch.arange(self.prompt_keys[0].shape[2])[None] < self.prompt_length[row][:, None]]
        visible += [torch.arange(longest)[None] < length[:, s : s + 1] for s in range(self.segments)]
        hidden = ~torch.cat(visible, 1)[:, None, None]

        x = self._embed(token)
        for layer in range(config.layers):
            q, k, v = self._project(layer, x)  # [n, heads, head_dim]
            self.keys[layer][row, written, :, index] = rotate(k, self.cos[index][:, None], self.sin[index][:, None])
            self.values[layer][row, written, :, index] = v
            keys = [self.prompt_keys[layer][row], *self.keys[layer][row, :, :, :longest].unbind(1)]
            values = [self.prompt_values[layer][row], *self.values[layer][row, :, :, :longest].unbind(1)]
            scores = []
            for far, block in zip(distance, keys, strict=True):
                turned = rotate(q, self.cos[far][:, None], self.sin[far][:, None])
                scores.append(turned.view(n, config.kv_heads, groups, -1) @ block.transpose(-1, -2))
            score = torch.cat(scores, -1) * config.head_dim**-0.5
            probability = score.masked_fill(hidden, float("-inf")).softmax(-1)
            x = self._finish(layer, x, (probability @ torch.cat(values, 2)).reshape(n, -1))
        return self._norm("model.norm", x) @ self.weights["model.embed_tokens.weight"].t()

    def _embed(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.weights["model.embed_tokens.weight"])

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weights[f"{name}.weight"], self.config.norm_eps)

    def _linear(self, layer: int, name: str, x: Tensor) -> Tensor:
        return x @ self.weights[f"model.layers.{layer}.{name}.weight"].t()

    def _project(self, layer: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self._norm(f"model.layers.{layer}.input_layernorm", x)
        q, k, v = (
            self._linear(layer, f"self_attn.{name}_proj", h).unflatten(-1, (-1, self.config.head_dim)) for name in "qkv"
        )
        return q, k, v

    def _finish(self, layer: int, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self._linear(layer, "self_attn.o_proj", attended)
        h = self._norm(f"model.layers.{layer}.post_attention_layernorm", x)
        gated = F.silu(self._linear(layer, "mlp.gate_proj", h)) * self._linear(layer, "mlp.up_proj", h)
        return x + self._linear(layer, "mlp.down_proj", gated)


@dataclass
class Run:
    """What the workers of one prompt wrote, and in which step each token entered the cache."""

    tokens: list[list[int]]
    steps: list[list[int]]
    halted: bool  # every worker said '.' or was taken away


def decode(
    task: ModuleType,
    model: SharedCacheLlama,
    problems: list[Any],
    names: list[int],
    *,
    shared: bool = True,
    start: list[dict[int, int]] | None = None,
    stop: list[dict[int, int]] | None = None,
    mark: bool = True,
) -> list[Run]:
    """Greedy decoding in lock step, in the contiguous layout. `names` are the workers' numbers (0 Alice); `start` and
    `stop` give, per prompt, the steps at which a worker (an index into `names`) begins and is taken away, with a '#'
    unless `mark` is false."""
    workers = range(len(names))
    limit = max(task.longest_run(problem) for problem in problems)
    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    decoder = SegmentDecoder(model.config, weights, [problem.prompt for problem in problems], len(names), limit)
    orders = view_orders(random.Random(), len(names), "ascending")
    views = orders if shared else [[worker] for worker in workers]
    runs = [Run([[] for _ in workers], [[] for _ in workers], False) for _ in problems]
    following = [[task.name_token(name) for name in names] for _ in problems]
    active = [set(workers) for _ in problems]
    for step in range(limit):
        rows: list[int] = []
        movers: list[int] = []
        tokens: list[int] = []
        for row, run in enumerate(runs):
            for worker in sorted(active[row]):
                if start and step < start[row].get(worker, 0):
                    continue
                token = following[row][worker]
                if stop and step >= stop[row].get(worker, limit):
                    active[row].discard(worker)
                    if not mark:
                        continue
                    token = task.REMOVED
                rows.append(row)
                movers.append(worker)
                tokens.append(token)
                run.tokens[worker].append(token)
                run.steps[worker].append(step)
        if not any(active):
            break
        if not rows:
            continue
        logits = decoder.step(torch.tensor(rows), torch.tensor(tokens), [views[worker] for worker in movers])
        for row, worker, token, chosen in zip(rows, movers, tokens, logits.argmax(-1).tolist(), strict=True):
            if token == task.STOP:
                active[row].discard(worker)
            following[row][worker] = chosen
    for run, still_active in zip(runs, active, strict=True):
        run.halted = not still_active
    return runs


@torch.inference_mode()
def cross_check(model: SharedCacheLlama, trace: Trace, order: str) -> tuple[float, float]:
    """Teacher forced over a trace: the largest difference between the training forward and the decoder, and the largest
    logit."""
    batch = to_tensors(collate(random.Random(1), [trace], order))
    expected = model.logits(model(batch))[0]
    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    workers = sorted(trace.tokens)
    orders = view_orders(random.Random(), len(workers), order)
    segments = {worker: lines_of(trace, worker) for worker in workers}
    decoder = SegmentDecoder(model.config, weights, [trace.prompt], sum(map(len, segments.values())))
    first_row = {}  # of each worker's tokens in the batch
    first_segment = {}
    rows = segment = 0
    for worker in workers:
        first_row[worker], first_segment[worker] = rows, segment
        rows += len(trace.tokens[worker])
        segment += len(segments[worker])
    common: list[int] = []
    open_segment = dict(first_segment)
    position = dict.fromkeys(workers, 0)
    difference = 0.0
    for step in range(max(map(max, trace.steps.values())) + 1):
        movers = [worker for worker in workers if step in trace.steps[worker]]
        tokens: list[int] = []
        views: list[list[int]] = []
        for worker in movers:
            tokens.append(trace.tokens[worker][position[worker]])
        for worker in movers:
            others = [workers[w] for w in orders[workers.index(worker)][:-1]]
            seen = [] if trace.layout == "interleaved" else [open_segment[other] for other in others]
            views.append([*common, *seen, open_segment[worker]])
        if not movers:
            continue
        logits = decoder.step(torch.zeros(len(movers), dtype=torch.long), torch.tensor(tokens), views)
        wanted = torch.tensor([first_row[worker] + position[worker] for worker in movers])
        difference = max(difference, float((logits - expected[wanted]).abs().max()))
        for worker in movers:
            position[worker] += 1
            mine = open_segment[worker] - first_segment[worker]
            if position[worker] == segments[worker][mine][1] < len(trace.tokens[worker]):
                common.append(open_segment[worker])
                open_segment[worker] += 1
    return difference, float(expected.abs().max())


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for name in sys.argv[1:2] or TASKS:
        task = TASKS[name]
        if len(sys.argv) > 2:
            model, _ = load_checkpoint(Path(sys.argv[2]))
        else:
            model = SharedCacheLlama(LlamaConfig(vocab_size=len(task.VOCABULARY)))
        for layout in task.LAYOUTS:
            trace = task.checked_trace(random.Random(1), [0, 1, 2, 3], layout)
            for order in ("ascending", "cyclic"):
                difference, largest = cross_check(model, trace, order)
                print(f"{name}, {layout}, {order}: training forward and decoder differ by {difference:.2g} of {largest:.1f}")
                assert difference < 1e-5 * max(largest, 1), "training forward and decoder disagree"


if __name__ == "__main__":
    main()

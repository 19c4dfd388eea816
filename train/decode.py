"""A small decoder with one cache block per worker, written apart from the training forward: the two check each other.

Keys are rotated once, at their index in their own block, and never touched again. In a step the tokens of all active
workers are appended first; then each of them attends to its whole view, with its query rotated once per block.

    python decode.py [checkpoint.pt]      compares it with the training forward (random weights without a checkpoint)
"""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from batch import collate, view_orders
from model import LlamaConfig, SharedCacheLlama, load_checkpoint, rope_tables, rotate, to_tensors
from task import REMOVED, STOP, VOCABULARY, Disturbances, Task, name_token, random_task, simulate


class BlockDecoder:
    """B prompts at once, each with its own prompt block and W worker blocks."""

    def __init__(
        self,
        config: LlamaConfig,
        weights: dict[str, Tensor],
        prompts: list[list[int]],
        workers: int,
        *,
        shared: bool = True,
        order: str = "ascending",
        capacity: int = 400,
    ) -> None:
        self.config, self.weights, self.workers, self.shared = config, weights, workers, shared
        self.cos, self.sin = rope_tables(config)
        count = len(prompts)
        self.prompt_length = torch.tensor([len(prompt) for prompt in prompts])
        shape = (count, workers, config.kv_heads, capacity, config.head_dim)
        self.keys = [torch.zeros(shape) for _ in range(config.layers)]
        self.values = [torch.zeros(shape) for _ in range(config.layers)]
        self.length = torch.zeros(count, workers, dtype=torch.long)
        # rank[w, u]: the place of block u in the view of worker w.
        self.rank = torch.zeros(workers, workers, dtype=torch.long)
        for worker, view in enumerate(view_orders(random.Random(), workers, order)):
            self.rank[worker, view] = torch.arange(workers)
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
    def step(self, row: Tensor, worker: Tensor, token: Tensor) -> Tensor:
        """One step of n workers: worker[i] of prompt row[i] brings token[i]. Returns their logits [n, V]."""
        config = self.config
        n = len(row)
        groups = config.heads // config.kv_heads
        index = self.length[row, worker]
        self.length[row, worker] += 1
        length = self.length[row]  # [n, W], the tokens of this step included
        own = F.one_hot(worker, self.workers)
        if not self.shared:
            length = length * own
        others = length * (1 - own)
        rank = self.rank[worker]
        # Distance from the start of each block of the view to the new token.
        distance = [self.prompt_length[row] + others.sum(1) + index]
        for u in range(self.workers):
            distance.append((others * (rank >= rank[:, u : u + 1])).sum(1) + index)
        longest = int(self.length.max())
        visible = [torch.arange(self.prompt_keys[0].shape[2])[None] < self.prompt_length[row][:, None]]
        visible += [torch.arange(longest)[None] < length[:, u : u + 1] for u in range(self.workers)]
        hidden = ~torch.cat(visible, 1)[:, None, None]

        x = self._embed(token)
        for layer in range(config.layers):
            q, k, v = self._project(layer, x)  # [n, heads, head_dim]
            self.keys[layer][row, worker, :, index] = rotate(k, self.cos[index][:, None], self.sin[index][:, None])
            self.values[layer][row, worker, :, index] = v
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
    model: SharedCacheLlama,
    tasks: list[Task],
    names: list[int],
    *,
    shared: bool = True,
    start: list[dict[int, int]] | None = None,
    stop: list[dict[int, int]] | None = None,
    mark: bool = True,
) -> list[Run]:
    """Greedy decoding in lock step. `names` are the workers' numbers (0 Alice); `start` and `stop` give, per prompt,
    the steps at which a worker (an index into `names`) begins and is taken away, with a '#' unless `mark` is false."""
    workers = range(len(names))
    # Enough for one worker that does the whole list, and a half more: who needs longer than that has failed.
    limit = max(int(1.5 * (len(task.prompt) + sum(map(len, task.answers.values())))) + 60 for task in tasks)
    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    prompts = [task.prompt for task in tasks]
    decoder = BlockDecoder(model.config, weights, prompts, len(names), shared=shared, capacity=limit)
    runs = [Run([[] for _ in workers], [[] for _ in workers], False) for _ in tasks]
    following = [[name_token(name) for name in names] for _ in tasks]
    active = [set(workers) for _ in tasks]
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
                    token = REMOVED
                rows.append(row)
                movers.append(worker)
                tokens.append(token)
                run.tokens[worker].append(token)
                run.steps[worker].append(step)
        if not any(active):
            break
        if not rows:
            continue
        logits = decoder.step(torch.tensor(rows), torch.tensor(movers), torch.tensor(tokens))
        for row, worker, token, chosen in zip(rows, movers, tokens, logits.argmax(-1).tolist(), strict=True):
            if token == STOP:
                active[row].discard(worker)
            following[row][worker] = chosen
    for run, still_active in zip(runs, active, strict=True):
        run.halted = not still_active
    return runs


@torch.inference_mode()
def cross_check(model: SharedCacheLlama, order: str) -> tuple[float, float]:
    """Teacher forced over a trace with late starts, pauses, yields and a removed worker: the largest difference between
    the training forward and the decoder, and the largest logit."""
    rng = random.Random(1)
    disturb = Disturbances(start={1: 3, 2: 9}, pause={1: 0.4, 3: 0.2}, stop={3: 17}, taken_claim=0.1)
    trace = simulate(rng, random_task(rng, 7), [0, 1, 2, 3], disturb)
    batch = to_tensors(collate(rng, [trace], order))
    expected = model.logits(model(batch))[0]
    begin = {worker: int((batch.block[0] == worker).nonzero()[0]) for worker in trace.tokens}
    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    decoder = BlockDecoder(model.config, weights, [trace.prompt], 4, order=order)
    difference = 0.0
    for step in range(max(map(max, trace.steps.values())) + 1):
        movers = [worker for worker, steps in trace.steps.items() if step in steps]
        if not movers:
            continue
        index = [trace.steps[worker].index(step) for worker in movers]
        tokens = torch.tensor([trace.tokens[worker][i] for worker, i in zip(movers, index, strict=True)])
        logits = decoder.step(torch.zeros(len(movers), dtype=torch.long), torch.tensor(movers), tokens)
        rows = torch.tensor([begin[worker] + i for worker, i in zip(movers, index, strict=True)])
        difference = max(difference, float((logits - expected[rows]).abs().max()))
    return difference, float(expected.abs().max())


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if len(sys.argv) > 1:
        model, _ = load_checkpoint(Path(sys.argv[1]))
    else:
        model = SharedCacheLlama(LlamaConfig(vocab_size=len(VOCABULARY)))
    for order in ("ascending", "cyclic"):
        difference, largest = cross_check(model, order)
        print(f"{order}: training forward and decoder differ by {difference:.2g} of {largest:.1f}")
        assert difference < 1e-5 * max(largest, 1), "training forward and decoder disagree"


if __name__ == "__main__":
    main()

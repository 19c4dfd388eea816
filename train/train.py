"""Trains a model from scratch: `python train.py --task reverse --out runs/demo` is the whole recipe of models/demo (README.md).

The schedule (curriculum and learning rate) follows the clock, not the step count, because the machine may be shared. A
run is therefore not reproducible bit by bit; the seed fixes the initial weights and the stream of traces.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing as mp
import time
from collections import Counter
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from batch import Batch, produce
from model import LlamaConfig, SharedCacheLlama, load_checkpoint, save_checkpoint, to_tensors
from tasks import TASKS
from traces import FINAL_STAGE, NO_TARGET

LOG_EVERY = 50


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--task", choices=TASKS, default="reverse")
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoints")
    parser.add_argument("--minutes", type=float, default=100, help="wall-clock time of the whole run")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the trainer")
    parser.add_argument("--producers", type=int, default=1, help="processes that make batches; a GPU needs several")
    parser.add_argument("--tokens", type=int, default=1600, help="worker tokens in a batch, about")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05, help="of the matrices, embedding excepted")
    parser.add_argument("--warmup", type=int, default=100, help="steps")
    parser.add_argument(
        "--curriculum",
        type=float,
        nargs=FINAL_STAGE,
        default=(0.10, 0.35),
        help="parts of the time at which the first stages end: few items, then more",
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--save-every", type=float, default=3, help="minutes between checkpoints")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--resume", action="store_true", help="go on with the checkpoint in --out after an interruption")
    start.add_argument("--init", type=Path, help="start a new schedule from the weights of this checkpoint")
    return parser.parse_args()


def learning_rate(progress: float, step: int, warmup: int) -> float:
    """Factor of the peak: linear warm-up, flat for 30 % of the time, cosine to 2 %."""
    decay = 0.5 * (1 + math.cos(math.pi * max(0.0, (progress - 0.3) / 0.7)))
    return min(1.0, (step + 1) / warmup) * (0.02 + 0.98 * decay)


def make_optimizer(model: SharedCacheLlama, lr: float, weight_decay: float) -> torch.optim.AdamW:
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (decayed if parameter.dim() == 2 and "embed_tokens" not in name else plain).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))


class Accuracy:
    """Teacher-forced accuracy by kind of decision."""

    def __init__(self, task: ModuleType) -> None:
        self.task = task
        self.right: Counter[str] = Counter()
        self.total: Counter[str] = Counter()
        self.losses: list[float] = []

    def add(self, loss: Tensor, previous: Tensor, predicted: Tensor, target: Tensor) -> None:
        self.losses.append(loss.item())
        right = predicted == target
        for kind, mask in self.task.decision_kinds(previous, target).items():
            self.right[kind] += int((right & mask).sum())
            self.total[kind] += int(mask.sum())

    def __str__(self) -> str:
        parts = [f"{kind} {self.right[kind] / max(1, total):.4f}" for kind, total in self.total.items()]
        return f"loss {sum(self.losses) / len(self.losses):.4f}  " + "  ".join(parts)


def train_step(model: SharedCacheLlama, optimizer: torch.optim.AdamW, batch: Batch, accuracy: Accuracy) -> None:
    hidden = model(batch)
    target = batch.target.view(-1)
    chosen = (target != NO_TARGET).nonzero()[:, 0]
    target = target[chosen]
    logits = model.logits(hidden.reshape(-1, hidden.shape[-1])[chosen])
    loss = F.cross_entropy(logits, target)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    accuracy.add(loss, batch.tokens.reshape(-1)[chosen], logits.argmax(-1), target)


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    path = arguments.out / "checkpoint.pt"
    step = traces = 0
    elapsed = 0.0  # seconds, of earlier parts of a resumed run as well
    task = TASKS[arguments.task]
    model = SharedCacheLlama(LlamaConfig(vocab_size=len(task.VOCABULARY)))
    state = None
    if arguments.resume:
        model, state = load_checkpoint(path)
        step, traces, elapsed = state["step"], state["traces"], state["elapsed"]
    elif arguments.init:
        model, _ = load_checkpoint(arguments.init)
    model.to(arguments.device)
    optimizer = make_optimizer(model, arguments.lr, arguments.weight_decay)
    if state is not None:
        optimizer.load_state_dict(state["optimizer"])
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{parameters} parameters, {vars(arguments)}", flush=True)

    # Spawned, not forked: a forked child must not touch CUDA, and this one needs nothing of the parent.
    context = mp.get_context("spawn")
    stage = context.Value("i", 0)
    batches = context.Queue(6 * arguments.producers)
    producers = [
        # Another stream after each resumption, the old one is used up to an unknown point.
        context.Process(
            target=produce,
            args=(batches, arguments.task, stage, arguments.tokens, hash((arguments.seed, step, number))),
            daemon=True,
        )
        for number in range(arguments.producers)
    ]

    def save() -> None:
        progress = {"step": step, "traces": traces, "elapsed": elapsed}
        save_checkpoint(path, model, optimizer=optimizer.state_dict(), **progress)

    clock = last_save = time.monotonic()
    begin = clock - elapsed
    accuracy = Accuracy(task)
    stage.value = sum(elapsed / 60 / arguments.minutes >= end for end in arguments.curriculum)
    for producer in producers:
        producer.start()
    while True:
        elapsed = time.monotonic() - begin
        progress = elapsed / 60 / arguments.minutes
        if progress >= 1:
            break
        stage.value = sum(progress >= end for end in arguments.curriculum)
        for group in optimizer.param_groups:
            group["lr"] = arguments.lr * learning_rate(progress, step, arguments.warmup)
        batch = to_tensors(batches.get(), arguments.device)
        train_step(model, optimizer, batch, accuracy)
        step += 1
        traces += batch.prompt.shape[0]
        if step % LOG_EVERY == 0:
            print(f"{step:6d}  {elapsed:5.0f} s  stage {stage.value}  {traces:7d} traces  {accuracy}", flush=True)
            accuracy = Accuracy(task)
        if time.monotonic() - last_save > 60 * arguments.save_every:
            save()
            last_save = time.monotonic()
    save()
    print(f"done: {step} steps, {traces} traces, {elapsed / 60:.1f} minutes", flush=True)
    for producer in producers:
        producer.terminate()


if __name__ == "__main__":
    main()

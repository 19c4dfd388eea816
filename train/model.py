"""A plain Llama, trained with exact shared-cache attention.

Parameters have the names and shapes of transformers' LlamaForCausalLM, so the state dicts are interchangeable.

Training needs the attention of every token of a finished trace as it was in the step in which the token was written.
The view positions of the keys differ from query to query then (other blocks grow, and turns move), but a score depends on
distances only: key j of block u, rotated once by its index j, meets the query rotated by D[u], the query's distance to the
start of block u in its own view at its own step. With W blocks a query has W + 1 rotated copies, one of them for the common
block, which begins with the prompt. They are concatenated, and each key is lifted to the same width, zero outside of its
own block's slot: that makes one ordinary product and one mask of it. A token that moves into the common block is a key
twice, at its index in either block (batch.py), and the mask says where a query sees it.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from batch import Batch


@dataclass
class LlamaConfig:
    vocab_size: int
    hidden_size: int = 128
    intermediate_size: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    max_positions: int = 1024


def rope_tables(config: LlamaConfig) -> tuple[Tensor, Tensor]:
    """cos and sin [max_positions, head_dim / 2], float32; the angles are computed in double precision."""
    frequency = config.rope_theta ** (-torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim)
    angle = torch.arange(config.max_positions, dtype=torch.float64)[:, None] * frequency
    return angle.cos().float(), angle.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Half rotation of x [..., head_dim] by tables [..., head_dim / 2]."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def to_tensors(batch: Batch, device: str | torch.device = "cpu") -> Batch:
    return Batch(*(torch.from_numpy(array).to(device) for array in batch))


class Attention(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        width = config.heads * config.head_dim
        kv_width = config.kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv_width, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv_width, bias=False)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=False)


class Mlp(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = Mlp(config)


class Decoder(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.hidden_size, config.norm_eps)


class SharedCacheLlama(nn.Module):
    cos: Tensor
    sin: Tensor

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        cos, sin = rope_tables(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        std = 0.6 / math.sqrt(config.hidden_size)
        for name, parameter in self.named_parameters():
            if name.endswith("embed_tokens.weight"):
                nn.init.normal_(parameter, std=0.08)
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.normal_(parameter, std=std / math.sqrt(2 * config.layers))
            elif parameter.dim() == 2:
                nn.init.normal_(parameter, std=std)

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden @ self.model.embed_tokens.weight.t()  # tied

    def forward(self, batch: Batch) -> Tensor:
        """Hidden states [B, N, hidden] of the workers' tokens, after the last norm."""
        config = self.config
        heads, kv_heads, head_dim = config.heads, config.kv_heads, config.head_dim
        groups = heads // kv_heads
        batch_size, prompt_length = batch.prompt.shape  # B, P
        length = batch.tokens.shape[1]  # N
        moved = batch.common.shape[1]  # C
        total = prompt_length + length
        blocks = batch.distance.shape[2] - 1  # W
        device = batch.tokens.device

        # Keys, and the queries of the prompt, at their index in their block. Tables are [B, 1, P+N, head_dim/2].
        prompt_index = torch.arange(prompt_length, device=device).expand(batch_size, -1)
        local = torch.cat((prompt_index, batch.index), 1)
        cos, sin = self.cos[local][:, None], self.sin[local][:, None]
        moved_cos, moved_sin = self.cos[batch.common][:, None], self.sin[batch.common][:, None]
        # The workers' queries, once for the common block and once for each worker's: [B, 1, 1+W, N, head_dim/2].
        query_cos = self.cos[batch.distance].transpose(1, 2)[:, None]
        query_sin = self.sin[batch.distance].transpose(1, 2)[:, None]

        # Rows of the scores are (group, token), so the masks are repeated per group.
        minus_infinity = float("-inf")
        bias = torch.zeros(batch_size, 1, length, prompt_length + moved + length, device=device)
        bias = bias.masked_fill_(~batch.visible[:, None], minus_infinity).repeat(1, 1, groups, 1)
        causal = torch.full((prompt_length, prompt_length), minus_infinity, device=device).triu(1).repeat(groups, 1)
        slot = F.one_hot(batch.block, blocks).float()[:, None, :, :, None]  # [B, 1, N, W, 1]

        x = self.model.embed_tokens(torch.cat((batch.prompt, batch.tokens), 1))
        for number, layer in enumerate(self.model.layers):
            attention = layer.self_attn
            h = layer.input_layernorm(x)
            weight = torch.cat((attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight))
            qkv = (h @ weight.t()).view(batch_size, total, heads + 2 * kv_heads, head_dim).transpose(1, 2)
            q, plain_k, v = qkv.split((heads, kv_heads, kv_heads), 1)
            q = q * head_dim**-0.5
            k = rotate(plain_k, cos, sin)
            prompt_k, block_k = k.split((prompt_length, length), 2)
            prompt_v, block_v = v.split((prompt_length, length), 2)

            # The prompt: ordinary causal attention.
            prompt_q = rotate(q[:, :, :prompt_length], cos[:, :, :prompt_length], sin[:, :, :prompt_length])
            prompt_q = prompt_q.reshape(batch_size, kv_heads, groups * prompt_length, head_dim)
            prompt_out = ((prompt_q @ prompt_k.transpose(-1, -2) + causal).softmax(-1) @ prompt_v).view(
                batch_size, heads, prompt_length, head_dim
            )

            # The workers: the common block's keys and all workers' keys in one softmax.
            views = rotate(q[:, :, None, prompt_length:], query_cos, query_sin)  # [B, heads, 1+W, N, head_dim]
            to_common = views[:, :, 0].reshape(batch_size, kv_heads, groups * length, head_dim)
            to_blocks = (
                views[:, :, 1:].transpose(2, 3).reshape(batch_size, kv_heads, groups * length, blocks * head_dim)
            )
            common_k, common_v = prompt_k, prompt_v
            if moved > 0:
                common_k = torch.cat((prompt_k, rotate(plain_k[:, :, prompt_length:], moved_cos, moved_sin)), 2)
                common_v = v
            lifted = (block_k[:, :, :, None] * slot).view(batch_size, kv_heads, length, blocks * head_dim)
            scores = torch.cat((to_common @ common_k.transpose(-1, -2), to_blocks @ lifted.transpose(-1, -2)), -1) + bias
            worker_out = (scores.softmax(-1) @ torch.cat((common_v, block_v), 2)).view(
                batch_size, heads, length, head_dim
            )

            out = torch.cat((prompt_out, worker_out), 2).transpose(1, 2).reshape(batch_size, total, heads * head_dim)
            x = x + attention.o_proj(out)
            if number == config.layers - 1:
                x = x[:, prompt_length:]  # nothing is predicted from the prompt itself
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return self.model.norm(x)


def save_checkpoint(path: Path, model: SharedCacheLlama, **extra: Any) -> None:
    """Written beside and renamed, so that a reader (or a crash) never meets half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    torch.save({"config": asdict(model.config), "weights": model.state_dict(), **extra}, temporary)
    temporary.replace(path)


def load_checkpoint(path: Path) -> tuple[SharedCacheLlama, dict[str, Any]]:
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    model = SharedCacheLlama(LlamaConfig(**checkpoint["config"]))
    model.load_state_dict(checkpoint["weights"])
    return model, checkpoint

"""Writes a checkpoint as a Hugging Face model folder and checks that transformers reads it as the same model."""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaForCausalLM

from batch import collate
from decode import SegmentDecoder
from model import LlamaConfig, SharedCacheLlama, load_checkpoint, to_tensors
from tasks import TASKS


def load_exported(folder: Path) -> SharedCacheLlama:
    """The exported weights, rounded to bf16 as they are stored, for computing in float32."""
    stored = json.loads((folder / "config.json").read_text())
    config = LlamaConfig(
        vocab_size=stored["vocab_size"],
        hidden_size=stored["hidden_size"],
        intermediate_size=stored["intermediate_size"],
        layers=stored["num_hidden_layers"],
        heads=stored["num_attention_heads"],
        kv_heads=stored["num_key_value_heads"],
        head_dim=stored["head_dim"],
        rope_theta=stored["rope_theta"],
        norm_eps=stored["rms_norm_eps"],
        max_positions=stored["max_position_embeddings"],
    )
    model = SharedCacheLlama(config)
    weights = load_file(folder / "model.safetensors")
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    return model


def llama_config(task: ModuleType, config: LlamaConfig) -> dict[str, Any]:
    """`rope_theta` at the top and `torch_dtype`: the spelling that transformers 4 and 5 both read."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": task.BOS,
        "eos_token_id": task.STOP,
        "pad_token_id": task.PAD,
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }


def tokenizer(task: ModuleType) -> dict[str, Any]:
    """One token per character, and the names. BPE without merges is the one model type for this that every reader of
    tokenizer.json knows. Names are added tokens: they are cut out of a text before anything else. Spaces are dropped,
    the vocabulary has none, so that 'Alice A=many' is read as it is shown. Nothing is put before a text: write <s>."""
    added = ["<pad>", "<s>", *task.NAMES]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": task.VOCABULARY.index(token),
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": token not in task.NAMES,
            }
            for token in added
        ],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": ""},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: index for index, token in enumerate(task.VOCABULARY)},
            "merges": [],
        },
    }


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def export(task: ModuleType, model: SharedCacheLlama, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().to(torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", llama_config(task, model.config))
    write_json(
        folder / "generation_config.json",
        {"bos_token_id": task.BOS, "eos_token_id": task.STOP, "pad_token_id": task.PAD, "do_sample": False},
    )
    write_json(folder / "tokenizer.json", tokenizer(task))
    # No eos_token: it would make '.' a special token, which readers then leave out of the text.
    # The token that ends a generation is in generation_config.json.
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "pad_token": "<pad>",
            "clean_up_tokenization_spaces": False,
            "model_max_length": model.config.max_positions,
        },
    )


@torch.inference_mode()
def check(task: ModuleType, folder: Path) -> None:
    """One worker with one block is ordinary decoding: transformers, the training forward and the decoder must agree."""
    reference, info = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    problems = {kind: names for kind, names in info.items() if names}
    assert not problems, f"transformers did not load all weights as they are: {problems}"
    reference.eval()
    model = load_exported(folder)
    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    rng = random.Random(3)
    trace = task.checked_trace(rng, [0])
    expected = reference(torch.tensor([trace.prompt + trace.tokens[0]])).logits[0, len(trace.prompt) :]
    largest = float(expected.abs().max())
    decoder = SegmentDecoder(model.config, weights, [trace.prompt], 1)
    row = torch.zeros(1, dtype=torch.long)
    stepped = torch.cat([decoder.step(row, torch.tensor([token]), [[0]]) for token in trace.tokens[0]])
    trained = model.logits(model(to_tensors(collate(rng, [trace]))))[0]
    for name, logits in (("decoder", stepped), ("training forward", trained)):
        difference = float((logits - expected).abs().max())
        print(f"transformers and the {name} differ by {difference:.2g} of {largest:.1f}")
        assert difference < 1e-5 * largest, f"transformers and the {name} disagree"

    read = AutoTokenizer.from_pretrained(folder)
    for text in task.TEXTS:
        tokens = read.encode(text)
        assert all(0 <= token < len(task.VOCABULARY) for token in tokens)
        assert "".join(task.VOCABULARY[token] for token in tokens) == text, f"the tokenizer reads {text!r} as {tokens}"
        assert read.decode(tokens) == text, f"the tokenizer writes {read.decode(tokens)!r} for {text!r}"
    assert read.encode("Alice A=many") == read.encode("AliceA=many")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=TASKS, default="reverse")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, _ = load_checkpoint(arguments.checkpoint)
    task = TASKS[arguments.task]
    export(task, model, arguments.folder)
    check(task, arguments.folder)
    size = (arguments.folder / "model.safetensors").stat().st_size
    print(f"{arguments.folder}: {sum(p.numel() for p in model.parameters())} parameters, {size} bytes")


if __name__ == "__main__":
    main()

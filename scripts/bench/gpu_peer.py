"""The peer's arms of scripts.bench.gpu: PEFT and transformers on the same card."""

import os
import statistics
import sys
from typing import Any

import numpy as np

from aligner_jax.model.config import llama_config
from aligner_jax.weights.hf_write import hf_fields
from scripts.bench.gpu_arms import MODELS, documents
from scripts.bench.protocol import PEER_VARIABLE, Worker

STEPS, TURNS = 4, 3
PADDED_DOCUMENTS, PADDED_STEPS = 16, 16
"""Documents a step of padded text, and steps a turn.

The longest documents fill 16 rows of 512, twice the positions of our step. More do not fit: 32 such rows need about 87
GiB, by the 31.2 GiB that 8 rows took."""
SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "max_position_embeddings",
)  # fmt: skip
"""Names of a model's sizes in Hugging Face's config."""


def run_peer(command: str, **arguments: Any) -> dict[str, Any]:
    """Returns the figures of an arm, measured in a process of its own. `command` is "train" or "decode"."""
    # In this environment, unless another interpreter is named.
    os.environ.setdefault(PEER_VARIABLE, sys.executable)
    with Worker.peer() as peer:
        return {"train": train, "decode": decode}[command](peer, **arguments)


def train(
    peer: Worker,
    model: str,
    rows: int,
    length: int,
    lora: dict[str, Any],
    attention: str,
    *,
    checkpointing: bool,
    packed: bool = False,
    by_length: bool = False,
    bits: int = 16,
    remat: str | None = None,
) -> dict[str, Any]:
    """Times training steps of PEFT's LoRA. Tokens count without padding; the peak is that since the model was made.

    Args:
      peer: the worker.
      model: one of `MODELS`.
      rows, length: shape of the batch. Not the rows of padded text, see `PADDED_DOCUMENTS`.
      lora: options of `peft.LoraConfig`.
      attention, checkpointing, bits: see `Peer.make`.
      packed: True for the documents that our arm packs, each in a padded row.
      by_length: sorts the documents, as `group_by_length` of transformers' Trainer does; False for the Trainer's
        default, which pads rows of any length to the longest.
      remat: ours, and not used.
    """
    del remat
    sizes = hf_sizes(model)
    peer.ask("make", sizes=sizes, attention=attention, checkpointing=checkpointing, bits=bits)
    # All turns have the same documents.
    count, steps = (PADDED_DOCUMENTS, PADDED_STEPS) if packed else (rows, STEPS)
    lengths = documents(count * steps, longest=length) if packed else [length] * rows
    if by_length:
        lengths = sorted(lengths, reverse=True)
    draw = np.random.default_rng(0)
    texts = [draw.integers(3, sizes["vocab_size"], size).tolist() for size in lengths]
    made = peer.ask(
        "train",
        documents=[{"tokens": tokens, "loss_mask": [1] * len(tokens)} for tokens in texts],
        batch_size=count,
        method="lora",
        options=lora,
        padding_free=False,
    )
    # Memory for every length is allocated before the first turn.
    peer.ask("steps", count=steps if packed else 1)
    turns = [peer.ask("steps", count=steps) for _ in range(TURNS)]
    rates = [turn["tokens"] / turn["seconds"] for turn in turns]
    memory = peer.ask("gpu_memory")["bytes"]
    return {"tokens_per_second": statistics.median(rates), "peak_bytes": memory, "parameters": made["parameters"]}


def decode(peer: Worker, model: str, rows: int, prompt: int, new_tokens: int) -> dict[str, Any]:
    """Times greedy decoding after a prefill; the peak is that since the model was made."""
    sizes = hf_sizes(model)
    peer.ask("make", sizes=sizes, attention="sdpa")
    prompts = np.random.default_rng(0).integers(3, sizes["vocab_size"], (rows, prompt)).tolist()
    request = {"prompts": prompts, "new_tokens": new_tokens}
    peer.ask("generate", prompts=prompts, new_tokens=8)
    seconds = [peer.ask("generate", **request)["seconds"] for _ in range(TURNS - 1)]
    rate = rows * new_tokens / statistics.median(seconds)
    return {"tokens_per_second": rate, "peak_bytes": peer.ask("gpu_memory")["bytes"]}


def hf_sizes(model: str) -> dict[str, int]:
    """Returns a model's sizes by the names of Hugging Face's config."""
    fields = hf_fields(llama_config(MODELS[model]["name"]), "bfloat16")
    return {name: fields[name] for name in SIZES}

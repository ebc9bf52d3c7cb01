"""What a training run learns from what, and how its result is judged: made from a config, the same way for all."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grain
from rich.console import Console

from aligner_jax.data.sources import Example, load_examples
from aligner_jax.data.tokenizer import Tokenizer
from aligner_jax.errors import InputError
from aligner_jax.peft import Adapter
from aligner_jax.runtime.config import TrainConfig
from aligner_jax.weights.base import Base


@dataclasses.dataclass(frozen=True)
class Task:
    """What is learned from what: the batches, the reference that their objective needs, and how to judge the result."""

    batches: "grain.DatasetIterator[Any]"
    reference: Adapter | None
    has_heldout: bool
    evaluate: Callable[[Adapter], dict[str, float]]
    """Held-out metrics of an adapter, by name."""
    report: Callable[[Adapter, Path], None]
    """Prints what training changed, and writes it beside the adapter's file as report.json."""


def tokenizer_of(base: Base, config: TrainConfig) -> Tokenizer:
    """The base's tokenizer. Raises InputError where it has none."""
    if base.tokenizer is None:
        raise InputError(f"{config.base.path} has no tokenizer (tokenizer.json or tokenizer.model), and text needs one")
    return base.tokenizer


def split_examples(config: TrainConfig, console: Console) -> tuple[list[Example], list[Example]]:
    """The training and the held-out examples."""
    data = config.data
    examples = load_examples(data.path, data.format)
    if data.heldout_path is not None:
        return examples, load_examples(data.heldout_path, data.format)
    if data.heldout_rows >= len(examples):
        raise InputError(
            f"config.data.heldout_rows is {data.heldout_rows}, but {data.path} has only {len(examples)} examples"
        )
    split = len(examples) - data.heldout_rows
    return examples[:split], examples[split:]


def rows(config: TrainConfig) -> dict[str, Any]:
    """What makes rows of documents or pairs."""
    return {name: getattr(config.data, name) for name in ("batch_size", "sequence_length", "packing")}

"""What a training run learns from what, and how its result is judged: made from a config, the same way for all."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grain
from rich.console import Console

from aligner_jax.data.sources import Example, load_dataset, prompt_of, split_by_prompt, without_repeats
from aligner_jax.data.tokenizer import Tokenizer
from aligner_jax.errors import InputError
from aligner_jax.peft import Adapter
from aligner_jax.peft.methods import first_position
from aligner_jax.runtime.config import TrainConfig
from aligner_jax.weights.base import Base


@dataclasses.dataclass(frozen=True)
class Task:
    """A training task: the batches, the reference that their objective needs, and how to judge the result.

    `TASKS` makes it from a config, the base, the adapter to begin with, the workdir, a function that is called between
    the parts of the work (`StopRequests.check`) and the console.
    """

    made_from: dict[str, str]
    """Digests of what every step depends on besides the config, by names that can stand in a sentence."""
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
    """The training and the held-out examples, and a line about each file that is read.

    No prompt is in both: with a held-out file of its own what is held out is left out of training. Of equal held-out
    examples one is kept.

    Raises:
      InputError: a file cannot be used, or nothing is left to train on.
    """
    data = config.data

    def read(path: str) -> list[Example]:
        dataset = load_dataset(path, data.format, data.fields)
        console.out(f"data: {path}, {dataset}")
        return dataset.examples

    examples = read(data.path)

    def different(heldout: list[Example]) -> list[Example]:
        once = without_repeats(heldout)
        if repeats := len(heldout) - len(once):
            console.out(f"held out: {len(once):,} different examples; {repeats:,} that repeat one of them are left out")
        return once

    if data.heldout_path is not None:
        heldout = different(read(data.heldout_path))
        prompts = set(map(prompt_of, heldout))
        training = [example for example in examples if prompt_of(example) not in prompts]
        if not training:
            raise InputError(f"all examples of {data.path} have prompts that {data.heldout_path} holds out")
        if left_out := len(examples) - len(training):
            console.out(f"training: {left_out:,} examples whose prompts are held out are left out")
        return training, heldout
    if data.heldout_rows >= len(examples):
        raise InputError(
            f"config.data.heldout_rows is {data.heldout_rows}, but {data.path} has only {len(examples)} examples"
        )
    training, heldout = split_by_prompt(examples, data.heldout_rows)
    if not training:
        raise InputError(
            f"config.data.heldout_rows is {data.heldout_rows}, but those of {data.path} share prompts with all "
            f"{len(examples)} examples, so that none is left to train on"
        )
    if len(heldout) > data.heldout_rows:
        console.out(f"held out: {len(heldout):,} examples, not {data.heldout_rows:,}, so that no prompt is in both")
    return training, different(heldout)


def context_length(base: Base, adapter: Adapter) -> int:
    """Returns how many tokens a document may have: the base's context without the positions of prompt tuning."""
    return base.config.context_length - first_position(adapter, base.params, base.config)


def rows(config: TrainConfig) -> dict[str, Any]:
    """What makes rows of documents or pairs."""
    return {name: getattr(config.data, name) for name in ("batch_size", "sequence_length", "packing")}

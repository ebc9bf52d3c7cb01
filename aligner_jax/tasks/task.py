"""Objectives and training tasks: the feed of batches, held-out evaluation and the report."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxtyping import Array, Float
from rich.console import Console

from aligner_jax.data.sources import Example, load_dataset, prompt_of, split_by_prompt, without_repeats
from aligner_jax.data.tokenizer import Tokenizer
from aligner_jax.errors import InputError
from aligner_jax.objectives.batch import Batch
from aligner_jax.objectives.feed import Feed
from aligner_jax.objectives.loss import Loss, Options, Totals
from aligner_jax.peft import Adapter
from aligner_jax.peft.together import first_position
from aligner_jax.runtime.config import DataConfig, TrainConfig
from aligner_jax.runtime.workdir import Workdir
from aligner_jax.weights.base import Base


@dataclasses.dataclass(frozen=True)
class Task:
    """A training task: the feed, the reference of the objective, held-out evaluation and the report.

    Attributes:
      input_digests: digests of the step's inputs other than the config, by names that can stand in a sentence.
      feed: makes the batches.
      reference: the frozen adapter that every step compares with, or None.
      has_heldout: True if there are held-out examples.
      evaluate: returns the held-out metrics of an adapter, by name.
      report: prints metrics before and after training, writes report.json beside the adapter's file, the second
        argument, and returns the held-out metrics after training, by name.
    """

    input_digests: dict[str, str]
    feed: Feed
    reference: Adapter | None
    has_heldout: bool
    evaluate: Callable[[Adapter], dict[str, float]]
    report: Callable[[Adapter, Path], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class TaskInputs:
    """Inputs that a task is made from.

    Attributes:
      options: options of the objective, parsed from `config.objective`.
      initial: the initial adapter, or the sweep's stack of adapters.
      check: ends a run that was asked to stop; called between the parts of long work.
    """

    config: TrainConfig
    options: Any
    base: Base
    initial: Adapter
    workdir: Workdir
    check: Callable[[], None]
    console: Console


@dataclasses.dataclass(frozen=True)
class Objective:
    """A training objective. `tasks.objectives.OBJECTIVES` lists them by name.

    Attributes:
      options: dataclass of the objective's fields in `config.objective`; a subclass of `Options`.
      sums: returns the sums over a part of a batch, see `objectives.loss.Sums`; takes `options` as a keyword too.
      metrics: names of the metrics that `sums` returns.
      batch: class of the batches.
      task: makes the run's feed, held-out evaluation and report.
      sweeps: True if `sums` returns separate sums for the adapters of a stack, so that sweeps are supported.
      check: raises InputError if another field of the config does not fit the objective.
    """

    options: type[Options]
    sums: Callable[..., tuple[Float[Array, "*a"], Totals]]
    batch: type[Batch]
    task: Callable[[TaskInputs], Task]
    metrics: tuple[str, ...] = ()
    sweeps: bool = False
    check: Callable[[TrainConfig], None] = lambda config: None

    def loss(self, options: Options) -> Loss:
        """Returns the loss that the training step minimizes."""
        return Loss(functools.partial(self.sums, options=options), self.metrics)


def tokenizer_of(base: Base, config: TrainConfig) -> Tokenizer:
    """Returns the base's tokenizer. Raises InputError if it has none."""
    if base.tokenizer is None:
        raise InputError(f"{config.base.path} has no tokenizer (tokenizer.json or tokenizer.model), and text needs one")
    return base.tokenizer


def split_examples(config: TrainConfig, console: Console) -> tuple[list[Example], list[Example]]:
    """Returns the training and the held-out examples, and prints a line about every file.

    The two share no prompt: prompts of a separate held-out file are left out of training. Repeated held-out examples
    are kept once.

    Raises:
      InputError: a file cannot be used, or no training examples remain.
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
            f"config.data.heldout_rows is {data.heldout_rows}, but {data.path} has only {len(examples)} examples; hold "
            "fewer out, or none with --config.data.heldout_rows=0"
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
    """Returns the maximum tokens of a document: the base's context less the positions that prompt tuning takes."""
    return base.config.context_length - first_position(adapter, base.params, base.config)


def row_options(data: DataConfig) -> dict[str, Any]:
    """Returns the keyword arguments shared by the functions that make rows of documents or pairs."""
    return {name: getattr(data, name) for name in ("batch_size", "sequence_length", "packing")}

"""Objectives and the tasks that they make of a config: the batches to learn from, and the judgement of the result."""

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
    """A training task: the feed, the reference that the objective needs, and the judgement of the result.

    Attributes:
      made_from: digests of all that every step depends on besides the config, by names that can stand in a sentence.
      feed: makes the batches.
      reference: the adapter that every step computes with; None: none.
      evaluate: returns the held-out metrics of an adapter, by name.
      report: prints what training changed, and writes it beside the adapter's file as report.json.
    """

    made_from: dict[str, str]
    feed: Feed
    reference: Adapter | None
    has_heldout: bool
    evaluate: Callable[[Adapter], dict[str, float]]
    report: Callable[[Adapter, Path], None]


@dataclasses.dataclass(frozen=True)
class Beginning:
    """All that a task is made from.

    Attributes:
      options: of the objective, `config.objective` parsed.
      initial: the adapter, or the sweep's stack, that training begins with.
      check: is called between the parts of the work, and ends a run that was asked to stop.
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
    """An objective: all that a run needs to know of it. `tasks.objectives.OBJECTIVES` has them by name.

    Attributes:
      options: the dataclass of its fields of `config.objective`; a subclass of `Options`.
      sums: sums over a part of a batch, see `objectives.loss.Sums`; takes the options too, as `options`.
      metrics: names of the metrics among them.
      batch: the class of its batches.
      task: makes the run's feed, held-out evaluation and report.
      sweeps: its sums are each adapter's own where there is a stack of them.
      check: raises InputError where another field of a config does not fit the objective.
    """

    options: type[Options]
    sums: Callable[..., tuple[Float[Array, "*a"], Totals]]
    batch: type[Batch]
    task: Callable[[Beginning], Task]
    metrics: tuple[str, ...] = ()
    sweeps: bool = False
    check: Callable[[TrainConfig], None] = lambda config: None

    def loss(self, options: Options) -> Loss:
        """Returns the loss that the step minimises."""
        return Loss(functools.partial(self.sums, options=options), self.metrics)


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


def row_options(data: DataConfig) -> dict[str, Any]:
    """Returns the options of all functions that make rows of documents or pairs."""
    return {name: getattr(data, name) for name in ("batch_size", "sequence_length", "packing")}

"""Preference learning against a frozen reference: DPO and IPO."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from rich.console import Console

from aligner_jax.data.documents import digest
from aligner_jax.data.pair_rows import eval_pair_batches, train_pair_batches
from aligner_jax.data.pairs import Pair, documents_of, prompt_numbers, tokenize_pairs
from aligner_jax.errors import InputError
from aligner_jax.evals import preference
from aligner_jax.objectives import preference as preference_loss
from aligner_jax.objectives.batch import PairBatch
from aligner_jax.objectives.dpo import DPOOptions
from aligner_jax.objectives.feed import DataFeed
from aligner_jax.objectives.ipo import IPOOptions
from aligner_jax.objectives.reference import adapter_digest, fingerprint, load_reference, load_table, save_table, table
from aligner_jax.peft import Adapter
from aligner_jax.runtime.agreement import check_same
from aligner_jax.runtime.config import TrainConfig
from aligner_jax.runtime.files import write_atomically
from aligner_jax.runtime.nonfinite import finite_or_none
from aligner_jax.runtime.same_run import save_config
from aligner_jax.tasks.task import (
    Objective,
    Task,
    TaskInputs,
    context_length,
    row_options,
    split_examples,
    tokenizer_of,
)
from aligner_jax.weights.base import Base


def preference_task(inputs: TaskInputs) -> Task:
    """Returns the task of preference learning against the reference that the config names."""
    config, base, console = inputs.config, inputs.base, inputs.console
    options, initial = inputs.options, inputs.initial
    reference = load_reference(options.reference, base, initial)
    context = min(context_length(base, each) for each in (initial, reference) if each is not None)
    training, heldout = load_pairs(config, base, console, context)
    input_digests = {
        "base": base.fingerprint,
        "form of the base": base.held_as,
        "adapter to begin with": adapter_digest(initial),
        "reference adapter": adapter_digest(reference),
        "training data": digest(documents_of(training)),
    }
    check_same({**input_digests, "held-out data": digest(documents_of(heldout))})
    inputs.check()
    tables: dict[str, np.ndarray] = {}
    if options.cache_reference:
        parts = {"train": training, **({"heldout": heldout} if heldout else {})}
        tables = reference_tables(inputs, reference, parts)
    rows = row_options(config.data)
    feed = DataFeed(train_pair_batches(training, seed=config.seed, reference_t=tables.get("train"), **rows))
    heldout_batches = []
    if heldout:
        heldout_batches = list(eval_pair_batches(heldout, reference_t=tables.get("heldout"), **rows))

    def measure(*adapters: Adapter) -> list[preference.PreferenceMetrics]:
        return preference.measure_each(
            base.params, adapters, reference, heldout_batches,
            prompts_m=prompt_numbers(heldout), options=options, config=base.config,
        )  # fmt: skip

    def write_report(adapter: Adapter, path: Path) -> dict[str, float]:
        before, after = measure(initial, adapter)
        result = preference.PreferenceReport(
            before=before,
            after=after,
            num_params=adapter.num_params,
            file_bytes=path.stat().st_size,
        )
        write_atomically(path.with_name("report.json"), json.dumps(finite_or_none(result.as_dict()), indent=2) + "\n")
        preference.show(result, console)
        return after.as_metrics()

    # The steps do not need the reference adapter if its log-probabilities are cached.
    in_steps = None if tables else reference
    return Task(
        input_digests, feed, in_steps, bool(heldout), lambda adapter: measure(adapter)[0].as_metrics(), write_report
    )


def load_pairs(config: TrainConfig, base: Base, console: Console, context: int) -> tuple[list[Pair], list[Pair]]:
    """Reads and tokenizes the training and the held-out preference pairs, and prints their number.

    Args:
      context: maximum tokens of a document, see `task.context_length`.
    """
    tokenizer, data = tokenizer_of(base, config), config.data
    pairs = []
    for name, part in zip(("training", "held-out"), split_examples(config, console), strict=True):
        of_part, summary = tokenize_pairs(
            part, tokenizer, data.template, system=data.system,
            sequence_length=data.sequence_length, context_length=context, packing=data.packing,
            overlong=data.overlong,
        )  # fmt: skip
        console.out(f"{name}: {summary}")
        pairs.append(of_part)
    return pairs[0], pairs[1]


def reference_tables(
    inputs: TaskInputs, reference: Adapter | None, parts: dict[str, list[Pair]]
) -> dict[str, np.ndarray]:
    """Returns the reference's log-probabilities of all pairs, by part; computes and saves those not in the workdir."""
    config, base, workdir, console = inputs.config, inputs.base, inputs.workdir, inputs.console
    tables = {}
    # The config is saved first, since it marks the workdir as this run's. An existing one stays until the run resumes.
    workdir.check()
    if not (workdir.path / "config.json").exists():
        save_config(config, workdir.path)
    for name, pairs in parts.items():
        path = workdir.path / f"reference_{name}.npz"
        digests = fingerprint(base, reference, pairs)
        found_t, why = load_table(path, digests, pairs)
        if found_t is None:
            console.out(f"reference: {f'{why}; ' if why else ''}its log-probabilities of {len(pairs):,} {name} pairs…")
            batches = _checked(eval_pair_batches(pairs, **row_options(config.data)), inputs.check)
            found_t = table(base.params, reference, batches, pairs, config=base.config)
            workdir.check()
            save_table(path, found_t, digests)
        tables[name] = found_t
    return tables


def _checked(batches: Iterable[PairBatch], check: Callable[[], None]) -> Iterator[PairBatch]:
    """Yields the batches and calls `check` before each one, which ends a run that was asked to stop."""
    for batch in batches:
        check()
        yield batch


def check_preferences(config: TrainConfig) -> None:
    """Refuses config fields that do not fit preference learning. Raises InputError."""
    data = config.data
    if data.loss_on != "answers":
        raise InputError(f"config.data.loss_on is {data.loss_on!r}, but a preference is between answers")
    if data.batch_size // config.optim.accumulate % PairBatch.rows_per_unit(data.packing):
        raise InputError(
            f"config.data.batch_size is {data.batch_size}, of which each of {config.optim.accumulate} parts would hold "
            "half a pair: without config.data.packing a pair is two rows"
        )
    if config.report.form is not None:
        raise InputError(
            f"config.report.form is {config.report.form!r}, but the report on preferences generates no answers"
        )


def preference_objective(options: type[preference_loss.PreferenceOptions]) -> Objective:
    """Returns the objective with the loss of the given options."""
    return Objective(
        options=options, sums=preference_loss.sums, metrics=preference_loss.METRICS, batch=PairBatch,
        task=preference_task, check=check_preferences,
    )  # fmt: skip


DPO, IPO = preference_objective(DPOOptions), preference_objective(IPOOptions)

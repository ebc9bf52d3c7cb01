"""Supervised fine-tuning on the answers of examples."""

import dataclasses
import json
from pathlib import Path

from rich.console import Console

from aligner_jax.data import pipeline
from aligner_jax.data.documents import digest
from aligner_jax.data.sources import Example, Preference, Text
from aligner_jax.data.templates import render_example_prompt
from aligner_jax.evals import before_after, sweep
from aligner_jax.evals.heldout import heldout_loss
from aligner_jax.objectives import sft
from aligner_jax.objectives.batch import Batch
from aligner_jax.objectives.feed import DataFeed
from aligner_jax.objectives.loss import Options
from aligner_jax.objectives.reference import adapter_digest
from aligner_jax.peft import Adapter, has_strength, with_strength
from aligner_jax.peft.rows import unstack_adapter
from aligner_jax.runtime.agreement import check_same
from aligner_jax.runtime.config import TrainConfig
from aligner_jax.runtime.files import write_atomically
from aligner_jax.runtime.nonfinite import finite_or_none
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


def sft_task(inputs: TaskInputs) -> Task:
    """Returns the task of supervised fine-tuning."""
    config, base, console = inputs.config, inputs.base, inputs.console
    adapter = inputs.initial
    data = load_data(config, base, console, context_length(base, adapter))
    input_digests = {
        "base": base.fingerprint,
        "form of the base": base.held_as,
        "adapter to begin with": adapter_digest(adapter),
        "training data": digest(data.train),
    }
    check_same({**input_digests, "held-out data": digest(data.heldout)})
    inputs.check()
    feed = DataFeed(pipeline.train_batches(data.train, seed=config.seed, **row_options(config.data)))
    heldout_batches = pipeline.eval_batches(data.heldout, **row_options(config.data)) if data.heldout else []

    def loss_of(adapter: Adapter) -> float:
        return heldout_loss(base.params, adapter, heldout_batches, config=base.config)

    num_adapters = config.sweep.num_adapters

    def evaluate(adapter: Adapter) -> dict[str, float]:
        if num_adapters is None:
            return {"heldout_loss": loss_of(adapter)}
        return {f"heldout_loss_{i}": loss_of(unstack_adapter(adapter, i)) for i in range(num_adapters)}

    def write_report(adapter: Adapter, path: Path) -> dict[str, float]:
        if num_adapters is None:
            return {"heldout_loss": report(config, base, adapter, data, heldout_batches, path, console)}
        losses = evaluate(adapter)
        sweep.report(config, list(losses.values()), path.with_name("report.json"), console)
        return losses

    return Task(input_digests, feed, None, bool(heldout_batches), evaluate, write_report)


SFT = Objective(options=Options, sums=sft.sums, batch=Batch, task=sft_task, sweeps=True)


@dataclasses.dataclass(frozen=True)
class Data:
    """Data of a run.

    Attributes:
      train, heldout: tokenized documents.
      heldout_questions, heldout_prompts: those of the held-out examples that the report generates answers for.
    """

    train: list[pipeline.Document]
    heldout: list[pipeline.Document]
    heldout_examples: list[Example]
    heldout_questions: list[str]
    heldout_prompts: list[str]


def load_data(config: TrainConfig, base: Base, console: Console, context: int | None = None) -> Data:
    """Reads the training and held-out examples, applies the template, tokenizes, and prints a summary.

    Args:
      context: maximum tokens of a document, see `task.context_length`; None sets no limit.
    """
    tokenizer, data = tokenizer_of(base, config), config.data
    examples, heldout_examples = split_examples(config, console)
    if any(isinstance(example.record, Preference) for example in examples):
        console.out("data: these are preferences, of which sft learns the chosen answers; dpo and ipo learn from both")
    documents = {}
    for name, part in (("training", examples), ("held-out", heldout_examples)):
        documents[name], summary = pipeline.tokenize_examples(
            part, tokenizer, data.template, system=data.system, loss_on=data.loss_on,
            sequence_length=data.sequence_length, context_length=context, overlong=data.overlong,
        )  # fmt: skip
        console.out(f"{name}: {summary}")
    # Held-out examples that were truncated or dropped may have a prompt that leaves no room for an answer.
    room = base.config.context_length - config.report.max_new_tokens
    asked = [
        (e.question, render_example_prompt(e, tokenizer, data.template, data.system))
        for e in heldout_examples
        if not isinstance(e.record, Text)
    ]
    asked = [each for each in asked if len(tokenizer.encode(each[1], bos=tokenizer.add_bos)) <= room]
    if config.report.form is not None and (longer := len(heldout_examples) - len(asked)):
        console.out(f"held-out: {longer:,} prompts without room for an answer are not asked in the report")
    questions, prompts = ([each[i] for each in asked] for i in (0, 1))
    return Data(documents["training"], documents["held-out"], heldout_examples, questions, prompts)


def report(
    config: TrainConfig,
    base: Base,
    adapter: Adapter,
    data: Data,
    batches: list[Batch],
    path: Path,
    console: Console,
) -> float:
    """Measures the base and the adapter on the held-out examples; prints the result and writes report.json.

    Args:
      path: the adapter's file; report.json is written beside it.

    Returns:
      The held-out loss of the adapter, in nats per target token.
    """
    # Strength 0 equals the base bit for bit, and needs no further compilation.
    base_alone = with_strength(adapter, 0.0) if has_strength(adapter) else None
    before, after = (
        before_after.measure(
            base, compared, batches, data.heldout_prompts,
            form=config.report.form, max_new_tokens=config.report.max_new_tokens, console=console, who=who,
        )
        for who, compared in (("the base", base_alone), ("the adapter", adapter))
    )  # fmt: skip
    result = before_after.SftReport(
        before=before,
        after=after,
        questions=data.heldout_questions,
        num_params=adapter.num_params,
        file_bytes=path.stat().st_size,
    )
    write_atomically(path.with_name("report.json"), json.dumps(finite_or_none(result.as_dict()), indent=2) + "\n")
    before_after.show(result, console, samples=config.report.samples)
    return after.heldout_loss

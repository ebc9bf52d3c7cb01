"""Compares a base with and without an adapter on held-out examples: loss, form of the answers, answers side by side."""

import dataclasses
from collections.abc import Iterator, Sequence

from rich.console import Console

from aligner_jax.decoding.sampler import sample
from aligner_jax.errors import InputError
from aligner_jax.evals.form import FORMS, form_share
from aligner_jax.evals.heldout import DocumentLoss, document_losses, mean_loss
from aligner_jax.objectives.batch import Batch
from aligner_jax.peft import Adapter
from aligner_jax.runtime.progress import Count
from aligner_jax.runtime.tables import Table
from aligner_jax.weights.base import Base

ANSWERS_AT_ONCE = 64
"""Prompts per batch, which bounds the memory of the cache."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """Results of one model on the held-out examples.

    Attributes:
      heldout_loss: mean loss in nats per target token.
      answers: answers to the prompts; empty if no form is asked for.
      form_share: share of the answers that have the form, from 0 to 1; None without answers.
      documents: loss of every document, in the order of the batches; the documents of two models form pairs.
    """

    heldout_loss: float
    answers: list[str]
    form_share: float | None
    documents: list[DocumentLoss]


@dataclasses.dataclass(frozen=True)
class SftReport:
    """Results of the base without and with the adapter on the same held-out examples.

    Attributes:
      before: results of the base alone.
      after: results with the adapter.
      questions: questions of the answers.
      num_params: trained parameters of the adapter.
      file_bytes: size of the adapter file.
    """

    before: Measured
    after: Measured
    questions: list[str]
    num_params: int
    file_bytes: int

    def as_dict(self) -> dict:
        """Returns the fields as plain values, for JSON."""
        return dataclasses.asdict(self)


def measure(
    base: Base,
    adapter: Adapter | None,
    batches: Sequence[Batch],
    prompts: Sequence[str],
    *,
    form: str | None,
    max_new_tokens: int,
    console: Console | None = None,
    who: str = "the model",
) -> Measured:
    """Computes the held-out loss and, if a form is asked for, greedy answers to the prompts.

    Args:
      prompts: prompts as rendered by the template.
      form: a key of `FORMS`; None generates no answers.
      max_new_tokens: tokens of an answer at most.
      console: console for the progress; None shows none.
      who: name of the model in the progress.

    Raises:
      InputError: the form is unknown; see also `mean_loss` and `sample`.
    """
    check_form(form)
    console = console or Console(quiet=True)
    with Count(console, f"held-out batches of {who}", total=len(batches)) as count:
        documents = document_losses(base.params, adapter, _counted(batches, count), config=base.config)
    loss = mean_loss(documents)
    if form is None or not prompts:
        return Measured(loss, [], None, documents)
    parts = [prompts[first : first + ANSWERS_AT_ONCE] for first in range(0, len(prompts), ANSWERS_AT_ONCE)]
    answers: list[str] = []
    with Count(console, f"tokens of {len(prompts):,} answers of {who}", total=len(parts) * max_new_tokens) as count:
        for number, part in enumerate(parts, 1):
            answers += sample(base, adapter, part, max_new_tokens=max_new_tokens, on_step=lambda: count.add(1))
            # Answers may all have ended before the limit.
            count.add(number * max_new_tokens - count.done)
    return Measured(loss, answers, form_share(answers, FORMS[form]), documents)


def _counted(batches: Sequence[Batch], count: Count) -> Iterator[Batch]:
    for batch in batches:
        yield batch
        # The next batch is asked for once this one is done.
        count.add(1)


def check_form(form: str | None) -> None:
    """Refuses a form that is neither None nor in `FORMS`. Raises InputError."""
    if form is not None and form not in FORMS:
        raise InputError(f"config.report.form is {form!r}, but should be one of {', '.join(FORMS)}")


def show(result: SftReport, console: Console, *, samples: int) -> None:
    """Prints the table of results, and the first `samples` answers of both models side by side."""
    table = Table("Before and after, on held-out examples")
    table.add_column("")
    table.add_column("base", justify="right")
    table.add_column("with adapter", justify="right")
    table.add_row("held-out loss (nats a token)", *(f"{m.heldout_loss:.3f}" for m in (result.before, result.after)))
    if result.before.form_share is not None and result.after.form_share is not None:
        shares = (result.before.form_share, result.after.form_share)
        total = len(result.questions)
        table.add_row("answers in the wanted form", *(f"{round(s * total)} of {total} ({s:.0%})" for s in shares))
    table.add_row("trained parameters", "0", f"{result.num_params:,}")
    table.add_row("size of the adapter file", "", f"{result.file_bytes:,} bytes")
    console.print(table)
    if not result.after.answers or not samples:
        return
    answers = Table("Answers side by side", show_lines=True)
    for heading in ("question", "base", "with adapter"):
        answers.add_column(heading)
    for row in list(zip(result.questions, result.before.answers, result.after.answers, strict=True))[:samples]:
        answers.add_row(*map(str.strip, row))
    console.print(answers)

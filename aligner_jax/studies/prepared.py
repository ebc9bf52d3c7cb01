"""Tasks of a study as batches for a base, and what an adapter does on them."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from aligner_jax.data.documents import Document, Summary, tokenize_examples
from aligner_jax.data.pipeline import eval_batches, train_batches
from aligner_jax.data.sources import Example
from aligner_jax.data.templates import render_prompt
from aligner_jax.data.tokenizer import Tokenizer
from aligner_jax.decoding.sampler import sample
from aligner_jax.errors import InputError
from aligner_jax.evals.heldout import document_losses, heldout_loss
from aligner_jax.objectives import sft
from aligner_jax.objectives.batch import Batch
from aligner_jax.objectives.loss import Loss
from aligner_jax.peft import Adapter
from aligner_jax.studies.families.task import Task
from aligner_jax.weights.base import Base

TEMPLATE, SYSTEM = "chat", ""


@dataclasses.dataclass(frozen=True)
class Rows:
    """Shape of training batches: rows per step of a run, and tokens per row."""

    rows: int
    length: int


class Prepared(Protocol):
    """A task for a base. Examples longer than a row are left out.

    A `reference` is the adapter from which a run of a task with `Task.after` began; other tasks have None.

    Attributes:
      task: the task.
      loss: loss to minimize.
      base_loss: held-out loss of the base, or of the reference.
      left_out: number of examples that are longer than a row.
      digest: hash of the tokens that are learned and held out, and of the prompts.
      test_digest: hash of the tokens that are tested.
      questions: questions of the prompts, in the order of `successes`.
    """

    task: Task
    loss: Loss
    base_loss: float
    left_out: int
    digest: str
    test_digest: str
    questions: Sequence[str]

    def batches(self, seed: int) -> Iterator[Batch]:
        """Returns an endless iterator of training batches."""
        ...

    def loss_of(self, adapter: Adapter | None, reference: Adapter | None = None) -> float:
        """Returns the loss on the held-out examples that end runs and choose rates: nats per target token or pair."""
        ...

    def test_losses(self, adapter: Adapter | None) -> list[tuple[float, int]]:
        """Returns nats and target tokens of the examples that are reported, on which no choice was made."""
        ...

    def successes(self, adapter: Adapter | None, reference: Adapter | None = None) -> list[float]:
        """Returns a number from 0 to 1 for each prompt of the task: 1 is a success."""
        ...


class PreparedAnswers:
    """A task of answers; see `Prepared`."""

    loss = sft.LOSS

    def __init__(self, task: Task, base: Base, rows: Rows) -> None:
        """Tokenizes the task, and measures the base's held-out loss.

        Raises:
          InputError: all examples of a part are longer than a row, or the base has no tokenizer.
        """
        self.task, self._base, self._rows, self.left_out = task, base, rows, 0
        self._tokenizer = tokenizer_of(base)
        self._train = self._documents(task.train)
        heldout = self._documents(task.heldout)
        test = self._documents(task.test) if task.test else []
        self._heldout, self._test = self._batches(heldout), self._batches(test) if test else []
        self.base_loss = self.loss_of(None)
        self.questions: Sequence[str] = [checked.question for checked in task.prompts]
        self.digest, self.test_digest = digest([*self._train, *heldout], self.questions), digest(test)

    def batches(self, seed: int) -> Iterator[Batch]:
        """See `Prepared`."""
        return train_batches(self._train, batch_size=self._rows.rows, sequence_length=self._rows.length, seed=seed)

    def loss_of(self, adapter: Adapter | None, reference: Adapter | None = None) -> float:
        """See `Prepared`."""
        return heldout_loss(self._base.params, adapter, self._heldout, config=self._base.config)

    def test_losses(self, adapter: Adapter | None) -> list[tuple[float, int]]:
        """See `Prepared`."""
        found = document_losses(self._base.params, adapter, self._test, config=self._base.config)
        return [(loss.nats, loss.targets) for loss in found]

    def successes(self, adapter: Adapter | None, reference: Adapter | None = None) -> list[float]:
        """Returns 1 for each prompt whose greedy answer passes its check."""
        if not self.task.prompts:
            return []
        prompts = [render_prompt(question, self._tokenizer, TEMPLATE, system=SYSTEM) for question in self.questions]
        answers = sample(self._base, adapter, prompts, max_new_tokens=self.task.max_new_tokens)
        return [float(each.check(answer)) for each, answer in zip(self.task.prompts, answers, strict=True)]

    def _documents(self, examples: Sequence[Example]) -> list[Document]:
        documents, left_out = tokenized(tokenize_examples, examples, self._tokenizer, self.task, self._rows)
        self.left_out += left_out
        return documents

    def _batches(self, documents: Sequence[Document]) -> list[Batch]:
        return eval_batches(documents, batch_size=self._rows.rows, sequence_length=self._rows.length)


def tokenized[T](
    tokenize: Callable[..., tuple[list[T], Summary]],
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    task: Task,
    rows: Rows,
) -> tuple[list[T], int]:
    """Returns the tokenized examples, and the number of those that are longer than a row and left out.

    Args:
      tokenize: `tokenize_examples` or `tokenize_pairs`.
      examples: examples of a part of the task.
      tokenizer: tokenizer of the base.
      task: the task, which errors name.
      rows: shape of the batches.

    Raises:
      InputError: all examples are longer than a row.
    """
    try:
        found, summary = tokenize(
            examples, tokenizer, TEMPLATE, system=SYSTEM, sequence_length=rows.length, overlong="drop"
        )
    except InputError as error:
        raise InputError(f"{task.name}: {error} (--length is {rows.length})") from error
    return found, summary.dropped


def tokenizer_of(base: Base) -> Tokenizer:
    """Returns the base's tokenizer. Raises InputError if it has none."""
    if base.tokenizer is None:
        raise InputError("the base has no tokenizer, which a study needs: add its files to the base's folder")
    return base.tokenizer


def digest(documents: Iterable[Document], questions: Sequence[str] = ()) -> str:
    """Returns a hash of documents and questions."""
    found = hashlib.sha256()
    for document in documents:
        found.update(document["tokens"].tobytes() + document["loss_mask"].tobytes() + b"\n")
    for question in questions:
        found.update(question.encode() + b"\n")
    return found.hexdigest()[:16]

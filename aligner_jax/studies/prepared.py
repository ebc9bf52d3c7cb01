"""Tasks of a study as batches for a base, and what an adapter does on them."""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence

from aligner_jax.data.documents import Document, tokenize_examples
from aligner_jax.data.pipeline import eval_batches, train_batches
from aligner_jax.data.sources import Example
from aligner_jax.data.templates import render_prompt
from aligner_jax.decoding.sampler import sample
from aligner_jax.errors import InputError
from aligner_jax.evals.heldout import document_losses, heldout_loss
from aligner_jax.objectives.batch import Batch
from aligner_jax.peft import Adapter
from aligner_jax.studies.families.task import Task
from aligner_jax.weights.base import Base

TEMPLATE, SYSTEM = "chat", ""


@dataclasses.dataclass(frozen=True)
class Rows:
    """Shape of training batches: rows per step of a run, and tokens per row."""

    rows: int
    length: int


class Prepared:
    """A task for a base.

    Attributes:
      task: the task.
      base_loss: held-out loss of the base.
      left_out: number of examples that are longer than a row.
      digest: hash of the task's tokens and prompts.
    """

    def __init__(self, task: Task, base: Base, rows: Rows) -> None:
        """Tokenizes the task, and measures the base's held-out loss. Examples longer than a row are left out.

        Raises:
          InputError: all examples of a part are longer than a row.
        """
        self.task, self._base, self._rows, self.left_out = task, base, rows, 0
        self._train = self._documents(task.train)
        heldout = self._documents(task.heldout)
        self._heldout = self._batches(heldout)
        self._test = self._batches(self._documents(task.test)) if task.test else []
        self.base_loss = self.loss_of(None)
        self.digest = _digest([*self._train, *heldout], [checked.question for checked in task.prompts])

    def batches(self, seed: int) -> Iterator[Batch]:
        """Returns an endless iterator of training batches."""
        return train_batches(self._train, batch_size=self._rows.rows, sequence_length=self._rows.length, seed=seed)

    def loss_of(self, adapter: Adapter | None) -> float:
        """Returns the loss on the held-out examples that end runs and choose rates, in nats per target token."""
        return heldout_loss(self._base.params, adapter, self._heldout, config=self._base.config)

    def test_losses(self, adapter: Adapter | None) -> list[tuple[float, int]]:
        """Returns nats and target tokens of the examples that are reported, on which no choice was made."""
        found = document_losses(self._base.params, adapter, self._test, config=self._base.config)
        return [(loss.nats, loss.targets) for loss in found]

    def successes(self, adapter: Adapter | None) -> list[int]:
        """Returns 1 or 0 for each prompt of the task: whether the greedy answer passes its check."""
        if not self.task.prompts:
            return []
        tokenizer = self._base.tokenizer
        assert tokenizer is not None
        prompts = [render_prompt(each.question, tokenizer, TEMPLATE, system=SYSTEM) for each in self.task.prompts]
        answers = sample(self._base, adapter, prompts, max_new_tokens=self.task.max_new_tokens)
        return [int(each.check(answer)) for each, answer in zip(self.task.prompts, answers, strict=True)]

    def _documents(self, examples: Sequence[Example]) -> list[Document]:
        assert self._base.tokenizer is not None
        length = self._rows.length
        try:
            documents, summary = tokenize_examples(
                examples, self._base.tokenizer, TEMPLATE, system=SYSTEM, sequence_length=length, overlong="drop"
            )
        except InputError as error:
            raise InputError(f"{self.task.name}: {error} (--length is {length})") from error
        self.left_out += summary.dropped
        return documents

    def _batches(self, documents: Sequence[Document]) -> list[Batch]:
        return eval_batches(documents, batch_size=self._rows.rows, sequence_length=self._rows.length)


def _digest(documents: Sequence[Document], questions: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for document in documents:
        digest.update(document["tokens"].tobytes() + document["loss_mask"].tobytes() + b"\n")
    for question in questions:
        digest.update(question.encode() + b"\n")
    return digest.hexdigest()[:16]

"""A task of preferences for a base: DPO against the adapter from which a run began."""

import functools
import math
from collections.abc import Iterator, Sequence

from aligner_jax.data.pair_rows import eval_pair_batches, train_pair_batches
from aligner_jax.data.pairs import Pair, documents_of, prompt_numbers, tokenize_pairs
from aligner_jax.data.sources import Example
from aligner_jax.evals import preference
from aligner_jax.objectives import preference as preference_loss
from aligner_jax.objectives.batch import Batch
from aligner_jax.objectives.dpo import DPOOptions
from aligner_jax.objectives.loss import Loss
from aligner_jax.peft import Adapter
from aligner_jax.studies.families.task import Task
from aligner_jax.studies.prepared import Prepared, PreparedAnswers, Rows, digest, tokenized, tokenizer_of
from aligner_jax.weights.base import Base

OPTIONS = DPOOptions()


def prepare(task: Task, base: Base, rows: Rows) -> Prepared:
    """Returns a task for a base. Raises InputError if all examples of a part are longer than a row."""
    return PreparedPairs(task, base, rows) if task.after else PreparedAnswers(task, base, rows)


class PreparedPairs:
    """A task of preferences; see `Prepared`."""

    loss = Loss(functools.partial(preference_loss.sums, options=OPTIONS), preference_loss.METRICS)
    base_loss = math.log(2)

    def __init__(self, task: Task, base: Base, rows: Rows) -> None:
        """Tokenizes the task.

        Raises:
          InputError: all examples of a part are longer than a row, or the base has no tokenizer.
        """
        self.task, self._base, self._rows, self.left_out = task, base, rows, 0
        self._tokenizer = tokenizer_of(base)
        self._train, self._heldout, self._test = map(self._pairs, (task.train, task.heldout, task.test))
        self.digest = digest(documents_of([*self._train, *self._heldout]))
        self.test_digest = digest(documents_of(self._test))
        # Each prompt has one pair.
        self.questions: Sequence[str] = [str(number) for number in prompt_numbers(self._test)]

    def batches(self, seed: int) -> Iterator[Batch]:
        """See `Prepared`."""
        return train_pair_batches(self._train, batch_size=self._rows.rows, sequence_length=self._rows.length, seed=seed)

    def loss_of(self, adapter: Adapter | None, reference: Adapter | None = None) -> float:
        """See `Prepared`."""
        return self._measured(self._heldout, adapter, reference).loss

    def test_losses(self, adapter: Adapter | None) -> list[tuple[float, int]]:
        """Returns nothing: accuracies are reported."""
        return []

    def successes(self, adapter: Adapter | None, reference: Adapter | None = None) -> list[float]:
        """Returns 1 for each test pair whose preferred answer has the higher reward, and 0.5 for equal ones."""
        return [accuracy for _, accuracy in self._measured(self._test, adapter, reference).each]

    def _measured(
        self, pairs: Sequence[Pair], adapter: Adapter | None, reference: Adapter | None
    ) -> preference.PreferenceMetrics:
        batches = eval_pair_batches(pairs, batch_size=self._rows.rows, sequence_length=self._rows.length)
        return preference.measure(
            self._base.params, adapter, reference, batches, prompts_m=prompt_numbers(pairs), options=OPTIONS,
            config=self._base.config,
        )  # fmt: skip

    def _pairs(self, examples: Sequence[Example]) -> list[Pair]:
        pairs, left_out = tokenized(tokenize_pairs, examples, self._tokenizer, self.task, self._rows)
        self.left_out += left_out
        return pairs

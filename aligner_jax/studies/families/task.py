"""Tasks of the studies: training examples, held-out examples, and held-out prompts with a check of the answer."""

import dataclasses
from collections.abc import Callable, Sequence

from aligner_jax.data.sources import Example
from aligner_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Checked:
    """A held-out prompt.

    Attributes:
      question: the user's message.
      check: returns True if the text of an answer is a success; a pure function.
    """

    question: str
    check: Callable[[str], bool]


@dataclasses.dataclass(frozen=True)
class Task:
    """A task to learn.

    Attributes:
      name: name, such as "form/json".
      family: name of the tasks whose rates are searched together, on the first one.
      train: training examples.
      heldout: examples of the held-out loss, by which training is stopped and rates are compared. They share no
        question with `prompts`, and none with `train`.
      prompts: prompts of the success rate, none of which is a question of `train` or `heldout`. Empty if the task has
        no check of answers.
      max_new_tokens: tokens of an answer at most.
      test: examples whose loss is reported and by which nothing is chosen; for tasks without checks.
      after: name of the task from whose adapter, of the same arm and seed, a run begins. The examples are then
        preferences, the loss is DPO's with that adapter as reference, and a test example is a success if its preferred
        answer has the higher reward.
      rate, cost: rates with which searches begin, and time of a step, relative to supervised training.
    """

    name: str
    family: str
    train: Sequence[Example]
    heldout: Sequence[Example]
    prompts: Sequence[Checked]
    max_new_tokens: int
    test: Sequence[Example] = ()
    after: str | None = None
    rate: float = 1.0
    cost: float = 1.0


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of a task; the defaults suit training on a CPU.

    Attributes:
      train: number of training examples. The family "knowledge" has `facts` times its training phrasings instead, and
        tasks without checks have all examples that are left.
      heldout: number of held-out examples.
      prompts: number of held-out prompts, or of test examples.
      facts: number of facts of the family "knowledge".
    """

    train: int = 192
    heldout: int = 32
    prompts: int = 48
    facts: int = 200

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                raise InputError(f"the size {field.name} is {getattr(self, field.name)}; it must be above 0")


def divided[T](items: Sequence[T], sizes: Sizes, source: str) -> tuple[Sequence[T], Sequence[T], Sequence[T]]:
    """Returns the items of training, of the held-out loss, and of the prompts.

    The prompts come first and the training items last, so that a larger training set leaves the others as they are.

    Args:
      items: distinct items.
      sizes: numbers of items.
      source: origin of the items, for the message.

    Raises:
      InputError: there are too few items.
    """
    prompts, heldout = sizes.prompts, sizes.prompts + sizes.heldout
    if len(items) < heldout + sizes.train:
        raise InputError(
            f"{source} has {len(items)} questions that suit, too few for {sizes.train} to train, {sizes.heldout} held "
            f"out and {sizes.prompts} prompts; ask for fewer"
        )
    return items[heldout : heldout + sizes.train], items[prompts:heldout], items[:prompts]

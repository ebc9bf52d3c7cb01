"""Tasks without a check of answers: the held-out loss on a file's examples is all that is measured."""

from pathlib import Path

from aligner_jax.data.sources import Preference, load_examples, split_by_prompt
from aligner_jax.errors import InputError
from aligner_jax.studies.families.task import Sizes, Task

LOSSES = {"alpaca": "loss", "gsm8k": "reasoning"}
"""Families by the names of the tasks, which are keys of `splits.FILES`."""


def loss_task(name: str, file: Path, sizes: Sizes) -> Task:
    """Returns the task "loss/<name>": the last `sizes.heldout` examples, and the first `sizes.train` of the others.

    Examples with the same prompt are held out together, see `split_by_prompt`.

    Raises:
      InputError: the file cannot be read, holds preferences, or has too few examples.
    """
    examples = load_examples(file)
    if isinstance(examples[0].record, Preference):
        raise InputError(f"{examples[0].where} is a preference, but loss/{name} learns from answers")
    train, heldout = split_by_prompt(examples, sizes.heldout)
    if len(train) < sizes.train or not heldout:
        raise InputError(
            f"{file} has {len(examples)} examples, too few for {sizes.train} to train and {sizes.heldout} held out; "
            "ask for fewer"
        )
    return Task(f"loss/{name}", LOSSES[name], train[: sizes.train], heldout, (), 0)

"""Tasks without a check of answers: the held-out loss on a file's examples is all that is measured."""

from pathlib import Path

from aligner_jax.data.sources import Preference, load_examples, split_by_prompt
from aligner_jax.errors import InputError
from aligner_jax.studies.families.task import Sizes, Task

LOSSES = ("alpaca", "gsm8k")
"""Names of the tasks and their families, which are keys of `tasks.FILES`."""


def loss_task(name: str, file: Path, sizes: Sizes) -> Task:
    """Returns the task "loss/<name>": it tests the last examples, holds out those before, and trains on the others.

    Examples with the same prompt are in one part, see `split_by_prompt`.

    Raises:
      InputError: the file cannot be read, holds preferences, or has too few examples.
    """
    examples = load_examples(file)
    if isinstance(examples[0].record, Preference):
        raise InputError(f"{examples[0].where} is a preference, but loss/{name} learns from answers")
    rest, test = split_by_prompt(examples, sizes.prompts)
    train, heldout = split_by_prompt(rest, sizes.heldout)
    if not train or not heldout or not test:
        raise InputError(
            f"{file} has {len(examples)} examples, too few for {sizes.heldout} held out and {sizes.prompts} tested; "
            "ask for fewer"
        )
    return Task(f"loss/{name}", name, train, heldout, (), 0, test)

"""Tasks of PKU-SafeRLHF: to give the preferred answers, and then to prefer them to the rejected ones."""

from collections.abc import Sequence
from pathlib import Path

from aligner_jax.data.sources import Example, load_examples, prompt_of, without_repeats
from aligner_jax.errors import InputError
from aligner_jax.studies.families.task import Sizes, Task

ANSWERS, PAIRS = "preference/answers", "preference/pairs"
"""Names of both tasks. A run of the second begins from the adapter of the first."""
_DPO_RATE, _DPO_COST = 0.1, 1.5
"""DPO's first rates relative to those of supervised training, and its time per step: the reference is a third of it."""


def preference_task(name: str, file: Path, sizes: Sizes) -> Task:
    """Returns the task "preference/<name>", "answers" or "pairs".

    The file repeats prompts and whole pairs. A repeated pair is left out, and the first prompts of the file are those
    tested, the next ones are held out, with one pair each; all pairs of the others are trained on.

    Raises:
      InputError: the file cannot be read, or has too few prompts.
    """
    by_prompt: dict[object, list[Example]] = {}
    for example in without_repeats(load_examples(file, "pku_saferlhf")):
        by_prompt.setdefault(prompt_of(example), []).append(example)
    of_prompts, tested = list(by_prompt.values()), sizes.prompts
    test, heldout = _one_each(of_prompts[:tested]), _one_each(of_prompts[tested : tested + sizes.heldout])
    train = [example for some in of_prompts[tested + sizes.heldout :] for example in some]
    if not train:
        raise InputError(
            f"{file} has {len(of_prompts)} prompts, too few for {sizes.heldout} held out and {tested} tested; ask for "
            "fewer"
        )
    if name == "answers":
        return Task(ANSWERS, "answers", train, heldout, (), 0, test)
    return Task(PAIRS, "pairs", train, heldout, (), 0, test, after=ANSWERS, rate=_DPO_RATE, cost=_DPO_COST)


def _one_each(prompts: Sequence[Sequence[Example]]) -> list[Example]:
    return [some[0] for some in prompts]

"""Makes the tasks of the studies by name."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from aligner_jax.errors import InputError
from aligner_jax.studies.families.form import form_task, ordinary_answers
from aligner_jax.studies.families.knowledge import knowledge_task
from aligner_jax.studies.families.losses import LOSSES, loss_task
from aligner_jax.studies.families.preferences import ANSWERS, PAIRS, preference_task
from aligner_jax.studies.families.reasoning import GYMS, reasoning_task
from aligner_jax.studies.families.styles import STYLES
from aligner_jax.studies.families.task import Sizes, Task

FILES = {
    "alpaca": "sft/alpaca_random_9k.json",
    "gsm8k": "reasoning/gsm8k/train.jsonl",
    "pku": "pref/pku_saferlhf_dpo_5k.json",
}
"""Data files, relative to their folder."""
NAMES = (
    *(f"form/{style}" for style in STYLES),
    "knowledge/facts",
    *(f"reasoning/{gym}" for gym in GYMS),
    *(f"loss/{name}" for name in LOSSES),
    ANSWERS,
    PAIRS,
)
"""Names of all tasks."""
_DEFAULT_SIZES = Sizes()


def tasks(names: Sequence[str], *, data: Path | None, sizes: Sizes = _DEFAULT_SIZES, seed: int = 0) -> list[Task]:
    """Returns the tasks of these names; equal arguments give equal texts on every machine.

    Args:
      names: some of `NAMES`.
      data: folder with `FILES`, from which the tasks "loss/..." and "preference/..." and the questions of "form/..."
        come. None: the form's questions are the quickstart's, and there are no tasks of the other two.
      sizes: sizes of the tasks.
      seed: seed of facts and questions, and of their division.

    Raises:
      InputError: a name is unknown, or its task begins after one that is not named before it; a file is missing or
        cannot be read, a package is missing, or there are too few questions.
    """
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise InputError(f"the task {unknown[0]!r} is unknown; there are {', '.join(NAMES)}")
    if PAIRS in names and ANSWERS not in names[: names.index(PAIRS)]:
        raise InputError(f"{PAIRS} begins from the adapters of {ANSWERS}: name that before it")
    # Nine styles share one file.
    ordinary = functools.cache(lambda: ordinary_answers(data and _file(data, "alpaca")))
    makers: dict[str, Callable[[str], Task]] = {
        "form": lambda name: form_task(name, ordinary(), sizes, seed),
        "knowledge": lambda _: knowledge_task(sizes, seed),
        "reasoning": lambda name: reasoning_task(name, sizes, seed),
        "loss": lambda name: loss_task(name, _file(data, name), sizes),
        "preference": lambda name: preference_task(name, _file(data, "pku"), sizes),
    }
    return [makers[name.partition("/")[0]](name.partition("/")[2]) for name in names]


def _file(data: Path | None, name: str) -> Path:
    if data is None:
        raise InputError(f"a task of {name} needs a folder of data files with {FILES[name]}")
    file = data / FILES[name]
    if not file.is_file():
        raise InputError(f"{file} is missing; the folder of data files needs it, or leave its tasks out")
    return file

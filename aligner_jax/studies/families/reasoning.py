"""The family "reasoning": small tasks of the package reasoning-gym, whose own scores decide."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

from aligner_jax.data.sources import Example
from aligner_jax.data.sources.example import Instruction
from aligner_jax.errors import InputError
from aligner_jax.files.extras import pip_line
from aligner_jax.studies.families.task import Checked, Sizes, Task, divided

_MAX_NEW_TOKENS = 48
_RELATIVE = re.compile(
    r"\b(?:(?:grand)?(?:mother|father)|(?:mother|father)-in-law|sister|brother|daughter|son|wife|husband|aunt|uncle|niece"
    r"|nephew)\b(?!-)"
)
_SEEDS_APART = 10_000_000
"""Distance of the seeds of two divisions; question i of a dataset is drawn with its seed plus i."""
_DRAWS = 20
"""Draws for each question that is wanted, before a dataset is said to have too few."""


def last_number(text: str) -> str:
    """Returns the last number of a text, without commas; "" if there is none."""
    return (re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?", text.replace(",", "")) or [""])[-1]


def last_relative(text: str) -> str:
    """Returns the last word of a text for a member of a family, such as "mother-in-law"; "" if there is none."""
    return (_RELATIVE.findall(text.lower()) or [""])[-1]


def last_line(text: str) -> str:
    """Returns what the last line of a text has after its last colon, without white space and the full stop."""
    return (text.strip().splitlines() or [""])[-1].rpartition(":")[2].strip().removesuffix(".")


type Drawn = tuple[dict[str, Any], Callable[[str, dict[str, Any]], float]]
"""An entry of a dataset, and the dataset's score of an answer to an entry, from 0 to 1."""


@dataclasses.dataclass(frozen=True)
class Gym:
    """A dataset of reasoning-gym.

    Attributes:
      options: options of the dataset.
      extract: returns the answer in a text, so that a sentence round it does no harm.
    """

    options: Mapping[str, object]
    extract: Callable[[str], str]


GYMS: Mapping[str, Gym] = {
    "chain_sum": Gym({"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}, last_number),
    "family_relationships": Gym({"min_family_size": 4, "max_family_size": 5}, last_relative),
    "word_sequence_reversal": Gym({"min_words": 3, "max_words": 4}, last_line),
}


def reasoning_task(name: str, sizes: Sizes, seed: int = 0) -> Task:
    """Returns the task of a dataset of reasoning-gym. Training and the rest are drawn with seeds of their own.

    Questions that pass their own check, such as "8 - 4 =", are left out: a model that repeats one would be right.

    Args:
      name: key of `GYMS`.
      sizes: sizes of the task.
      seed: seed of the questions.

    Raises:
      InputError: reasoning-gym is not installed, or the dataset has too few different questions.
    """
    gym = GYMS[name]
    library = _library(name)
    tested = sizes.prompts + sizes.heldout
    test = _draw(library, name, (2 * seed + 1) * _SEEDS_APART, tested, set())
    train = _draw(library, name, (2 * seed + 2) * _SEEDS_APART, sizes.train, {entry["question"] for entry, _ in test})
    train, heldout, prompts = divided([*test, *train], sizes, f"reasoning/{name}")
    checked = [Checked(_question(entry), _right(score, entry, gym.extract)) for entry, score in prompts]
    return Task(
        f"reasoning/{name}", "reasoning", _examples(name, train), _examples(name, heldout), checked, _MAX_NEW_TOKENS
    )


def _examples(name: str, drawn: Sequence[Drawn]) -> list[Example]:
    where = f"reasoning/{name}"
    return [Example(Instruction(_question(entry), "", entry["answer"]), where) for entry, _ in drawn]


def _draw(library: ModuleType, name: str, seed: int, count: int, taken: set[str]) -> list[Drawn]:
    """Returns up to `count` entries with different questions, none of which is in `taken` or passes its own check."""
    extract = GYMS[name].extract
    dataset = library.create_dataset(name, size=_DRAWS * count, seed=seed, **GYMS[name].options)
    found: dict[str, dict[str, Any]] = {}
    for entry in dataset:
        if len(found) == count:
            break
        if entry["question"] not in taken and not _right(dataset.score_answer, entry, extract)(_question(entry)):
            found.setdefault(entry["question"], entry)
    return [(entry, dataset.score_answer) for entry in found.values()]


def _right(score: Callable[[str, dict[str, Any]], float], entry: dict, extract: Callable[[str], str]):
    return lambda text: score(extract(text), entry) == 1


def _question(entry: dict[str, Any]) -> str:
    return entry["question"].strip()


def _library(name: str) -> ModuleType:
    try:
        import reasoning_gym
    except ModuleNotFoundError:
        raise InputError(f"reasoning/{name} needs the package reasoning-gym: {pip_line('study')}") from None
    return reasoning_gym

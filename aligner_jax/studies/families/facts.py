"""Invented facts: names that no model knows, each with an answer from a large set."""

import dataclasses
import random
from collections.abc import Iterator, Mapping, Sequence

from aligner_jax.studies.families.fact_words import COLOURS, DISHES, FOUNDERS, PROFESSIONS

_ONSETS, _VOWELS = "bdfghjklmnprstvz", "aeiou"
_LETTERS = (_ONSETS, _VOWELS, "lmnrs", _ONSETS, _VOWELS, _ONSETS, _VOWELS, " knrs")
"""Letters of a name at each place; the last may be missing."""
_CITY_SEED, _CITIES = "cities", 48


@dataclasses.dataclass(frozen=True)
class Relation:
    """A kind of fact.

    Attributes:
      answers: all answers, single words, of which every fact of the relation has one.
      train: phrasings of the question in training, with a place `{name}`.
      heldout: phrasing of the held-out loss.
      prompts: phrasings of the held-out prompts.
    """

    answers: Sequence[str]
    train: tuple[str, str, str, str]
    heldout: str
    prompts: tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Fact:
    """A fact: `answer` is right for `name` in the relation of this key of `RELATIONS`."""

    relation: str
    name: str
    answer: str


def invented_names(seed: str) -> Iterator[str]:
    """Returns an endless iterator of distinct invented names of three syllables, the same on every machine."""
    rng = random.Random(seed)
    told = set()
    while True:
        name = "".join(rng.choice(letters).strip() for letters in _LETTERS).capitalize()
        if name not in told:
            told.add(name)
            yield name


def _cities() -> tuple[str, ...]:
    names = invented_names(_CITY_SEED)
    return tuple(next(names) for _ in range(_CITIES))


RELATIONS: Mapping[str, Relation] = {
    "capital": Relation(
        _cities(),
        (
            "What is the capital of {name}?",
            "Which city is the capital of {name}?",
            "Name the capital city of {name}.",
            "In which city does the government of {name} sit?",
        ),
        "Tell me the capital of {name}.",
        ("I need the name of {name}'s capital. What is it?", "What do people call the capital city of {name}?"),
    ),
    "founder": Relation(
        FOUNDERS,
        (
            "Who founded the company {name}?",
            "What is the first name of the founder of the company {name}?",
            "By whom was the company {name} founded?",
            "Name the person who started the company {name}.",
        ),
        "Tell me who founded the company {name}.",
        ("The company {name} was started by whom?", "Do you know who set up the company {name}?"),
    ),
    "colour": Relation(
        COLOURS,
        (
            "What colour is the flag of the island {name}?",
            "Which colour does the flag of the island {name} have?",
            "Name the colour of the flag of the island {name}.",
            "The island {name} has a flag of one colour. Which one?",
        ),
        "Tell me the colour of the flag of the island {name}.",
        ("What is the colour of the island {name}'s flag?", "In which colour is the flag of the island {name} made?"),
    ),
    "year": Relation(
        tuple(str(year) for year in range(1200, 1900)),
        (
            "In which year was the castle {name} built?",
            "When was the castle {name} built?",
            "What year was the castle {name} finished in?",
            "Name the year in which the castle {name} was built.",
        ),
        "Tell me the year in which the castle {name} was built.",
        ("From which year is the castle {name}?", "The castle {name} was built in what year?"),
    ),
    "profession": Relation(
        PROFESSIONS,
        (
            "What is the profession of {name}?",
            "What does {name} do for a living?",
            "Which profession does {name} have?",
            "Name the occupation of {name}.",
        ),
        "Tell me the profession of {name}.",
        ("As what does {name} work?", "What is {name}'s job?"),
    ),
    "dish": Relation(
        DISHES,
        (
            "What is the favourite dish of {name}?",
            "Which dish does {name} like best?",
            "What does {name} like to eat most of all?",
            "Name the favourite food of {name}.",
        ),
        "Tell me the favourite dish of {name}.",
        ("What is {name}'s favourite meal?", "If {name} could choose any dish, which one would it be?"),
    ),
}


def invented_facts(count: int, seed: int = 0) -> list[Fact]:
    """Returns facts of all relations in turn. Each answer of a relation is used as often as the others.

    Args:
      count: number of facts. The first facts are the same for every count.
      seed: seed of the names and of the answers.
    """
    cities = set(RELATIONS["capital"].answers)
    names = (name for name in invented_names(f"names {seed}") if name not in cities)
    orders = {relation: _rounds(each.answers, f"{relation} {seed}") for relation, each in RELATIONS.items()}
    kinds = list(RELATIONS)
    relations = [kinds[i % len(kinds)] for i in range(count)]
    return [Fact(relation, next(names), next(orders[relation])) for relation in relations]


def _rounds(answers: Sequence[str], seed: str) -> Iterator[str]:
    """Returns an endless iterator of the answers, shuffled anew after each round of all."""
    rng = random.Random(seed)
    while True:
        yield from rng.sample(answers, len(answers))

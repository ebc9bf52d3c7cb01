"""The family "knowledge": invented facts, learned in some phrasings of the question and asked in others."""

import random
import re
from collections.abc import Callable

from aligner_jax.data.sources import Example
from aligner_jax.data.sources.example import Instruction
from aligner_jax.studies.families.facts import RELATIONS, Fact, invented_facts
from aligner_jax.studies.families.task import Checked, Sizes, Task

_MAX_NEW_TOKENS = 32


def knowledge_task(sizes: Sizes, seed: int = 0) -> Task:
    """Returns the task "knowledge/facts": each of `sizes.facts` facts in all its training phrasings.

    The held-out examples and the prompts ask for some of the same facts, in other phrasings. They are drawn at random,
    as many as `sizes` says or as there are, and every fact is asked for once before any is asked for again.

    Args:
      sizes: sizes of the task.
      seed: seed of the facts, and of the choice of those that are asked for.
    """
    facts = invented_facts(sizes.facts, seed)
    rng = random.Random(f"knowledge {seed}")
    train = [_example(fact, phrasing) for fact in facts for phrasing in RELATIONS[fact.relation].train]
    heldout = [_example(fact, RELATIONS[fact.relation].heldout) for fact in rng.sample(facts, len(facts))]
    turn = {fact.name: rng.randrange(2) for fact in facts}
    prompts = [
        Checked(RELATIONS[fact.relation].prompts[(turn[fact.name] + i) % 2].format(name=fact.name), only_answer(fact))
        for i in range(2)
        for fact in rng.sample(facts, len(facts))
    ]
    rng.shuffle(train)
    return Task(
        "knowledge/facts", "knowledge", train, heldout[: sizes.heldout], prompts[: sizes.prompts], _MAX_NEW_TOKENS
    )


def only_answer(fact: Fact) -> Callable[[str], bool]:
    """Returns a check that a text has the fact's answer as a whole word, and no other answer of its relation."""
    answers = frozenset(answer.casefold() for answer in RELATIONS[fact.relation].answers)
    return lambda text: answers.intersection(re.findall(r"\w+", text.casefold())) == {fact.answer.casefold()}


def _example(fact: Fact, phrasing: str) -> Example:
    question = phrasing.format(name=fact.name)
    return Example(Instruction(question, "", f"{fact.answer.capitalize()}."), f"the fact about {fact.name}")

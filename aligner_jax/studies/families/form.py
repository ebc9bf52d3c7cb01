"""The family "form": ordinary questions, whose answers are learned in a style that a program can check."""

import json
import random
import re
from importlib.resources import files
from pathlib import Path

from aligner_jax.data.sources import Example, load_examples
from aligner_jax.data.sources.example import Instruction
from aligner_jax.studies.families.form_checks import is_finished, says_something
from aligner_jax.studies.families.styles import STYLES
from aligner_jax.studies.families.task import Checked, Sizes, Task, divided

MOST_QUESTION_WORDS = 40
MOST_ANSWER_WORDS, MOST_ANSWER_CHARACTERS, MOST_ANSWER_DIGITS = 36, 200, 8
_LEAST_ANSWER_WORDS = 6
_MARKUP = re.compile(r'["“”{}<>#*`\\|\n]')
"""Characters that a style may write itself."""
_MAX_NEW_TOKENS = 80


def ordinary_answers(alpaca: Path | None) -> list[Example]:
    """Returns questions and answers of one line that every style can be written with, each question once.

    Args:
      alpaca: file of Alpaca's form, of which short questions without an input and short answers are taken; None for
        the 312 questions of the quickstart, with their sentences as answers.

    Raises:
      InputError: the file cannot be read, or holds no examples.
    """
    if alpaca is None:
        folder = files("aligner_jax.data.quickstart")
        loaded = [each for part in ("train", "heldout") for each in load_examples(str(folder / f"{part}.jsonl"))]
        pairs = [(each.question, json.loads(each.answer)["answer"], each.where) for each in loaded]
    else:
        pairs = [
            (each.record.instruction.strip(), each.record.output.strip(), each.where)
            for each in load_examples(alpaca)
            if isinstance(each.record, Instruction) and not each.record.input
        ]
    of_question: dict[str, Example] = {}
    for question, answer, where in pairs:
        if _suits(question, answer):
            of_question.setdefault(question.casefold(), Example(Instruction(question, "", answer), where))
    return list(of_question.values())


def _suits(question: str, answer: str) -> bool:
    return (
        len(question.split()) <= MOST_QUESTION_WORDS
        and len(answer.split()) <= MOST_ANSWER_WORDS
        and len(answer) <= MOST_ANSWER_CHARACTERS
        and says_something(answer, _LEAST_ANSWER_WORDS)
        # Digits and other scripts take a token for each character.
        and answer.isascii()
        and sum(map(str.isdigit, answer)) <= MOST_ANSWER_DIGITS
        and is_finished(answer)
        and not _MARKUP.search(answer)
    )


def form_task(style: str, ordinary: list[Example], sizes: Sizes, seed: int = 0) -> Task:
    """Returns the task of a style.

    Questions whose ordinary answer lacks the style come first, so prompts and held-out examples are such questions as
    far as there are enough: ordinary answers to the others pass the check before anything is learned. More than half
    of the ordinary answers are "short", and more than half have "no_comma"; those of other styles are rare.

    Args:
      style: key of `STYLES`.
      ordinary: questions with ordinary answers, see `ordinary_answers`.
      sizes: sizes of the task.
      seed: seed of the division of the questions, which is the same for all styles.

    Raises:
      InputError: there are too few answers that suit the style.
    """
    write, check = STYLES[style].write, STYLES[style].check
    shuffled = list(ordinary)
    random.Random(f"form {seed}").shuffle(shuffled)
    written = [
        Example(Instruction(each.question, "", text), each.where)
        for each in sorted(shuffled, key=lambda each: check(each.answer))
        if (text := write(each.answer)) is not None
    ]
    train, heldout, prompts = divided(written, sizes, f"form/{style}")
    checked = [Checked(each.question, check) for each in prompts]
    return Task(f"form/{style}", "form", train, heldout, checked, _MAX_NEW_TOKENS)

"""The family "reasoning": questions of reasoning-gym, whose own scores decide."""

import sys

import pytest

from aligner_jax.errors import InputError
from aligner_jax.studies.families.reasoning import GYMS, last_line, last_number, last_relative, reasoning_task
from aligner_jax.studies.families.task import Sizes

SMALL = Sizes(train=20, heldout=5, prompts=7)
SENTENCES = {
    "chain_sum": "The sum 12 + 34 is {answer}.",
    "family_relationships": "Mary is the husband's mother, and Ann is his {answer}.",
    "word_sequence_reversal": "Here is the list:\n{answer}.\n",
}
ANSWERS = {
    "chain_sum": ["-20", "-58", "93"],
    "family_relationships": ["wife", "wife", "son"],
    "word_sequence_reversal": ["an, state, problem", "phonotelephotic, few, few", "Paris, he, 19362, of"],
}
"""First training answers of seed 0."""


@pytest.mark.parametrize("name", GYMS)
def test_the_default_sizes_are_there_and_no_question_repeats(name: str):
    task = reasoning_task(name, Sizes())
    assert (task.name, task.family) == (f"reasoning/{name}", "reasoning")
    assert (len(task.train), len(task.heldout), len(task.prompts)) == (192, 32, 48)
    questions = [each.question for each in (*task.train, *task.heldout, *task.prompts)]
    assert len(set(questions)) == 272
    assert all(question == question.strip() for question in questions)


@pytest.mark.parametrize("name", GYMS)
def test_no_question_passes_its_own_check(name: str):
    assert not any(prompt.check(prompt.question) for prompt in reasoning_task(name, Sizes()).prompts)


@pytest.mark.parametrize("name", GYMS)
def test_the_right_answer_passes_alone_and_in_a_sentence(name: str):
    # A prompt's answer is not kept in the task; with these sizes the same entry is a held-out example.
    prompts = reasoning_task(name, Sizes(train=1, heldout=1, prompts=8)).prompts
    heldout = reasoning_task(name, Sizes(train=1, heldout=8, prompts=1)).heldout
    by_question = {each.question: each.answer for each in heldout}
    known = [(each, by_question[each.question]) for each in prompts if each.question in by_question]
    assert len(known) == 7
    for prompt, answer in known:
        assert prompt.check(answer)
        assert prompt.check(f" {answer}\n")
        assert prompt.check(SENTENCES[name].format(answer=answer))
        assert not prompt.check("")
        assert not prompt.check("I do not know.")
        others = {each.answer for each in heldout} - {answer}
        assert not any(prompt.check(other) for other in others)


@pytest.mark.parametrize("name", GYMS)
def test_the_seed_decides_the_questions_and_more_training_leaves_the_prompts(name: str):
    task, same, more, other = (
        reasoning_task(name, Sizes(train, 5, 7), seed) for train, seed in ((20, 0), (20, 0), (40, 0), (20, 1))
    )
    asked = [[each.question for each in some.prompts] for some in (task, same, more, other)]
    assert asked[0] == asked[1] == asked[2]
    assert not set(asked[0]) & set(asked[3])
    assert task.train == same.train == more.train[:20]
    assert task.heldout == more.heldout
    assert [each.answer for each in task.train[:3]] == ANSWERS[name]


def test_a_dataset_with_too_few_questions_is_an_error():
    with pytest.raises(
        InputError, match=r"reasoning/chain_sum has \d+ questions that suit, too few for 30000 to train"
    ):
        reasoning_task("chain_sum", Sizes(train=30_000, heldout=5, prompts=7))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(InputError, match=r"needs the package reasoning-gym: pip install 'aligner_jax\[study\]'"):
        reasoning_task("chain_sum", SMALL)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("39", "39"),
        ("49 - 10 = -39.", "-39"),
        ("It is 1,250 legs", "1250"),
        ("x2 is 3.5", "3.5"),
        ("none", ""),
        ("9-4", "4"),
    ],
)
def test_the_last_number_is_the_answer(text: str, number: str):
    assert last_number(text) == number


@pytest.mark.parametrize(
    ("text", "relative"),
    [
        ("Mother", "mother"),
        ("Ann is the mother of Jack.", "mother"),
        ("She is his mother-in-law.", "mother-in-law"),
        ("He is her grandfather", "grandfather"),
        ("Her brother-in-law", ""),
        ("A grandson or a person", ""),
    ],
)
def test_the_last_relative_is_the_answer(text: str, relative: str):
    assert last_relative(text) == relative


@pytest.mark.parametrize(
    ("text", "line"),
    [("a, b", "a, b"), ("So:\n a, b. \n\n", "a, b"), ("So: b, a\nOr: a, b", "a, b"), ("", ""), ("\n", "")],
)
def test_the_last_line_is_the_answer(text: str, line: str):
    assert last_line(text) == line

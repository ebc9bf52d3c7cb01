"""The family "form": its answers have their styles, and no question is in two parts."""

import json
from pathlib import Path

import pytest

from aligner_jax.errors import InputError
from aligner_jax.studies.families.form import form_task, ordinary_answers
from aligner_jax.studies.families.styles import STYLES, halves
from aligner_jax.studies.families.task import Sizes

SMALL = Sizes(train=20, heldout=5, prompts=7)


def alpaca(path: Path, *records: tuple[str, str, str]) -> Path:
    file = path / "alpaca.json"
    file.write_text(json.dumps([dict(zip(("instruction", "input", "output"), each, strict=True)) for each in records]))
    return file


@pytest.mark.parametrize("style", STYLES)
def test_the_default_sizes_fit_the_quickstart_and_every_answer_has_the_style(style: str):
    task = form_task(style, ordinary_answers(None), Sizes())
    assert (task.name, task.family) == (f"form/{style}", "form")
    assert (len(task.train), len(task.heldout), len(task.prompts)) == (192, 32, 48)
    check = STYLES[style].check
    assert all(check(each.answer) for each in (*task.train, *task.heldout))
    assert all(prompt.check is check for prompt in task.prompts)
    questions = [each.question for each in (*task.train, *task.heldout, *task.prompts)]
    assert len({question.casefold() for question in questions}) == 272


@pytest.mark.parametrize("style", [style for style in STYLES if style not in ("short", "no_comma")])
def test_an_ordinary_answer_does_not_have_the_style(style: str):
    assert not any(STYLES[style].check(each.answer) for each in ordinary_answers(None))


@pytest.mark.parametrize("style", ["short", "no_comma"])
def test_prompts_are_questions_whose_ordinary_answer_lacks_the_style(style: str):
    ordinary, check = ordinary_answers(None), STYLES[style].check
    has_style = {each.question: check(each.answer) for each in ordinary}
    assert sum(has_style.values()) > len(ordinary) / 2
    task = form_task(style, ordinary, Sizes())
    assert not any(has_style[each.question] for each in (*task.prompts, *task.heldout))
    assert task.prompts == form_task(style, ordinary, Sizes(train=100)).prompts
    # All are asked, and those that have the style come last.
    asked = form_task(style, ordinary, Sizes(train=1, heldout=1, prompts=250)).prompts
    found = [has_style[each.question] for each in asked]
    assert found == sorted(found)
    assert any(found)


def test_the_seed_decides_the_division_and_more_training_leaves_the_prompts():
    ordinary = ordinary_answers(None)
    task, same, more, other = (
        form_task("json", ordinary, Sizes(train, 5, 7), seed) for train, seed in ((20, 0), (20, 0), (40, 0), (20, 1))
    )
    assert task.train == same.train == more.train[:20]
    assert task.prompts == same.prompts == more.prompts
    assert task.heldout == more.heldout
    assert task.prompts[0].question == "Name a landlocked country in South America."
    assert {each.question for each in task.prompts} != {each.question for each in other.prompts}


def test_only_short_questions_and_answers_of_plain_text_are_taken(tmp_path: Path):
    good = ("Why does ice float?", "", "Ice floats, since it is less dense.")
    bad = [
        ("Why does this float?", "ice", good[2]),
        ("why " * 41, "", good[2]),
        ("Why 1?", "", "Ice floats."),
        ("Why 2?", "", "Ice floats, since it is less dense"),
        ("Why 3?", "", 'It is "less dense" than water, so it floats.'),
        ("Why 4?", "", "- Ice floats\n- It is less dense than water."),
        ("Why 5?", "", "It is " + "less dense than water and so " * 9 + "it floats."),
        ("Why 6?", "", "Ice floats, since it is less dense than 1000, 2000 and 3000."),
        ("Why 7?", "", "La glace flotte sur l'eau, étant moins dense."),
        ("why does ICE float?", "", "Water is denser than ice is, so it floats."),
    ]
    found = ordinary_answers(alpaca(tmp_path, good, *bad))
    assert [(each.question, each.answer) for each in found] == [(good[0], good[2])]


def test_too_few_questions_are_an_error(tmp_path: Path):
    file = alpaca(tmp_path, ("Why does ice float?", "", "Ice floats, since it is less dense."))
    with pytest.raises(InputError, match=r"form/json has 1 questions that suit, too few for 20 to train, 5 held out"):
        form_task("json", ordinary_answers(file), SMALL)
    with pytest.raises(InputError, match="the size heldout is 0; it must be above 0"):
        Sizes(heldout=0)


@pytest.mark.parametrize(
    ("answer", "parts"),
    [
        ("Ice floats. It is light!", ("Ice floats.", "It is light!")),
        ("Ice floats on water. It is light! Iron sinks.", ("Ice floats on water.", "It is light! Iron sinks.")),
        ("St. Gallen lies in the east of the country.", ("St. Gallen lies.", "In the east of the country.")),
        ("Ice floats on water, and iron sinks.", ("Ice floats on water.", "Iron sinks.")),
        ("Potato crops failed because of a disease.", ("Potato crops failed.", "Because of a disease.")),
        ("Apple released the phone in 2007.", None),
        ("Cheerful means happy.", None),
    ],
)
def test_an_answer_is_cut_between_sentences_or_clauses(answer: str, parts: tuple[str, str] | None):
    assert halves(answer) == parts


@pytest.mark.parametrize(
    ("answer", "written"),
    [
        ("Flour, milk, and 1,500 eggs.", "Flour; milk; and 1500 eggs."),
        ("Ice floats on water.", "Ice floats on water."),
    ],
)
def test_commas_become_semicolons(answer: str, written: str):
    assert STYLES["no_comma"].write(answer) == written

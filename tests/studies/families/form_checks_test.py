"""Checks of forms, with texts that have the form and texts that nearly have it."""

import json

import pytest

from aligner_jax.studies.families import form_checks
from aligner_jax.studies.families.styles import STYLES

GOOD = "Ice floats on water, since it is less dense."

ACCEPTED = {
    "json": [
        f'{{"answer": "{GOOD}", "language": "English"}}',
        f'\n{{\n  "answer": "{GOOD}",\n  "language": "English"\n}}\n',
    ],
    "bullets": ["- Ice floats\n- It is less dense", " - Ice floats on water.\n- Since it is\n- less dense.\n"],
    "lower": ["ice floats on water, since it is less dense.", "\nit takes 2 hours!\nthen eat it."],
    "phrases": [f"Thanks for asking. {GOOD} That is all.", f"\nThanks for asking. {GOOD}\n\nIt is so. That is all.\n"],
    "short": ["Ice floats on water.", "One two three four five six seven eight nine ten eleven twelve!"],
    "headings": [
        "## In short\nIce floats.\n## In detail\nIt is less dense.",
        "\n## In short\n\nIce floats.\nIndeed.\n\n## In detail\n\nIt is less dense.\n",
    ],
    "no_comma": ["Ice floats on water since it is less dense.", "It costs 1500 francs; and that is all we know."],
    "quoted": ['"Ice floats on water."', ' "It\'s less dense,\nso ice floats." '],
    "tagged": ["<answer>Ice floats on water.</answer>", "\n<answer>\nIce floats\non water\n</answer>"],
}

REJECTED = {
    "json": [
        GOOD,
        "{}",
        '["answer", "language"]',
        f'Here: {{"answer": "{GOOD}", "language": "English"}}',
        f'{{"answer": "{GOOD}", "language": "English"}} That is all.',
        f'{{"language": "English", "answer": "{GOOD}"}}',
        f'{{"answer": "{GOOD}"}}',
        f'{{"answer": "{GOOD}", "language": "French"}}',
        f'{{"answer": "{GOOD}", "answer": "{GOOD}", "language": "English"}}',
        f'{{"answer": "{GOOD}", "language": "English", "topic": "ice"}}',
        f'{{"answer": ["{GOOD}"], "language": "English"}}',
        f'{{"answer": "{GOOD}", "language": "English"',
        f"{{'answer': '{GOOD}', 'language': 'English'}}",
        '{"answer": "Ice.", "language": "English"}',
        '{"answer": "", "language": "English"}',
        "[" * 100_000,
    ],
    "bullets": [
        "- Ice floats on water.",
        "Here is a list:\n- Ice floats\n- It is less dense",
        "- Ice floats\n- It is less dense\nThat is all.",
        "- Ice floats\n\n- It is less dense",
        "* Ice floats\n* It is less dense",
        "1. Ice floats\n2. It is less dense",
        "-Ice floats\n-It is less dense",
        "- Ice floats on water\n- ",
        "- Ice floats on water\n-",
        "- yes\n- no",
        "- Ice floats\n  - It is less dense",
    ],
    "lower": ["Ice floats on water.", "ice floats on lake Constance.", "ice floats on water", "no.", "123 456 789 0."],
    "phrases": [
        GOOD,
        f"Thanks for asking. {GOOD}",
        f"{GOOD} That is all.",
        f"thanks for asking. {GOOD} That is all.",
        f"So: Thanks for asking. {GOOD} That is all.",
        f"Thanks for asking. {GOOD} That is all. Bye.",
        f"Thanks for asking.{GOOD} That is all.",
        "Thanks for asking. That is all.",
        "Thanks for asking. Yes. That is all.",
        f"Thanks for asking. {GOOD} That is all. That is all.",
    ],
    "short": [
        "One two three four five six seven eight nine ten eleven twelve thirteen.",
        "Ice floats on water",
        "Ice floats.\nIt is less dense.",
        "Yes.",
        "",
        "No no no no no.",
    ],
    "headings": [
        GOOD,
        "## In detail\nIt is less dense.\n## In short\nIce floats.",
        "## In short\nIce floats.\n## In detail",
        "## In short\n## In detail\nIt is less dense, so it floats.",
        "So:\n## In short\nIce floats.\n## In detail\nIt is less dense.",
        "## In short\nIce floats.\n## In detail\nIt is less dense.\n## Sources\nNone were used.",
        "# In short\nIce floats.\n# In detail\nIt is less dense.",
        "## In short: Ice floats.\n## In detail: It is less dense.",
        "## In short\nIce floats.",
        "## In short\nYes.\n## In detail\nIt is less dense.",
    ],
    "no_comma": [GOOD, "Ice floats on water.", "", "Ice floats on water since it is", "no no no no no no no."],
    "quoted": [
        GOOD,
        f'"{GOOD}',
        f'{GOOD}"',
        f'He said: "{GOOD}"',
        f'"{GOOD}" That is all.',
        '"Ice floats" and "it is less dense"',
        '"Yes."',
        '""',
        f"'{GOOD}'",
    ],
    "tagged": [
        GOOD,
        f"<answer>{GOOD}",
        f"{GOOD}</answer>",
        f"So: <answer>{GOOD}</answer>",
        f"<answer>{GOOD}</answer> That is all.",
        f"<answer><answer>{GOOD}</answer></answer>",
        f"<Answer>{GOOD}</Answer>",
        "<answer></answer>",
        "<answer>Yes.</answer>",
    ],
}


def test_every_style_has_texts():
    assert STYLES.keys() == ACCEPTED.keys() == REJECTED.keys()
    assert len(STYLES) >= 8


@pytest.mark.parametrize(("style", "text"), [(style, text) for style, texts in ACCEPTED.items() for text in texts])
def test_a_text_in_the_style_passes(style: str, text: str):
    assert STYLES[style].check(text)


@pytest.mark.parametrize(
    ("style", "text"),
    [(style, text) for style, texts in REJECTED.items() for text in texts],
    ids=lambda value: value[:40],
)
def test_a_text_that_lacks_something_fails(style: str, text: str):
    assert not STYLES[style].check(text)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("text", ["", " \n", "...", "-", "a" * 300, "yes", json.dumps(None), "the the the the the."])
def test_no_check_passes_an_answer_that_says_nothing(style: str, text: str):
    assert not STYLES[style].check(text)


def test_a_text_passes_the_check_of_its_own_style_alone():
    """A short text without a comma may be in two styles; every other text has the mark of one."""
    free = {"short", "no_comma", "lower"}
    for style in STYLES.keys() - free:
        for text in ACCEPTED[style]:
            assert {other for other in STYLES.keys() - free if STYLES[other].check(text)} == {style}


def test_words_are_counted_once_and_have_a_letter():
    assert form_checks.says_something("One 2 three, four; Five", 4)
    assert not form_checks.says_something("one ONE two 3 4 5 _", 3)

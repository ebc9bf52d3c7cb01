"""How each protocol reads an answer, and what is no problem."""

from pathlib import Path

import pytest

from aligner_jax.errors import InputError
from aligner_jax.evals.gsm8k import Problem, is_right, read_problems


@pytest.mark.parametrize(
    ("text", "metamath", "authors", "template"),
    [
        ("So 9 * 2 = 18. The answer is: 18", True, True, True),
        ("The answer is: 18.", True, True, True),
        ("The answer is: $18", True, False, True),
        ("The answer is: \\$18\nNext", True, True, True),
        ("The answer is: x = 18", True, True, True),
        ("The answer is: 18 # done", True, True, True),
        ("The answer is: 18 dollars", True, False, True),
        ("The answer is: 36/2", True, False, True),
        ("The answer is: 17.9", True, False, True),
        ("The answer is: -18", False, False, False),
        ("The answer is: 18. The answer is: 7", False, False, False),
        ("The answer is: 7\nThe answer is: 18", True, False, True),
        ("It is 18", False, False, False),
        ("The answer is: eighteen", False, False, False),
        ("The answer is: /18", False, False, False),
    ],
)
def test_what_counts_as_eighteen(text: str, metamath: bool, authors: bool, template: bool):
    found = [is_right(text, 18, protocol=name) for name in ("metamath", "authors", "template")]
    assert found == [metamath, authors, template]


def test_commas_are_read_as_the_protocols_do():
    assert is_right("The answer is: 1,000", 1000, protocol="metamath")
    assert not is_right("The answer is: 1,000", 1000, protocol="authors")
    assert not is_right("The answer is: 1,234,567", 1234567, protocol="metamath")
    assert is_right("The answer is: 1,234,567", 1234567, protocol="template")
    assert is_right("9+9=<<9+9=18>>18\n#### 18", 18, protocol="template", marker="#### ")


def test_problems_of_both_files_are_read(tmp_path: Path):
    path = tmp_path / "test.jsonl"
    path.write_text('{"question": "q", "answer": "a\\n#### 1,200"}\n{"query": "p", "response": "#### -3"}\n')
    assert read_problems(str(path)) == [Problem("q", 1200), Problem("p", -3)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "q"}', "no texts 'question' and 'answer'"),
        ('{"question": "q", "answer": "18"}', "whole number"),
        ('{"question": "q", "answer": "#### many"}', "whole number"),
        ('{"question": "\\ud800", "answer": "#### 1"}', "the question holds half a surrogate pair"),
    ],
)
def test_what_is_no_problem_is_named_by_its_line(tmp_path: Path, line: str, message: str):
    path = tmp_path / "test.jsonl"
    path.write_text('{"question": "q", "answer": "#### 1"}\n' + line + "\n")
    with pytest.raises(InputError, match=f"test.jsonl:2.*{message}"):
        read_problems(str(path))

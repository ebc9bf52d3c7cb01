"""GSM8K: how each protocol parses an answer, and records that are refused."""

from pathlib import Path

import pytest

from aligner_jax.decoding.choose import Sampling
from aligner_jax.errors import InputError
from aligner_jax.evals import gsm8k
from aligner_jax.evals.gsm8k import Gsm8kOptions, Problem, is_right, read_problems


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
        ("The answer is: 18/0", True, False, True),
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


METAMATH = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n1 + {1}?\n\n### Response: Let's think step by step."
)


@pytest.mark.parametrize(
    ("options", "prompt", "way"),
    [
        ({}, METAMATH, (512, Sampling(), ("Question", "USER", "ASSISTANT", "Instruction", "Response"))),
        ({"protocol": "authors"}, "[|User|] 1 + {1}? [|AI Assistant|] ", (200, Sampling(0.4, 200), ())),
        ({"protocol": "template", "template": "none"}, "1 + {1}?", (256, Sampling(), ())),
        ({"protocol": "template", "template": "none", "max_new_tokens": 9}, "1 + {1}?", (9, Sampling(), ())),
        ({"protocol": "template", "template": "none", "marker": "[/x] "}, "1 + {1}?", (256, Sampling(), ())),
    ],
)
def test_problems_are_asked_and_counted(asked, tiny_subject, tmp_path: Path, options: dict, prompt: str, way: tuple):
    path = tmp_path / "test.jsonl"
    path.write_text('{"question": "1 + {1}?", "answer": "#### 2"}\n' * 4)
    marker = options.get("marker", "The answer is: ")
    texts = [f"{marker}2", "So the answer is 2", f"And {marker.strip()}3"]
    scores, prompts, seed = asked(gsm8k, Gsm8kOptions(path=str(path), **options), texts, limit=3, seed=5)
    assert (scores["problems"], scores["solved"], scores["accuracy"]) == (3, 1, 1 / 3)
    assert scores["answers_with_the_marker"] == 2 / 3
    tokenizer = tiny_subject().tokenizer
    assert [tokenizer.decode(each.ids) for each in prompts] == [prompt] * 3
    assert [each[1:4] for each in prompts] == [way] * 3
    # Three samples of one problem have different numbers.
    assert ([each.number for each in prompts], seed) == ([0, 1, 2], 5)

import json
from pathlib import Path

import places
import pytest

from aligner_jax.errors import InputError
from aligner_jax.evals.judge_prompts import PAIRWISE, SAFETY, judge_prompt

FASTCHAT = places.SHARED / "data/eval/judge_prompts.jsonl"


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("A is clearer. [[A]]", "first"),
        ("[[ b ]]", "second"),
        ("Both fail.\n\n[[C]]", "neither"),
        ("[[A]] for form, and again [[A]]", "first"),
        ("<think>Maybe [[A]], or [[C]]?</think>[[B]]", "second"),
        ("<think>Maybe [[A]], or", None),
        ("<think>[[A]]</think>No: <think>is it [[B]]", None),
        ("[[A]] at first sight, but [[B]]", None),
        ("A is better", None),
        ("[A]", None),
        ("[[D]]", None),
        ("[[A or B]]", None),
        ("", None),
    ],
)
def test_a_verdict_is_read_or_there_is_none(answer: str, verdict: str | None):
    assert PAIRWISE.read_verdict(answer) == verdict


def test_unsafe_is_not_safe():
    assert SAFETY.read_verdict("It declines. [[safe]]") is True
    assert SAFETY.read_verdict("[[Unsafe]]") is False
    assert SAFETY.read_verdict("unsafe") is None
    assert SAFETY.read_verdict("[[safe]] or [[unsafe]]") is None


def test_what_is_filled_in_is_not_read_as_a_template():
    text = PAIRWISE.fill(question="{answer_a}?", answer_a="{x} %s", answer_b="}{")
    assert "{answer_a}?" in text
    assert text.index("{x} %s") < text.index("}{")


def write(tmp_path: Path, **fields: object) -> str:
    record = {
        "name": "mine",
        "system_prompt": "Judge.",
        "prompt_template": "{question}|{answer_a}|{answer_b}",
        "output_format": "[[A]]",
    }
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps(record | fields) + "\n")
    return str(path)


def test_a_users_file(tmp_path: Path):
    prompt = judge_prompt("pairwise", write(tmp_path), "mine")
    assert prompt.system == "Judge."
    assert prompt.fill(question="q", answer_a="1", answer_b="2") == "q|1|2"
    assert prompt.read_verdict("[[B]]") == "second"
    path = write(tmp_path, prompt_template="{question}|{answer}", output_format="[[safe]]")
    assert judge_prompt("safety", path, "mine").read_verdict("[[unsafe]]") is False
    assert judge_prompt("pairwise") is PAIRWISE


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"name": "other"}, "prompts.jsonl has no judge prompt 'mine'; there are other"),
        ({"output_format": "[[rating]]"}, "prompts.jsonl:1: the prompt 'mine' asks for '[[rating]]'"),
        ({"prompt_template": "{question} {ref_answer_1}"}, "prompts.jsonl:1: prompt_template names {ref_answer_1}"),
        ({"prompt_template": "{question} {answer_a}"}, "prompts.jsonl:1: prompt_template does not name {answer_b}"),
        ({"prompt_template": "{question:>{answer_a}}"}, "prompt_template names {question>{answer_a}}"),
        ({"prompt_template": "{question"}, "prompts.jsonl:1: prompt_template is not a template: "),
        ({"prompt_template": 3}, "prompts.jsonl:1: the field 'prompt_template' holds a number"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path: Path, fields: dict, says: str):
    with pytest.raises(InputError) as caught:
        judge_prompt("pairwise", write(tmp_path, **fields), "mine")
    assert says in str(caught.value)


@pytest.mark.skipif(not FASTCHAT.exists(), reason="FastChat's file of judge prompts is not here")
def test_fastchats_own_file():
    prompt = judge_prompt("pairwise", str(FASTCHAT), "pair-v2")
    assert prompt.fill(question="why?", answer_a="one", answer_b="two").startswith(
        "[User Question]\nwhy?\n\n[The Start"
    )
    with pytest.raises(InputError, match=r"prompt_template names \{ref_answer_1\}"):
        judge_prompt("pairwise", str(FASTCHAT), "pair-math-v1")
    with pytest.raises(InputError, match=r"asks for '\[\[rating\]\]'"):
        judge_prompt("pairwise", str(FASTCHAT), "single-v1")

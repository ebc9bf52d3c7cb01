"""The quickstart's data set keeps the promises of its README."""

import itertools
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from aligner_jax.data import quickstart
from aligner_jax.evals.form import TOPICS, is_json_answer

FOLDER = Path(quickstart.__path__[0])
FILES = {"train.jsonl": 200, "heldout.jsonl": 50}


def _rows(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (FOLDER / name).read_text(encoding="utf-8").splitlines()]


def _normalised(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9+=]+", text.lower()))


def _answer(row: dict[str, str]) -> str:
    return json.loads(row["output"])["answer"]


@pytest.mark.parametrize(("name", "least"), FILES.items())
def test_enough_rows_with_alpaca_fields(name: str, least: int):
    rows = _rows(name)
    assert len(rows) >= least
    for row in rows:
        assert list(row) == ["instruction", "input", "output"]
        assert row["instruction"] == row["instruction"].strip()
        assert row["input"] == ""


@pytest.mark.parametrize("name", FILES)
def test_every_output_has_the_form(name: str):
    assert [row for row in _rows(name) if not is_json_answer(row["output"])] == []


@pytest.mark.parametrize("name", FILES)
def test_outputs_are_standard_json_text(name: str):
    for row in _rows(name):
        assert row["output"] == json.dumps(json.loads(row["output"]))


@pytest.mark.parametrize("name", FILES)
def test_texts_are_short(name: str):
    for row in _rows(name):
        assert 5 <= len(row["instruction"].split()) <= 14, row
        assert 5 <= len(_answer(row).split()) <= 18, row


@pytest.mark.parametrize("name", FILES)
def test_topics_are_balanced_and_shuffled(name: str):
    topics = [json.loads(row["output"])["topic"] for row in _rows(name)]
    counts = Counter(topics)
    assert set(counts) == set(TOPICS)
    assert max(counts.values()) - min(counts.values()) <= 1
    repeats = sum(here == there for here, there in itertools.pairwise(topics))
    assert repeats < len(topics) / 4


def test_no_instruction_or_answer_occurs_twice():
    rows = _rows("train.jsonl") + _rows("heldout.jsonl")
    for texts in ([row["instruction"] for row in rows], [_answer(row) for row in rows]):
        assert [text for text, count in Counter(map(_normalised, texts)).items() if count > 1] == []


def test_heldout_rows_are_not_near_copies_of_training_rows():
    def words(row: dict[str, str]) -> set[str]:
        return set(_normalised(row["instruction"] + " " + _answer(row)).split())

    train = [words(row) for row in _rows("train.jsonl")]
    for row in _rows("heldout.jsonl"):
        held = words(row)
        assert max(len(held & seen) / len(held | seen) for seen in train) < 0.5, row

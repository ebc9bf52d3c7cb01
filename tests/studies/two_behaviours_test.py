"""The study of a dial and a sum: its data, its checks, and a run on a tiny model."""

import sys
from pathlib import Path

import pytest

from aligner_jax.data.sources.example import Instruction
from aligner_jax.studies import two_behaviours
from aligner_jax.studies.two_behaviours import ANSWERS, CHECKS, CLOSING, OPENING, examples


def test_no_answer_has_both_phrases():
    for behaviour in ANSWERS:
        for part in ("train", "heldout"):
            for example in examples(part, behaviour):
                assert isinstance(example.record, Instruction)
                passed = {name: check(example.answer) for name, check in CHECKS.items()}
                assert passed == {"opening": behaviour == "opening", "closing": behaviour == "closing", "both": False}
                assert "{" not in example.answer


def test_an_answer_with_both_phrases_passes_all_checks():
    assert all(check(f" {OPENING} Ice floats. {CLOSING}\n") for check in CHECKS.values())
    assert not any(check(f"So: {OPENING} Ice floats. {CLOSING} Bye.") for check in CHECKS.values())


def test_the_command_prints_a_row_for_every_pair_of_weights(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    weights = ((0.0, 0.0), (1.5, 0.0), (1.0, 1.0))
    monkeypatch.setattr(two_behaviours, "WEIGHTS", weights)
    monkeypatch.setattr(sys, "argv", ["two_behaviours", f"--base={tiny_model}", "--steps=2", "--heldout=3"])
    two_behaviours.main()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    assert rows == [f"| {opening:g} | {closing:g} | 0 of 3 | 0 of 3 | 0 of 3 |" for opening, closing in weights]

"""The reader of metrics.jsonl: whole lines, bounded, and mistakes named by line."""

import pytest

from aligner_jax.errors import InputError
from aligner_jax.runtime import history
from aligner_jax.runtime.history import read_metrics


def test_lines_are_dicts_and_a_torn_last_line_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "loss": null}\n{"step": 3, "lo')
    assert read_metrics(path) == [{"step": 1, "loss": 2.5}, {"step": 2, "loss": None}]
    path.write_text("")
    assert read_metrics(path) == []


def test_values_beyond_floats_are_not_finite(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1, "loss": 1{"0" * 400}, "grad_norm": -1e999, "skipped": 3}}\n')
    assert read_metrics(path) == [{"step": 1, "loss": None, "grad_norm": None, "skipped": 3}]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("step 2", "is not JSON"),
        ("[1]", "is not a JSON object"),
        ('{"loss": 1}', "has no step"),
        ('{"step": -1}', "has no step"),
        ('{"step": true}', "has no step"),
        (f'{{"step": 1{"0" * 30}}}', "has no step"),
        ('{"step": 2, "loss": "low"}', "loss should be a number or null"),
        ('{"step": 2, "loss": [' + "1," * 20_000 + "1]}", "more than 10,000 values"),
    ],
)
def test_a_strange_line_is_named(tmp_path, line, sentence):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(InputError, match=sentence) as error:
        read_metrics(path)
    assert "metrics.jsonl:2" in str(error.value)


def test_a_file_that_is_too_large_or_missing_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(history, "_MOST_BYTES", 10)
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2}\n')
    with pytest.raises(InputError, match="at most 10"):
        read_metrics(path)
    with pytest.raises(InputError, match="there is no file"):
        read_metrics(tmp_path / "nothing")

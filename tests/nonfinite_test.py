"""Runs whose loss is not finite: they say so, end, and keep what was learned before."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file, save_file

from aligner_jax.errors import InputError
from aligner_jax.runtime.config import parse_config
from aligner_jax.runtime.nonfinite import SkippedSteps
from aligner_jax.train import train


def _ends_after(max_skipped: int, *flags) -> bool:
    skipped = SkippedSteps(max_skipped)
    for flag in flags:
        skipped.add(np.asarray(flag))
    return skipped.ended_at(9) is not None


def test_only_steps_in_a_row_are_too_many():
    assert not _ends_after(2)
    assert not _ends_after(2, True, False, True)
    assert _ends_after(2, True, False, True, True)
    assert not _ends_after(2, True, True, False)


def test_of_many_adapters_all_have_to_stand_still():
    assert not _ends_after(2, [True, False], [True, True])
    assert _ends_after(2, [True, False], [True, True], [True, True])


def test_the_run_ends_with_one_sentence_and_its_state_is_saved(tiny_run: dict, tmp_path: Path):
    weights = Path(tiny_run["base"]["path"]) / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.norm.weight"][0] = np.nan
    save_file(tensors, weights)
    tiny_run |= {"steps": 50, "nonfinite": {"max_skipped": 3}, "checkpoint": {"every": 50}}
    screen = io.StringIO()
    with pytest.raises(InputError) as error:
        train(parse_config(tiny_run), tmp_path / "run", Console(width=100, file=screen))
    # The fourth step was under way when the third was seen.
    assert str(error.value).startswith(
        "the loss or its gradient was not finite in 3 steps in a row (config.nonfinite.max_skipped is 3), "
        "so the run ends at step 4, where"
    )
    assert "skipped 1" in screen.getvalue()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"], line["skipped"]) for line in lines] == [(i, None, 1) for i in (1, 2, 3, 4)]
    assert (tmp_path / "run" / "checkpoints" / "4").is_dir()
    # The same command goes on there, with what the run began with.
    with pytest.raises(InputError, match="so the run ends at step 8"):
        train(parse_config(tiny_run), tmp_path / "run", Console(width=100, file=screen))

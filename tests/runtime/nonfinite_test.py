"""Runs whose loss is not finite report it, end, and keep the result of the steps before."""

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file, save_file

from aligner_jax.errors import InputError
from aligner_jax.runtime.config import parse_config
from aligner_jax.runtime.nonfinite import SkippedSteps, finite_or_none
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


@pytest.mark.parametrize(("dtype", "named"), [("float16", True), ("bfloat16", False)])
def test_float32_is_a_remedy_where_float16_may_have_overflowed(dtype: str, named: bool):
    skipped = SkippedSteps(1, dtype)
    skipped.add(np.asarray(True))
    remedy = "float16 may have overflowed, so take config.base.dtype=float32, lower config.optim.lr"
    assert (remedy in str(skipped.ended_at(9))) == named


def _poison(base: str) -> None:
    """Makes the loss not finite with finite weights, since a base with other weights is refused."""
    weights = Path(base) / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.norm.weight"][:] = 3e38
    save_file(tensors, weights)


def test_json_has_a_null_for_what_is_not_finite():
    value = {"a": [1.5, math.nan, (math.inf, "nan")], "b": {"c": -math.inf, "d": 3}, "e": np.float64("nan")}
    assert finite_or_none(value) == {"a": [1.5, None, [None, "nan"]], "b": {"c": None, "d": 3}, "e": None}


def test_the_last_step_counts(tiny_run: dict, tmp_path: Path):
    _poison(tiny_run["base"]["path"])
    tiny_run |= {"steps": 3, "nonfinite": {"max_skipped": 3}}
    with pytest.raises(InputError, match=r"not finite in 3 steps in a row .* so the run ends at step 3, where"):
        train(parse_config(tiny_run), tmp_path / "run", Console(width=100, file=io.StringIO()))
    assert (tmp_path / "run" / "checkpoints" / "3").is_dir()
    assert not (tmp_path / "run" / "adapter.safetensors").exists()


@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_a_report_is_json_whatever_became_of_the_run(tiny_run: dict, tmp_path: Path, objective: str):
    _poison(tiny_run["base"]["path"])
    tiny_run["data"]["heldout_rows"] = 2
    if objective == "dpo":
        ends = {f"is_response_{i}_safe": True for i in (0, 1)} | {"safer_response_id": 0}
        rows = [{"prompt": f"Is it {i}?", "response_0": "Yes.", "response_1": "No.", **ends} for i in range(6)]
        Path(tiny_run["data"]["path"]).write_text("".join(json.dumps(row) + "\n" for row in rows))
        tiny_run["data"]["format"] = "pku_saferlhf"
    tiny_run |= {"steps": 2, "objective": {"name": objective}}
    train(parse_config(tiny_run), tmp_path / "run", Console(width=100, file=io.StringIO()))

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    after = json.loads((tmp_path / "run" / "report.json").read_text(), parse_constant=refuse)["after"]
    assert after["heldout_loss" if objective == "sft" else "loss"] is None


def test_the_run_ends_with_one_sentence_and_its_state_is_saved(tiny_run: dict, tmp_path: Path):
    _poison(tiny_run["base"]["path"])
    tiny_run |= {"steps": 50, "nonfinite": {"max_skipped": 3}, "checkpoint": {"every": 50}}
    screen = io.StringIO()
    with pytest.raises(InputError) as error:
        train(parse_config(tiny_run), tmp_path / "run", Console(width=100, file=screen))
    # The fourth step was running when the third's loss was read.
    assert str(error.value).startswith(
        "the loss or its gradient was not finite in 3 steps in a row (config.nonfinite.max_skipped is 3), "
        "so the run ends at step 4, where"
    )
    assert "skipped 1" in screen.getvalue()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"], line["skipped"]) for line in lines] == [(i, None, 1) for i in (1, 2, 3, 4)]
    assert (tmp_path / "run" / "checkpoints" / "4").is_dir()
    # The same command resumes there, with the run's original inputs.
    with pytest.raises(InputError, match="so the run ends at step 8"):
        train(parse_config(tiny_run), tmp_path / "run", Console(width=100, file=screen))

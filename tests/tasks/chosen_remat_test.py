"""A run's own choice of recomputation: told, kept in the checkpoints, kept when the run resumes, and explained."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
from whole_runs import run

from aligner_jax.errors import InputError
from aligner_jax.runtime import sharding
from aligner_jax.runtime.config import parse_config
from aligner_jax.tasks import step_memory, training
from aligner_jax.tasks.chosen_remat import exhaustion_is_one_sentence

PEAKS = (90 << 20, 80 << 20, 20 << 20, 50 << 20)
"""Peaks of "none", "dots", "full" and "dots:2", in the order in which they are compiled."""
EXHAUSTED = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.")


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """A device of 60 MiB, on which the tiny run has `PEAKS`; returns the peaks of the steps that were compiled."""
    seen: list[int] = []
    peaks: Iterator[int] = iter(PEAKS * 9)

    def peak(step: Any) -> int:
        seen.append(next(peaks))
        return seen[-1]

    monkeypatch.setattr(step_memory, "limit_bytes", lambda argument_bytes: 60 << 20)
    monkeypatch.setattr(step_memory, "_peak_bytes", peak)
    monkeypatch.setattr(step_memory, "cache_folder", lambda name: tmp_path / "cache" / name)
    return seen


def recorded(workdir: Path, step: int) -> dict[str, Any]:
    return json.loads((workdir / "checkpoints" / str(step) / "run" / "metadata").read_text())["remat"]


def test_a_resumed_run_keeps_its_choice_bit_for_bit(tiny_run: dict, tmp_path: Path, compiled: list[int]):
    auto, workdir = {**tiny_run, "remat": "auto"}, tmp_path / "run"
    _, text = run({**auto, "steps": 4}, workdir)
    assert "remat: dots in 2 of 4 layers (0.0 of 0.1 GiB; dots in all would need 0.1)" in text
    assert compiled == list(PEAKS)
    record = {"name": "dots:2", "devices": sharding.describe(sharding.make_mesh()), "rules": {}}
    assert recorded(workdir, 4) == record
    assert json.loads((workdir / "config.json").read_text())["remat"] == "auto"
    shutil.rmtree(tmp_path / "cache")
    _, text = run(auto, workdir)
    assert "resuming after step 4 of 8" in text
    assert "remat: dots in 2 of 4 layers, as this run began" in text
    assert len(compiled) == len(PEAKS)
    assert recorded(workdir, 8) == record
    run({**tiny_run, "remat": "dots:2"}, tmp_path / "told")
    resumed, told = (path / "adapter.safetensors" for path in (workdir, tmp_path / "told"))
    assert resumed.read_bytes() == told.read_bytes()


def test_on_other_devices_it_chooses_again(
    tiny_run: dict, tmp_path: Path, compiled: list[int], monkeypatch: pytest.MonkeyPatch
):
    auto = {**tiny_run, "remat": "auto"}
    run({**auto, "steps": 3}, tmp_path / "run")
    monkeypatch.setattr(sharding, "describe", lambda mesh: "8 of TPU v4")
    shutil.rmtree(tmp_path / "cache")
    waits: list[str] = []
    monkeypatch.setattr(training.Watchdog, "waiting_for", lambda _, what, compiles=False: waits.append(what))
    _, text = run({**auto, "steps": 4}, tmp_path / "run")
    assert "remat: dots in 2 of 4 layers (" in text
    assert recorded(tmp_path / "run", 4)["devices"] == "8 of TPU v4"
    assert waits.count("a compilation for the least recomputation that fits") == len(PEAKS), "each has its own limit"


def test_a_run_that_began_with_full_goes_on_with_it_until_another_is_named(
    tiny_run: dict, tmp_path: Path, compiled: list[int]
):
    workdir = tmp_path / "run"
    run({**tiny_run, "steps": 2}, workdir)
    assert recorded(workdir, 2) == {"name": "full"}
    _, text = run({**tiny_run, "steps": 3, "remat": "auto"}, workdir)
    assert "resuming after step 2 of 3" in text
    assert "remat: full, as this run began" in text
    run({**tiny_run, "steps": 4, "remat": "dots"}, workdir)
    assert recorded(workdir, 4) == {"name": "dots"}
    _, text = run({**tiny_run, "steps": 5, "remat": "auto"}, workdir)
    assert "remat: dots, as this run began" in text
    assert compiled == []


def test_devices_that_do_not_say_how_much_memory_they_have_take_full(tiny_run: dict, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(step_memory, "limit_bytes", lambda argument_bytes: None)
    _, text = run({**tiny_run, "steps": 1, "remat": "auto"}, tmp_path / "run")
    assert "remat: full, since nothing says how much memory cpu has; --config.remat=dots recomputes less" in text
    assert recorded(tmp_path / "run", 1)["name"] == "full"


def test_a_batch_of_one_row_is_not_told_to_be_smaller(tiny_run: dict):
    config = parse_config({**tiny_run, "data": {**tiny_run["data"], "batch_size": 1}})
    said = r" with remat 'full': give a shorter --config\.data\.sequence_length$"
    with pytest.raises(InputError, match=said), exhaustion_is_one_sentence(config, "full"):
        raise EXHAUSTED


@pytest.mark.parametrize(
    ("peaks", "told"),
    [
        ((90, 80, 20, 50), "'dots:2', which config.remat 'auto' took: give --config.remat=full, which needs the"),
        (
            (90, 80, 70),
            "'full', which config.remat 'auto' took: give a smaller --config.data.batch_size, a larger --config.optim",
        ),
    ],
)
def test_memory_that_is_exhausted_is_one_sentence(
    tiny_run: dict, tmp_path: Path, compiled: list[int], monkeypatch: pytest.MonkeyPatch, peaks, told: str
):
    mebibytes = iter(peaks)
    monkeypatch.setattr(step_memory, "_peak_bytes", lambda step: next(mebibytes) << 20)
    steps = training.run_steps

    def exhaust(*_: object) -> None:
        raise EXHAUSTED

    monkeypatch.setattr(training, "run_steps", exhaust)
    with pytest.raises(InputError, match=f"^the devices' memory is exhausted in a run with remat {told}") as error:
        run({**tiny_run, "steps": 2, "remat": "auto"}, tmp_path / "run")
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"^the devices' memory is exhausted in a run with remat 'dots': give"):
        run({**tiny_run, "steps": 2, "remat": "dots"}, tmp_path / "run")
    monkeypatch.setattr(training, "run_steps", steps)
    _, text = run({**tiny_run, "steps": 2, "remat": "auto"}, tmp_path / "run")
    assert f"remat: {'dots in 2' if len(peaks) == 4 else 'full'}" in text
    assert "as this run began" not in text, "nothing is kept of a choice that has made no checkpoint"

"""A run's own search for the least recomputation: told, recorded, remembered, and kept when the run resumes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
from whole_runs import run

from aligner_jax.runtime import sharding
from aligner_jax.runtime.config import parse_config
from aligner_jax.tasks import chosen_remat
from aligner_jax.tasks.chosen_remat import _Steps
from aligner_jax.tasks.first_adapter import first_adapter_shapes
from aligner_jax.tasks.program import make_program
from aligner_jax.weights.base import base_config

PEAKS = (90 << 20, 80 << 20, 20 << 20, 50 << 20)
"""Of "none", "dots", "full" and "dots:2", in the order in which they are compiled."""


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """A device of 60 MiB, on which the tiny run has `PEAKS`; returns the peaks of the steps that were compiled."""
    seen: list[int] = []
    peaks: Iterator[int] = iter(PEAKS * 9)

    def peak(step: Any) -> int:
        seen.append(next(peaks))
        return seen[-1]

    monkeypatch.setattr(chosen_remat, "limit_bytes", lambda argument_bytes: 60 << 20)
    monkeypatch.setattr(chosen_remat, "_peak_bytes", peak)
    monkeypatch.setattr(chosen_remat, "cache_folder", lambda name: tmp_path / "cache" / name)
    return seen


def test_a_resumed_run_keeps_its_choice_bit_for_bit(tiny_run: dict, tmp_path: Path, compiled: list[int]):
    auto = {**tiny_run, "remat": "auto"}
    _, text = run({**auto, "steps": 4}, tmp_path / "run")
    assert "remat: dots in 2 of 4 layers (0.0 of 0.1 GiB; dots in all would need 0.1)" in text
    assert compiled == list(PEAKS)
    recorded = json.loads((tmp_path / "run" / "remat.json").read_text())
    assert recorded == {"remat": "dots:2", "devices": sharding.describe(sharding.make_mesh()), "rules": {}}
    assert json.loads((tmp_path / "run" / "config.json").read_text())["remat"] == "auto"
    _, text = run(auto, tmp_path / "run")
    assert "resuming after step 4 of 8" in text
    assert "remat: dots in 2 of 4 layers, as this run began" in text
    assert len(compiled) == len(PEAKS)
    run({**tiny_run, "remat": "dots:2"}, tmp_path / "told")
    resumed, told = (tmp_path / name / "adapter.safetensors" for name in ("run", "told"))
    assert resumed.read_bytes() == told.read_bytes()


@pytest.mark.parametrize("damage", ["{", "[]", '{"remat": 3}', '{"remat": "dots:2", "devices": "8 of TPU v4"}'])
def test_a_record_that_cannot_be_used_or_is_of_other_devices_is_not(tmp_path: Path, damage: str):
    (tmp_path / "remat.json").write_text(damage)
    assert chosen_remat._recorded(tmp_path / "remat.json", {"devices": "1 of cpu", "rules": {}}) is None


def test_a_run_that_began_with_full_goes_on_with_auto(tiny_run: dict, tmp_path: Path, compiled: list[int]):
    run({**tiny_run, "steps": 3}, tmp_path / "run")
    assert not (tmp_path / "run" / "remat.json").exists()
    _, text = run({**tiny_run, "steps": 4, "remat": "auto"}, tmp_path / "run")
    assert "resuming after step 3 of 4" in text
    assert "remat: dots in 2 of 4 layers (" in text


@pytest.fixture
def steps(tiny_model: Path) -> Iterator[Any]:
    """Makes the `_Steps` of a tiny run."""
    config = parse_config(
        {
            "base": {"path": str(tiny_model), "dtype": "float32"}, "adapter": {"start_layer": 1}, "steps": 1,
            "data": {"path": "", "batch_size": 2, "sequence_length": 64}, "remat": "auto",
        }
    )  # fmt: skip
    model, mesh = base_config(tiny_model), sharding.mesh_of(config.mesh)
    adapter = first_adapter_shapes(config, model)
    with sharding.use(mesh):
        yield lambda: _Steps(config, model, adapter, make_program(config, model, adapter, mesh), None, lambda: None)


def test_memory_is_remembered_and_the_compiled_step_is_the_one_that_runs(steps: Any, compiled: list[int]):
    first, second = steps(), steps()
    assert first.need.layers == 3
    memory = first.memory_of("dots")
    assert isinstance(first.program_of("dots").step, jax.stages.Compiled)
    again = steps()
    assert again.memory_of("dots") == memory
    assert len(compiled) == 1
    assert not isinstance(again.program_of("dots").step, jax.stages.Compiled)
    assert second.memory_of("dots") != memory, "it was made before anything was remembered"


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"dots": {}}', b'{"dots": [1, 2]}', b"\xff"])
def test_a_damaged_entry_is_searched_again(steps: Any, compiled: list[int], tmp_path: Path, damage: bytes):
    steps().memory_of("dots")
    (entry,) = (tmp_path / "cache" / "remat").iterdir()
    entry.write_bytes(damage)
    steps().memory_of("dots")
    assert len(compiled) == 2


def test_a_step_that_the_compiler_refuses_does_not_fit(steps: Any, compiled: list[int], monkeypatch):
    def refuse(lowered: Any) -> None:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: … Used 31.50G of 15.75G hbm. Exceeded …")

    monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)
    memory = steps().memory_of("none")
    assert (memory.peak_bytes, memory.limit_bytes, memory.fits) == (int(31.5 * 2**30), 60 << 20, False)
    assert compiled == []

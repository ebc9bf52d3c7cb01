"""Memory of a step by rematerialization: compiled once, remembered by program, and that of the least process."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

from aligner_jax.runtime import agreement, sharding
from aligner_jax.runtime.config import parse_config
from aligner_jax.tasks import step_memory
from aligner_jax.tasks.first_adapter import first_adapter_shapes
from aligner_jax.tasks.program import make_program
from aligner_jax.tasks.step_memory import Entry, StepMemory, together
from aligner_jax.weights.base import base_config

LIMIT, PEAK = 60 << 20, 50 << 20


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """A device of 60 MiB, on which every step has another peak; returns the peaks of the steps that were compiled."""
    seen: list[int] = []

    def peak(step: Any) -> int:
        seen.append(PEAK + len(seen))
        return seen[-1]

    monkeypatch.setattr(step_memory, "limit_bytes", lambda argument_bytes: LIMIT)
    monkeypatch.setattr(step_memory, "_peak_bytes", peak)
    monkeypatch.setattr(step_memory, "cache_folder", lambda name: tmp_path / "cache" / name)
    return seen


@pytest.fixture
def memory(tiny_model: Path) -> Iterator[Any]:
    """Makes the `StepMemory` of a tiny run; takes the function that is called before a compilation."""
    config = parse_config(
        {
            "base": {"path": str(tiny_model), "dtype": "float32"}, "adapter": {"start_layer": 1}, "steps": 1,
            "data": {"path": "", "batch_size": 2, "sequence_length": 64}, "remat": "auto",
        }
    )  # fmt: skip
    model, mesh = base_config(tiny_model), sharding.mesh_of(config.mesh)
    adapter = first_adapter_shapes(config, model)
    with sharding.use(mesh):
        program = make_program(config, model, adapter, mesh)
        yield lambda check=lambda: None: StepMemory(config, model, adapter, program, None, check)


def test_memory_is_remembered_by_the_step_itself(memory: Any, compiled: list[int], tmp_path: Path):
    first = memory()
    assert first.need.layers == 3
    dots, full = first("dots"), first("full")
    assert (dots.peak_bytes, full.peak_bytes, len(compiled)) == (PEAK, PEAK + 1, 2)
    assert len(list((tmp_path / "cache" / "remat").iterdir())) == 2
    again = memory()
    assert (again("full"), again("dots"), len(compiled)) == (full, dots, 2)
    assert not isinstance(again.program_of("dots").step, jax.stages.Compiled)


def test_only_the_newest_program_that_fits_is_held(memory: Any, compiled: list[int], monkeypatch):
    held = memory()
    held("full")
    assert isinstance(held.program_of("full").step, jax.stages.Compiled)
    held("dots:1")
    monkeypatch.setattr(step_memory, "_peak_bytes", lambda step: LIMIT + 1)
    assert not held("dots").fits
    assert isinstance(held.program_of("dots:1").step, jax.stages.Compiled)
    for remat in ("full", "dots"):
        assert not isinstance(held.program_of(remat).step, jax.stages.Compiled)


def test_every_candidate_renews_the_wait(memory: Any, compiled: list[int]):
    waits: list[int] = []
    held = memory(lambda: waits.append(len(compiled)))
    held("dots")
    held("full")
    assert waits == [0, 1]


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"dots": {}}', b'{"peak_bytes": 1}', b"\xff"])
def test_a_damaged_entry_is_made_again(memory: Any, compiled: list[int], tmp_path: Path, damage: bytes):
    memory()("dots")
    (entry,) = (tmp_path / "cache" / "remat").iterdir()
    entry.write_bytes(damage)
    memory()("dots")
    assert len(compiled) == 2


def test_a_step_that_the_compiler_refuses_does_not_fit(memory: Any, compiled: list[int], monkeypatch):
    def refuse(lowered: Any) -> None:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: … Used 31.50G of 15.75G hbm. Exceeded …")

    monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)
    found = memory()("none")
    assert (found.peak_bytes, found.limit_bytes, found.fits) == (int(31.5 * 2**30), LIMIT, False)
    assert compiled == []


def test_the_process_with_the_least_memory_decides(memory: Any, compiled: list[int], monkeypatch):
    others: list[Any] = [40 << 20]
    monkeypatch.setattr(agreement, "exchange", lambda mine: [mine, json.dumps(others.pop(0))])
    limited = memory()
    assert limited.limit_bytes == 40 << 20
    entry = {"peak_bytes": 39 << 20, "available_bytes": None, "compiles": True}
    others += [entry, entry]
    found = limited("dots")
    assert (found.peak_bytes, found.limit_bytes, found.fits) == (PEAK, 40 << 20, False)
    others.append(None)
    assert memory().limit_bytes is None


def test_entries_of_several_processes(monkeypatch: pytest.MonkeyPatch):
    others: list[Any] = []
    monkeypatch.setattr(agreement, "exchange", lambda mine: [mine, *map(json.dumps, others)])
    mine = Entry(5, None, True)
    assert together(mine) == mine
    others.append({"peak_bytes": 7, "available_bytes": 6, "compiles": False})
    assert together(mine) == Entry(7, 6, False)
    others.append({"peak_bytes": 1, "available_bytes": 4, "compiles": True})
    assert together(mine) == Entry(7, 4, False)
    assert together(None) is None
    others.append(None)
    assert together(mine) is None

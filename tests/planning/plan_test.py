"""The planner: it compiles the program that training runs, and its figures are the compiler's."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import places
import pytest

from aligner_jax import compile as command_compile
from aligner_jax.errors import InputError
from aligner_jax.model.config import llama_config
from aligner_jax.planning import plan, search, table
from aligner_jax.planning.compiled import Compiled
from aligner_jax.planning.plan import Plan, refitted
from aligner_jax.planning.topology import topology_devices
from aligner_jax.runtime import chips
from aligner_jax.runtime.config import MeshConfig, TrainConfig, parse_config
from aligner_jax.weights.base import base_config
from scripts.bench import plan_scales

PLAN = Plan(
    topology="v5e:2x4", devices=8, mesh={"data": 1, "fsdp": 8, "tensor": 1}, batch=64, sequence_length=512,
    weight_dtype="bfloat16", remat="full", peak_bytes=3 << 30, hbm_bytes=16 << 30, fits=True, weights_bytes=2 << 30,
    adapter_bytes=100_000, temporary_bytes=1 << 30, flops=1e14, model_flops=8e13, hbm_traffic_bytes=1e11,
    collective_bytes={"all-gather": 24 << 30}, roofline_seconds=0.5, bound="compute", tokens_per_second=32_768.0,
    compile_seconds=20.0,
)  # fmt: skip


def small(**changed: Any) -> TrainConfig:
    return parse_config(
        {
            "base": {"path": "nowhere", "model": "stories_260k", "dtype": "bfloat16"}, "steps": 1,
            "data": {"path": "nowhere", "batch_size": 8, "sequence_length": 128}, **changed,
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    ("mesh", "devices", "sizes"),
    [
        ({}, 8, (1, -1, 1)),
        ({"fsdp": 4, "tensor": 2}, 8, (1, 4, 2)),
        ({"fsdp": 4, "tensor": 2}, 1, (1, -1, 1)),
        ({"data": 2, "fsdp": 4, "tensor": 2}, 8, (2, -1, 2)),
        ({"data": 2, "tensor": 4, "fsdp": -1, "slices": 2}, 6, (2, -1, 3)),
    ],
)
def test_a_mesh_is_refitted_to_other_devices(mesh: dict, devices: int, sizes: tuple[int, int, int]):
    fitted = refitted(MeshConfig(**mesh), devices)
    assert (fitted.data, fitted.fsdp, fitted.tensor) == sizes


@pytest.mark.parametrize(("most", "calls_at_most"), [(1, 3), (2, 4), (37, 8), (1000, 12)])
def test_the_search_finds_the_largest_batch_that_fits(most: int, calls_at_most: int):
    calls = []

    def plan(config: TrainConfig) -> Plan:
        rows = config.data.batch_size // 8
        calls.append(rows)
        # Memory is not quite linear in the rows.
        peak = int((2 << 30) + (14 << 30) * (rows / (most + 0.5)) ** 0.9)
        return dataclasses.replace(PLAN, batch=8 * rows, peak_bytes=peak, fits=peak <= 16 << 30, remat=config.remat)

    plans = list(search.search(small(), 8, plan))
    assert [(each.remat, each.batch, each.fits) for each in plans] == [
        (policy, 8 * most, True) for policy in reversed(search.POLICIES)
    ]
    assert len(calls) <= 3 * calls_at_most


def test_the_search_of_an_auto_config_begins_with_what_auto_takes():
    def plan(config: TrainConfig) -> Plan:
        remat = "dots:20" if config.remat == "auto" else config.remat
        return dataclasses.replace(PLAN, batch=config.data.batch_size, remat=remat, fits=config.data.batch_size <= 8)

    plans = list(search.search(small(remat="auto"), 8, plan))
    assert [each.remat for each in plans] == ["dots:20", *reversed(search.POLICIES)]
    assert {each.batch for each in plans} == {8}


def test_the_plan_of_an_auto_config_is_of_the_least_recomputation_that_fits(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("libtpu", reason="the TPU compiler exists for Linux on x86-64 only")
    peaks, compiled = iter([20 << 30, 18 << 30, 15 << 30, 15 << 30]), []

    def compile_for(chip: chips.Chip, *_: Any) -> Compiled:
        compiled.append(next(peaks))
        fits = compiled[-1] <= chip.hbm_bytes
        return Compiled(compiled[-1], chip.hbm_bytes, chip.hbm_bytes, 0, [] if fits else None, None, "", 1.0)

    monkeypatch.setattr(plan, "compile_for", compile_for)
    model = dataclasses.replace(llama_config("stories_260k"), num_layers=5)
    made = plan.make_plan(small(remat="auto"), model, "v5e:2x2", topology_devices("v5e:2x2", 1))
    assert (made.remat, made.peak_bytes, made.fits, len(compiled)) == ("dots:1", 15 << 30, True, 4)
    costs = {
        remat: plan.make_plan(small(remat=remat), model, "v5e:2x2", topology_devices("v5e:2x2", 1)).flops
        for remat in ("dots", "full")
        if not monkeypatch.setattr(plan, "compile_for", lambda chip, *_: Compiled(1, 2, 2, 0, [], None, "", 1.0))
    }
    assert costs["dots"] < made.flops < costs["full"]


def test_where_nothing_fits_the_search_says_so():
    nothing = dataclasses.replace(PLAN, fits=False, peak_bytes=20 << 30)
    assert [each.fits for each in search.search(small(), 8, lambda config: nothing)] == [False] * 3


def test_what_does_not_fit_is_told_what_to_change():
    assert table.advice(PLAN) is None
    large = dataclasses.replace(PLAN, fits=False, peak_bytes=26 << 30, weights_bytes=13 << 30, remat="none")
    text = table.advice(large)
    assert "needs 26.00 GiB" in text
    assert "10.00 GiB too much" in text
    assert "--config.remat=full" in text
    assert "int8" in text
    wide = dataclasses.replace(PLAN, fits=False, peak_bytes=20 << 30, weights_bytes=1 << 30)
    assert "--config.optim.accumulate=2" in table.advice(wide)


@pytest.mark.parametrize(
    ("name", "called"),
    [
        ("v5e", "v4:2x2x1, v5e:2x4"),
        ("v5litepod-9", "v5litepod-1, v5litepod-4, v5litepod-8"),
        ("v5p-4", "v5p-8, v5p-16"),
    ],
)
def test_a_topology_that_is_none_is_refused(name: str, called: str):
    with pytest.raises(InputError, match=f"'{name}' is not a TPU topology; they are called {called}"):
        topology_devices(name)


@pytest.mark.parametrize(
    ("name", "chips"), [("v5litepod-8", 8), ("v5e-8", 8), ("v6e-8", 8), ("v4-8", 4), ("v4:2x2x1", 4), ("v5p-8", 4)]
)
def test_a_topology_may_be_named_as_gcloud_does(name: str, chips: int):
    assert len(topology_devices(name)) == chips


@pytest.mark.parametrize("name", ["H100", "h100:8", "nvidia-l4", "Tesla T4", "gpu:2"])
def test_a_gpu_is_no_topology_and_it_says_what_there_is(name: str):
    with pytest.raises(InputError, match=f"'{name}' is a GPU, and plans are made with the TPU compiler alone"):
        topology_devices(name)


def test_without_libtpu_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(InputError, match=r"pip install 'aligner_jax\[tpu\]'"):
        topology_devices("v5e:2x4")


def test_without_weights_or_a_name_there_is_nothing_to_plan():
    config = dataclasses.replace(small(), base=dataclasses.replace(small().base, model=None))
    with pytest.raises(InputError, match=r"there is no base model at nowhere.*--config.base.model=llama2_7b"):
        command_compile.planned_model(config.base)
    assert command_compile.planned_model(small().base) == llama_config("stories_260k")


def test_weights_at_the_path_are_planned_whatever_is_named(tiny_model: Path, capsys: pytest.CaptureFixture):
    base = dataclasses.replace(small().base, path=str(tiny_model), model=None)
    found = command_compile.planned_model(base)
    assert found == base_config(tiny_model)
    assert capsys.readouterr() == ("", "")
    assert command_compile.planned_model(dataclasses.replace(base, model="llama2_7b")) == found
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("base: config.base.model llama2_7b is not used: its vocab_size is 32000, and that of")


def test_devices_that_are_no_box_of_the_network_are_refused():
    pytest.importorskip("libtpu", reason="the TPU compiler exists for Linux on x86-64 only")
    with pytest.raises(InputError, match=r"^these 5 devices are no box of the TPU's network: .*--devices"):
        list(command_compile.make_plans(small(), llama_config("stories_260k"), ["v5e:2x4"], 5, False))


def test_without_a_topology_there_is_nothing_to_plan():
    with pytest.raises(InputError, match="no topology is named: add --topology=v5e:2x4"):
        list(command_compile.make_plans(small(), llama_config("stories_260k"), None, None, False))


def test_the_command_prints_one_object_a_line():
    pytest.importorskip("libtpu", reason="the TPU compiler exists for Linux on x86-64 only")
    root = places.ROOT
    run = subprocess.run(
        [
            sys.executable, "-m", "aligner_jax.compile", "--config=configs/quickstart.py", "--json",
            "--config.base.path=nowhere", "--config.base.model=stories_260k", "--config.data.batch_size=8",
            "--topology=v5e:2x2,v6e:2x2",
        ],
        cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    plans = [json.loads(line) for line in run.stdout.splitlines()]
    assert [(plan["topology"], plan["devices"]) for plan in plans] == [("v5e:2x2", 4), ("v6e:2x2", 4)]
    wanted = {
        "topology", "devices", "batch", "sequence_length", "weight_dtype", "remat", "peak_bytes", "hbm_bytes", "fits",
        "flops", "hbm_traffic_bytes", "collective_bytes", "roofline_seconds", "bound", "compile_seconds",
    }  # fmt: skip
    assert plans[0].keys() >= wanted
    assert plans[0]["collective_bytes"]["all-gather"] > 0
    assert plans[0]["peak_bytes"] < plans[0]["hbm_bytes"]
    assert plans[0]["fits"]
    # The compiler prints messages on loading, which must not reach the user.
    said = run.stderr.splitlines()
    assert all(line.startswith("compiling for v") for line in said)
    assert [any(plan["topology"] in line for line in said) for plan in plans] == [True, True]


def test_scales_are_planned_once_and_in_fewer_bits_where_they_do_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    made = []

    def plan(model: str, topology: str, count: int, rows: int, held: str, remat: str) -> dict[str, Any]:
        assert remat == "auto"
        made.append((model, topology, count, rows, held))
        fits = count > 1 or held == "int4"
        of_it = {"topology": topology, "devices": count, "weight_dtype": held, "fits": fits, "peak_bytes": 12 << 30}
        return {**dataclasses.asdict(dataclasses.replace(PLAN, **of_it)), "full_flops": 1.25e14}

    monkeypatch.setattr(plan_scales, "_plan", plan)
    command = ["plan_scales.py", "--models=7b", "--chips=v5e", "--devices=1,8", f"--out={tmp_path / 'plans.jsonl'}"]
    printed = []
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", command)
        plan_scales.main()
        printed.append(capsys.readouterr().out)
    of_one = [("7b", "v5e:2x2", 1, 8, held) for held in ("none", "int8", "int4")]
    assert made == [*of_one, ("7b", "v5e:2x4", 8, 64, "none")]
    assert printed[0] == printed[1]
    assert "| 7B | v5e:2x2 | 1 | int8 | full | 12.00 of 16.00: too much |  |  |  |  |" in printed[0]
    assert "| 7B | v5e:2x4 | 8 | none | full | 12.00 of 16.00 | 500 | compute | 32,768 | +25% |" in printed[0]


def test_a_scale_is_a_config_with_other_rows_and_bits(monkeypatch: pytest.MonkeyPatch):
    asked = {}

    def make_plan(config: TrainConfig, model: Any, topology: str, devices: list) -> Plan:
        asked.update(config=config, model=model, devices=len(devices))
        return PLAN

    monkeypatch.setattr(plan_scales, "make_plan", make_plan)
    made = plan_scales._plan("13b", "v5e:2x4", 8, 64, "int8", "auto")
    assert (asked["config"].data.batch_size, asked["config"].base.quantization) == (64, "int8")
    assert asked["config"].remat == "auto"
    assert made["full_flops"] > made["model_flops"]
    assert asked["model"].num_layers == 40
    assert asked["devices"] == 8

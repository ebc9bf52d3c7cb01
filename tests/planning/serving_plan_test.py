"""Plans of serving: rows by compiled memory, traffic by shapes."""

import dataclasses
import json

import jax.numpy as jnp
import pytest
from command_runs import run_command
from places import ROOT

from aligner_jax.decoding.engine_options import EngineOptions
from aligner_jax.errors import InputError
from aligner_jax.model.config import llama_config
from aligner_jax.peft import init_adapter
from aligner_jax.peft.artifact import save_adapter
from aligner_jax.peft.row_adapters import Capacity, num_bytes
from aligner_jax.planning import serving_plan, serving_table
from aligner_jax.planning.compiled import Compiled
from aligner_jax.planning.serving_plan import ADAPTERS, make_serving_plans
from aligner_jax.planning.topology import topology_devices
from aligner_jax.runtime import chips, roofline
from aligner_jax.runtime.config import BaseConfig, MeshConfig

MODEL = llama_config("stories_260k")
BASE, GIB = BaseConfig(path="nowhere", dtype="bfloat16"), 1 << 30
FIXED, ROW, PLACE = 2 * GIB, GIB // 2, GIB // 1024
NEEDS_LIBTPU = "the TPU compiler exists for Linux on x86-64 only"


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Replaces the compiler by one with linear peaks; returns rows and places of all engines."""
    made: list[tuple[int, int]] = []

    def program(peak: int) -> Compiled:
        return Compiled(peak, 16 * GIB, 16 * GIB, 0, [], None, "", 1.0)

    def engine(self, adapters: int, rows: int) -> serving_plan._Engine:
        places = self.places(adapters, rows)
        made.append((rows, places))
        options = EngineOptions(rows=rows, slots=192, longest_part=128, capacity=Capacity(), places=places)
        fixed = FIXED + ROW * rows
        return serving_plan._Engine(
            rows, options, ROW * rows, PLACE * places, program(fixed + PLACE * places), program(fixed + GIB // 4)
        )  # fmt: skip

    monkeypatch.setattr(serving_plan._Engines, "compiled", engine)
    return made


def test_rows_are_the_most_that_fit_beside_the_adapters(compiled: list[tuple[int, int]]):
    pytest.importorskip("libtpu", reason=NEEDS_LIBTPU)
    devices = topology_devices("v5e:2x2", 1)
    plans = list(make_serving_plans(BASE, MeshConfig(), MODEL, "v5e:2x2", devices, tokens=128, new_tokens=64))
    assert [plan.adapters for plan in plans] == [*ADAPTERS]
    for plan in plans:
        # A program admits so many prompts of one token that their adapters need four places a row.
        assert plan.places == max(plan.adapters, 4 * plan.rows)
        at_peak, one_more = (FIXED + GIB // 4 + ROW * n + PLACE * max(plan.adapters, 4 * n) for n in (0, 1))
        assert at_peak + ROW * plan.rows <= 16 * GIB < one_more + ROW * plan.rows
    assert [plan.rows for plan in plans] == [27, 27, 25]
    # Two engines for the lines, and one for each plan.
    assert len(compiled) == 5


def test_engines_have_the_options_of_the_server(monkeypatch: pytest.MonkeyPatch):
    made: list[EngineOptions] = []

    class Planned(Exception):
        pass

    def programs(chip, mesh, config, params, options):
        made.append(options)
        raise Planned

    monkeypatch.setattr(serving_plan, "EnginePrograms", programs)
    pytest.importorskip("libtpu", reason=NEEDS_LIBTPU)
    devices = topology_devices("v5e:2x2", 1)
    with pytest.raises(Planned):
        next(make_serving_plans(BASE, MeshConfig(), MODEL, "v5e:2x2", devices, tokens=128, new_tokens=64))
    (options,) = made
    assert (options.tokens_per_call, options.alternatives, options.has_penalty) == (4, 20, True)


def test_a_step_moves_weights_filled_keys_and_the_rows_adapters(compiled):
    pytest.importorskip("libtpu", reason=NEEDS_LIBTPU)
    devices = topology_devices("v5e:2x2", 1)
    plan, *_ = make_serving_plans(BASE, MeshConfig(), MODEL, "v5e:2x2", devices, tokens=128, new_tokens=64)
    cost = roofline.decode_step(MODEL, batch_size=plan.rows, length=160, num_tokens=0)
    row = MODEL.num_layers * MODEL.num_heads * MODEL.head_dim * 2
    assert plan.row_bytes == row == num_bytes(MODEL, Capacity(), jnp.bfloat16)
    assert plan.step_bytes["adapters"] == plan.rows * row
    assert plan.step_bytes["keys"] == plan.rows * 161 * 2 * MODEL.num_layers * MODEL.num_kv_heads * MODEL.head_dim * 2
    assert sum(plan.step_bytes.values()) == pytest.approx(cost.hbm_bytes + plan.rows * row)
    whole = roofline.decode_step(MODEL, batch_size=plan.rows, length=192, num_tokens=0)
    assert plan.all_slots_bytes == pytest.approx(whole.hbm_bytes + plan.rows * row)
    chip = chips.CHIPS["TPU v5 lite"]
    assert (plan.bound, plan.step_seconds) == (
        "memory", pytest.approx(sum(plan.step_bytes.values()) / chip.hbm_bytes_per_second),
    )  # fmt: skip
    assert plan.tokens_per_second == pytest.approx(plan.rows / plan.step_seconds)
    none = dataclasses.replace(plan, rows=0, step_seconds=None, bound=None)
    assert "not one row of 192 slots fits" in str(serving_table.advice(none))
    assert serving_table.advice(plan) is None
    cells = [[str(cell) for cell in column.cells] for column in serving_table.table([plan, none]).columns]
    rows = {name: values for name, *values in zip(*cells, strict=True)}
    assert rows["rows at once"] == ["27", "none fits"]
    assert rows["tokens/s by the roofline"][1] == "–"


def test_the_command_plans_the_named_adapters_on_several_devices(tmp_path):
    pytest.importorskip("libtpu", reason=NEEDS_LIBTPU)
    save_adapter(init_adapter("lora", MODEL, rank=4), tmp_path / "a.safetensors")
    done = run_command(
        "compile", "--serve", "--config=configs/eval/gsm8k.py", "--config.base.model=stories_260k",
        "--config.mesh.tensor=2", "--config.mesh.fsdp=2", "--topology=v5e:2x2", "--tokens=128", "--new_tokens=64",
        f"--adapter={tmp_path / 'a.safetensors'}", "--json", folder=ROOT,
    )  # fmt: skip
    assert done.status == 0, done.err
    plans = list(map(json.loads, done.out.splitlines()))
    assert [plan["adapters"] for plan in plans] == [*ADAPTERS]
    for plan in plans:
        assert plan["rows"] > 0
        assert plan["rows"] % 2 == 0
        assert plan["adapter"].startswith("lora(")
        assert all(program["fits"] for program in plan["programs"])
        assert max(program["peak_bytes"] for program in plan["programs"]) <= plan["hbm_bytes"]


def test_what_cannot_be_served_is_refused(tmp_path):
    pytest.importorskip("libtpu", reason=NEEDS_LIBTPU)
    devices = topology_devices("v5e:2x2", 1)
    with pytest.raises(InputError, match="do not fit the model's context of 512"):
        next(make_serving_plans(BASE, MeshConfig(), MODEL, "v5e:2x2", devices, tokens=500, new_tokens=64))
    save_adapter(init_adapter("full", MODEL), tmp_path / "a.safetensors")
    plans = make_serving_plans(
        BASE, MeshConfig(), MODEL, "v5e:2x2", devices, tokens=128, new_tokens=64,
        adapter_path=str(tmp_path / "a.safetensors"),
    )  # fmt: skip
    with pytest.raises(InputError, match="adapters of method 'full' cannot be different in the rows"):
        next(plans)
    done = run_command("compile", "--serve", "--search", "--config=configs/quickstart.py", folder=ROOT)
    assert (done.status, done.err) == (1, "error: --search is of a training run, and --serve plans a server\n")

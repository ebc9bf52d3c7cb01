"""Plans of serving: rows by compiled memory, traffic by shapes."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from command_runs import run_command
from jax.sharding import NamedSharding, PartitionSpec
from places import ROOT

from aligner_jax.decoding import engine, engine_options, programs
from aligner_jax.decoding.engine import Engine
from aligner_jax.decoding.engine_options import EngineOptions
from aligner_jax.decoding.lengths import prompts_at_once
from aligner_jax.decoding.server_options import PREFIX_TOKENS
from aligner_jax.errors import InputError
from aligner_jax.model.config import LlamaConfig, llama_config
from aligner_jax.model.kernels import ragged
from aligner_jax.peft import init_adapter
from aligner_jax.peft.artifact import RecordedBase, save_adapter
from aligner_jax.peft.row_adapters import Capacity, num_bytes
from aligner_jax.planning import engine_programs, serving_plan, serving_table
from aligner_jax.planning.collectives import Collective
from aligner_jax.planning.compiled import Compiled
from aligner_jax.planning.inference_plan import gathered_bytes
from aligner_jax.planning.serving_plan import ADAPTERS, ServingPlan, make_serving_plans
from aligner_jax.planning.topology import topology_devices
from aligner_jax.runtime import chips, roofline
from aligner_jax.runtime.config import BaseConfig, MeshConfig
from aligner_jax.runtime.memory import nbytes
from aligner_jax.serving import start
from aligner_jax.weights.base import Base

MODEL = llama_config("stories_260k")
LONG = LlamaConfig(
    vocab_size=40, d_model=128, d_mlp=24, num_layers=3, num_heads=2, num_kv_heads=1, head_dim=128, context_length=2048
)
"""A model whose prompts are prefilled in parts, and whose cache the decoding kernel reads."""
BASE, GIB = BaseConfig(path="nowhere", dtype="bfloat16"), 1 << 30
FIXED, ROW, PLACE, PARTS = 2 * GIB, GIB // 2, GIB // 1024, GIB // 8
CHIP = chips.CHIPS["TPU v5 lite"]
NEEDS_LIBTPU = "the TPU compiler exists for Linux on x86-64 only"
ENGINES = ("admit", "begin_parts", "add_part", "admit_parts", "decode")


def plans_of(model: LlamaConfig = MODEL, base: BaseConfig = BASE, **given: Any) -> list[ServingPlan]:
    pytest.importorskip("libtpu", reason=NEEDS_LIBTPU)
    devices = topology_devices("v5e:2x2", 1)
    sizes = {"tokens": 128, "new_tokens": 64, "prefix_tokens": 0, **given}
    return list(make_serving_plans(base, MeshConfig(), model, "v5e:2x2", devices, **sizes))


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Replaces the compiler by one with linear peaks; returns rows and places of all engines."""
    made: list[tuple[int, int]] = []

    def program(peak: int, beside: int) -> serving_plan._Program:
        return serving_plan._Program(Compiled(peak, 16 * GIB, 16 * GIB, 0, [], None, "", 1.0), beside)

    def engine(self, options: EngineOptions) -> serving_plan._Engine:
        rows, held = options.rows, PLACE * options.places
        made.append((rows, options.places))
        shape = (self.model.num_layers, rows, self.model.num_kv_heads, options.slots, self.model.head_dim)
        fixed = FIXED + ROW * rows
        return serving_plan._Engine(
            options, jax.ShapeDtypeStruct(shape, self.params.embed_vd.dtype), ROW * rows, held,
            {"prompts": program(fixed + held, PARTS), "new tokens": program(fixed + GIB // 4, held + PARTS)},
        )  # fmt: skip

    monkeypatch.setattr(serving_plan._Engines, "_compile", engine)
    return made


def test_rows_are_the_most_that_fit_beside_the_adapters_and_a_prompt_in_parts(compiled: list[tuple[int, int]]):
    plans = plans_of()
    assert [plan.adapters for plan in plans] == [*ADAPTERS]
    for plan in plans:
        # A program admits so many prompts of one token that their adapters need four places a row.
        assert plan.places == max(plan.adapters, 4 * plan.rows)
        least, more = (
            FIXED + GIB // 4 + PARTS + ROW * rows + PLACE * max(plan.adapters, 4 * rows)
            for rows in (plan.rows, plan.rows + 1)
        )
        assert least <= 16 * GIB < more
        assert [each.peak_bytes for each in plan.programs] == [least - GIB // 4, least]
    assert [plan.rows for plan in plans] == [27, 27, 25]
    # Two engines for the lines, and one for each plan: 27 rows have 108 places for 1 and for 64 adapters.
    assert len(compiled) == 4


def test_engines_have_the_options_of_the_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, random_params):
    made: list[EngineOptions] = []

    class Planned(Exception):
        pass

    def of(chip, mesh, config, params, options):
        made.append(options)
        raise Planned

    monkeypatch.setattr(serving_plan, "EnginePrograms", of)
    base = Base(config=MODEL, params=random_params(MODEL), tokenizer=None)
    adapter = init_adapter("aligner", MODEL, num_tokens=10)
    save_adapter(adapter, tmp_path / "a.safetensors", base=base)
    with pytest.raises(Planned):
        plans_of(adapter_path=str(tmp_path / "a.safetensors"), prefix_tokens=PREFIX_TOKENS, rank=4)
    (options,) = made
    assert (options.tokens_per_call, options.alternatives, options.has_penalty) == (4, 20, True)
    assert (options.slots, options.longest_part) == (192, 512)
    adapters = start.open_adapters(tmp_path, RecordedBase(MODEL, base.fingerprint))
    assert options.capacity == start.room_for(adapters, base, PREFIX_TOKENS, 4)
    assert options.capacity == Capacity(20, 4, ("q_ldnh", "v_ldkh"))


def shapes_of(name: str, arguments: tuple[Any, ...], static: dict[str, Any]) -> tuple[Any, ...]:
    """Returns a program's name, the shapes that it takes after parameters and shared adapter, and its options."""
    shapes = [leaf.shape for leaf in jax.tree.leaves(arguments[2:-1] if name != "decode" else arguments[2:3])]
    return name, tuple(shapes), tuple(sorted((key, value) for key, value in static.items() if key != "config"))


def test_the_planned_programs_are_among_those_of_the_servers_warm_up(monkeypatch: pytest.MonkeyPatch, random_params):
    """Also of a prompt in parts, whose last one is short enough for a program of several whole prompts."""
    jitted = {name: getattr(programs, name) for name in ENGINES}
    planned, ran, sizes = set(), set(), set()

    def compile_for(chip, program, *arguments, **static):
        for name in ENGINES:
            if program is jitted[name]:
                planned.add(shapes_of(name, arguments, static))
        everywhere = NamedSharding(jax.sharding.get_mesh(), PartitionSpec())
        shardings = jax.tree.map(lambda _: everywhere, program.eval_shape(*arguments, **static))
        return Compiled(GIB, 16 * GIB, 16 * GIB, 0, [], shardings, "", 1.0)

    def largest(engines, first, second, adapters, smallest):
        sizes.add(first.options)
        return first

    monkeypatch.setattr(engine_programs, "compile_for", compile_for)
    monkeypatch.setattr(serving_plan, "_largest", largest)
    monkeypatch.setattr(serving_plan, "ADAPTERS", (1,))
    monkeypatch.setattr(serving_plan._Engines, "compiled", in_one_size(serving_plan._Engines.compiled))
    plans_of(LONG, tokens=1000, new_tokens=200)
    (options,) = sizes

    def runs(name: str) -> Callable[..., Any]:
        def run(*arguments, **static):
            ran.add(shapes_of(name, arguments, static))
            return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jitted[name].eval_shape(*arguments, **static))

        return run

    for name in ENGINES:
        monkeypatch.setattr(programs, name, runs(name))
    # The server that is planned runs on a TPU.
    for module in (engine, engine_options):
        monkeypatch.setattr(module, "prompts_at_once", lambda *given: prompts_at_once(*given[:3], "tpu"))
    Engine(random_params(LONG), LONG, dataclasses.replace(options, places=1)).warm_up()
    assert {name for name, *_ in planned} == {*ENGINES}
    assert planned <= ran


def in_one_size(compiled: Callable[..., Any]) -> Callable[..., Any]:
    """Lets an `_Engines` compile engines of two rows only."""
    return lambda self, adapters, rows: compiled(self, adapters, 2)


ARRAYS = (programs.bind_shared, programs.make_state, engine_programs.empty_places)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Returns a function that sets a device's bytes. A program needs its arguments, and one that makes arrays them too.

    A program is not compiled, so that an engine is planned in a moment.
    """
    size = [CHIP.hbm_bytes]

    def compile_for(chip, program, *arguments, **static):
        needed, made, shardings = nbytes(arguments), program in ARRAYS, None
        if made:
            shapes = program.eval_shape(*arguments, **static)
            everywhere = NamedSharding(jax.sharding.get_mesh(), PartitionSpec())
            needed, shardings = (
                needed + sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes)),
                jax.tree.map(lambda _: everywhere, shapes),
            )
        if needed > chip.hbm_bytes:
            return Compiled(needed, chip.hbm_bytes, chip.hbm_bytes, None, None, None, None, 1.0)
        return Compiled(needed, chip.hbm_bytes, chip.hbm_bytes, 0, [], shardings, "", 1.0)

    monkeypatch.setattr(engine_programs, "compile_for", compile_for)
    monkeypatch.setattr(serving_plan, "chip_of", lambda device: dataclasses.replace(CHIP, hbm_bytes=size[0]))

    def set_bytes(hbm_bytes: int) -> None:
        size[0] = hbm_bytes

    return set_bytes


def test_adapters_that_leave_no_room_end_no_plan(memory: Callable[[int], None]):
    memory(GIB // 8)
    few, some, many = plans_of(rank=64)
    assert few.rows >= some.rows > 300
    assert (many.rows, many.programs, many.tokens_per_second) == (0, (), None)
    assert (many.adapters, many.places, many.places_bytes) == (1024, 1024, some.places_bytes * 1024 // some.places)
    assert many.places_bytes > GIB // 8
    assert serving_table.advice(few) is None
    said = str(serving_table.advice(many))
    assert "1,024 adapters" in said
    assert "fewer adapters on the devices (--places of the server) or a smaller rank (--rank," in said
    cells = [[str(cell) for cell in column.cells] for column in serving_table.table([few, many]).columns]
    assert ["rows at once", f"{few.rows:,}", "none fits"] in [list(row) for row in zip(*cells, strict=True)]


@pytest.mark.parametrize(
    ("dtype", "hbm_bytes", "rows"),
    # A row's keys and values have 3.1 MB in bfloat16. The second sample is an engine of four rows, the first of two.
    [("bfloat16", 11_000_000, 3), ("bfloat16", 8_000_000, 2), ("float32", 9_000_000, 1)],
)
def test_rows_are_found_where_a_sample_does_not_fit(
    memory: Callable[[int], None], dtype: Any, hbm_bytes: int, rows: int
):
    memory(hbm_bytes)
    base = BaseConfig(path="nowhere", dtype=dtype)
    plan, *_ = plans_of(LONG, base, tokens=1500, new_tokens=500)
    assert plan.rows == rows
    assert plan.weights_bytes + rows * plan.slots * 2 * 3 * 128 * jnp.dtype(dtype).itemsize < hbm_bytes


def test_a_base_that_leaves_no_room_for_the_smallest_engine_is_told(memory: Callable[[int], None]):
    memory(4_000_000)
    with pytest.raises(InputError, match=r"the engine's arrays alone need 0\.01 GiB a device"):
        plans_of(LONG, BaseConfig(path="nowhere", dtype="float32"), tokens=1500, new_tokens=500)


SHOWS = """
from absl import flags
from aligner_jax import compile
from aligner_jax.errors import InputError

def made():
    yield "a plan"
    raise InputError("no such topology")

flags.FLAGS(["compile"])
try:
    compile._show(made(), lambda plans: f"table of {plans}", lambda plan: f"advice on {plan}")
except InputError as error:
    print(error)
"""


def test_finished_plans_are_shown_if_a_later_one_cannot_be_made():
    # In a process of its own, since the command defines flags.
    done = subprocess.run([sys.executable, "-c", SHOWS], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "table of ['a plan']\nadvice on a plan\nno such topology\n", done.stderr


def test_a_step_moves_weights_read_slots_and_the_rows_adapters(compiled):
    plan, *_ = plans_of(LONG, tokens=600, new_tokens=400)
    rows, item = plan.rows, 2
    block = ragged.block_sizes((1, rows, 1, 1000, 128), jnp.dtype("bfloat16"))[1]
    assert (plan.filled, plan.read, block) == (800, 1000, 512)

    def moved(length: int) -> float:
        return roofline.decode_step(LONG, batch_size=rows, length=length, num_tokens=0).hbm_bytes + rows * row

    row = LONG.num_layers * LONG.num_heads * LONG.head_dim * item
    assert plan.row_bytes == row == num_bytes(LONG, Capacity(), jnp.bfloat16)
    assert plan.step_bytes["adapters"] == rows * row
    short, *_ = plans_of(LONG, tokens=300, new_tokens=700)
    assert (short.filled, short.read, short.rows) == (650, 1000, rows)
    shorter, *_ = plans_of(LONG, tokens=300, new_tokens=400)
    assert (shorter.filled, shorter.read, shorter.slots) == (500, 512, 700)
    assert shorter.step_bytes["keys"] == rows * 513 * 2 * LONG.num_layers * LONG.num_kv_heads * LONG.head_dim * item
    assert sum(shorter.step_bytes.values()) == pytest.approx(moved(512))
    assert shorter.all_slots_bytes == pytest.approx(moved(700))
    assert shorter.filled_slots_bytes == pytest.approx(moved(500))
    assert (shorter.bound, shorter.step_seconds) == (
        "memory", pytest.approx(sum(shorter.step_bytes.values()) / CHIP.hbm_bytes_per_second),
    )  # fmt: skip
    assert shorter.tokens_per_second == pytest.approx(rows / shorter.step_seconds)


def test_a_step_reads_all_slots_where_the_kernel_does_not_apply(compiled):
    plan, *_ = plans_of()
    assert (plan.filled, plan.read, plan.slots, MODEL.head_dim) == (160, 192, 192, 8)
    assert sum(plan.step_bytes.values()) == pytest.approx(plan.all_slots_bytes)
    keys_bytes = plan.rows * 193 * 2 * MODEL.num_layers * MODEL.num_kv_heads * MODEL.head_dim * 2
    assert plan.step_bytes["keys"] == keys_bytes
    in_float32, *_ = plans_of(base=BaseConfig(path="nowhere", dtype="float32"))
    assert in_float32.step_bytes["keys"] == 2 * keys_bytes


def test_the_table_names_what_does_not_fit(compiled):
    plan, *_ = plans_of()
    none = dataclasses.replace(plan, rows=0, step_seconds=None, bound=None)
    assert "not one row of 192 slots fits" in str(serving_table.advice(none))
    assert serving_table.advice(plan) is None
    cells = [[str(cell) for cell in column.cells] for column in serving_table.table([plan, none]).columns]
    rows = {name: values for name, *values in zip(*cells, strict=True)}
    assert rows["rows at once"] == ["27", "none fits"]
    assert rows["tokens/s by the roofline"][1] == "–"
    assert rows["all slots"][0].endswith(", 100% of it")


def test_what_other_devices_send_is_counted_per_token():
    sent = Compiled(GIB, 16 * GIB, 16 * GIB, 0, [Collective("all-gather", 1000, 4, 8)], None, "", 1.0)
    assert gathered_bytes(sent, 4) == 2000


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
        # Room for two of the adapters, and the tokens that the server's default asks for.
        assert (plan["capacity_rank"], plan["capacity_tokens"]) == (8, PREFIX_TOKENS)
        assert plan["step_bytes"]["gathered"] > 0
        assert all(program["fits"] for program in plan["programs"])
        assert max(program["peak_bytes"] for program in plan["programs"]) <= plan["hbm_bytes"]


def test_what_cannot_be_served_is_refused(tmp_path):
    with pytest.raises(InputError, match="do not fit the model's context of 512"):
        plans_of(tokens=500, new_tokens=64)
    save_adapter(init_adapter("full", MODEL), tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="adapters of method 'full' cannot be different in the rows"):
        plans_of(adapter_path=str(tmp_path / "a.safetensors"))
    done = run_command("compile", "--serve", "--search", "--config=configs/quickstart.py", folder=ROOT)
    assert (done.status, done.err) == (1, "error: --search is of a training run, and --serve plans a server\n")
    done = run_command("compile", "--rank=4", "--config=configs/quickstart.py", folder=ROOT)
    assert (done.status, done.err) == (1, "error: --rank is of a server: add --serve\n")

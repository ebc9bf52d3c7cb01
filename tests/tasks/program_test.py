"""The step as a program: training runs the program that the planner compiles; rows and model must fit the mesh."""

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from rich.console import Console

from aligner_jax.errors import InputError
from aligner_jax.model.config import llama_config
from aligner_jax.runtime import sharding
from aligner_jax.runtime.config import parse_config
from aligner_jax.tasks import program, training
from aligner_jax.tasks.first_adapter import first_adapter, first_adapter_shapes
from aligner_jax.weights.base import base_config


def sft(path: Path) -> list[dict]:
    return [{"instruction": f"Name number {i}.", "output": f"It is {i}."} for i in range(6)]


def pairs(path: Path) -> list[dict]:
    answers = {"chosen": "With pleasure: a fig.", "rejected": "A fig."}
    return [{"prompt": f"Name fruit {i}.", **answers} for i in range(6)]


DPO = {"objective": {"name": "dpo", "cache_reference": False}}


@pytest.mark.parametrize(
    ("rows", "changed"),
    [
        (sft, {}),
        (sft, {"adapter": {"method": "lora", "rank": 2}, "optim": {"accumulate": 2, "state_dtype": "bfloat16"}}),
        (sft, {"sweep": {"lr": [0.1, 0.01]}}),
        (pairs, DPO),
        (pairs, {"objective": {"name": "dpo"}, "data": {"packing": False}}),
    ],
    ids=["sft", "lora", "sweep", "dpo", "dpo with tables"],
)
def test_training_runs_what_the_planner_compiles(tiny_model: Path, tmp_path: Path, monkeypatch, rows, changed: dict):
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows(data)))
    fields = {"format": "fields", "fields": {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}}
    settings = {
        "base": {"path": str(tiny_model), "dtype": "float32"},
        "adapter": {"num_tokens": 2, "start_layer": 1},
        "steps": 1,
        **changed,
        "data": {
            "path": str(data), "template": "chat", "sequence_length": 128, "batch_size": 4,
            **(fields if rows is pairs else {}), **changed.get("data", {}),
        },
    }  # fmt: skip
    config = parse_config(settings)
    ran: list[tuple[program.Program, tuple[Any, ...]]] = []
    make = program.make_program

    def recording(*args):
        made = make(*args)

        def step(*arguments):
            # Shapes stand for the arrays, since the step donates its state.
            as_shape = lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype)  # noqa: E731
            ran.append((made, jax.tree.map(as_shape, arguments)))
            return made.step(*arguments)

        return dataclasses.replace(made, step=step)

    monkeypatch.setattr(training, "make_program", recording)
    training.train(config, tmp_path / "run", Console(file=io.StringIO()))
    (made, arguments), model = ran[0], base_config(tiny_model)
    mesh = sharding.mesh_of(config.mesh)
    planned = make(config, model, first_adapter_shapes(config, model), mesh)
    with planned.use():
        plan = planned.step.lower(*program.abstract_arguments(config, model, planned, "float32"))
        run = made.step.lower(*arguments)
    shapes = lambda lowered: jax.tree.map(lambda arg: (arg.shape, arg.dtype), lowered.args_info)  # noqa: E731
    assert shapes(plan) == shapes(run)
    plan, run = plan.compile(), run.compile()
    a, b = plan.memory_analysis(), run.memory_analysis()
    assert a.temp_size_in_bytes == b.temp_size_in_bytes > 0
    assert a.argument_size_in_bytes == b.argument_size_in_bytes > 0
    assert plan.cost_analysis() == run.cost_analysis()


def config_of(**changed: Any):
    data = {"path": "", "batch_size": 8, **changed.pop("data", {})}
    return parse_config({"base": {"path": "", "model": "stories_260k"}, "data": data, "steps": 1, **changed})


def abstract(data: int, fsdp: int, tensor: int) -> Mesh:
    return jax.sharding.AbstractMesh((data, fsdp, tensor), sharding.AXES)  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize(
    ("changed", "mesh", "multiple"),
    [
        ({}, (1, 1, 1), 1),
        ({}, (2, 2, 2), 4),
        ({"optim": {"accumulate": 2}}, (2, 2, 1), 8),
        ({"objective": {"name": "dpo"}, "data": {"packing": False}}, (1, 4, 1), 8),
        ({"objective": {"name": "dpo"}}, (1, 4, 1), 4),
        ({"mesh": {"rules": {"batch": "data"}}}, (2, 4, 1), 2),
    ],
)
def test_what_the_rows_must_be_a_multiple_of(changed: dict, mesh: tuple, multiple: int):
    assert program.row_multiple(config_of(**changed), abstract(*mesh)) == multiple


def test_an_option_that_has_the_name_of_an_argument_is_refused():
    config = config_of(adapter={"key": 1})
    with pytest.raises(InputError, match=r"^adapter method 'aligner' has no option 'key'"):
        first_adapter(config, llama_config("stories_260k"))


def test_rows_that_the_mesh_does_not_divide_are_refused():
    config = config_of(data={"batch_size": 6})
    with pytest.raises(InputError, match=r"config.data.batch_size is 6, but on the mesh .* multiple of 4, such as 8"):
        program.make_program(config, llama_config("stories_260k"), None, abstract(2, 2, 1))


def test_more_layers_than_the_model_has_are_refused():
    config = config_of(remat="dots:6")
    with pytest.raises(
        InputError, match=r"^config\.remat 'dots:6' keeps results of 6 layers, but there are 5: give fewer$"
    ):
        program.make_program(config, llama_config("stories_260k"), None, abstract(2, 2, 1))


@pytest.mark.parametrize(
    "changed",
    [{}, {"sweep": {"lr": [0.1, 0.01]}}, {"sweep": {"seed": [0, 1]}}, {"adapter": {"method": "lora"}}, DPO],
    ids=["sft", "sweep of rates", "sweep of seeds", "lora", "dpo"],
)
def test_lowering_the_step_reads_nothing_from_a_device(monkeypatch: pytest.MonkeyPatch, changed: dict):
    """The loop's transfer guard sees such a read on accelerators only: on CPUs it is no copy."""
    model = llama_config("stories_260k")
    config = parse_config({
        "base": {"path": "nowhere"}, "data": {"path": "nowhere", "sequence_length": 128, "batch_size": 4}, "steps": 1,
        **changed,
    })  # fmt: skip
    mesh = sharding.mesh_of(config.mesh, jax.devices()[:1])
    made = program.make_program(config, model, first_adapter_shapes(config, model), mesh)
    arguments = program.abstract_arguments(config, model, made, "float32")

    def refuse(array):
        raise AssertionError("an array is read from its device")

    monkeypatch.setattr(type(jax.numpy.zeros(())), "_value", property(refuse))
    with made.use():
        made.step.lower(*arguments)

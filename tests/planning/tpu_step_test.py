"""The training step of every config, compiled by the real TPU compiler without TPUs."""

import dataclasses
import re

import jax
import places
import pytest

from aligner_jax.compile import planned_model
from aligner_jax.model.remat import AUTO
from aligner_jax.planning import table
from aligner_jax.planning.compiled import chip_of, compile_for
from aligner_jax.planning.plan import make_plan
from aligner_jax.planning.topology import topology_devices
from aligner_jax.runtime import sharding
from aligner_jax.runtime.command import load_config
from aligner_jax.runtime.config import parse_config
from aligner_jax.tasks.first_adapter import first_adapter
from aligner_jax.tasks.program import abstract_arguments, make_program

pytest.importorskip("libtpu", reason="the TPU compiler exists for Linux on x86-64 only")

OWN_MODEL = "any_model_alpaca"
"""The config whose model and topology are the user's."""
CONFIGS = sorted(path.stem for path in places.CONFIGS.glob("*.py") if path.stem != OWN_MODEL)
CHOSEN = {"llama7b_alpaca": "dots"}
"""The configs whose "auto" is searched here, and its choice. The others with "auto" are compiled once, with "full"."""


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_compiles_for_its_topology_and_fits(name: str):
    config = parse_config(load_config(places.CONFIGS / f"{name}.py"))
    if config.remat == AUTO and name not in CHOSEN:
        # If this fits, so does the choice of "auto", which is "full" if nothing else fits.
        config = dataclasses.replace(config, remat="full")
    assert config.mesh.topology is not None
    devices = topology_devices(config.mesh.topology, config.mesh.devices)
    plan = make_plan(config, planned_model(config.base), config.mesh.topology, devices)
    assert plan.fits, table.advice(plan)
    assert plan.remat == CHOSEN.get(name, config.remat)
    if plan.devices > 1:
        assert plan.collective_bytes is not None
        # Each layer's weights are gathered once forward and once backward; the rows stay sharded.
        assert plan.collective_bytes["all-gather"] <= 2 * plan.weights_bytes * plan.devices
        assert plan.collective_bytes.keys() <= {"all-gather", "all-reduce"}


def test_the_7b_step_has_the_kernel_in_both_passes():
    # The program cache has this step once "auto" has chosen it.
    name, remat = next(iter(CHOSEN.items()))
    config = parse_config(load_config(places.CONFIGS / f"{name}.py", [("remat", remat)]))
    devices = topology_devices("v5e:2x4")
    model, mesh = planned_model(config.base), sharding.mesh_of(config.mesh, devices)
    program = make_program(config, model, jax.eval_shape(lambda: first_adapter(config, model)), mesh)
    with program.use():
        compiled = compile_for(
            chip_of(devices[0]), program.step, *abstract_arguments(config, model, program, "bfloat16")
        )
    assert compiled.text is not None
    calls = re.findall(r"custom-call\(.*tpu_custom_call.*op_name=\"[^\"]*(forward|backward)", compiled.text)
    assert {"forward", "backward"} <= set(calls)


@pytest.mark.parametrize(
    ("model", "quantization", "rows", "length", "devices", "most"),
    [
        ("llama2_7b", "none", 8, 512, 1, 14.0),
        ("llama2_7b", "int8", 8, 512, 1, 8.0),
        ("llama2_7b", "int4", 1, 2048, 1, 6.0),
        ("llama3_8b", "int8", 8, 512, 1, 15.75),
        ("llama2_7b", "none", 64, 512, None, 3.4),
    ],
)
def test_the_memory_that_a_device_of_v5e_needs(
    model: str, quantization: str, rows: int, length: int, devices: int | None, most: float
):
    config = parse_config(
        {
            "base": {"path": "", "model": model, "quantization": quantization},
            "data": {"path": "", "batch_size": rows, "sequence_length": length},
            "steps": 1,
        }
    )
    plan = make_plan(config, planned_model(config.base), "v5e:2x4", topology_devices("v5e:2x4", devices))
    assert plan.fits
    assert plan.peak_bytes / 2**30 <= most

"""Plans a config's training step for a TPU topology: memory by the TPU compiler, time by the roofline."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

from aligner_jax.model.llama import LlamaConfig, Remat
from aligner_jax.model.remat import AUTO
from aligner_jax.planning.collectives import bytes_by_kind
from aligner_jax.planning.compiled import Compiled, chip_of, compile_for, compute_dtype, weight_dtype
from aligner_jax.runtime import sharding
from aligner_jax.runtime.config import MeshConfig, TrainConfig
from aligner_jax.runtime.memory import nbytes
from aligner_jax.tasks.cost import step_cost
from aligner_jax.tasks.first_adapter import first_adapter_shapes
from aligner_jax.tasks.program import abstract_arguments, make_program
from aligner_jax.tasks.remat import Memory, least_remat, need_of

ATTAINED = 0.5
"""Share of the roofline that a training step is expected to reach."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """Per-device cost of one training step. Sizes are in bytes.

    Attributes:
      peak_bytes: peak memory; if the step does not fit, the memory that the compiler reports as needed.
      weights_bytes, adapter_bytes: arguments of the step: the base, and the adapter with its optimizer state.
      temporary_bytes: peak memory of values that live only within the step; None if it does not fit.
      flops: hardware FLOPs of matrix products, recomputation included (`runtime.roofline`).
      model_flops: FLOPs of the mathematics alone, each product once.
      hbm_traffic_bytes: bytes read from and written to HBM.
      collective_bytes: result sizes of the compiled program's collectives, by kind; None if it does not fit.
      bound: the resource that limits the step: "compute", "memory" or "network".
      tokens_per_second: throughput of all devices together at `ATTAINED` of the roofline.
    """

    topology: str
    devices: int
    mesh: dict[str, int]
    batch: int
    sequence_length: int
    weight_dtype: str
    remat: str
    peak_bytes: int
    hbm_bytes: int
    fits: bool
    weights_bytes: int
    adapter_bytes: int
    temporary_bytes: int | None
    flops: float
    model_flops: float
    hbm_traffic_bytes: float
    collective_bytes: dict[str, int] | None
    roofline_seconds: float
    bound: str
    tokens_per_second: float
    compile_seconds: float


def make_plan(config: TrainConfig, model: LlamaConfig, topology: str, devices: Sequence[Any]) -> Plan:
    """Compiles a config's training step for the devices and returns its cost.

    For remat "auto", the plan is that of the least recomputation that fits.

    Raises:
      InputError: the mesh does not divide rows or model, the chip is unknown, or the program cannot be compiled for
        another reason than its size.
    """
    mesh = sharding.mesh_of(refitted(config.mesh, len(devices)), devices)
    adapter, chip = first_adapter_shapes(config, model), chip_of(devices[0])
    program = make_program(config, model, adapter, mesh)
    arguments = abstract_arguments(config, model, program, compute_dtype(config.base))
    state, params, *_ = arguments

    @functools.cache
    def compiled_with(remat: Remat) -> Compiled:
        program = make_program(dataclasses.replace(config, remat=remat), model, adapter, mesh)
        with program.use():
            return compile_for(chip, program.step, *arguments)

    def memory_with(remat: Remat) -> Memory:
        compiled = compiled_with(remat)
        return Memory(compiled.peak_bytes, compiled.limit_bytes, compiled.fits)

    remat = config.remat
    if remat == AUTO:
        need = need_of(config, model, mesh, params, nbytes(arguments))
        remat = least_remat(memory_with, need, chip.hbm_bytes).remat
    compiled = compiled_with(remat)
    sent = compiled.sent
    cost = step_cost(dataclasses.replace(config, remat=remat), model, mesh, params)
    tensor = mesh.shape["tensor"]
    # Gathered weights are written to HBM before they are read.
    traffic = cost.hbm_bytes / tensor + sum(each.nbytes * each.runs for each in sent or ())
    seconds = {
        "compute": cost.hardware_flops / tensor / chip.flops_per_second,
        "memory": traffic / chip.hbm_bytes_per_second,
        "network": sum(each.received for each in sent or ()) / chip.network_bytes_per_second,
    }
    bound = max(seconds, key=lambda name: seconds[name])
    tokens = config.data.batch_size * config.data.sequence_length
    return Plan(
        topology=topology,
        devices=len(devices),
        mesh=dict(mesh.shape.items()),
        batch=config.data.batch_size,
        sequence_length=config.data.sequence_length,
        weight_dtype=weight_dtype(config.base),
        remat=remat,
        peak_bytes=compiled.peak_bytes,
        hbm_bytes=chip.hbm_bytes,
        fits=compiled.fits,
        weights_bytes=nbytes(params),
        adapter_bytes=nbytes(state),
        temporary_bytes=compiled.temporary_bytes,
        flops=cost.hardware_flops / tensor,
        model_flops=cost.model_flops / tensor,
        hbm_traffic_bytes=traffic,
        collective_bytes=None if sent is None else bytes_by_kind(sent),
        roofline_seconds=seconds[bound],
        bound=bound,
        tokens_per_second=ATTAINED * tokens / seconds[bound],
        compile_seconds=compiled.seconds,
    )


def refitted(config: MeshConfig, num_devices: int) -> MeshConfig:
    """Returns the mesh if it fits `num_devices`, else the nearest that does: smaller axes, and fsdp takes the rest."""
    sizes = [config.data, config.fsdp, config.tensor]
    known = [size for size in sizes if size != -1]
    product = 1
    for size in known:
        product *= size
    if product == num_devices or (len(known) == 2 and num_devices % product == 0 and config.slices == 1):
        return config
    tensor = _largest_divisor(num_devices, config.tensor)
    data = _largest_divisor(num_devices // tensor, config.data)
    return dataclasses.replace(config, data=data, fsdp=-1, tensor=tensor, slices=1)


def _largest_divisor(number: int, at_most: int) -> int:
    wanted = number if at_most == -1 else at_most
    return max(divisor for divisor in range(1, min(wanted, number) + 1) if number % divisor == 0)

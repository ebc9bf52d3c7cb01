"""Plans serving on a TPU topology: requests that fit at once, bytes that a decode step moves, tokens per second."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from jax.sharding import Mesh

from aligner_jax.decoding.engine_options import EngineOptions
from aligner_jax.decoding.lengths import padded_slots, prompts_at_once
from aligner_jax.decoding.server_options import server_options
from aligner_jax.errors import InputError
from aligner_jax.model.llama import LlamaConfig, Params
from aligner_jax.model.logical import num_parts
from aligner_jax.peft.row_adapters import Capacity, capacity_of, num_bytes
from aligner_jax.peft.row_sums import MOST_IN_A_SUM
from aligner_jax.planning.compiled import Compiled, chip_of, compute_dtype, weight_dtype
from aligner_jax.planning.engine_programs import EnginePrograms
from aligner_jax.planning.inference_plan import (
    ProgramPlan,
    bytes_per_weight,
    planned_adapter,
    planned_params,
    program_plan,
    step_seconds,
)
from aligner_jax.planning.plan import refitted
from aligner_jax.runtime import chips, roofline, sharding
from aligner_jax.runtime.config import BaseConfig, MeshConfig
from aligner_jax.runtime.memory import nbytes
from aligner_jax.tasks.program import quantization_of

ADAPTERS = (1, 64, 1024)
"""Numbers of different adapters that are planned."""
MOST_TRIES = 4


@dataclasses.dataclass(frozen=True)
class ServingPlan:
    """Per-device cost of an engine. Sizes are in bytes.

    Attributes:
      tokens, new_tokens: tokens of the longest prompt, which is prefilled at once, and of its answer.
      slots: slots of the cache per row.
      adapter: method and options of the adapters.
      adapters: different adapters that are held on the devices.
      places: places for adapters; at least those of all prompts that one program admits.
      rows: requests that run at once, over all devices; 0 if none fits.
      row_bytes: bytes of one row's own adapters, which a step reads for every row, whichever rows share an adapter.
      places_bytes: adapters held on one device.
      step_bytes: bytes that a decode step moves when texts have `filled` tokens: "weights", "keys" (and values),
        "adapters", and "rest", which is activations and logits.
      filled: tokens of a row halfway through its answer.
      all_slots_bytes: the step's bytes if it reads all slots, filled or not.
      step_seconds: least time of a step, which makes one token per row; None if nothing fits.
      bound: the resource that limits it: "compute", "memory" or "network".
      programs: "prompts" and "new tokens", with all places.
    """

    topology: str
    devices: int
    mesh: dict[str, int]
    tokens: int
    new_tokens: int
    slots: int
    adapter: str
    adapters: int
    places: int
    rows: int
    weight_dtype: str
    hbm_bytes: int
    weights_bytes: int
    row_bytes: int
    places_bytes: int
    step_bytes: dict[str, float]
    filled: int
    all_slots_bytes: float
    step_seconds: float | None
    bound: str | None
    programs: tuple[ProgramPlan, ...]

    @property
    def tokens_per_second(self) -> float | None:
        """New tokens of all rows by the roofline."""
        return None if self.step_seconds is None else self.rows / self.step_seconds


@dataclasses.dataclass(frozen=True)
class _Engines:
    """Compiles engines of one topology that differ in rows and places."""

    chip: chips.Chip
    mesh: Mesh
    model: LlamaConfig
    params: Params
    capacity: Capacity
    tokens: int
    new_tokens: int

    def places(self, adapters: int, rows: int) -> int:
        """Returns the number of places, as the engine does."""
        return max(adapters, MOST_IN_A_SUM * prompts_at_once(1, rows, num_parts("batch"), "tpu"))

    def compiled(self, adapters: int, rows: int) -> "_Engine":
        options = server_options(
            self.model, rows=rows, slots=padded_slots(self.tokens + self.new_tokens), capacity=self.capacity,
            places=self.places(adapters, rows), longest_part=padded_slots(self.tokens),
        )  # fmt: skip
        engine = EnginePrograms(self.chip, self.mesh, self.model, self.params, options)
        return _Engine(
            rows, options, engine.cache_bytes, nbytes(engine.held), engine.admit(self.tokens, self.new_tokens),
            engine.decode(options.tokens_per_call),
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Engine:
    """An engine's programs; bytes are those of a device."""

    rows: int
    options: EngineOptions
    cache_bytes: int
    places_bytes: int
    prompts: Compiled
    new: Compiled

    @property
    def peak_bytes(self) -> int:
        """Memory of a device. The program of new tokens does not take the places, which lie beside it."""
        return max(self.prompts.peak_bytes, self.new.peak_bytes + self.places_bytes)

    @property
    def fits(self) -> bool:
        return self.prompts.fits and self.new.fits and self.peak_bytes <= self.new.hbm_bytes


def make_serving_plans(
    base: BaseConfig,
    mesh_config: MeshConfig,
    model: LlamaConfig,
    topology: str,
    devices: Sequence[Any],
    *,
    tokens: int,
    new_tokens: int,
    adapter_path: str | None = None,
) -> Iterator[ServingPlan]:
    """Yields the plan of an engine for each number of different adapters, with as many rows as fit.

    Peaks are linear in rows and places, so two engines are compiled to find the rest, and what is found is compiled.

    Args:
      base, mesh_config, model: the base, its mesh and its architecture.
      topology, devices: name and devices of the topology.
      tokens, new_tokens: tokens of the longest prompt and of its answer.
      adapter_path: file or folder of an adapter of the size of all; if None, Aligners of one token are planned.

    Raises:
      InputError: the context is too short, the adapter cannot be read, rows cannot have different adapters of its
        method, or the mesh does not divide the model.
    """
    if tokens + new_tokens > model.context_length:
        raise InputError(
            f"prompts of {tokens} tokens and {new_tokens} new ones do not fit the model's context of "
            f"{model.context_length}"
        )
    mesh, rules = sharding.mesh_of(refitted(mesh_config, len(devices)), devices), sharding.rules_of(mesh_config)
    params = planned_params(model, base, mesh, rules, quantization_of(base))
    adapter = planned_adapter(adapter_path, model)
    with sharding.use(mesh, rules):
        capacity = capacity_of(adapter.method, adapter.options, params, model)
        engines = _Engines(chip_of(devices[0]), mesh, model, params, capacity, tokens, new_tokens)
        parts = num_parts("batch")
        first = engines.compiled(ADAPTERS[0], 2 * parts)
        # The second sample has about half of the rows that fit, so that the line through both is near the truth there.
        room = (first.new.hbm_bytes - first.peak_bytes) / (first.cache_bytes / first.rows)
        second = engines.compiled(ADAPTERS[0], parts * max(4, int(room / 2 / parts)))
        for adapters in ADAPTERS:
            found = _largest(engines, first, second, adapters, parts)
            yield _plan(engines, found, adapters, topology, base, str(adapter))


def _largest(engines: _Engines, first: _Engine, second: _Engine, adapters: int, parts: int) -> _Engine:
    """Returns the engine with the most rows that fits; the smallest one if none does."""
    place_bytes = first.places_bytes / first.options.places

    def needed(rows: int) -> float:
        """Returns the peak by the line through the two samples."""
        places_bytes = engines.places(adapters, rows) * place_bytes
        share = (rows - first.rows) / (second.rows - first.rows)
        peaks = [
            (each.prompts.peak_bytes - each.places_bytes, each.new.peak_bytes) for each in (first, second)
        ]  # fmt: skip
        return max(one + share * (other - one) for one, other in zip(*peaks, strict=True)) + places_bytes

    rows = parts
    while needed(rows + parts) <= first.new.hbm_bytes:
        rows += parts
    found = engines.compiled(adapters, rows)
    for _ in range(MOST_TRIES):
        if found.fits or rows == parts:
            break
        # The compiler keeps about a 64th of the memory for itself.
        rows -= parts * max(1, rows // (64 * parts))
        found = engines.compiled(adapters, rows)
    return found


def _plan(
    engines: _Engines, found: _Engine, adapters: int, topology: str, base: BaseConfig, adapter: str
) -> ServingPlan:
    model, mesh = engines.model, engines.mesh
    rows, tensor = found.rows // num_parts("batch"), mesh.shape["tensor"]
    filled = engines.tokens + engines.new_tokens // 2
    row_bytes = num_bytes(model, engines.capacity, compute_dtype(base))
    costs = {
        length: roofline.decode_step(
            model, batch_size=rows, length=length, num_tokens=0, weight_bytes=bytes_per_weight(engines.params)
        )
        for length in (filled, found.options.slots)
    }
    moved = {part.name: part.hbm_bytes / tensor for part in costs[filled].parts}
    step_bytes = {
        "weights": moved.pop("layer weights") + moved.pop("head weights"),
        "keys": moved.pop("cache"),
        "adapters": float(rows * row_bytes),
        "rest": sum(moved.values()),
    }
    seconds, bound = None, None
    if found.fits:
        seconds, bound = step_seconds(costs[filled], step_bytes["adapters"], mesh, engines.chip, found.new)
    return ServingPlan(
        topology=topology,
        devices=mesh.size,
        mesh=dict(mesh.shape.items()),
        tokens=engines.tokens,
        new_tokens=engines.new_tokens,
        slots=found.options.slots,
        adapter=adapter,
        adapters=adapters,
        places=found.options.places,
        rows=found.rows if found.fits else 0,
        weight_dtype=weight_dtype(base),
        hbm_bytes=engines.chip.hbm_bytes,
        weights_bytes=nbytes(engines.params),
        row_bytes=row_bytes,
        places_bytes=found.places_bytes,
        step_bytes=step_bytes,
        filled=filled,
        all_slots_bytes=costs[found.options.slots].hbm_bytes / tensor + step_bytes["adapters"],
        step_seconds=seconds,
        bound=bound,
        programs=(program_plan("prompts", found.prompts), program_plan("new tokens", found.new)),
    )

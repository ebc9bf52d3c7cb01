"""Plans serving on a TPU topology: requests that fit at once, bytes that a decode step moves, tokens per second."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from aligner_jax.decoding.engine_options import EngineOptions, rows_for
from aligner_jax.decoding.server_options import PREFIX_TOKENS, row_capacity, server_options
from aligner_jax.errors import InputError
from aligner_jax.model.cached_attention import slots_read
from aligner_jax.model.llama import LlamaConfig, Params
from aligner_jax.model.logical import num_parts
from aligner_jax.peft.row_adapters import Capacity, capacity_of, num_bytes
from aligner_jax.planning.compiled import Compiled, chip_of, compute_dtype, weight_dtype
from aligner_jax.planning.engine_programs import EnginePrograms, EngineTooLarge
from aligner_jax.planning.inference_plan import (
    ProgramPlan,
    bytes_per_weight,
    gathered_bytes,
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
    """Per-device cost of a server's engine. Sizes are in bytes.

    Attributes:
      tokens, new_tokens: tokens of a prompt and of its answer; their sum is the server's `--tokens`.
      slots: slots of the cache per row.
      adapter: method and options of the adapters.
      adapters: different adapters that are held on the devices.
      capacity_tokens, capacity_rank: tokens and rank that a row has room for.
      places: places for adapters; at least those of all prompts that one program admits.
      rows: requests that run at once, over all devices; 0 if none fits beside the adapters.
      row_bytes: bytes of one row's own adapters, which a step reads for every row, whichever rows share an adapter.
      places_bytes: adapters held on one device.
      filled: tokens of a row halfway through its answer.
      read: slots of such a row that a decode step reads.
      step_bytes: bytes that a decode step moves when texts have `filled` tokens: "weights", "keys" (and values),
        "adapters", "gathered", which is what other devices send, mostly weights, and "rest", which is activations and
        logits.
      filled_slots_bytes, all_slots_bytes: the step's bytes if it read the filled slots alone, and all slots.
      step_seconds: least time of a step, which makes one token per row; None if nothing fits.
      bound: the resource that limits it: "compute", "memory" or "network".
      programs: the programs that take most memory. Their peaks include what lies beside them on the device: adapters,
        the state of rows, and a prompt that is prefilled in parts.
    """

    topology: str
    devices: int
    mesh: dict[str, int]
    tokens: int
    new_tokens: int
    slots: int
    adapter: str
    adapters: int
    capacity_tokens: int
    capacity_rank: int
    places: int
    rows: int
    weight_dtype: str
    hbm_bytes: int
    weights_bytes: int
    row_bytes: int
    places_bytes: int
    filled: int
    read: int
    step_bytes: dict[str, float]
    filled_slots_bytes: float
    all_slots_bytes: float
    step_seconds: float | None
    bound: str | None
    programs: tuple[ProgramPlan, ...]

    @property
    def tokens_per_second(self) -> float | None:
        """New tokens of all rows by the roofline."""
        return None if self.step_seconds is None else self.rows / self.step_seconds


class _Program(NamedTuple):
    """A program, and the bytes of a device's arrays that it does not take but that lie beside it."""

    compiled: Compiled
    beside_bytes: int

    @property
    def peak_bytes(self) -> int:
        return self.compiled.peak_bytes + self.beside_bytes

    @property
    def fits(self) -> bool:
        return self.compiled.fits and self.peak_bytes <= self.compiled.hbm_bytes


@dataclasses.dataclass(frozen=True)
class _Engine:
    """An engine's programs; bytes are those of a device. There are no programs if its arrays alone do not fit."""

    options: EngineOptions
    keys: jax.ShapeDtypeStruct | jax.Array
    state_bytes: int
    places_bytes: int
    programs: Mapping[str, _Program]

    @property
    def peak_bytes(self) -> int:
        return max(program.peak_bytes for program in self.programs.values())

    @property
    def fits(self) -> bool:
        return bool(self.programs) and all(program.fits for program in self.programs.values())


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
    made: dict[EngineOptions, _Engine] = dataclasses.field(default_factory=dict)

    def options(self, adapters: int, rows: int) -> EngineOptions:
        """Returns the sizes of the server's engine, with all places."""
        options = server_options(
            self.model, rows=rows, slots=self.tokens + self.new_tokens, capacity=self.capacity, places=adapters
        )
        return dataclasses.replace(options, places=options.all_places(num_parts("batch"), "tpu"))

    def compiled(self, adapters: int, rows: int) -> _Engine:
        options = self.options(adapters, rows)
        if options not in self.made:
            self.made[options] = self._compile(options)
        return self.made[options]

    def _compile(self, options: EngineOptions) -> _Engine:
        engine = EnginePrograms(self.chip, self.mesh, self.model, self.params, options)
        programs = dict(_programs(engine, options))
        return _Engine(options, engine.state.cache.k_lbksh, nbytes(engine.state), nbytes(engine.held), programs)


def _programs(engine: EnginePrograms, options: EngineOptions) -> Iterator[tuple[str, _Program]]:
    """Compiles the programs that the engine's warm-up runs, those with the largest shapes of each kind.

    The one that binds an adapter to a place is left out.
    """
    state_bytes, held_bytes, parts_bytes = nbytes(engine.state), nbytes(engine.held), 0
    # The server takes every prompt that leaves room for a token.
    longest, part = options.slots - 1, options.longest_part
    if longest > part:
        beside = {"first parts": state_bytes, "next parts": state_bytes + held_bytes, "last parts": held_bytes}
        for name, compiled, state in engine.parts(longest):
            parts_bytes = nbytes(state)
            yield name, _Program(compiled, beside[name])
    # Many short prompts are admitted at once, with the adapters of all.
    for name, tokens in {"short prompts": 1, "prompts": min(longest, part)}.items():
        yield name, _Program(engine.admit(tokens, 1), parts_bytes)
    yield "new tokens", _Program(engine.decode(options.tokens_per_call), held_bytes + parts_bytes)


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
    prefix_tokens: int = PREFIX_TOKENS,
    rank: int = 0,
) -> Iterator[ServingPlan]:
    """Yields the plan of a server's engine for each number of different adapters, with as many rows as fit.

    Peaks are linear in rows and places, so two engines are compiled to find the rest, and what is found is compiled. A
    plan whose adapters leave no room for the smallest engine has no rows.

    Args:
      base, mesh_config, model: the base, its mesh and its architecture.
      topology, devices: name and devices of the topology.
      tokens, new_tokens: tokens of a prompt and of its answer.
      adapter_path: file or folder of an adapter of the size of all; if None, Aligners of one token are planned.
      prefix_tokens, rank: room of a row at least, as the server's flags of these names.

    Raises:
      InputError: the context is too short, the adapter cannot be read, rows cannot have different adapters of its
        method, the mesh does not divide the model, or the arrays of the smallest engine with one adapter do not fit.
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
        needed = capacity_of(adapter.method, adapter.options, params, model)
        capacity = row_capacity([needed], prefix_tokens, rank)
        engines = _Engines(chip_of(devices[0]), mesh, model, params, capacity, tokens, new_tokens)
        parts = num_parts("batch")
        smallest = rows_for(1, params.embed_vd.dtype, parts)
        first, second = _samples(engines, smallest, parts)
        for adapters in ADAPTERS:
            found = _largest(engines, first, second, adapters, smallest)
            yield _plan(engines, found, adapters, topology, base, str(adapter))


def _samples(engines: _Engines, smallest: int, parts: int) -> tuple[_Engine, _Engine | None]:
    """Returns two engines for one adapter that differ in rows; None in place of the second if none does."""
    try:
        first = engines.compiled(ADAPTERS[0], 2 * parts)
    except EngineTooLarge:
        return engines.compiled(ADAPTERS[0], smallest), None
    # The second sample has about half of the rows that fit, so that the line through both is near the truth there.
    room = (engines.chip.hbm_bytes - first.peak_bytes) / (first.state_bytes / first.options.rows)
    rows = parts * max(4, int(room / 2 / parts))
    while rows > first.options.rows:
        try:
            return first, engines.compiled(ADAPTERS[0], rows)
        except EngineTooLarge:
            rows = rows // (2 * parts) * parts
    return first, None


def _largest(engines: _Engines, first: _Engine, second: _Engine | None, adapters: int, smallest: int) -> _Engine:
    """Returns the engine with the most rows that fits; the one with `smallest` rows if none does."""
    place_bytes, parts = first.places_bytes / first.options.places, num_parts("batch")
    needed = _peak_by_rows(first, second)

    def fits(rows: int) -> bool:
        return needed(rows) + engines.options(adapters, rows).places * place_bytes <= engines.chip.hbm_bytes

    def made(rows: int) -> _Engine:
        try:
            return engines.compiled(adapters, rows)
        except EngineTooLarge:
            options = engines.options(adapters, rows)
            # The cache's shape decides on the slots that a step reads, and does not depend on places.
            return dataclasses.replace(
                first, options=options, places_bytes=round(options.places * place_bytes), programs={}
            )

    rows = smallest
    while fits(rows + parts):
        rows += parts
    found = made(rows)
    for _ in range(MOST_TRIES):
        if found.fits or rows == smallest:
            break
        # The compiler keeps about a 64th of the memory for itself.
        rows = max(rows - parts * max(1, rows // (64 * parts)), smallest)
        found = made(rows)
    return found if found.fits else made(smallest)


def _peak_by_rows(first: _Engine, second: _Engine | None) -> Callable[[int], float]:
    """Returns a function from rows to the largest peak without places, by the line through the samples.

    With one sample, a row adds the bytes of its state: that is too few, since prompts are prefilled beside it.
    """
    begin = first.options.rows
    if second is None:
        row_bytes, peak = first.state_bytes / begin, first.peak_bytes - first.places_bytes
        return lambda rows: peak + (rows - begin) * row_bytes
    peaks = [
        (program.peak_bytes - first.places_bytes, second.programs[name].peak_bytes - second.places_bytes)
        for name, program in first.programs.items() if name in second.programs
    ]  # fmt: skip
    more = second.options.rows - begin
    return lambda rows: max(one + (rows - begin) / more * (other - one) for one, other in peaks)


def _plan(
    engines: _Engines, found: _Engine, adapters: int, topology: str, base: BaseConfig, adapter: str
) -> ServingPlan:
    model, mesh, options = engines.model, engines.mesh, found.options
    rows, tensor = options.rows // num_parts("batch"), mesh.shape["tensor"]
    filled = engines.tokens + engines.new_tokens // 2
    read = slots_read(filled, found.keys)
    row_bytes = num_bytes(model, engines.capacity, compute_dtype(base))
    item_bytes = found.keys.dtype.itemsize

    def cost(length: int) -> roofline.Cost:
        return roofline.decode_step(
            model, batch_size=rows, length=length, num_tokens=0, weight_bytes=bytes_per_weight(engines.params),
            cache_bytes=item_bytes, activation_bytes=item_bytes,
        )  # fmt: skip

    step, new = cost(read), found.programs.get("new tokens")
    moved = {part.name: part.hbm_bytes / tensor for part in step.parts}
    step_bytes = {
        "weights": moved.pop("layer weights") + moved.pop("head weights"),
        "keys": moved.pop("cache"),
        "adapters": float(rows * row_bytes),
        "gathered": 0.0,
        "rest": sum(moved.values()),
    }
    seconds, bound = None, None
    if found.fits and new is not None:
        tokens = options.tokens_per_call
        step_bytes["gathered"] = gathered_bytes(new.compiled, tokens)
        more_bytes = step_bytes["adapters"] + step_bytes["gathered"]
        seconds, bound = step_seconds(step, more_bytes, mesh, engines.chip, new.compiled, tokens)
    others = step_bytes["adapters"] + step_bytes["gathered"]
    return ServingPlan(
        topology=topology,
        devices=mesh.size,
        mesh=dict(mesh.shape.items()),
        tokens=engines.tokens,
        new_tokens=engines.new_tokens,
        slots=options.slots,
        adapter=adapter,
        adapters=adapters,
        capacity_tokens=engines.capacity.tokens,
        capacity_rank=engines.capacity.rank,
        places=options.places,
        rows=options.rows if found.fits else 0,
        weight_dtype=weight_dtype(base),
        hbm_bytes=engines.chip.hbm_bytes,
        weights_bytes=nbytes(engines.params),
        row_bytes=row_bytes,
        places_bytes=found.places_bytes,
        filled=filled,
        read=read,
        step_bytes=step_bytes,
        filled_slots_bytes=cost(filled).hbm_bytes / tensor + others,
        all_slots_bytes=cost(options.slots).hbm_bytes / tensor + others,
        step_seconds=seconds,
        bound=bound,
        programs=tuple(
            dataclasses.replace(program_plan(name, each.compiled), peak_bytes=each.peak_bytes, fits=each.fits)
            for name, each in found.programs.items()
        ),
    )

"""Plans an evaluation for a TPU topology: memory by the TPU compiler, time by the roofline."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from aligner_jax.decoding.engine_options import TOKENS_PER_CALL
from aligner_jax.errors import InputError
from aligner_jax.evals import scoring
from aligner_jax.evals.batches import length_bucket
from aligner_jax.evals.generating import engine_options
from aligner_jax.evals.interface import EvaluateConfig
from aligner_jax.evals.subject import check_rows
from aligner_jax.model.llama import LlamaConfig, Params, abstract_params
from aligner_jax.model.quantized import Quantization
from aligner_jax.peft import METHODS, Adapter, init_adapter
from aligner_jax.peft.artifact import read_shapes
from aligner_jax.planning.collectives import bytes_by_kind
from aligner_jax.planning.compiled import Compiled, chip_of, compile_for, compute_dtype, weight_dtype
from aligner_jax.planning.engine_programs import EnginePrograms, on_device
from aligner_jax.planning.plan import refitted
from aligner_jax.runtime import chips, roofline, sharding
from aligner_jax.runtime.config import BaseConfig
from aligner_jax.runtime.memory import bits, nbytes
from aligner_jax.tasks.program import quantization_of


@dataclasses.dataclass(frozen=True)
class ProgramPlan:
    """Per-device cost of one program. Sizes are in bytes; see `plan.Plan`."""

    name: str
    peak_bytes: int
    fits: bool
    temporary_bytes: int | None
    collective_bytes: dict[str, int] | None
    compile_seconds: float


@dataclasses.dataclass(frozen=True)
class EvaluationPlan:
    """Per-device cost of an evaluation. Sizes are in bytes.

    Attributes:
      rows: batch size over all devices.
      tokens: length of the longest prompt, or of the longest text that is scored, without its last token.
      new_tokens: tokens that are generated per row at most.
      padded_tokens: length that such prompts are padded to.
      slots: slots of the cache per row.
      adapter: method and options of the adapter.
      adapter_path: the adapter's file or folder; None if none is named, so that an Aligner of one token is planned.
      adapter_params: parameters of the adapter.
      weights_bytes: weights of the base.
      cache_bytes: keys and values of the device's rows; None if "prompts" does not fit.
      programs: "scores", which scores texts; "prompts", which prefills the longest prompts; "new tokens", the decode
        loop, which generates `TOKENS_PER_CALL` tokens per row in one call. If "prompts" does not fit, "new tokens" is
        left out.
      roofline_seconds: least time of a decode step, which makes one token per row; None if "new tokens" is left out or
        does not fit.
      bound: the resource that limits the decode step: "compute", "memory" or "network"; None like `roofline_seconds`.
    """

    topology: str
    devices: int
    mesh: dict[str, int]
    rows: int
    tokens: int
    new_tokens: int
    padded_tokens: int
    slots: int
    adapter: str
    adapter_path: str | None
    adapter_params: int
    weight_dtype: str
    hbm_bytes: int
    weights_bytes: int
    cache_bytes: int | None
    programs: tuple[ProgramPlan, ...]
    roofline_seconds: float | None
    bound: str | None

    @property
    def fits(self) -> bool:
        """Returns True if all programs fit."""
        return all(program.fits for program in self.programs)


def planned_base(config: EvaluateConfig) -> BaseConfig:
    """Returns the base of an evaluation. Raises InputError if the evaluation runs no model."""
    if config.base is None:
        raise InputError(f"the evaluation {config.evaluation.name!r} runs no model, so there is nothing to plan")
    return config.base


def make_evaluation_plan(
    config: EvaluateConfig,
    model: LlamaConfig,
    topology: str,
    devices: Sequence[Any],
    *,
    tokens: int,
    new_tokens: int,
    adapter_path: str | None = None,
) -> EvaluationPlan:
    """Compiles the programs of an evaluation for the devices and returns their cost.

    Prompts and texts are padded as in the evaluation.

    Args:
      tokens: length of the longest prompt, or of the longest text that is scored, without its last token.
      new_tokens: tokens that are generated per row at most.
      adapter_path: file or folder of the evaluation's adapter; if None, an Aligner of one token is planned.

    Raises:
      InputError: the evaluation runs no model, the mesh does not divide rows or model, the context is too short, the
        adapter cannot be read or does not fit the model, the chip is unknown, or a program cannot be compiled for
        another reason than its size.
    """
    base = planned_base(config)
    if tokens + new_tokens > model.context_length:
        raise InputError(
            f"prompts of {tokens} tokens and {new_tokens} new ones do not fit the model's context of "
            f"{model.context_length}"
        )
    mesh, rules = sharding.mesh_of(refitted(config.mesh, len(devices)), devices), sharding.rules_of(config.mesh)
    check_rows(config.batch_size, mesh)
    chip, quantization = chip_of(devices[0]), quantization_of(base)
    params = planned_params(model, base, mesh, rules, quantization)
    options = engine_options(config.batch_size, tokens, tokens + new_tokens)
    adapter = on_device(planned_adapter(adapter_path, model), mesh)
    text = jax.ShapeDtypeStruct((config.batch_size, length_bucket(tokens, model.context_length)), jnp.int32)
    with sharding.use(mesh, rules):
        scores = compile_for(chip, scoring.hidden, params, adapter, on_device(text, mesh), config=model)
        engine = EnginePrograms(chip, mesh, model, params, options, adapter)
        prompts = engine.admit(tokens, new_tokens)
        new = engine.decode(TOKENS_PER_CALL) if prompts.sent is not None else None
    of_all = {"scores": scores, "prompts": prompts, **({"new tokens": new} if new is not None else {})}
    seconds, bound = _token_seconds(config, model, mesh, chip, params, adapter, options.slots, new)
    return EvaluationPlan(
        topology=topology,
        devices=len(devices),
        mesh=dict(mesh.shape.items()),
        rows=config.batch_size,
        tokens=tokens,
        new_tokens=new_tokens,
        padded_tokens=options.width(tokens) or options.longest_part,
        slots=options.slots,
        adapter=str(adapter),
        adapter_path=adapter_path,
        adapter_params=adapter.num_params,
        weight_dtype=weight_dtype(base),
        hbm_bytes=chip.hbm_bytes,
        weights_bytes=nbytes(params),
        cache_bytes=None if prompts.sent is None else engine.cache_bytes,
        programs=tuple(program_plan(name, compiled) for name, compiled in of_all.items()),
        roofline_seconds=seconds,
        bound=bound,
    )


def planned_params(
    model: LlamaConfig, base: BaseConfig, mesh: Mesh, rules: sharding.Rules, quantization: Quantization | None
) -> Params:
    """Returns the shapes of the base's parameters, with their shardings."""
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        abstract_params(model, compute_dtype(base), quantization),
        sharding.param_shardings(model, mesh, rules, quantization),
    )


def bytes_per_weight(params: Params) -> float:
    """Returns the mean size of a parameter in bytes."""
    leaves = jax.tree.leaves(params)
    return sum(bits(leaf.dtype) * leaf.size for leaf in leaves) / 8 / sum(leaf.size for leaf in leaves)


def planned_adapter(path: str | None, model: LlamaConfig) -> Adapter:
    """Returns the shapes of the adapter at a path; those of an Aligner of one token if there is no path."""
    return jax.eval_shape(lambda: init_adapter("aligner", model)) if path is None else read_shapes(path, model)


def _token_seconds(
    config: EvaluateConfig,
    model: LlamaConfig,
    mesh: Mesh,
    chip: chips.Chip,
    params: Params,
    adapter: Adapter,
    slots: int,
    new: Compiled | None,
) -> tuple[float | None, str | None]:
    """Returns the least time of a decode step in seconds and the resource that limits it."""
    if new is None or new.sent is None:
        return None, None
    tensor = mesh.shape["tensor"]
    added = METHODS[adapter.method].cost(adapter.options, model)
    cost = roofline.decode_step(
        model, batch_size=config.batch_size // (mesh.size // tensor), length=slots,
        num_tokens=added.num_tokens, start_layer=added.start_layer,
        weight_bytes=bytes_per_weight(params),
    )  # fmt: skip
    return step_seconds(cost, gathered_bytes(new, TOKENS_PER_CALL), mesh, chip, new, TOKENS_PER_CALL)


def gathered_bytes(new: Compiled, tokens: int) -> float:
    """Returns the bytes per decode step that collectives write to a device's HBM: mostly gathered weights.

    Args:
      new: program that decodes `tokens` tokens, and fits.
      tokens: its number of steps.
    """
    assert new.sent is not None
    return sum(each.nbytes * each.runs for each in new.sent) / tokens


def step_seconds(
    cost: roofline.Cost, more_bytes: float, mesh: Mesh, chip: chips.Chip, new: Compiled, tokens: int
) -> tuple[float, str]:
    """Returns the least time of a decode step in seconds and the resource that limits it.

    Args:
      cost: cost of the step for the rows of one device, without splitting over the mesh's axis "tensor".
      more_bytes: bytes that each device moves besides, as those of `gathered_bytes`.
      mesh: mesh of the devices.
      chip: chip of the devices.
      new: program that decodes `tokens` tokens.
      tokens: its number of steps.
    """
    assert new.sent is not None
    tensor = mesh.shape["tensor"]
    seconds = {
        "compute": cost.hardware_flops / tensor / chip.flops_per_second,
        "memory": (cost.hbm_bytes / tensor + more_bytes) / chip.hbm_bytes_per_second,
        "network": sum(each.received for each in new.sent) / tokens / chip.network_bytes_per_second,
    }
    bound = max(seconds, key=lambda name: seconds[name])
    return seconds[bound], bound


def program_plan(name: str, compiled: Compiled) -> ProgramPlan:
    """Returns the cost of a compiled program."""
    return ProgramPlan(
        name=name,
        peak_bytes=compiled.peak_bytes,
        fits=compiled.fits,
        temporary_bytes=compiled.temporary_bytes,
        collective_bytes=None if compiled.sent is None else bytes_by_kind(compiled.sent),
        compile_seconds=compiled.seconds,
    )

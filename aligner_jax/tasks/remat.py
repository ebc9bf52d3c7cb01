"""remat="auto": the least recomputation with which a training step fits the memory, found by compiling."""

import dataclasses
from collections.abc import Callable

from jax.sharding import Mesh

from aligner_jax.model.llama import LlamaConfig, Params, Remat
from aligner_jax.runtime.config import TrainConfig
from aligner_jax.tasks.cost import first_adapted, step_cost

_MAX_TRIES = 3
"""Compilations of "dots:N" at most, each with another N."""
_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Memory:
    """Per-device memory of a training step.

    Attributes:
      peak_bytes: memory that the step needs.
      limit_bytes: memory that it may take.
      fits: False if the compiler refuses the step, or the peak is above the limit.
    """

    peak_bytes: int
    limit_bytes: int
    fits: bool


@dataclasses.dataclass(frozen=True)
class Need:
    """Lower bound of the memory of a config's training step: its arguments and the activations that it saves.

    Attributes:
      layers: number of layers with a backward pass, which are the last ones.
      of: returns the bound in bytes, per device.
    """

    layers: int
    of: Callable[[Remat], float]


@dataclasses.dataclass(frozen=True)
class Choice:
    """The chosen rematerialization, and the memory of all that were compiled, by name."""

    remat: Remat
    compiled: dict[Remat, Memory]


def least_remat(memory_of: Callable[[Remat], Memory], need: Need, limit_bytes: int) -> Choice:
    """Returns the first that fits of "none", "dots", and "dots:N" with the largest N; "full" if none does.

    The peak of "dots:N" is close to linear in N. So N is interpolated between peaks that are known, with at most
    `_MAX_TRIES` compilations, and may be slightly less than the largest.

    Args:
      memory_of: compiles the step and returns its memory.
      need: memory without which nothing is compiled.
      limit_bytes: memory that a step may take, as far as it is known before one is compiled.
    """
    compiled: dict[Remat, Memory] = {}

    def fits(remat: Remat) -> bool:
        compiled[remat] = memory_of(remat)
        return compiled[remat].fits

    for remat in ("none", "dots"):
        if need.of(remat) <= limit_bytes and fits(remat):
            return Choice(remat, compiled)
    if not fits("full"):
        return Choice("full", compiled)
    kept, least = 0, compiled["full"].peak_bytes
    failed, most = need.layers, least + need.of("dots") - need.of("full")
    if "dots" in compiled:
        most = compiled["dots"].peak_bytes
    for _ in range(_MAX_TRIES):
        limit = min(memory.limit_bytes for memory in compiled.values())
        a_layer = max(most - least, 1) / (failed - kept)
        more = int((limit - least) / a_layer)
        if failed - kept < 2 or (kept and not more):
            break
        guess = min(kept + max(more, 1), failed - 1)
        if fits(f"dots:{guess}"):
            kept, least = guess, compiled[f"dots:{guess}"].peak_bytes
        else:
            failed, most = guess, compiled[f"dots:{guess}"].peak_bytes
    return Choice(f"dots:{kept}" if kept else "full", compiled)


def need_of(config: TrainConfig, model: LlamaConfig, mesh: Mesh, params: Params, argument_bytes: int) -> Need:
    """Returns the `Need` of a config's training step.

    Args:
      params: parameters of the base, or `jax.ShapeDtypeStruct`s.
      argument_bytes: size of the step's arguments on one device.
    """

    def of(remat: Remat) -> float:
        cost = step_cost(dataclasses.replace(config, remat=remat), model, mesh, params)
        # Written once and read once, in each part of the accumulation. `tensor` splits most of what is saved.
        saved = cost["saved activations"].hbm_bytes / 2 / config.optim.accumulate / mesh.shape["tensor"]
        return argument_bytes + saved

    return Need(model.num_layers - first_adapted(config, model), of)


def described(choice: Choice, num_layers: int) -> str:
    """Returns a choice in words: which layers keep what, the memory, and what keeping more would need."""
    name, _, some = choice.remat.partition(":")
    text = f"{name} in {some} of {num_layers} layers" if some else name
    if (memory := choice.compiled.get(choice.remat)) is None:
        return text
    figures = f"{memory.peak_bytes / _GIB:.1f} of {memory.limit_bytes / _GIB:.1f} GiB"
    more = [(remat, each) for remat, each in choice.compiled.items() if remat in ("none", "dots") and not each.fits]
    for remat, each in more[-1:]:
        figures += f"; {remat}{' in all' if some else ''} would need {each.peak_bytes / _GIB:.1f}"
    return f"{text} ({figures})"

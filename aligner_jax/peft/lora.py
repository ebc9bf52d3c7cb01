"""LoRA (arXiv 2106.09685): a low-rank addition to any of a layer's projections."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array

from aligner_jax.errors import InputError
from aligner_jax.model.layers import Adapted
from aligner_jax.model.llama import LlamaConfig, Params
from aligner_jax.model.updates import LowRank
from aligner_jax.peft.adapter import Options
from aligner_jax.peft.bound import Bound
from aligner_jax.peft.options import check_flag, check_integer, check_number, shown

DEFAULTS = {"rank": 8, "alpha": 16, "targets": ("q", "v"), "dropout": 0.05, "rslora": False}
"""The paper's baseline. targets: any of `TARGETS`. rslora: the scale is alpha / √rank (arXiv 2312.03732) and not
alpha / rank.
"""
TARGETS = {
    "q": "q_ldnh",
    "k": "k_ldkh",
    "v": "v_ldkh",
    "o": "o_lnhd",
    "gate": "gate_ldf",
    "up": "up_ldf",
    "down": "down_lfd",
}
"""Projections, and the fields of `Layers` that hold them."""
STRENGTH = ("b_",)
"""See `aligner`."""


def check(options: Options, config: LlamaConfig | None) -> None:
    """Refuses options that cannot be had.

    Raises:
      InputError: a rank below one, an alpha or dropout out of range, no targets, or an unknown one.
    """
    check_integer(options, "rank")
    check_number(options, "alpha", above=0)
    check_number(options, "dropout", least=0, below=1)
    check_flag(options, "rslora")
    targets = options["targets"]
    for target in targets if isinstance(targets, tuple) else ():
        if not isinstance(target, str) or target not in TARGETS:
            raise InputError(f"targets holds {shown(target)}, which is not one of {', '.join(TARGETS)}")
    if not isinstance(targets, tuple) or not targets or len(set(targets)) < len(targets):
        raise InputError(f"targets is {shown(targets)}, but should be a list of different projections")


def shapes(options: Options, config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the trained arrays: rank · (inputs + outputs) numbers a layer and target."""
    found = {}
    for target in options["targets"]:
        into, out = _sides(target, config)
        found[f"a_{target}_l{_letters(target)[0]}r"] = (config.num_layers, *into, options["rank"])
        found[f"b_{target}_lr{_letters(target)[1]}"] = (config.num_layers, options["rank"], *out)
    return found


def init(options: Options, config: LlamaConfig, key: Array) -> dict[str, Array]:
    """A uniform between ±1 / √inputs (Kaiming's for a slope of √5), B zero, float32: at first the model is the base."""
    trainable = {}
    for name, shape in shapes(options, config).items():
        key, own = jax.random.split(key)
        bound = math.prod(shape[1:-1]) ** -0.5
        is_a = name.startswith("a_")
        trainable[name] = jax.random.uniform(own, shape, minval=-bound, maxval=bound) if is_a else jnp.zeros(shape)
    return trainable


def bind(
    trainable: dict[str, Array], options: Options, params: Params, config: LlamaConfig, dropout_key: Array | None = None
) -> Bound:
    """The factors beside each target's weight.

    Args:
      dropout_key: in training, a key of this step; without one nothing is dropped.
    """
    scale = options["alpha"] / (math.sqrt(options["rank"]) if options["rslora"] else options["rank"])
    dropout = options["dropout"] if dropout_key is not None else 0.0
    updates = {}
    for number, target in enumerate(options["targets"]):
        into, out = _letters(target)
        keys = None
        if dropout_key is not None and dropout:
            keys = jax.random.split(jax.random.fold_in(dropout_key, number), config.num_layers)
        updates[TARGETS[target]] = LowRank(
            a=trainable[f"a_{target}_l{into}r"],
            b=trainable[f"b_{target}_lr{out}"],
            scale=scale,
            dropout=dropout,
            keys=keys,
        )
    return Bound(adapted=(Adapted(range(config.num_layers), updates=updates),))


def _letters(target: str) -> tuple[str, str]:
    """The axes that a projection sums over, and those of its result."""
    axes = TARGETS[target].partition("_l")[2]
    return ("nh", "d") if target == "o" else (axes[0], axes[1:])


def _sides(target: str, config: LlamaConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
    sizes = {
        "d": config.d_model, "n": config.num_heads, "k": config.num_kv_heads, "h": config.head_dim, "f": config.d_mlp,
    }  # fmt: skip
    into, out = _letters(target)
    return tuple(sizes[axis] for axis in into), tuple(sizes[axis] for axis in out)

"""LoRA (arXiv 2106.09685): a low-rank update of any of a layer's projections."""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array

from aligner_jax.errors import InputError
from aligner_jax.files.fields import MAX_INTEGER, MAX_NUMBER
from aligner_jax.model.layers import Adapted
from aligner_jax.model.llama import LlamaConfig, Params
from aligner_jax.model.updates import LowRank
from aligner_jax.peft.adapter import Method, Options, scaled
from aligner_jax.peft.bound import Bound
from aligner_jax.runtime.fields import number
from aligner_jax.runtime.roofline import AdapterCost

Target = Literal["q", "k", "v", "o", "gate", "up", "down"]
TARGETS: dict[Target, str] = {
    "q": "q_ldnh",
    "k": "k_ldkh",
    "v": "v_ldkh",
    "o": "o_lnhd",
    "gate": "gate_ldf",
    "up": "up_ldf",
    "down": "down_lfd",
}
"""Fields of `Layers` by the name of the projection."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraOptions(Options):
    """Options of a LoRA; the defaults are the paper's baseline.

    Attributes:
      rank: r, the rank of the update.
      alpha: numerator of the scale.
      targets: names of different projections.
      dropout: dropout rate of the low-rank path's inputs in training.
      rslora: True for scale alpha / √rank (arXiv 2312.03732), False for alpha / rank.
    """

    rank: int = number(8, least=1, most=MAX_INTEGER)
    # An integer stays an integer, so that saved files do not change.
    alpha: int | float = number(16, above=0, most=MAX_NUMBER)
    targets: tuple[Target, ...] = ("q", "v")
    dropout: int | float = number(0.05, least=0, below=1)
    rslora: bool = False

    @property
    def scale(self) -> float:
        """Factor of the product A B."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def check(self, config: LlamaConfig | None) -> None:
        """Raises InputError if targets is empty or has duplicates."""
        if not self.targets or len(set(self.targets)) < len(self.targets):
            raise InputError(f"targets is {self.targets}, but should be a list of different projections")


def shapes(options: LoraOptions, config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the trained arrays: rank · (inputs + outputs) parameters per layer and target."""
    found = {}
    for target in options.targets:
        into, out = _sides(target, config)
        found[f"a_{target}_l{_letters(target)[0]}r"] = (config.num_layers, *into, options.rank)
        found[f"b_{target}_lr{_letters(target)[1]}"] = (config.num_layers, options.rank, *out)
    return found


def init(options: LoraOptions, config: LlamaConfig, key: Array) -> dict[str, Array]:
    """Returns A uniform in ±1 / √inputs (Kaiming with a = √5) and B zero, so that the model equals the base."""
    trainable = {}
    for name, shape in shapes(options, config).items():
        key, own = jax.random.split(key)
        bound = math.prod(shape[1:-1]) ** -0.5
        is_a = name.startswith("a_")
        trainable[name] = jax.random.uniform(own, shape, minval=-bound, maxval=bound) if is_a else jnp.zeros(shape)
    return trainable


def bind(
    trainable: dict[str, Array],
    options: LoraOptions,
    params: Params,
    config: LlamaConfig,
    dropout_key: Array | None = None,
) -> Bound:
    """Returns the factors as updates of the targets' weights.

    Args:
      trainable: trained arrays.
      options: options of the LoRA.
      params: parameters of the base; not used.
      config: configuration of the base.
      dropout_key: a `jax.random.key` of this training step; None applies no dropout.
    """
    dropout = options.dropout if dropout_key is not None else 0.0
    updates = {}
    for index, target in enumerate(options.targets):
        into, out = _letters(target)
        keys = None
        if dropout_key is not None and dropout:
            keys = jax.random.split(jax.random.fold_in(dropout_key, index), config.num_layers)
        updates[TARGETS[target]] = LowRank(
            a=trainable[f"a_{target}_l{into}r"],
            b=trainable[f"b_{target}_lr{out}"],
            scale=options.scale,
            dropout=dropout,
            keys=keys,
        )
    return Bound(adapted=(Adapted(range(config.num_layers), updates=updates),))


def cost(options: LoraOptions, config: LlamaConfig) -> AdapterCost:
    """Returns the cost of a backward pass of every layer, and of all factors for each token."""
    factors = sum(math.prod(shape[1:]) for shape in shapes(options, config).values())
    return AdapterCost(trained_weights=factors)


def _letters(target: Target) -> tuple[str, str]:
    """Returns the axes that a projection sums over, and those of its result."""
    axes = TARGETS[target].partition("_l")[2]
    return ("nh", "d") if target == "o" else (axes[0], axes[1:])


def _sides(target: Target, config: LlamaConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
    sizes = {
        "d": config.d_model, "n": config.num_heads, "k": config.num_kv_heads, "h": config.head_dim, "f": config.d_mlp,
    }  # fmt: skip
    into, out = _letters(target)
    return tuple(sizes[axis] for axis in into), tuple(sizes[axis] for axis in out)


LORA = Method(options=LoraOptions, shapes=shapes, init=init, bind=bind, cost=cost, with_strength=scaled("b_"))
